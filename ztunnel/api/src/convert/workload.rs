//! Workloads and services.

use std::collections::BTreeMap;

use mesh::service::{LoadBalancing, Mode, PortMap, Scope};
use mesh::workload::{Health, Locality, NetworkMode, TunnelProtocol, WorkloadType};
use mesh::{NetworkAddress, Service, ServiceName, Workload};

use super::{ConvertError, address_to_bytes, bytes_to_address, port};
use crate::proto::workload as proto;

/// Reads a workload. Empty trust domain, service account and cluster mean `cluster.local`, `default` and
/// `Kubernetes`.
pub fn workload_from_proto(workload: proto::Workload) -> Result<Workload, ConvertError> {
    if workload.uid.is_empty() {
        return Err(ConvertError::Missing("uid"));
    }
    Ok(Workload {
        tunnel_protocol: tunnel_protocol(workload.tunnel_protocol)?,
        addresses: workload
            .addresses
            .iter()
            .map(|bytes| address("addresses", bytes))
            .collect::<Result<_, _>>()?,
        services: services(workload.services)?,
        authorization_policies: policies(workload.authorization_policies)?,
        uid: workload.uid.into(),
        name: workload.name,
        namespace: workload.namespace.into(),
        trust_domain: or_default(workload.trust_domain, "cluster.local").into(),
        service_account: or_default(workload.service_account, "default").into(),
        network: workload.network.into(),
        network_mode: match proto::NetworkMode::try_from(workload.network_mode) {
            Ok(proto::NetworkMode::HostNetwork) => NetworkMode::HostNetwork,
            Ok(proto::NetworkMode::Standard) | Err(_) => NetworkMode::Standard,
        },
        node: workload.node,
        canonical_name: workload.canonical_name,
        canonical_revision: workload.canonical_revision,
        workload_type: match proto::WorkloadType::try_from(workload.workload_type) {
            Ok(proto::WorkloadType::Cronjob) => WorkloadType::CronJob,
            Ok(proto::WorkloadType::Pod) => WorkloadType::Pod,
            Ok(proto::WorkloadType::Job) => WorkloadType::Job,
            Ok(proto::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
        },
        workload_name: workload.workload_name,
        cluster_id: or_default(workload.cluster_id, "Kubernetes"),
        locality: workload
            .locality
            .map(|locality| Locality {
                region: locality.region,
                zone: locality.zone,
                subzone: locality.subzone,
            })
            .unwrap_or_default(),
        health: match proto::WorkloadStatus::try_from(workload.status) {
            Ok(proto::WorkloadStatus::Healthy) => Health::Healthy,
            Ok(proto::WorkloadStatus::Unhealthy) | Err(_) => Health::Unhealthy,
        },
        capacity: workload.capacity.unwrap_or(1),
        has_waypoint: workload.waypoint.is_some(),
    })
}

/// A protocol that is not known is taken for HBONE: the connection fails where plaintext would have passed.
fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, ConvertError> {
    match proto::TunnelProtocol::try_from(value) {
        Ok(proto::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(proto::TunnelProtocol::Hbone) | Err(_) => Ok(TunnelProtocol::Hbone),
        Ok(proto::TunnelProtocol::LegacyIstioMtls) => Err(ConvertError::LegacyTunnel),
    }
}

fn services(
    services: BTreeMap<String, proto::PortList>,
) -> Result<BTreeMap<ServiceName, PortMap>, ConvertError> {
    let convert = |(name, ports): (String, proto::PortList)| {
        let name = name.parse().map_err(|_| ConvertError::Name {
            field: "services",
            value: name,
            wanted: "namespace/hostname",
        })?;
        Ok((name, port_map("services", &ports.ports)?))
    };
    services.into_iter().map(convert).collect()
}

fn policies(names: Vec<String>) -> Result<Vec<mesh::PolicyName>, ConvertError> {
    let convert = |name: String| {
        name.parse().map_err(|_| ConvertError::Name {
            field: "authorization_policies",
            value: name,
            wanted: "namespace/name",
        })
    };
    names.into_iter().map(convert).collect()
}

fn port_map(field: &'static str, ports: &[proto::Port]) -> Result<PortMap, ConvertError> {
    let convert = |one: &proto::Port| {
        let target = if one.target_port == 0 { 0 } else { port(field, one.target_port)? };
        Ok((port(field, one.service_port)?, target))
    };
    ports.iter().map(convert).collect()
}

fn address(field: &'static str, bytes: &[u8]) -> Result<std::net::IpAddr, ConvertError> {
    bytes_to_address(bytes).ok_or(ConvertError::Address { field, length: bytes.len() })
}

fn or_default(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

/// Reads a service.
pub fn service_from_proto(service: proto::Service) -> Result<Service, ConvertError> {
    for (field, value) in [("namespace", &service.namespace), ("hostname", &service.hostname)] {
        if value.is_empty() {
            return Err(ConvertError::Missing(field));
        }
    }
    Ok(Service {
        name: ServiceName { namespace: service.namespace.into(), hostname: service.hostname.into() },
        short_name: service.name,
        vips: service.addresses.into_iter().map(vip).collect::<Result<_, _>>()?,
        ports: port_map("ports", &service.ports)?,
        subject_alt_names: service.subject_alt_names,
        load_balancing: service.load_balancing.map(load_balancing).unwrap_or_default(),
        has_waypoint: service.waypoint.is_some() || !service.weighted_waypoints.is_empty(),
    })
}

fn vip(vip: proto::NetworkAddress) -> Result<NetworkAddress, ConvertError> {
    let ip = address("addresses", &vip.address)?;
    let whole = u32::try_from(vip.address.len() * 8).ok();
    if vip.length.is_some() && vip.length != whole {
        return Err(ConvertError::VirtualRange);
    }
    Ok(NetworkAddress { network: vip.network.into(), ip })
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

/// Writes a workload. That it has a waypoint is all we know of the waypoint, and is written as one without a
/// destination.
pub fn workload_to_proto(workload: &Workload) -> proto::Workload {
    proto::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.clone(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().map(|address| address_to_bytes(*address)).collect(),
        network: workload.network.to_string(),
        tunnel_protocol: match workload.tunnel_protocol {
            TunnelProtocol::None => proto::TunnelProtocol::None,
            TunnelProtocol::Hbone => proto::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: workload.trust_domain.to_string(),
        service_account: workload.service_account.to_string(),
        waypoint: workload.has_waypoint.then(proto::GatewayAddress::default),
        node: workload.node.clone(),
        canonical_name: workload.canonical_name.clone(),
        canonical_revision: workload.canonical_revision.clone(),
        workload_type: match workload.workload_type {
            WorkloadType::Deployment => proto::WorkloadType::Deployment,
            WorkloadType::CronJob => proto::WorkloadType::Cronjob,
            WorkloadType::Pod => proto::WorkloadType::Pod,
            WorkloadType::Job => proto::WorkloadType::Job,
        }
        .into(),
        workload_name: workload.workload_name.clone(),
        authorization_policies: workload.authorization_policies.iter().map(ToString::to_string).collect(),
        status: match workload.health {
            Health::Healthy => proto::WorkloadStatus::Healthy,
            Health::Unhealthy => proto::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: workload.cluster_id.clone(),
        services: workload
            .services
            .iter()
            .map(|(name, ports)| (name.to_string(), proto::PortList { ports: ports_to_proto(ports) }))
            .collect(),
        locality: Some(proto::Locality {
            region: workload.locality.region.clone(),
            zone: workload.locality.zone.clone(),
            subzone: workload.locality.subzone.clone(),
        }),
        network_mode: match workload.network_mode {
            NetworkMode::Standard => proto::NetworkMode::Standard,
            NetworkMode::HostNetwork => proto::NetworkMode::HostNetwork,
        }
        .into(),
        capacity: Some(workload.capacity),
        ..proto::Workload::default()
    }
}

fn ports_to_proto(ports: &PortMap) -> Vec<proto::Port> {
    ports
        .iter()
        .map(|(service, target)| proto::Port {
            service_port: (*service).into(),
            target_port: (*target).into(),
            app_protocol: proto::AppProtocol::Unknown.into(),
        })
        .collect()
}

/// Writes a service; its waypoint as [`workload_to_proto`] does.
pub fn service_to_proto(service: &Service) -> proto::Service {
    proto::Service {
        name: service.short_name.clone(),
        namespace: service.name.namespace.to_string(),
        hostname: service.name.hostname.to_string(),
        addresses: service
            .vips
            .iter()
            .map(|vip| proto::NetworkAddress {
                network: vip.network.to_string(),
                address: address_to_bytes(vip.ip),
                length: None,
            })
            .collect(),
        ports: ports_to_proto(&service.ports),
        subject_alt_names: service.subject_alt_names.clone(),
        waypoint: service.has_waypoint.then(proto::GatewayAddress::default),
        load_balancing: Some(load_balancing_to_proto(&service.load_balancing)),
        canonical: true,
        ..proto::Service::default()
    }
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
