//! What is connected to, and who that has to be.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Refused, Route, connect};
use crate::balance::record_for;
use crate::identity::SpiffeId;
use crate::ports::{HBONE, is_proxy_port};
use crate::service::{Hostname, Service};
use crate::workload::Workload;

/// A workload to be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service it was called by, if it was.
    pub service: Option<Arc<Service>>,
    /// Its application: the pod's address and the target port. In HBONE the authority.
    pub application: SocketAddr,
}

impl Upstream {
    /// Where its HBONE listener is.
    pub fn hbone(&self) -> SocketAddr {
        SocketAddr::new(self.application.ip(), HBONE)
    }

    /// The identities of which it must prove one: its own and those its service states.
    pub fn expected_identities(&self) -> Vec<SpiffeId> {
        expected_identities(&self.workload, self.service.as_deref())
    }
}

/// A workload of which only a name is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedUpstream {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service it was called by.
    pub service: Option<Arc<Service>>,
    /// The name its addresses are found by.
    pub hostname: Hostname,
    /// The target port.
    pub port: u16,
    /// What the client dialled: an address of its family is the better one.
    pub requested: IpAddr,
}

impl NamedUpstream {
    /// Where the connection of `client` goes, now that the name's addresses are known: to one of them, which the
    /// uniform number `random` chooses. `None`: none of them can be connected to.
    pub fn found(self, client: &Workload, addresses: &[IpAddr], random: u64) -> Option<Route> {
        let ip = record_for(addresses, self.requested, random)?;
        if client.addresses.contains(&ip) && is_proxy_port(self.port) {
            return Some(Route::Refused(Refused::ProxyPort(self.port)));
        }
        let (workload, service) = (self.workload, self.service);
        let upstream = Upstream { workload, service, application: SocketAddr::new(ip, self.port) };
        Some(connect(client, upstream).unwrap_or_else(Route::Refused))
    }
}

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At an address.
    Address(SocketAddr),
    /// At the addresses of a name, which have to be asked for first.
    Name {
        /// The name.
        hostname: Hostname,
        /// The port.
        port: u16,
    },
}

impl Place {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name { port, .. } => *port,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { hostname, port } => write!(f, "{hostname}:{port}"),
        }
    }
}

/// The proxy in between: a waypoint's or a gateway's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The pod.
    pub workload: Arc<Workload>,
    /// The service it was found by, if it was.
    pub service: Option<Arc<Service>>,
    /// Where it speaks HBONE.
    pub hbone: Place,
}

impl Hop {
    /// The identities of which it must prove one: its own and those its service states.
    pub fn expected_identities(&self) -> Vec<SpiffeId> {
        expected_identities(&self.workload, self.service.as_deref())
    }
}

fn expected_identities(workload: &Workload, service: Option<&Service>) -> Vec<SpiffeId> {
    let mut expected = vec![workload.identity()];
    for id in service.iter().flat_map(|service| stated_identities(service)) {
        if !expected.contains(&id) {
            expected.push(id);
        }
    }
    expected
}

/// The identities that a service states. A name that is no SPIFFE id of the mesh's form cannot be proved and is left
/// out.
pub(super) fn stated_identities(service: &Service) -> impl Iterator<Item = SpiffeId> {
    service.subject_alt_names.iter().filter_map(|name| name.parse().ok())
}
