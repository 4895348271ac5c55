//! Where a waypoint or a network's gateway is, as the control plane states it. Which pod that means, and who it has to
//! prove to be, is for [`route`](mod@crate::route) to find.

use std::fmt;

use crate::service::ServiceName;
use crate::workload::NetworkAddress;

/// The place of a waypoint or of a network's gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// Where it is.
    pub destination: GatewayDestination,
    /// The port of its service, or of itself, on which it speaks HBONE.
    pub hbone_port: u16,
}

/// See [`GatewayAddress`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayDestination {
    /// A service's virtual address or a workload's own.
    Address(NetworkAddress),
    /// A service.
    Hostname(ServiceName),
    /// Stated in a form that this version does not know. There is a gateway that must not be passed by, and no way to it.
    Unknown,
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.destination.fmt(f)
    }
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(name) => name.fmt(f),
            Self::Unknown => f.write_str("(of a form that is not known)"),
        }
    }
}

/// One of several waypoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// Where it is.
    pub destination: GatewayAddress,
    /// Its share of the connections is this of the sum of all.
    pub weight: u32,
}
