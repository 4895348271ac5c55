//! The pods of the start: the agent is ready when each has been dealt with, and what an earlier agent left in the maps
//! or pinned by another layout is removed when each has been taken over, since until then it is not known what is claimed.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

use daemon::readiness::BlockReady;
use tracing::{debug, warn};

use super::Context;
use super::pod::PodUid;
use crate::bpf::{MapError, SocketCookie};

/// Waits for the pods of the start, then sweeps.
#[derive(Debug)]
pub(crate) struct Sweep {
    waiting: Mutex<Waiting>,
    unready: Mutex<Option<Unready>>,
}

/// The pods that have not been dealt with, and what says so.
#[derive(Debug)]
struct Unready {
    pods: Option<HashSet<PodUid>>,
    _block: BlockReady,
}

#[derive(Debug, Default)]
enum Waiting {
    /// It is not known which pods there are.
    #[default]
    ForRoster,
    /// These have not been taken over; the others let these connections pass.
    For { pods: HashSet<PodUid>, passing: BTreeSet<SocketCookie> },
    /// Swept.
    Done,
}

impl Sweep {
    /// Holds `block` until the pods of the start have been dealt with.
    pub(crate) fn new(block: BlockReady) -> Self {
        let unready = Unready { pods: None, _block: block };
        Self { waiting: Mutex::default(), unready: Mutex::new(Some(unready)) }
    }

    /// A pod is where it should be, or it is known why not; waiting for ztunnel is neither.
    pub(super) fn dealt_with(&self, pod: &PodUid) {
        self.lessen(|pods| {
            pods.remove(pod);
        });
    }

    fn lessen(&self, change: impl FnOnce(&mut HashSet<PodUid>)) {
        let mut unready = self.unready.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Unready { pods: Some(pods), .. }) = &mut *unready else { return };
        change(pods);
        if pods.is_empty() {
            *unready = None;
        }
    }

    /// States which pods there were at the start.
    pub(super) fn wait_for(&self, pods: HashSet<PodUid>, context: &Context) {
        if let Some(unready) = &mut *self.unready.lock().unwrap_or_else(PoisonError::into_inner) {
            unready.pods = Some(pods.clone());
        }
        self.lessen(|_| {});
        self.advance(context, |waiting| *waiting = Waiting::For { pods, passing: BTreeSet::new() });
    }

    /// A pod has been taken over, or has left.
    pub(super) fn settled(&self, pod: &PodUid, marked: Option<&BTreeSet<SocketCookie>>, context: &Context) {
        self.dealt_with(pod);
        self.advance(context, |waiting| {
            if let Waiting::For { pods, passing } = waiting {
                pods.remove(pod);
                passing.extend(marked.into_iter().flatten());
            }
        });
    }

    fn advance(&self, context: &Context, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut waiting);
        let passing = match &mut *waiting {
            Waiting::For { pods, passing } if pods.is_empty() => std::mem::take(passing),
            Waiting::ForRoster | Waiting::For { .. } | Waiting::Done => return,
        };
        *waiting = Waiting::Done;
        drop(waiting);
        if let Err(error) = context.prune_exemptions() {
            warn!(%error, "cgroups that nobody uses any more stay exempt from capture");
        }
        if let Err(error) = context.kernel.drop_former() {
            warn!(%error, "pins of another layout version stay beside ours");
        }
        match sweep(context, &passing) {
            Ok(()) => debug!("all pods are taken over; what nobody claims is removed from the maps"),
            Err(error) => warn!(%error, "unclaimed entries stay in the maps"),
        }
    }
}

fn sweep(context: &Context, passing: &BTreeSet<SocketCookie>) -> Result<(), MapError> {
    context.kernel.drop_unclaimed()?;
    let ended: Vec<_> = context.kernel.pre_mesh()?.difference(passing).copied().collect();
    context.kernel.forget_pre_mesh(&ended)
}
