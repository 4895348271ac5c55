//! The mesh as this process knows it, shared: `mesh::State` behind a lock, and word of its changes.
//!
//! Until both resource types have been pushed once the state is incomplete, and nothing may be decided by
//! it: a policy that has not arrived yet might forbid. Readers hold the lock for a lookup, never across an await.

use std::sync::{PoisonError, RwLock};

use mesh::State;
use mesh::authorize::{self, Attempt, DryRun, Permit, Refusal};
use tokio::sync::watch;

/// How far the state has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Raised with each change.
    pub(crate) generation: u64,
    /// Everything has been pushed at least once.
    pub(crate) complete: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct MeshState {
    state: RwLock<State>,
    progress: watch::Sender<Progress>,
}

impl MeshState {
    /// Looks something up.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes something and tells everybody.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
        self.progress.send_modify(|progress| progress.generation += 1);
        result
    }

    /// Everything has been pushed once.
    pub(crate) fn complete(&self) {
        self.progress.send_modify(|progress| progress.complete = true);
    }

    /// Word of changes, from the present state on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The gate before every application. What policies in dry run would have said is logged.
    pub(crate) fn authorize(&self, attempt: Attempt) -> Result<Permit, Refusal> {
        let verdict = self.read(|state| authorize::authorize(state, attempt));
        for DryRun { policy, action, matched } in &verdict.dry_run {
            tracing::info!(%policy, ?action, matched, "policy in dry run");
        }
        verdict.decision
    }

    /// Whether what was allowed before still is. Policies in dry run have had their say with the connection's start.
    pub(crate) fn still_allows(&self, attempt: Attempt) -> Result<(), Refusal> {
        self.read(|state| authorize::authorize(state, attempt)).decision.map(drop)
    }
}
