//! Workloads: what runs where, under which addresses and which identity.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::gateway::GatewayAddress;
use crate::identity::{Namespace, ServiceAccount, SpiffeId, TrustDomain, name};
use crate::policy::PolicyName;
use crate::service::{Hostname, PortMap, ServiceName};

name!(
    /// A workload's name in the mesh state, such as `Kubernetes//Pod/<namespace>/<name>`: unique, opaque.
    WorkloadUid
);
name!(
    /// A network: within one, addresses are unique and reach each other. The empty name is the default one.
    Network
);

impl Default for Network {
    fn default() -> Self {
        Self::from("")
    }
}

/// An address within a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network the address is unique in.
    pub network: Network,
    /// The address.
    pub ip: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// A range of addresses within a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkRange {
    network: Network,
    range: IpNet,
}

impl NetworkRange {
    /// The range that `range` lies in: bits after its prefix mean nothing.
    pub fn new(network: Network, range: IpNet) -> Self {
        Self { network, range: range.trunc() }
    }

    /// The network that the addresses are unique in.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The addresses.
    pub fn range(&self) -> IpNet {
        self.range
    }
}

impl fmt::Display for NetworkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.range)
    }
}

/// How an application is told of its client, which it cannot see by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplicationTunnel {
    /// The PROXY protocol, version 2.
    Proxy {
        /// The port it is spoken on; `None`: the one that was asked for.
        port: Option<u16>,
    },
    /// A protocol of a later version.
    Unknown,
}

/// How a workload takes connections from the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TunnelProtocol {
    /// Plain TCP: it is outside the mesh.
    #[default]
    None,
    /// HBONE: mutual TLS and HTTP/2 CONNECT on port 15008.
    Hbone,
}

/// Whether load balancing may choose the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready: chosen only for services that publish unready addresses.
    Unhealthy,
}

/// Whether the workload has a network namespace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// A namespace of its own.
    #[default]
    Standard,
    /// It shares its node's: such addresses say nothing about the workload and are not indexed.
    HostNetwork,
}

/// What kind of controller made the workload; telemetry only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WorkloadType {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare Pod.
    Pod,
    /// A Job.
    Job,
}

/// Where a workload runs.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Locality {
    /// `topology.kubernetes.io/region`.
    pub region: String,
    /// `topology.kubernetes.io/zone`.
    pub zone: String,
    /// `topology.istio.io/subzone`.
    pub subzone: String,
}

/// A workload as the control plane describes it (WDS `istio.workload.Workload`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique name.
    pub uid: WorkloadUid,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: Namespace,
    /// The trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// The service account of its identity.
    pub service_account: ServiceAccount,
    /// Its network.
    pub network: Network,
    /// Its addresses, at most one of each family in practice.
    pub addresses: Vec<IpAddr>,
    /// How it takes connections from the mesh.
    pub tunnel_protocol: TunnelProtocol,
    /// Whether its namespace is its own.
    pub network_mode: NetworkMode,
    /// The node it runs on.
    pub node: String,
    /// `app` of telemetry: canonical service.
    pub canonical_name: String,
    /// `version` of telemetry: canonical revision.
    pub canonical_revision: String,
    /// Kind of controller.
    pub workload_type: WorkloadType,
    /// The controller's name.
    pub workload_name: String,
    /// The cluster it runs in.
    pub cluster_id: String,
    /// Where it runs.
    pub locality: Locality,
    /// Whether it is ready.
    pub health: Health,
    /// Weight in load balancing, 1 where not stated.
    pub capacity: u32,
    /// The services it is an endpoint of, with its ports for each.
    pub services: BTreeMap<ServiceName, PortMap>,
    /// Policies that select it by label; those of its namespace and of the mesh apply without being named.
    pub authorization_policies: Vec<PolicyName>,
    /// The waypoint that calls to its addresses go through.
    pub waypoint: Option<Box<GatewayAddress>>,
    /// The gateway by which other networks reach it.
    pub network_gateway: Option<Box<GatewayAddress>>,
    /// The name by which its addresses are found where none is stated.
    pub hostname: Option<Hostname>,
    /// How its application is told of its client.
    pub application_tunnel: Option<ApplicationTunnel>,
}

impl Workload {
    /// The identity its certificate proves.
    pub fn identity(&self) -> SpiffeId {
        SpiffeId {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }
}
