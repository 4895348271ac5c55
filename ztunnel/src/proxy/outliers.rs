//! What this node's connections tell of the endpoints they go to (`mesh::ejection`), shared by all of them.

use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use mesh::Workload;
use mesh::ejection::Ejections;
use mesh::route::{Reach, Route, Upstream, route};
use tokio::time::Instant;

use super::tries::Tries;
use crate::mesh_state::MeshState;
use crate::telemetry::Metrics;

/// See the module.
pub(crate) struct Outliers {
    start: Instant,
    /// Written only when somebody fails, or works again who has failed.
    ejections: RwLock<Ejections>,
}

impl Outliers {
    /// Everybody works, as far as is known.
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), ejections: RwLock::default() }
    }

    /// Decides where a connection of `client` goes next.
    pub(super) fn route(
        &self,
        mesh: &MeshState,
        client: &Workload,
        destination: SocketAddr,
        tries: &Tries,
    ) -> Route {
        let ejections = self.ejections.read().unwrap_or_else(PoisonError::into_inner);
        let choice = tries.choice(rand::random(), (&ejections, self.now()));
        mesh.read(|state| route(state, client, destination, Reach::OwnNetwork, choice))
    }

    /// The endpoint was reached.
    pub(super) fn succeeded(&self, endpoint: &Upstream) {
        let (uid, port) = (&endpoint.workload.uid, endpoint.application.port());
        if self.ejections.read().unwrap_or_else(PoisonError::into_inner).is_suspect(uid, port) {
            self.ejections.write().unwrap_or_else(PoisonError::into_inner).succeeded(uid, port);
        }
    }

    /// The endpoint was not reached, and it is to blame.
    pub(super) fn failed(&self, endpoint: &Upstream, metrics: &Metrics) {
        let (uid, port) = (&endpoint.workload.uid, endpoint.application.port());
        let ejected =
            self.ejections.write().unwrap_or_else(PoisonError::into_inner).failed(uid, port, self.now());
        if let Some(length) = ejected {
            metrics.endpoint_ejections.inc();
            tracing::info!(%uid, port, ?length, "endpoint keeps failing; others are chosen in its place");
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}
