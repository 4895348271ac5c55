//! Services, and which pods stand behind them.

use std::collections::{BTreeMap, HashMap};

use mesh::service::{LoadBalancing, Mode, PortMap, Scope, ServiceName, Visibility};
use mesh::{Network, NetworkAddress, Service};

use super::waypoint::{LabelsOf, waypoint};
use super::{Settings, Surroundings, Warnings, selects};
use crate::manifests::{self, Metadata, Objects, Pod, PortReference};

/// On a Service or its namespace: the older spelling of `spec.trafficDistribution`.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// A service and the manifest it came from.
pub(super) struct Translated<'a> {
    pub(super) service: Service,
    pub(super) manifest: &'a manifests::Service,
}

/// Every service that has endpoints of its own.
pub(super) fn services<'a>(
    objects: &'a Objects,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    warnings: &mut Warnings,
) -> Vec<Translated<'a>> {
    let internal = |service: &&manifests::Service| !service.external_name;
    for service in objects.services.iter().filter(|service| service.external_name) {
        warnings.add(
            "Service",
            &service.metadata,
            "type ExternalName: left to DNS; calls to it are outside the mesh",
        );
    }
    let translate =
        |manifest| Translated { service: service(manifest, surroundings, settings, warnings), manifest };
    objects.services.iter().filter(internal).map(translate).collect()
}

fn service(
    manifest: &manifests::Service,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    warnings: &mut Warnings,
) -> Service {
    let metadata = &manifest.metadata;
    let hostname = format!("{}.{}.svc.{}", metadata.name, metadata.namespace, settings.cluster_domain);
    let labels = LabelsOf::ObjectOrNamespace;
    let waypoint = waypoint("Service", metadata, labels, surroundings, settings, warnings);
    if manifest.client_affinity {
        warnings.add(
            "Service",
            metadata,
            "sessionAffinity: ClientIP is not supported; each connection is balanced by itself",
        );
    }
    if !manifest.other_ports.is_empty() {
        let message = format!("ports {:?} are not TCP: the mesh does not carry them", manifest.other_ports);
        warnings.add("Service", metadata, message);
    }
    let target = |target: &PortReference| match target {
        PortReference::Number(number) => *number,
        PortReference::Name(_) => 0,
    };
    Service {
        name: ServiceName { namespace: metadata.namespace.as_str().into(), hostname: hostname.into() },
        short_name: metadata.name.clone(),
        vips: manifest
            .addresses
            .iter()
            .map(|ip| NetworkAddress { network: Network::default(), ip: *ip })
            .collect(),
        cidr_vips: Vec::new(),
        ip_families: manifest.ip_families,
        ports: manifest.ports.iter().map(|port| (port.port, target(&port.target))).collect(),
        subject_alt_names: Vec::new(),
        load_balancing: load_balancing(manifest, surroundings, warnings),
        canonical: true,
        visibility: Visibility::Public,
        waypoint,
        weighted_waypoints: Vec::new(),
    }
}

/// Istio contract 1.9. `internalTrafficPolicy: Local` beats a preference.
fn load_balancing(
    manifest: &manifests::Service,
    surroundings: &Surroundings<'_>,
    warnings: &mut Warnings,
) -> LoadBalancing {
    let metadata = &manifest.metadata;
    let namespace = surroundings.namespaces.get(metadata.namespace.as_str());
    let stated = manifest
        .traffic_distribution
        .as_deref()
        .or_else(|| metadata.annotation(TRAFFIC_DISTRIBUTION))
        .or_else(|| namespace.and_then(|namespace| namespace.annotation(TRAFFIC_DISTRIBUTION)));
    let preference = match stated {
        None | Some("Any") => Vec::new(),
        Some("PreferClose" | "PreferSameZone") => vec![Scope::Network, Scope::Region, Scope::Zone],
        Some("PreferSameNode") => {
            vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node]
        }
        Some(other) => {
            warnings.add(
                "Service",
                metadata,
                format!("trafficDistribution: `{other}` is not known; endpoints are chosen evenly"),
            );
            Vec::new()
        }
    };
    let (routing_preference, mode) = if manifest.internal_local {
        (vec![Scope::Node], Mode::Strict)
    } else {
        (preference, Mode::Failover)
    };
    LoadBalancing { routing_preference, mode, allow_unhealthy: manifest.publish_not_ready }
}

/// A namespace, and a label and its value in it.
type Labelled<'a> = (&'a str, &'a str, &'a str);

/// Services by a label each that they select, so that a pod is held only against those whose label it has: pods times services would
/// be a hundred million in a mesh of ten thousand of both.
pub(super) struct Selectors<'a> {
    services: &'a [Translated<'a>],
    by_label: HashMap<Labelled<'a>, Vec<usize>>,
}

impl<'a> Selectors<'a> {
    /// Each service is found by the one of its labels that the fewest select: all of an installation may share the others.
    pub(super) fn of(services: &'a [Translated<'a>]) -> Self {
        let mut counts: HashMap<Labelled<'a>, usize> = HashMap::new();
        for label in services.iter().flat_map(Translated::selected) {
            *counts.entry(label).or_default() += 1;
        }
        let mut by_label: HashMap<Labelled<'a>, Vec<usize>> = HashMap::new();
        for (number, service) in services.iter().enumerate() {
            if let Some(label) = service.selected().min_by_key(|label| counts.get(label)) {
                by_label.entry(label).or_default().push(number);
            }
        }
        Self { services, by_label }
    }

    /// Those that may select the pod, in the order of the manifests.
    fn candidates(&self, pod: &Pod) -> impl Iterator<Item = &'a Translated<'a>> {
        let namespace = pod.metadata.namespace.as_str();
        let labels = pod.metadata.labels.iter();
        let found =
            labels.filter_map(|(key, value)| self.by_label.get(&(namespace, key.as_str(), value.as_str())));
        let mut numbers: Vec<usize> = found.flatten().copied().collect();
        numbers.sort_unstable();
        let services = self.services;
        numbers.into_iter().map(move |number| &services[number])
    }
}

impl<'a> Translated<'a> {
    /// The manifest's metadata and what it means.
    pub(super) fn parts(&self) -> (&'a Metadata, &Service) {
        (&self.manifest.metadata, &self.service)
    }

    fn selected(&self) -> impl Iterator<Item = Labelled<'a>> {
        let manifest = self.manifest;
        let label = |(key, value): (&'a String, &'a String)| {
            (manifest.metadata.namespace.as_str(), key.as_str(), value.as_str())
        };
        manifest.selector.iter().map(label)
    }
}

/// The services the pod is an endpoint of, with its own ports for each. Readiness is the workload's, not decided here.
pub(super) fn memberships(
    pod: &Pod,
    selectors: &Selectors<'_>,
    warnings: &mut Warnings,
) -> BTreeMap<ServiceName, PortMap> {
    let mut memberships = BTreeMap::new();
    for Translated { service, manifest } in selectors.candidates(pod) {
        if !selects(&manifest.selector, &pod.metadata.labels) {
            continue;
        }
        let mut ports = PortMap::new();
        for port in &manifest.ports {
            let target = match &port.target {
                PortReference::Number(number) => Some(*number),
                PortReference::Name(name) => {
                    pod.named_ports.iter().find(|known| known.name == *name).map(|known| known.port)
                }
            };
            match target {
                Some(target) => {
                    ports.insert(port.port, target);
                }
                None => {
                    let message = format!(
                        "has no TCP port named as the target of port {} of Service {}: it is no endpoint of that port",
                        port.port, service.short_name
                    );
                    warnings.add("Pod", &pod.metadata, message);
                }
            }
        }
        memberships.insert(service.name.clone(), ports);
    }
    memberships
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service, and for each a pod that it selects by `app`; all share a label, as what one chart installs does.
    fn text(count: u32) -> String {
        let one = |number: u32| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: shop}}\n\
                 spec: {{clusterIP: 10.1.0.{number}, selector: {{a: same, app: s{number}}}, ports: [{{port: 80}}]}}\n---\n\
                 apiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}, namespace: shop, labels: {{a: same, app: s{number}}}}}\n\
                 spec: {{nodeName: east}}\n\
                 status: {{podIPs: [{{ip: 10.2.0.{number}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n---\n"
            )
        };
        (1..=count).map(one).collect()
    }

    #[test]
    fn a_pod_is_held_only_against_services_that_ask_for_what_tells_it_from_others() {
        let objects = Objects::read(std::path::Path::new("a.yaml"), &text(200)).unwrap();
        let (settings, mut warnings) = (Settings::default(), Warnings::default());
        let services = services(&objects, &Surroundings::of(&objects), &settings, &mut warnings);
        let selectors = Selectors::of(&services);
        for pod in &objects.pods {
            assert_eq!(selectors.candidates(pod).count(), 1, "{}", pod.metadata.name);
            let memberships = memberships(pod, &selectors, &mut warnings);
            let expected = pod.metadata.name.replace('p', "s") + ".shop.svc.cluster.local";
            let names: Vec<_> = memberships.keys().map(|name| name.hostname.to_string()).collect();
            assert_eq!(names, [expected]);
        }
    }
}
