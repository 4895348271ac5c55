//! Services: the names and virtual addresses clients call, and the ports behind them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::gateway::{GatewayAddress, WeightedWaypoint};
use crate::identity::{Namespace, name};
use crate::workload::{NetworkAddress, NetworkRange};

name!(
    /// A service's full host name, such as `web.shop.svc.cluster.local`.
    Hostname
);

/// A service's name: its namespace and host name, written `namespace/hostname`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The service's namespace.
    pub namespace: Namespace,
    /// The service's host name.
    pub hostname: Hostname,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no service's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form namespace/hostname")]
pub struct InvalidServiceName(pub String);

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, hostname))
                if !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/') =>
            {
                Ok(Self { namespace: namespace.into(), hostname: hostname.into() })
            }
            _ => Err(InvalidServiceName(text.to_owned())),
        }
    }
}

/// Service port -> target port. Target 0 means that each endpoint states its own (named ports).
pub type PortMap = BTreeMap<u16, u16>;

/// A property by which load balancing prefers endpoints that share it with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// What becomes of the preference when no endpoint satisfies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Prefer the best rank, fall back to the others.
    #[default]
    Failover,
    /// Only endpoints that match every scope.
    Strict,
    /// The original destination, unchanged.
    Passthrough,
}

/// How endpoints are chosen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LoadBalancing {
    /// In order of importance.
    pub routing_preference: Vec<Scope>,
    /// What when none matches.
    pub mode: Mode,
    /// Endpoints that are not ready are chosen too (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
}

/// Whose clients know the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Everybody's.
    #[default]
    Public,
    /// Those of its own namespace.
    Namespace,
}

/// The IP versions that a service has addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IpFamilies {
    /// Whichever its addresses are of.
    #[default]
    Automatic,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// Whether an address of the service may be this one.
    pub fn admit(self, ip: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::V4Only => ip.is_ipv4(),
            Self::V6Only => ip.is_ipv6(),
        }
    }
}

/// A service as the control plane describes it (WDS `istio.workload.Service`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and host name.
    pub name: ServiceName,
    /// The short name, as in the manifest.
    pub short_name: String,
    /// Virtual addresses; none for a headless service.
    pub vips: Vec<NetworkAddress>,
    /// Ranges of virtual addresses.
    pub cidr_vips: Vec<NetworkRange>,
    /// The IP versions it is to be reached by.
    pub ip_families: IpFamilies,
    /// Ports and their targets.
    pub ports: PortMap,
    /// Identities its endpoints may prove beside their own.
    pub subject_alt_names: Vec<String>,
    /// How endpoints are chosen.
    pub load_balancing: LoadBalancing,
    /// It is the one of record where several services state its host name or addresses.
    pub canonical: bool,
    /// Whose clients know it.
    pub visibility: Visibility,
    /// The waypoint that calls go through.
    pub waypoint: Option<GatewayAddress>,
    /// Several waypoints, of which each connection goes through one; they come before `waypoint`.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
}

impl Service {
    /// Whether a client of this namespace knows it.
    pub fn is_visible_to(&self, client: &Namespace) -> bool {
        self.visibility == Visibility::Public || self.name.namespace == *client
    }

    /// All its waypoints.
    pub fn waypoints(&self) -> impl Iterator<Item = &GatewayAddress> {
        self.weighted_waypoints.iter().map(|one| &one.destination).chain(&self.waypoint)
    }
}
