//! Brings the mesh's state up to date with what the control plane pushes.
//!
//! A resource that cannot be read is rejected by itself (NACK) and the rest of its push holds; a policy that cannot be
//! read refuses what it applies to, and connections to a workload or service that cannot be read are refused
//! (`api::convert`).

use api::xds_client::{Batch, Endings, Subscription};

use crate::mesh_state::MeshState;
use crate::telemetry::{Metrics, ReasonLabel, UrlLabel};

/// Applies pushes until the client ends. `synced` is called once, when everything has been pushed.
pub(crate) async fn consume(
    mut subscription: Subscription,
    mesh: &MeshState,
    metrics: &Metrics,
    synced: impl FnOnce(),
) {
    let mut synced = Some(synced);
    let mut counted = Endings::default();
    loop {
        tokio::select! {
            batch = subscription.batches.recv() => match batch {
                Some(batch) => apply(batch, mesh, metrics),
                None => return,
            },
            changed = subscription.status.changed() => {
                if changed.is_err() {
                    return;
                }
                let status = *subscription.status.borrow_and_update();
                count(metrics, counted, status.endings);
                counted = status.endings;
                if status.synced && let Some(synced) = synced.take() {
                    mesh.complete();
                    synced();
                }
            }
        }
    }
}

/// Counts what has ended since `counted`, by Istio's names of the ways.
fn count(metrics: &Metrics, counted: Endings, now: Endings) {
    for (reason, more) in [
        ("ConnectionError", now.connection_error - counted.connection_error),
        ("Error", now.error - counted.error),
        ("Complete", now.complete - counted.complete),
    ] {
        if more > 0 {
            metrics.xds_terminations.get_or_create(&ReasonLabel { reason }).inc_by(more);
        }
    }
}

fn apply(batch: Batch, mesh: &MeshState, metrics: &Metrics) {
    let label = UrlLabel { url: batch.kind.url() };
    metrics.xds_messages.get_or_create(&label).inc();
    metrics.xds_bytes.get_or_create(&label).inc_by(batch.bytes as u64);
    let rejected = batch.updates.iter().filter(|update| update.outcome.is_err()).count();
    metrics.rejected_resources.inc_by(rejected as u64);
    let unreadable = mesh.change(batch.received, |state| {
        batch.apply_to(state);
        state.rejected_addresses().len()
    });
    metrics.unreadable_addresses.set(i64::try_from(unreadable).unwrap_or(i64::MAX));
    tracing::debug!(kind = %batch.kind, updates = batch.updates.len(), removed = batch.removed.len(), rejected, "configuration applied");
    batch.accept();
}
