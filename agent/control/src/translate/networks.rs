//! Networks: which one a pod is on, and by which gateway the pods of others come to it (Istio contract 1.2, step 6).
//!
//! Where nothing is labelled there is one network, and none of this. A gateway is a Service with a network's label, whose pods are in the
//! mesh: their node's proxy passes on what comes from other networks, so that nothing needs to run in them.

use std::collections::{BTreeMap, BTreeSet};

use mesh::gateway::GatewayDestination;
use mesh::workload::TunnelProtocol;
use mesh::{GatewayAddress, Network, NetworkAddress, Service, ServiceName, Workload, ports};

use super::service::Translated;
use super::{Surroundings, Warnings};
use crate::manifests::Pod;

/// On a pod or, for all pods of a node, on the node: its network. On a Service: the network that it is the gateway of.
const NETWORK: &str = "topology.istio.io/network";

/// The pod's network.
pub(super) fn of_pod(pod: &Pod, surroundings: &Surroundings<'_>) -> Network {
    let label = pod.metadata.label(NETWORK).or_else(|| surroundings.node_label(&pod.node, NETWORK));
    label.map(Network::from).unwrap_or_default()
}

/// The Services that are gateways, by their networks; of several for one network the first by name.
pub(super) fn gateways(
    services: &[Translated<'_>],
    warnings: &mut Warnings,
) -> BTreeMap<Network, ServiceName> {
    let mut gateways = BTreeMap::<Network, ServiceName>::new();
    for (metadata, service) in services.iter().map(Translated::parts) {
        let Some(network) = metadata.label(NETWORK) else { continue };
        if !service.ports.contains_key(&ports::HBONE) {
            let message = format!("label {NETWORK}: without port {} it is no gateway", ports::HBONE);
            warnings.add("Service", metadata, message);
            continue;
        }
        let first = gateways.entry(network.into()).or_insert_with(|| service.name.clone());
        if service.name < *first {
            *first = service.name.clone();
        }
    }
    gateways
}

/// Tells of each workload how others come to it, of each service that it is had on all networks, and of those that have endpoints behind
/// a gateway who these may be: the client does not see which one it is led to.
pub(super) fn connect(
    gateways: &BTreeMap<Network, ServiceName>,
    workloads: &mut [Workload],
    services: &mut [Service],
) {
    let networks: BTreeSet<Network> = workloads.iter().map(|workload| workload.network.clone()).collect();
    if networks.iter().all(|network| *network == Network::default()) {
        return;
    }
    let mut behind = BTreeSet::new();
    for workload in workloads.iter_mut() {
        let gateway = gateways.get(&workload.network);
        if let Some(gateway) = gateway.filter(|gateway| !workload.services.contains_key(gateway)) {
            behind.extend(workload.services.keys().cloned());
            let destination = GatewayDestination::Hostname(gateway.clone());
            workload.network_gateway =
                Some(Box::new(GatewayAddress { destination, hbone_port: ports::HBONE }));
        }
    }
    let mut identities: BTreeMap<&ServiceName, BTreeSet<String>> = BTreeMap::new();
    for workload in workloads.iter().filter(|workload| workload.tunnel_protocol == TunnelProtocol::Hbone) {
        for name in workload.services.keys().filter(|name| behind.contains(name)) {
            identities.entry(name).or_default().insert(workload.identity().to_string());
        }
    }
    for service in services {
        let own = std::mem::take(&mut service.vips);
        let on_all = own.iter().flat_map(|vip| {
            networks.iter().map(|network| NetworkAddress { network: network.clone(), ip: vip.ip })
        });
        service.vips = on_all.collect();
        service.subject_alt_names =
            identities.get(&service.name).map(|all| all.iter().cloned().collect()).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Settings, Translation, translate};
    use crate::manifests::Objects;

    fn of(text: &str) -> Translation {
        translate(&Objects::read(Path::new("a.yaml"), text).unwrap(), &Settings::default())
    }

    fn pod(name: &str, node: &str, ip: u8, labels: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}, istio.io/dataplane-mode: ambient{labels}}}}}\n\
             spec: {{nodeName: {node}, serviceAccountName: {name}}}\n\
             status: {{podIPs: [{{ip: 10.2.0.{ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n---\n"
        )
    }

    fn service(name: &str, ip: u8, port: u16, labels: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
             spec: {{clusterIP: 10.1.0.{ip}, selector: {{app: {name}}}, ports: [{{port: {port}}}]}}\n---\n"
        )
    }

    const WEST: &str =
        "apiVersion: v1\nkind: Node\nmetadata: {name: west, labels: {topology.istio.io/network: far}}\n---\n";
    const FAR: &str = "topology.istio.io/network: far";

    #[test]
    fn the_pods_of_a_labelled_node_are_behind_the_gateway_of_its_network_and_services_are_had_on_all() {
        let text = [
            WEST.to_owned(),
            pod("client", "east", 1, ""),
            pod("server", "west", 2, ""),
            pod("gate", "west", 3, ""),
            pod("moved", "west", 4, ", topology.istio.io/network: other"),
            service("server", 1, 80, ""),
            service("gate", 2, 15008, FAR),
        ];
        let translation = of(&text.concat());
        let gateway = |name: &str| {
            let workload = translation.workloads.iter().find(|workload| workload.name == name).unwrap();
            let gateway =
                workload.network_gateway.as_ref().map(|gateway| format!("{:?}", gateway.destination));
            (workload.network.to_string(), gateway.is_some_and(|gateway| gateway.contains("gate.shop.svc")))
        };
        assert_eq!(gateway("client"), (String::new(), false));
        assert_eq!(gateway("server"), ("far".to_owned(), true));
        assert_eq!(gateway("gate"), ("far".to_owned(), false), "it is not behind itself");
        assert_eq!(gateway("moved"), ("other".to_owned(), false), "nothing leads there");
        let service = translation.services.iter().find(|service| service.short_name == "server").unwrap();
        let vips: Vec<_> = service.vips.iter().map(|vip| format!("{}/{}", vip.network, vip.ip)).collect();
        assert_eq!(vips, ["/10.1.0.1", "far/10.1.0.1", "other/10.1.0.1"]);
        assert_eq!(service.subject_alt_names, ["spiffe://cluster.local/ns/shop/sa/server"]);
    }

    #[test]
    fn without_a_label_there_is_one_network_and_services_name_nobody() {
        let translation = of(&[pod("server", "west", 2, ""), service("server", 1, 80, "")].concat());
        let service = &translation.services[0];
        assert_eq!((service.vips.len(), service.subject_alt_names.len()), (1, 0));
        assert!(translation.workloads[0].network_gateway.is_none());
    }

    #[test]
    fn a_gateway_without_the_port_of_the_mesh_is_none_and_says_so() {
        let text = [WEST.to_owned(), pod("server", "west", 2, ""), service("gate", 2, 80, FAR)];
        let translation = of(&text.concat());
        assert!(translation.workloads[0].network_gateway.is_none());
        let warned =
            translation.warnings.iter().any(|warning| warning.message.contains("without port 15008"));
        assert!(warned, "{:?}", translation.warnings);
    }
}
