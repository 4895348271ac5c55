//! Services, and which pods stand behind them.

use std::collections::BTreeMap;

use mesh::service::{LoadBalancing, Mode, PortMap, Scope, ServiceName};
use mesh::{Network, NetworkAddress, Service};

use super::workload::USE_WAYPOINT;
use super::{Settings, Surroundings, Warnings, selects};
use crate::manifests::{self, Objects, Pod, PortReference};

/// On a Service or its namespace: the older spelling of `spec.trafficDistribution`.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// A service and the manifest it came from.
pub(super) struct Translated<'a> {
    pub(super) service: Service,
    manifest: &'a manifests::Service,
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
    let waypoint = metadata
        .label(USE_WAYPOINT)
        .or_else(|| surroundings.namespace_label(&metadata.namespace, USE_WAYPOINT))
        .filter(|waypoint| *waypoint != "none");
    if let Some(waypoint) = waypoint {
        let message = format!(
            "{USE_WAYPOINT}: {waypoint}: this build has no waypoints; calls to the service are refused"
        );
        warnings.add("Service", metadata, message);
    }
    if manifest.selector.is_empty() {
        warnings.add(
            "Service",
            metadata,
            "has no selector, and EndpointSlices are not read: it has no endpoints",
        );
    }
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
        ports: manifest.ports.iter().map(|port| (port.port, target(&port.target))).collect(),
        subject_alt_names: Vec::new(),
        load_balancing: load_balancing(manifest, surroundings, warnings),
        has_waypoint: waypoint.is_some(),
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

/// The services the pod is an endpoint of, with its own ports for each. Readiness is the workload's, not decided here.
pub(super) fn memberships(
    pod: &Pod,
    services: &[Translated<'_>],
    warnings: &mut Warnings,
) -> BTreeMap<ServiceName, PortMap> {
    let mut memberships = BTreeMap::new();
    for Translated { service, manifest } in services {
        let same = manifest.metadata.namespace == pod.metadata.namespace;
        if !same || manifest.selector.is_empty() || !selects(&manifest.selector, &pod.metadata.labels) {
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
