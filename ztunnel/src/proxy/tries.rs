//! The endpoints that a connection to a service is tried at, one after the other.
//!
//! All tries come before the connection is established. Of the client nothing is read before that, so that no byte
//! can reach two endpoints. What was decided is not tried elsewhere: a refusal by policy, the fault of this node or of
//! the client. After an endpoint that was to be reached encrypted no other is reached in plaintext.

use std::time::Duration;

use mesh::WorkloadUid;
use mesh::balance::Choice;
use mesh::ejection::Ejections;
use mesh::route::{Route, Upstream};
use mesh::workload::TunnelProtocol;
use tokio::time::Instant;

use super::failure::{Blame, Failure};

/// At most so many endpoints. With one of ten broken, one connection in a thousand still fails.
const MOST: usize = 3;

/// No try begins so long after the first one did: with the usual bound of a dial, one endpoint that is silent leaves
/// room for another.
const WINDOW: Duration = Duration::from_secs(15);

/// Those of one connection that have failed.
pub(super) struct Tries {
    begin: Instant,
    failed: Vec<WorkloadUid>,
    encrypted: bool,
}

impl Tries {
    /// None has yet.
    pub(super) fn new() -> Self {
        Self { begin: Instant::now(), failed: Vec::new(), encrypted: false }
    }

    /// How the next one is chosen.
    pub(super) fn choice<'a>(&'a self, random: u64, ejections: (&'a Ejections, Duration)) -> Choice<'a> {
        Choice { random, tried: &self.failed, encrypted: self.encrypted, ejections: Some(ejections) }
    }

    /// This one has failed. Whether another may be tried.
    pub(super) fn failed(&mut self, endpoint: &Upstream) -> bool {
        self.encrypted |= endpoint.workload.tunnel_protocol == TunnelProtocol::Hbone;
        self.failed.push(endpoint.workload.uid.clone());
        self.failed.len() < MOST && self.begin.elapsed() < WINDOW
    }

    /// Whether the connection may take the route after those before. Configuration may have changed meanwhile.
    pub(super) fn may_take(&self, route: &Route) -> bool {
        endpoint(route).is_some() && !(self.encrypted && matches!(route, Route::Plaintext(_)))
    }
}

/// The endpoint that a route leads to, if it was chosen among a service's.
pub(super) fn endpoint(route: &Route) -> Option<&Upstream> {
    match route {
        Route::SameWorkload(upstream) | Route::Hbone(upstream) | Route::Plaintext(upstream) => {
            Some(upstream).filter(|upstream| upstream.service.is_some())
        }
        Route::Named(_)
        | Route::Waypoint { .. }
        | Route::Gateway { .. }
        | Route::Passthrough(_)
        | Route::Refused(_) => None,
    }
}

/// Whether the endpoint is to blame, so that another may do better.
pub(super) fn is_of_endpoint(failure: &Failure) -> bool {
    failure.meaning().blame == Blame::Destination
}
