//! The form of the file, and its messages: workloads and services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{Deserializer, Unexpected};
use serde::{Deserialize, de};
use serde_saphyr::Spanned;

use super::policy::Policy;
use crate::convert::address_to_bytes;
use crate::proto::workload as proto;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) workloads: Vec<Spanned<Workload>>,
    pub(super) services: Vec<Spanned<Service>>,
    pub(super) policies: Vec<Spanned<Policy>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    uid: String,
    #[serde(default)]
    name: String,
    namespace: String,
    #[serde(default)]
    workload_ips: Vec<IpAddr>,
    #[serde(default)]
    network: String,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    network_mode: NetworkMode,
    #[serde(default)]
    trust_domain: String,
    #[serde(default)]
    service_account: String,
    waypoint: Option<Gateway>,
    network_gateway: Option<Gateway>,
    #[serde(default)]
    workload_name: String,
    #[serde(default)]
    workload_type: WorkloadType,
    #[serde(default)]
    canonical_name: String,
    #[serde(default)]
    canonical_revision: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    native_tunnel: bool,
    application_tunnel: Option<ApplicationTunnel>,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default)]
    status: Status,
    #[serde(default)]
    cluster_id: String,
    #[serde(default)]
    locality: Locality,
    #[serde(default = "one")]
    capacity: u32,
    /// `namespace/hostname` -> the service's ports and the workload's.
    #[serde(default)]
    services: BTreeMap<String, BTreeMap<u16, u16>>,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Default, Deserialize)]
enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Debug, Default, Deserialize)]
enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WorkloadType {
    #[default]
    Deployment,
    Cronjob,
    Pod,
    Job,
}

#[derive(Debug, Default, Deserialize)]
enum Status {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Locality {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplicationTunnel {
    protocol: TunnelProtocol,
    port: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum TunnelProtocol {
    None,
    Proxy,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gateway {
    destination: Destination,
    hbone_mtls_port: u16,
}

/// `network/ip`, else `namespace/hostname`.
#[derive(Debug)]
enum Destination {
    Address(NetworkAddress),
    Hostname { namespace: String, hostname: String },
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Some(address) = NetworkAddress::of(&text) {
            return Ok(Self::Address(address));
        }
        let name = text.split_once('/').filter(|(namespace, host)| !namespace.is_empty() && !host.is_empty());
        name.map(|(namespace, host)| Self::Hostname {
            namespace: namespace.to_owned(),
            hostname: host.to_owned(),
        })
        .ok_or_else(|| invalid(&text, &"network/IP or namespace/hostname"))
    }
}

/// `network/ip`.
#[derive(Debug)]
struct NetworkAddress {
    network: String,
    ip: IpAddr,
}

impl NetworkAddress {
    fn of(text: &str) -> Option<Self> {
        let (network, ip) = text.split_once('/')?;
        Some(Self { network: network.to_owned(), ip: ip.parse().ok()? })
    }

    fn into_proto(self, length: Option<u32>) -> proto::NetworkAddress {
        proto::NetworkAddress { network: self.network, address: address_to_bytes(self.ip), length }
    }
}

impl<'de> Deserialize<'de> for NetworkAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::of(&text).ok_or_else(|| invalid(&text, &"network/IP"))
    }
}

fn invalid<E: de::Error>(text: &str, wanted: &dyn de::Expected) -> E {
    E::invalid_value(Unexpected::Str(text), wanted)
}

impl Gateway {
    fn into_proto(self) -> proto::GatewayAddress {
        use proto::gateway_address::Destination as Wire;
        let destination = match self.destination {
            Destination::Address(address) => Wire::Address(address.into_proto(None)),
            Destination::Hostname { namespace, hostname } => {
                Wire::Hostname(proto::NamespacedHostname { namespace, hostname })
            }
        };
        proto::GatewayAddress { destination: Some(destination), hbone_mtls_port: self.hbone_mtls_port.into() }
    }
}

fn ports(ports: BTreeMap<u16, u16>) -> Vec<proto::Port> {
    let port = |(service, target): (u16, u16)| proto::Port {
        service_port: service.into(),
        target_port: target.into(),
        ..proto::Port::default()
    };
    ports.into_iter().map(port).collect()
}

impl Workload {
    pub(super) fn into_proto(self) -> proto::Workload {
        let tunnel = |tunnel: ApplicationTunnel| proto::ApplicationTunnel {
            protocol: match tunnel.protocol {
                TunnelProtocol::None => proto::application_tunnel::Protocol::None,
                TunnelProtocol::Proxy => proto::application_tunnel::Protocol::Proxy,
            }
            .into(),
            port: tunnel.port.map_or(0, u32::from),
        };
        proto::Workload {
            uid: self.uid,
            name: self.name,
            namespace: self.namespace,
            addresses: self.workload_ips.into_iter().map(address_to_bytes).collect(),
            network: self.network,
            tunnel_protocol: match self.protocol {
                Protocol::Tcp => proto::TunnelProtocol::None,
                Protocol::Hbone => proto::TunnelProtocol::Hbone,
            }
            .into(),
            network_mode: match self.network_mode {
                NetworkMode::Standard => proto::NetworkMode::Standard,
                NetworkMode::HostNetwork => proto::NetworkMode::HostNetwork,
            }
            .into(),
            trust_domain: self.trust_domain,
            service_account: self.service_account,
            waypoint: self.waypoint.map(Gateway::into_proto),
            network_gateway: self.network_gateway.map(Gateway::into_proto),
            workload_name: self.workload_name,
            workload_type: match self.workload_type {
                WorkloadType::Deployment => proto::WorkloadType::Deployment,
                WorkloadType::Cronjob => proto::WorkloadType::Cronjob,
                WorkloadType::Pod => proto::WorkloadType::Pod,
                WorkloadType::Job => proto::WorkloadType::Job,
            }
            .into(),
            canonical_name: self.canonical_name,
            canonical_revision: self.canonical_revision,
            hostname: self.hostname,
            node: self.node,
            native_tunnel: self.native_tunnel,
            application_tunnel: self.application_tunnel.map(tunnel),
            authorization_policies: self.authorization_policies,
            status: match self.status {
                Status::Healthy => proto::WorkloadStatus::Healthy,
                Status::Unhealthy => proto::WorkloadStatus::Unhealthy,
            }
            .into(),
            cluster_id: self.cluster_id,
            locality: Some(proto::Locality {
                region: self.locality.region,
                zone: self.locality.zone,
                subzone: self.locality.subzone,
            }),
            capacity: Some(self.capacity),
            services: self
                .services
                .into_iter()
                .map(|(name, stated)| (name, proto::PortList { ports: ports(stated) }))
                .collect(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    name: String,
    namespace: String,
    hostname: String,
    #[serde(default)]
    vips: Vec<NetworkAddress>,
    #[serde(default)]
    cidr_vips: Vec<NetworkRange>,
    #[serde(default)]
    ports: BTreeMap<u16, u16>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    waypoint: Option<Gateway>,
    #[serde(default)]
    weighted_waypoints: Vec<WeightedWaypoint>,
    load_balancer: Option<LoadBalancer>,
    ip_families: Option<IpFamilies>,
    #[serde(default)]
    canonical: bool,
    #[serde(default)]
    visibility: Visibility,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkRange {
    #[serde(default)]
    network: String,
    cidr: IpNet,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WeightedWaypoint {
    destination: Gateway,
    weight: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LoadBalancer {
    #[serde(default)]
    routing_preferences: Vec<Scope>,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    health_policy: HealthPolicy,
}

#[derive(Debug, Deserialize)]
enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Debug, Default, Deserialize)]
enum Mode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Debug, Default, Deserialize)]
enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Deserialize)]
enum IpFamilies {
    Dual,
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

#[derive(Debug, Default, Deserialize)]
enum Visibility {
    #[default]
    Public,
    Namespace,
}

impl LoadBalancer {
    fn into_proto(self) -> proto::LoadBalancing {
        use proto::load_balancing as lb;
        let scope = |scope: Scope| {
            match scope {
                Scope::Region => lb::Scope::Region,
                Scope::Zone => lb::Scope::Zone,
                Scope::Subzone => lb::Scope::Subzone,
                Scope::Node => lb::Scope::Node,
                Scope::Cluster => lb::Scope::Cluster,
                Scope::Network => lb::Scope::Network,
            }
            .into()
        };
        proto::LoadBalancing {
            routing_preference: self.routing_preferences.into_iter().map(scope).collect(),
            mode: match self.mode {
                Mode::Standard => lb::Mode::UnspecifiedMode,
                Mode::Strict => lb::Mode::Strict,
                Mode::Failover => lb::Mode::Failover,
                Mode::Passthrough => lb::Mode::Passthrough,
            }
            .into(),
            health_policy: match self.health_policy {
                HealthPolicy::OnlyHealthy => lb::HealthPolicy::OnlyHealthy,
                HealthPolicy::AllowAll => lb::HealthPolicy::AllowAll,
            }
            .into(),
        }
    }
}

impl Service {
    pub(super) fn into_proto(self) -> proto::Service {
        let range = |range: NetworkRange| {
            let length = u32::from(range.cidr.prefix_len());
            NetworkAddress { network: range.network, ip: range.cidr.addr() }.into_proto(Some(length))
        };
        let vips = self.vips.into_iter().map(|vip| vip.into_proto(None));
        proto::Service {
            name: self.name,
            namespace: self.namespace,
            hostname: self.hostname,
            addresses: vips.chain(self.cidr_vips.into_iter().map(range)).collect(),
            ports: ports(self.ports),
            subject_alt_names: self.subject_alt_names,
            waypoint: self.waypoint.map(Gateway::into_proto),
            weighted_waypoints: self
                .weighted_waypoints
                .into_iter()
                .map(|one| proto::WeightedWaypoint {
                    destination: Some(one.destination.into_proto()),
                    weight: one.weight,
                })
                .collect(),
            load_balancing: self.load_balancer.map(LoadBalancer::into_proto),
            ip_families: match self.ip_families {
                None => proto::IpFamilies::Automatic,
                Some(IpFamilies::Dual) => proto::IpFamilies::Dual,
                Some(IpFamilies::V4) => proto::IpFamilies::Ipv4Only,
                Some(IpFamilies::V6) => proto::IpFamilies::Ipv6Only,
            }
            .into(),
            canonical: self.canonical,
            visibility: match self.visibility {
                Visibility::Public => proto::Visibility::Public,
                Visibility::Namespace => proto::Visibility::Namespace,
            }
            .into(),
            ..proto::Service::default()
        }
    }
}
