//! Small meshes for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::service::{IpFamilies, LoadBalancing, PortMap, Service, ServiceName, Visibility};
use crate::workload::{
    Health, Locality, Network, NetworkAddress, NetworkMode, NetworkRange, TunnelProtocol, Workload,
    WorkloadType, WorkloadUid,
};

/// A ready HBONE workload `Kubernetes//Pod/shop/<name>` of the service account `<name>`.
pub(crate) fn workload(name: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: uid(name),
        name: name.to_owned(),
        namespace: "shop".into(),
        trust_domain: "cluster.local".into(),
        service_account: name.into(),
        network: Network::default(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::Standard,
        node: "east".to_owned(),
        canonical_name: name.to_owned(),
        canonical_revision: "v1".to_owned(),
        workload_type: WorkloadType::Pod,
        workload_name: name.to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        locality: Locality::default(),
        health: Health::Healthy,
        capacity: 1,
        services: BTreeMap::new(),
        authorization_policies: Vec::new(),
        waypoint: None,
        network_gateway: None,
        hostname: None,
        application_tunnel: None,
    }
}

pub(crate) fn uid(name: &str) -> WorkloadUid {
    format!("Kubernetes//Pod/shop/{name}").into()
}

/// The workload as an endpoint of `shop/web...` with these ports.
pub(crate) fn endpoint_of(mut workload: Workload, service: &ServiceName, ports: &[(u16, u16)]) -> Workload {
    workload.services.insert(service.clone(), port_map(ports));
    workload
}

/// A service `<namespace>/<name>.<namespace>.svc.cluster.local`.
pub(crate) fn service(namespace: &str, name: &str, vips: &[&str], ports: &[(u16, u16)]) -> Service {
    Service {
        name: service_name(namespace, name),
        short_name: name.to_owned(),
        vips: vips.iter().map(|vip| address(vip)).collect(),
        cidr_vips: Vec::new(),
        ip_families: IpFamilies::default(),
        ports: port_map(ports),
        subject_alt_names: Vec::new(),
        load_balancing: LoadBalancing::default(),
        canonical: true,
        visibility: Visibility::Public,
        waypoint: None,
        weighted_waypoints: Vec::new(),
    }
}

pub(crate) fn service_name(namespace: &str, name: &str) -> ServiceName {
    ServiceName {
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
    }
}

pub(crate) fn port_map(ports: &[(u16, u16)]) -> PortMap {
    ports.iter().copied().collect()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn address(text: &str) -> NetworkAddress {
    NetworkAddress { network: Network::default(), ip: ip(text) }
}

pub(crate) fn range(text: &str) -> NetworkRange {
    NetworkRange::new(Network::default(), text.parse().unwrap())
}

/// A repeatable source of numbers (xorshift64*).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed.max(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number of `0..limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }
}
