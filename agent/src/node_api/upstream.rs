//! The agent's copy of what control says: configuration for ztunnel, as it came, this node's pods, and the roots that
//! vouch for control itself.
//!
//! The copy stays in force while control is away; what changed meanwhile comes with the next stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::channel::Roots;
use api::convert::Resource;
use api::delta::Rejection;
use api::type_url::ResourceType;
use api::xds_client::{Batch, Subscription, Update};
use control::xds::{Entry, ResourceStore};
use tokio::sync::watch;
use tokio::task::block_in_place;
use tracing::{debug, error, warn};

use crate::enroll::manager::Pods;
use crate::enroll::pod::{PodSpec, PodUid};

/// Takes what control pushes into `store`, `pods` and `roots`, until the client ends.
pub(crate) async fn follow(
    mut subscription: Subscription,
    store: ResourceStore,
    pods: watch::Sender<Pods>,
    roots: Option<Roots>,
) {
    while let Some(batch) = subscription.batches.recv().await {
        debug!(kind = %batch.kind, updates = batch.updates.len(), removed = batch.removed.len(), "push from control");
        let rejected = match batch.kind {
            ResourceType::NodePod => take_pods(&batch, &pods),
            ResourceType::TrustBundle => block_in_place(|| take_roots(&batch, roots.as_ref())),
            kind => {
                store.update(kind, batch.updates.iter().map(entry).collect(), &batch.removed);
                Vec::new()
            }
        };
        batch.reject(rejected);
    }
}

/// Content goes on as it came, unreadable content too: ztunnel is to refuse what a policy it cannot read applies to.
fn entry(update: &Update) -> Entry {
    Entry::from((update.name.clone(), update.content.clone()))
}

/// A pod that is not usable stays as it was; control is told why.
fn take_pods(batch: &Batch, pods: &watch::Sender<Pods>) -> Vec<Rejection> {
    let mut rejected = Vec::new();
    let mut specs = Vec::new();
    for update in &batch.updates {
        let Ok(Resource::Pod(pod)) = &update.outcome else { continue };
        match PodSpec::try_from((**pod).clone()) {
            Ok(spec) => specs.push(spec),
            Err(error) => rejected.push(Rejection { name: update.name.clone(), reason: error.to_string() }),
        }
    }
    pods.send_modify(|pods| *pods = Some(Arc::new(merged(pods.as_deref(), specs, &batch.removed))));
    rejected
}

/// What cannot be kept is no reason to go without control: the roots known so far stay in force.
fn take_roots(batch: &Batch, roots: Option<&Roots>) -> Vec<Rejection> {
    let mut rejected = Vec::new();
    for update in &batch.updates {
        let (Ok(Resource::TrustBundle(pem)), Some(roots)) = (&update.outcome, roots) else { continue };
        match roots.learn(pem) {
            Ok(true) => {
                warn!("control's roots have changed: what it says of them counts in place of --control-ca");
            }
            Ok(false) => {}
            Err(error) => {
                error!(%error, "control's new roots are not taken");
                rejected.push(Rejection { name: update.name.clone(), reason: error.to_string() });
            }
        }
    }
    rejected
}

fn merged(
    before: Option<&BTreeMap<PodUid, PodSpec>>,
    specs: Vec<PodSpec>,
    removed: &[String],
) -> BTreeMap<PodUid, PodSpec> {
    let mut pods = before.cloned().unwrap_or_default();
    for name in removed {
        pods.remove(name.as_str());
    }
    pods.extend(specs.into_iter().map(|spec| (spec.uid.clone(), spec)));
    pods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_added_changed_and_removed_by_uid() {
        let first = merged(None, vec![PodSpec::named("a"), PodSpec::named("b")], &[]);
        let strict = PodSpec { strict: crate::enroll::pod::Strict::Everywhere, ..PodSpec::named("b") };
        let second = merged(Some(&first), vec![strict.clone(), PodSpec::named("c")], &["a".to_owned()]);
        let uids: Vec<_> = second.keys().map(PodUid::as_str).collect();
        assert_eq!(uids, ["b", "c"]);
        assert_eq!(second["b"], strict);
    }
}
