//! What one client sees, over time.
//!
//! A policy that goes away is kept in a client's view until the client has taken the workloads that named it:
//! a workload naming a policy it does not know would be refused all its connections meanwhile.

use std::sync::Arc;

use api::delta::{ServerState, Source, Versioned};
use api::proto::discovery::DeltaDiscoveryResponse;
use api::type_url::ResourceType;

use super::service::Client;
use super::store::{Resources, Snapshot, Stored};

/// One client's bookkeeping and the snapshot it is being told of. No stream, no clock.
pub(super) struct Conversation {
    pub(super) state: ServerState,
    view: View,
}

struct View {
    client: Client,
    snapshot: Arc<Snapshot>,
    /// Policies that are gone, and still to be seen.
    lingering: Resources,
}

impl Conversation {
    pub(super) fn new(client: Client, snapshot: Arc<Snapshot>) -> Self {
        let view = View { client, snapshot, lingering: Resources::new() };
        Self { state: ServerState::new(), view }
    }

    pub(super) fn client(&self) -> &Client {
        &self.view.client
    }

    /// Goes on to another snapshot.
    pub(super) fn follow(&mut self, snapshot: Arc<Snapshot>) {
        let before = std::mem::replace(&mut self.view.snapshot, snapshot);
        let after = &self.view.snapshot;
        let kind = ResourceType::Authorization;
        if let Some(policies) = before.resources(kind) {
            let gone = |name: &Arc<str>| after.resources(kind).is_none_or(|after| !after.contains_key(name));
            let gone = policies.iter().filter(|(name, _)| gone(name));
            self.view.lingering.extend(gone.map(|(name, policy)| (Arc::clone(name), Arc::clone(policy))));
        }
        self.view
            .lingering
            .retain(|name, _| after.resources(kind).is_none_or(|after| !after.contains_key(name)));
        if after.revision() == before.revision() + 1 {
            for (kind, name) in after.changed() {
                self.state.changed(*kind, name);
            }
        } else {
            self.state.all_changed();
        }
    }

    /// The next push; `None`: nothing to say until the client answers or something changes.
    pub(super) fn next_push(&mut self) -> Option<DeltaDiscoveryResponse> {
        if !self.view.snapshot.is_ready() {
            return None;
        }
        if let Some(push) = self.state.next_push(&self.view) {
            return Some(push);
        }
        if self.view.lingering.is_empty() || !self.state.is_idle() {
            return None;
        }
        // The client holds everything else: now what is gone may go.
        for name in std::mem::take(&mut self.view.lingering).keys() {
            self.state.changed(ResourceType::Authorization, name);
        }
        self.state.next_push(&self.view)
    }
}

impl View {
    fn sees(&self, stored: &Stored) -> bool {
        match (&stored.node, &self.client.node) {
            (None, _) => true,
            (Some(node), Some(own)) => node == own,
            (Some(_), None) => false,
        }
    }

    fn lingering(&self, kind: ResourceType) -> Option<&Resources> {
        (kind == ResourceType::Authorization).then_some(&self.lingering)
    }
}

impl Source for View {
    fn all(&self, kind: ResourceType, each: &mut dyn FnMut(&str, &Versioned)) {
        let held = self.snapshot.resources(kind).map(Arc::as_ref).into_iter();
        for (name, stored) in held.chain(self.lingering(kind)).flatten() {
            if self.sees(stored) {
                each(name, &stored.versioned);
            }
        }
    }

    fn get(&self, kind: ResourceType, name: &str) -> Option<Versioned> {
        let held = self.snapshot.resources(kind).and_then(|held| held.get(name));
        let stored = held.or_else(|| self.lingering(kind)?.get(name))?;
        self.sees(stored).then(|| stored.versioned.clone())
    }
}
