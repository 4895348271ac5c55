//! Services.

use mesh::gateway::WeightedWaypoint;
use mesh::service::{IpFamilies, LoadBalancing, Mode, Scope, Visibility};
use mesh::{NetworkAddress, NetworkRange, Service, ServiceName};

use super::gateway::{gateway_from_proto, gateway_to_proto};
use super::workload::{port_map, ports_to_proto};
use super::{ConvertError, address, address_to_bytes, range};
use crate::proto::workload as proto;

/// Reads a service.
pub fn service_from_proto(service: proto::Service) -> Result<Service, ConvertError> {
    for (field, value) in [("namespace", &service.namespace), ("hostname", &service.hostname)] {
        if value.is_empty() {
            return Err(ConvertError::Missing(field));
        }
    }
    // By its resource's name it is removed again, so that name has to mean it.
    let name = format!("{}/{}", service.namespace, service.hostname);
    let name: ServiceName = name.parse().map_err(|_| ConvertError::Name {
        field: "hostname",
        value: name,
        wanted: "host name in a namespace",
    })?;
    let (vips, cidr_vips) = virtual_addresses(service.addresses)?;
    Ok(Service {
        name,
        short_name: service.name,
        vips,
        cidr_vips,
        ip_families: ip_families(service.ip_families),
        ports: port_map("ports", &service.ports)?,
        subject_alt_names: service.subject_alt_names,
        load_balancing: service.load_balancing.map(load_balancing).unwrap_or_default(),
        canonical: service.canonical,
        visibility: match proto::Visibility::try_from(service.visibility) {
            Ok(proto::Visibility::Public) => Visibility::Public,
            Ok(proto::Visibility::Namespace) | Err(_) => Visibility::Namespace,
        },
        waypoint: service.waypoint.map(|one| gateway_from_proto("waypoint", one)).transpose()?,
        weighted_waypoints: service
            .weighted_waypoints
            .into_iter()
            .map(weighted_waypoint)
            .collect::<Result<_, _>>()?,
    })
}

/// Families that are not known are whatever the addresses are of.
fn ip_families(wire: i32) -> IpFamilies {
    match proto::IpFamilies::try_from(wire) {
        Ok(proto::IpFamilies::Ipv4Only) => IpFamilies::V4Only,
        Ok(proto::IpFamilies::Ipv6Only) => IpFamilies::V6Only,
        Ok(proto::IpFamilies::Dual) => IpFamilies::Dual,
        Ok(proto::IpFamilies::Automatic) | Err(_) => IpFamilies::Automatic,
    }
}

/// A prefix of the whole address, or none, is an address; any other is a range.
fn virtual_addresses(
    wire: Vec<proto::NetworkAddress>,
) -> Result<(Vec<NetworkAddress>, Vec<NetworkRange>), ConvertError> {
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for one in wire {
        let network = one.network.into();
        match one.length {
            None => vips.push(NetworkAddress { network, ip: address("addresses", &one.address)? }),
            Some(length) => {
                let found = range("addresses", &one.address, length)?;
                if found.prefix_len() == found.max_prefix_len() {
                    vips.push(NetworkAddress { network, ip: found.addr() });
                } else {
                    ranges.push(NetworkRange::new(network, found));
                }
            }
        }
    }
    Ok((vips, ranges))
}

/// One without a destination has one that is not known, so that its share is refused and not given to the others.
fn weighted_waypoint(wire: proto::WeightedWaypoint) -> Result<WeightedWaypoint, ConvertError> {
    let destination = gateway_from_proto("weighted_waypoints", wire.destination.unwrap_or_default())?;
    Ok(WeightedWaypoint { destination, weight: wire.weight })
}

/// A mode that is not stated or not known means no preference at all.
fn load_balancing(wire: proto::LoadBalancing) -> LoadBalancing {
    use proto::load_balancing as lb;
    let preference = wire.routing_preference.iter().filter_map(|scope| scope_from_proto(*scope)).collect();
    let (mode, routing_preference) = match lb::Mode::try_from(wire.mode) {
        Ok(lb::Mode::Strict) => (Mode::Strict, preference),
        Ok(lb::Mode::Failover) => (Mode::Failover, preference),
        Ok(lb::Mode::Passthrough) => (Mode::Passthrough, preference),
        Ok(lb::Mode::UnspecifiedMode) | Err(_) => (Mode::Failover, Vec::new()),
    };
    let allow_unhealthy = wire.health_policy == lb::HealthPolicy::AllowAll as i32;
    LoadBalancing { routing_preference, mode, allow_unhealthy }
}

fn scope_from_proto(scope: i32) -> Option<Scope> {
    use proto::load_balancing::Scope as Wire;
    match Wire::try_from(scope).ok()? {
        Wire::Region => Some(Scope::Region),
        Wire::Zone => Some(Scope::Zone),
        Wire::Subzone => Some(Scope::Subzone),
        Wire::Node => Some(Scope::Node),
        Wire::Cluster => Some(Scope::Cluster),
        Wire::Network => Some(Scope::Network),
        Wire::UnspecifiedScope => None,
    }
}

/// Writes a service.
pub fn service_to_proto(service: &Service) -> proto::Service {
    proto::Service {
        name: service.short_name.clone(),
        namespace: service.name.namespace.to_string(),
        hostname: service.name.hostname.to_string(),
        addresses: addresses_to_proto(service),
        ports: ports_to_proto(&service.ports),
        ip_families: match service.ip_families {
            IpFamilies::Automatic => proto::IpFamilies::Automatic,
            IpFamilies::V4Only => proto::IpFamilies::Ipv4Only,
            IpFamilies::V6Only => proto::IpFamilies::Ipv6Only,
            IpFamilies::Dual => proto::IpFamilies::Dual,
        }
        .into(),
        subject_alt_names: service.subject_alt_names.clone(),
        waypoint: service.waypoint.as_ref().map(gateway_to_proto),
        load_balancing: Some(load_balancing_to_proto(&service.load_balancing)),
        canonical: service.canonical,
        weighted_waypoints: service
            .weighted_waypoints
            .iter()
            .map(|one| proto::WeightedWaypoint {
                destination: Some(gateway_to_proto(&one.destination)),
                weight: one.weight,
            })
            .collect(),
        visibility: match service.visibility {
            Visibility::Public => proto::Visibility::Public,
            Visibility::Namespace => proto::Visibility::Namespace,
        }
        .into(),
        ..proto::Service::default()
    }
}

fn addresses_to_proto(service: &Service) -> Vec<proto::NetworkAddress> {
    let vips = service.vips.iter().map(|vip| proto::NetworkAddress {
        network: vip.network.to_string(),
        address: address_to_bytes(vip.ip),
        length: None,
    });
    let ranges = service.cidr_vips.iter().map(|range| proto::NetworkAddress {
        network: range.network().to_string(),
        address: address_to_bytes(range.range().addr()),
        length: Some(range.range().prefix_len().into()),
    });
    vips.chain(ranges).collect()
}

fn load_balancing_to_proto(balancing: &LoadBalancing) -> proto::LoadBalancing {
    use proto::load_balancing as lb;
    let scope = |scope: &Scope| match scope {
        Scope::Region => lb::Scope::Region,
        Scope::Zone => lb::Scope::Zone,
        Scope::Subzone => lb::Scope::Subzone,
        Scope::Node => lb::Scope::Node,
        Scope::Cluster => lb::Scope::Cluster,
        Scope::Network => lb::Scope::Network,
    };
    proto::LoadBalancing {
        routing_preference: balancing.routing_preference.iter().map(|one| scope(one).into()).collect(),
        mode: match balancing.mode {
            Mode::Strict => lb::Mode::Strict,
            Mode::Failover => lb::Mode::Failover,
            Mode::Passthrough => lb::Mode::Passthrough,
        }
        .into(),
        health_policy: if balancing.allow_unhealthy {
            lb::HealthPolicy::AllowAll
        } else {
            lb::HealthPolicy::OnlyHealthy
        }
        .into(),
    }
}
