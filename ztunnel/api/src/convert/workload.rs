//! Workloads.

use std::collections::BTreeMap;

use mesh::service::PortMap;
use mesh::workload::{ApplicationTunnel, Health, Locality, NetworkMode, TunnelProtocol, WorkloadType};
use mesh::{ServiceName, Workload};

use super::gateway::{gateway_from_proto, gateway_to_proto};
use super::{ConvertError, address, address_to_bytes, port};
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
        waypoint: workload.waypoint.map(|one| gateway_from_proto("waypoint", one)).transpose()?.map(Box::new),
        network_gateway: workload
            .network_gateway
            .map(|one| gateway_from_proto("network_gateway", one))
            .transpose()?
            .map(Box::new),
        hostname: Some(workload.hostname).filter(|name| !name.is_empty()).map(Into::into),
        application_tunnel: workload.application_tunnel.map(application_tunnel).transpose()?.flatten(),
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

/// A protocol that is not known is kept: an application that is to be told more than plain TCP tells must not be
/// connected to as if it were not.
fn application_tunnel(wire: proto::ApplicationTunnel) -> Result<Option<ApplicationTunnel>, ConvertError> {
    use proto::application_tunnel::Protocol;
    Ok(match Protocol::try_from(wire.protocol) {
        Ok(Protocol::None) => None,
        Ok(Protocol::Proxy) if wire.port == 0 => Some(ApplicationTunnel::Proxy { port: None }),
        Ok(Protocol::Proxy) => {
            Some(ApplicationTunnel::Proxy { port: Some(port("application_tunnel", wire.port)?) })
        }
        Err(_) => Some(ApplicationTunnel::Unknown),
    })
}

fn application_tunnel_to_proto(tunnel: ApplicationTunnel) -> proto::ApplicationTunnel {
    use proto::application_tunnel::Protocol;
    let (protocol, port) = match tunnel {
        ApplicationTunnel::Proxy { port } => (Protocol::Proxy.into(), port.map_or(0, u32::from)),
        ApplicationTunnel::Unknown => (i32::MAX, 0),
    };
    proto::ApplicationTunnel { protocol, port }
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

pub(super) fn port_map(field: &'static str, ports: &[proto::Port]) -> Result<PortMap, ConvertError> {
    let convert = |one: &proto::Port| {
        let target = if one.target_port == 0 { 0 } else { port(field, one.target_port)? };
        Ok((port(field, one.service_port)?, target))
    };
    ports.iter().map(convert).collect()
}

fn or_default(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

/// Writes a workload.
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
        waypoint: workload.waypoint.as_deref().map(gateway_to_proto),
        network_gateway: workload.network_gateway.as_deref().map(gateway_to_proto),
        hostname: workload.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
        application_tunnel: workload.application_tunnel.map(application_tunnel_to_proto),
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

pub(super) fn ports_to_proto(ports: &PortMap) -> Vec<proto::Port> {
    ports
        .iter()
        .map(|(service, target)| proto::Port {
            service_port: (*service).into(),
            target_port: (*target).into(),
            app_protocol: proto::AppProtocol::Unknown.into(),
        })
        .collect()
}
