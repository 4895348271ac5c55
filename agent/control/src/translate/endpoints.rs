//! Endpoints that EndpointSlices name, of Services that select no pods: pods by their addresses, and workloads that nothing else tells of.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use mesh::service::{PortMap, ServiceName};
use mesh::workload::{Health, NetworkMode, TunnelProtocol, WorkloadType};
use mesh::{Network, Workload};

use super::service::Translated;
use super::workload::locality_of;
use super::{Settings, Surroundings, Warnings};
use crate::manifests::{Endpoint, EndpointSlice, Objects, Service};

/// Adds the Services to their endpoints among `workloads`, and endpoints that are missing there.
pub(super) fn add(
    objects: &Objects,
    services: &[Translated<'_>],
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    workloads: &mut Vec<Workload>,
    warnings: &mut Warnings,
) {
    let without_selector: Vec<_> =
        services.iter().filter(|service| service.manifest.selector.is_empty()).collect();
    let by_name: HashMap<(&str, &str), &Translated<'_>> = without_selector
        .iter()
        .map(|service| {
            let metadata = &service.manifest.metadata;
            ((metadata.namespace.as_str(), metadata.name.as_str()), *service)
        })
        .collect();
    if by_name.is_empty() {
        return;
    }
    let mut by_address: HashMap<IpAddr, usize> = HashMap::new();
    for (index, workload) in workloads.iter().enumerate() {
        if workload.network_mode != NetworkMode::HostNetwork {
            by_address.extend(workload.addresses.iter().map(|address| (*address, index)));
        }
    }
    let mut named = HashSet::new();
    for slice in &objects.endpoint_slices {
        let namespace = slice.metadata.namespace.as_str();
        let Some(service) = slice.service().and_then(|name| by_name.get(&(namespace, name))) else {
            continue;
        };
        let ports = ports(slice, service.manifest);
        named.insert(&service.service.name);
        for endpoint in &slice.endpoints {
            let Some(address) = endpoint.addresses.first() else { continue };
            let index = *by_address.entry(*address).or_insert_with(|| {
                workloads.push(workload(slice, endpoint, *address, surroundings, settings));
                workloads.len() - 1
            });
            join(&mut workloads[index].services, &service.service.name, &ports);
        }
    }
    for service in without_selector.iter().filter(|service| !named.contains(&service.service.name)) {
        let message = "has no selector, and no EndpointSlice is its: it has no endpoints";
        warnings.add("Service", &service.manifest.metadata, message);
    }
}

fn join(services: &mut BTreeMap<ServiceName, PortMap>, name: &ServiceName, ports: &PortMap) {
    services.entry(name.clone()).or_default().extend(ports.iter().map(|(port, target)| (*port, *target)));
}

/// The Service's ports to the slice's, by their names.
fn ports(slice: &EndpointSlice, service: &Service) -> PortMap {
    let target = |name: &str| slice.ports.iter().find(|port| port.name == name).map(|port| port.port);
    let ports = service.ports.iter();
    ports.filter_map(|port| target(&port.name).map(|target| (port.port, target))).collect()
}

/// An endpoint that is no pod: it has no identity and is reached as it is.
fn workload(
    slice: &EndpointSlice,
    endpoint: &Endpoint,
    address: IpAddr,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Workload {
    let metadata = &slice.metadata;
    let (cluster, namespace, name) = (&settings.cluster_id, &metadata.namespace, &metadata.name);
    Workload {
        uid: format!("{cluster}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}").into(),
        name: name.clone(),
        namespace: namespace.as_str().into(),
        trust_domain: settings.trust_domain.clone(),
        service_account: String::new().into(),
        network: Network::default(),
        addresses: vec![address],
        tunnel_protocol: TunnelProtocol::None,
        network_mode: NetworkMode::Standard,
        node: endpoint.node.clone(),
        canonical_name: name.clone(),
        canonical_revision: "latest".to_owned(),
        workload_type: WorkloadType::Pod,
        workload_name: name.clone(),
        cluster_id: cluster.clone(),
        locality: locality_of(&endpoint.node, surroundings),
        health: if endpoint.ready { Health::Healthy } else { Health::Unhealthy },
        capacity: 1,
        services: BTreeMap::new(),
        authorization_policies: Vec::new(),
        waypoint: None,
        network_gateway: None,
        hostname: None,
        application_tunnel: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::translate;
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
        spec: {clusterIP: 10.1.0.1, ports: [{name: sql, port: 5432}, {name: other, port: 1}]}\n---\n";
    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {nodeName: east}\n\
        status: {podIPs: [{ip: 10.2.0.1}], conditions: [{type: Ready, status: \"True\"}]}\n---\n";

    fn slice(service: &str, more: &str) -> String {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: db-1, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             endpoints: [{{addresses: [10.2.0.1]}}, {{addresses: [192.0.2.7]{more}}}]\n\
             ports: [{{name: sql, port: 15432}}, {{name: udp, port: 9, protocol: UDP}}]\n---\n"
        )
    }

    fn workloads(text: &str) -> Vec<Workload> {
        let objects = Objects::read(Path::new("a.yaml"), text).unwrap_or_else(|errors| panic!("{errors:?}"));
        translate(&objects, &Settings::default()).workloads
    }

    fn joined(workload: &Workload) -> Vec<(String, Vec<(u16, u16)>)> {
        let ports = |ports: &PortMap| ports.iter().map(|(port, target)| (*port, *target)).collect();
        workload.services.iter().map(|(name, map)| (name.hostname.to_string(), ports(map))).collect()
    }

    #[test]
    fn a_service_without_a_selector_has_the_endpoints_that_its_slices_name() {
        let text = format!("{SERVICE}{POD}{}", slice("db", ", conditions: {ready: false}"));
        let [pod, outside] = &workloads(&text)[..] else { panic!("two workloads") };
        let expected = [("db.shop.svc.cluster.local".to_owned(), vec![(5432, 15432)])];
        assert_eq!((pod.name.as_str(), joined(pod).as_slice()), ("p", expected.as_slice()));
        assert_eq!(outside.uid.as_str(), "Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.7");
        assert_eq!(joined(outside), expected);
        assert_eq!((outside.health, outside.tunnel_protocol), (Health::Unhealthy, TunnelProtocol::None));
    }

    #[test]
    fn slices_of_no_service_or_of_one_that_selects_pods_say_nothing() {
        let selecting = SERVICE.replace("spec: {", "spec: {selector: {app: none}, ");
        for text in
            [format!("{selecting}{POD}{}", slice("db", "")), format!("{SERVICE}{POD}{}", slice("x", ""))]
        {
            let workloads = workloads(&text);
            assert_eq!(workloads.len(), 1, "{text}");
            assert!(workloads[0].services.is_empty());
        }
    }
}
