//! What is connected to, and who that has to be.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::ports::HBONE;
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
}

/// The proxy in between: a waypoint's or a gateway's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The pod.
    pub workload: Arc<Workload>,
    /// The service it was found by, if it was.
    pub service: Option<Arc<Service>>,
    /// Where it speaks HBONE.
    pub hbone: SocketAddr,
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
