//! What this node's connections tell of the endpoints they go to (`mesh::ejection`), shared by all of them.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use mesh::balance::Choice;
use mesh::ejection::{Ejections, Fault};
use tokio::time::Instant;

use super::tries::{Target, Tries};
use crate::mesh_state::MeshState;
use crate::telemetry::Metrics;

/// See the module. Its lock is taken before the mesh's, where both are held.
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

    /// Decides where a connection goes that was tried before at `tries`.
    pub(super) fn decide<T>(&self, tries: &Tries, decide: impl FnOnce(Choice<'_>) -> T) -> T {
        let ejections = self.ejections.read().unwrap_or_else(PoisonError::into_inner);
        decide(tries.choice(rand::random(), (&ejections, self.now())))
    }

    /// It was reached.
    pub(super) fn succeeded(&self, target: &Target) {
        let (uid, port) = (&target.workload.uid, target.place.port());
        if self.ejections.read().unwrap_or_else(PoisonError::into_inner).is_suspect(uid, port) {
            self.ejections.write().unwrap_or_else(PoisonError::into_inner).succeeded(uid, port);
        }
    }

    /// It was not reached, and it is to blame.
    pub(super) fn failed(&self, target: &Target, fault: Fault, mesh: &MeshState, metrics: &Metrics) {
        let (uid, port) = (&target.workload.uid, target.place.port());
        let mut ejections = self.ejections.write().unwrap_or_else(PoisonError::into_inner);
        let ejected = mesh.read(|state| {
            let others = target.among.as_ref().and_then(|service| state.endpoints(service));
            ejections.failed(uid, port, fault, others, self.now())
        });
        drop(ejections);
        if let Some(length) = ejected {
            metrics.endpoint_ejections.inc();
            tracing::info!(%uid, port, ?length, "endpoint keeps failing; others are chosen in its place");
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}
