//! The mesh as this process knows it, shared: `mesh::State` behind a lock, and word of its changes.
//!
//! Until both resource types have been pushed once the state is incomplete, and nothing may be decided by
//! it: a policy that has not arrived yet might forbid. Readers hold the lock for a lookup, never across an await.

use std::collections::VecDeque;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use mesh::State;
use mesh::authorize::{self, Attempt, DryRun, Permit, Refusal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::{DryRunLabel, Metrics};

/// So many changes are remembered with the time they came in: more than come in while a pod's connections are judged.
const REMEMBERED: usize = 1024;

/// How far the state has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Raised with each change.
    pub(crate) generation: u64,
    /// Everything has been pushed at least once.
    pub(crate) complete: bool,
}

/// Changes that somebody has not acted on yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    /// The latest one.
    pub(crate) generation: u64,
    /// When the first of them came in; none, if there is none.
    pub(crate) since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Held {
    state: State,
    generation: u64,
    /// When the latest changes came in, the last one last.
    arrivals: VecDeque<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct MeshState {
    held: RwLock<Held>,
    progress: watch::Sender<Progress>,
}

impl MeshState {
    /// Looks something up.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.held().state)
    }

    /// Changes something, of which word came in at `arrived`, and tells everybody.
    pub(crate) fn change<T>(&self, arrived: Instant, change: impl FnOnce(&mut State) -> T) -> T {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut held.state);
        held.generation += 1;
        held.arrivals.push_back(arrived);
        if held.arrivals.len() > REMEMBERED {
            held.arrivals.pop_front();
        }
        let generation = held.generation;
        drop(held);
        self.progress.send_modify(|progress| progress.generation = progress.generation.max(generation));
        result
    }

    /// The changes after `seen`. Of those that are not remembered any more the time is that of the oldest that is.
    pub(crate) fn pending(&self, seen: u64) -> Pending {
        let held = self.held();
        let count = usize::try_from(held.generation - seen).unwrap_or(REMEMBERED).min(held.arrivals.len());
        let since = held.arrivals.get(held.arrivals.len() - count).copied();
        Pending { generation: held.generation, since }
    }

    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything has been pushed once.
    pub(crate) fn complete(&self) {
        self.progress.send_modify(|progress| progress.complete = true);
    }

    /// Word of changes, from the present state on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The gate before every application. What policies in dry run would have said is logged and counted.
    pub(crate) fn authorize(&self, attempt: Attempt, metrics: &Metrics) -> Result<Permit, Refusal> {
        let verdict = self.read(|state| authorize::authorize(state, attempt));
        for DryRun { policy, action, matched } in &verdict.dry_run {
            tracing::info!(%policy, ?action, matched, "policy in dry run");
            metrics.dry_runs.get_or_create(&DryRunLabel::new(*action, *matched)).inc();
        }
        verdict.decision
    }

    /// Whether what was allowed before still is. Policies in dry run have had their say with the connection's start.
    pub(crate) fn still_allows(&self, attempt: Attempt) -> Result<(), Refusal> {
        self.read(|state| authorize::authorize(state, attempt)).decision.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_change_that_was_not_seen_yet_tells_since_when_there_is_something_to_do() {
        let mesh = MeshState::default();
        assert!(mesh.pending(0).since.is_none());
        let at = |second: u64| Instant::now() + Duration::from_secs(second);
        let times: Vec<Instant> = (0..REMEMBERED as u64 + 2).map(at).collect();
        times.iter().for_each(|time| mesh.change(*time, |_| ()));
        let latest = mesh.pending(0).generation;
        assert_eq!(latest, REMEMBERED as u64 + 2);
        assert_eq!(mesh.pending(latest).since, None);
        assert_eq!(mesh.pending(latest - 1).since, times.last().copied());
        assert_eq!(mesh.pending(latest - 3).since, Some(times[times.len() - 3]));
        assert_eq!(mesh.pending(0).since, Some(times[2]), "the oldest that is remembered");
    }
}
