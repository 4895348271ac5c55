//! The agent's copy of what control says: configuration for ztunnel, as it came, this node's pods, and the roots that
//! vouch for control itself.
//!
//! The copy stays in force while control is away, over restarts of the agent too (`last_state`); what changed meanwhile
//! comes with the next stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::channel::Roots;
use api::convert::{self, Resource};
use api::delta::Rejection;
use api::proto::discovery;
use api::type_url::ResourceType;
use api::xds_client::{Subscription, Update};
use cni::members::Members;
use control::kubernetes::{NodePods, NodeState};
use control::xds::{Entry, ResourceStore};
use prost_types::Any;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tracing::{debug, error, info, warn};

use super::last_state::PodMessages;

use crate::enroll::manager::Pods;
use crate::enroll::pod::{PodSpec, PodUid};

/// The copy.
pub(crate) struct Copy {
    store: ResourceStore,
    pods: watch::Sender<Pods>,
    /// What `pods` was made of.
    messages: watch::Sender<PodMessages>,
    /// The roots that vouch for control, if it is reached over TLS.
    roots: Option<Roots>,
}

impl Copy {
    /// Nothing yet; what comes goes to `store`, `pods` and `roots`.
    pub(crate) fn new(store: ResourceStore, pods: watch::Sender<Pods>, roots: Option<Roots>) -> Self {
        Self { store, pods, messages: watch::Sender::new(None), roots }
    }

    /// This node's pods as control sent them.
    pub(crate) fn messages(&self) -> watch::Receiver<PodMessages> {
        self.messages.subscribe()
    }

    /// Takes what a predecessor held for what control says, until it says something else.
    pub(crate) fn resume(&self, pushes: Vec<(ResourceType, Vec<discovery::Resource>)>) {
        for (kind, resources) in pushes {
            info!(%kind, resources = resources.len(), "going on with the last state of control");
            let update = |resource: discovery::Resource| {
                let content = resource.resource.unwrap_or_default();
                let outcome = convert::read(kind, &resource.name, &resource.aliases, &content);
                Update { name: resource.name, version: resource.version, content, outcome }
            };
            self.take(kind, &resources.into_iter().map(update).collect::<Vec<_>>(), &[]);
        }
    }

    /// Takes what control pushes, until the client ends.
    pub(crate) async fn follow(&self, mut subscription: Subscription) {
        while let Some(batch) = subscription.batches.recv().await {
            debug!(kind = %batch.kind, updates = batch.updates.len(), removed = batch.removed.len(), "push from control");
            let rejected = self.take(batch.kind, &batch.updates, &batch.removed);
            batch.reject(rejected);
        }
    }

    /// Takes all of this node's pods from the API server, in place of those that are known, and tells `members` who is in the mesh.
    pub(crate) async fn follow_api_server(
        &self,
        mut node_pods: NodePods,
        members: watch::Sender<Option<Arc<Members>>>,
    ) {
        loop {
            let state = node_pods.next().await;
            debug!(pods = state.pods.len(), "pods from the API server");
            let now = members_of(&state);
            let rejected = self.replace_pods(state.pods);
            // Last: who asks for a pod finds it among them.
            members.send_if_modified(|members| {
                let changed = members.as_deref() != Some(&now);
                *members = Some(Arc::new(now));
                changed
            });
            for Rejection { name, reason } in rejected {
                error!(pod = name, reason, "a pod of the API server's cannot be enrolled");
            }
        }
    }

    fn replace_pods(&self, pods: Vec<(String, Any)>) -> Vec<Rejection> {
        let held = self.messages.borrow().clone();
        let gone = |held: &&discovery::Resource| !pods.iter().any(|(name, _)| *name == held.name);
        let removed = held.iter().flat_map(|held| held.iter()).filter(gone);
        let removed: Vec<String> = removed.map(|held| held.name.clone()).collect();
        let update = |(name, content): (String, Any)| {
            let outcome = convert::read(ResourceType::NodePod, &name, &[], &content);
            Update { name, version: String::new(), content, outcome }
        };
        let updates: Vec<Update> = pods.into_iter().map(update).collect();
        self.take_pods(&updates, &removed)
    }

    fn take(&self, kind: ResourceType, updates: &[Update], removed: &[String]) -> Vec<Rejection> {
        match kind {
            ResourceType::NodePod => self.take_pods(updates, removed),
            ResourceType::TrustBundle => block_in_place(|| take_roots(updates, self.roots.as_ref())),
            kind => {
                self.store.update(kind, updates.iter().map(entry).collect(), removed);
                Vec::new()
            }
        }
    }

    /// A pod that is not usable stays as it was; control is told why.
    fn take_pods(&self, updates: &[Update], removed: &[String]) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        let mut specs = Vec::new();
        let mut messages: BTreeMap<String, discovery::Resource> = BTreeMap::new();
        for update in updates {
            let Ok(Resource::Pod(pod)) = &update.outcome else { continue };
            match PodSpec::try_from((**pod).clone()) {
                Ok(spec) => {
                    specs.push(spec);
                    messages.insert(update.name.clone(), message(update));
                }
                Err(error) => {
                    rejected.push(Rejection { name: update.name.clone(), reason: error.to_string() });
                }
            }
        }
        self.pods.send_modify(|pods| *pods = Some(Arc::new(merged(pods.as_deref(), specs, removed))));
        self.messages.send_modify(|held| {
            let before = held.iter().flat_map(|held| held.iter());
            let stays = |held: &&discovery::Resource| {
                !removed.contains(&held.name) && !messages.contains_key(&held.name)
            };
            let stay: Vec<_> = before.filter(stays).cloned().collect();
            *held = Some(Arc::new(stay.into_iter().chain(messages.into_values()).collect()));
        });
        rejected
    }
}

fn members_of(state: &NodeState) -> Members {
    let inside = state.pods.iter().map(|(uid, _)| (uid.clone(), true));
    let outside = state.outside.iter().map(|uid| (uid.clone(), false));
    Members { namespaces: state.namespaces.clone(), pods: inside.chain(outside).collect() }
}

/// Content goes on as it came, unreadable content too: ztunnel is to refuse what a policy it cannot read applies to.
fn entry(update: &Update) -> Entry {
    Entry::from((update.name.clone(), update.content.clone()))
}

fn message(update: &Update) -> discovery::Resource {
    discovery::Resource {
        name: update.name.clone(),
        resource: Some(update.content.clone()),
        ..discovery::Resource::default()
    }
}

/// What cannot be kept is no reason to go without control: the roots known so far stay in force.
fn take_roots(updates: &[Update], roots: Option<&Roots>) -> Vec<Rejection> {
    let mut rejected = Vec::new();
    for update in updates {
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

    fn pod(uid: &str) -> (String, Any) {
        let pod = api::proto::node::Pod { uid: uid.to_owned(), ..api::proto::node::Pod::default() };
        convert::pod_resource(&pod)
    }

    #[test]
    fn what_the_api_server_no_longer_has_is_gone_also_if_a_predecessor_knew_it() {
        let copy = Copy::new(ResourceStore::new(ResourceType::ZTUNNEL), watch::Sender::new(None), None);
        let held = |(name, content): (String, Any)| discovery::Resource {
            name,
            resource: Some(content),
            ..discovery::Resource::default()
        };
        copy.resume(vec![(ResourceType::NodePod, vec![held(pod("a")), held(pod("b"))])]);
        assert!(copy.replace_pods(vec![pod("b"), pod("c")]).is_empty());
        let uids: Vec<_> = copy.pods.borrow().iter().flat_map(|pods| pods.keys()).cloned().collect();
        assert_eq!(uids, [PodUid::from("b"), PodUid::from("c")]);
        let names: Vec<_> = copy
            .messages
            .borrow()
            .iter()
            .flat_map(|held| held.iter())
            .map(|held| held.name.clone())
            .collect();
        assert_eq!(names, ["b", "c"]);
    }

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
