//! The pods of the start: the agent is ready when each has been dealt with, and what an earlier agent left in the maps
//! or pinned by another layout is removed when each has been taken over, since until then it is not known what is claimed.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

use daemon::readiness::BlockReady;
use tracing::{debug, warn};

use super::Context;
use super::pod::PodUid;
use super::prune::PruneError;
use crate::bpf::{LinkError, MapError, SocketCookie};

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

/// What has not been swept.
#[derive(Debug)]
struct Waiting {
    /// The pods of the start that have not been taken over; none: it is not known which there are.
    pods: Option<HashSet<PodUid>>,
    /// Connections that an earlier agent let pass and no pod has claimed so far. Those of pods that joined since are none of them.
    unclaimed: BTreeSet<SocketCookie>,
    left: BTreeSet<Left>,
}

/// What an earlier agent leaves behind, each removed by itself and tried again until it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Exemptions,
    Former,
    Entries,
}

impl Left {
    const ALL: [Self; 3] = [Self::Exemptions, Self::Former, Self::Entries];

    fn remove(self, context: &Context, unclaimed: &BTreeSet<SocketCookie>) -> Result<(), SweepError> {
        match self {
            Self::Exemptions => Ok(context.prune_exemptions()?),
            Self::Former => Ok(context.kernel.drop_former()?),
            Self::Entries => {
                context.kernel.drop_unclaimed()?;
                let cookies: Vec<_> = unclaimed.iter().copied().collect();
                Ok(context.kernel.forget_pre_mesh(&cookies)?)
            }
        }
    }
}

/// Something of an earlier agent stays, which does no harm but takes places.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    /// Exemptions.
    #[error("cgroups that nobody uses any more stay exempt from capture: {0}")]
    Exemptions(#[from] PruneError),
    /// Pins.
    #[error("pins of another layout version stay beside ours: {0}")]
    Former(#[from] LinkError),
    /// Entries of maps.
    #[error("unclaimed entries stay in the maps: {0}")]
    Entries(#[from] MapError),
}

impl Sweep {
    /// Holds `block` until the pods of the start have been dealt with. `passing` are the connections that an earlier agent lets
    /// pass, read before any pod is taken over.
    pub(crate) fn new(block: BlockReady, passing: BTreeSet<SocketCookie>) -> Self {
        let waiting = Waiting { pods: None, unclaimed: passing, left: Left::ALL.into() };
        let unready = Unready { pods: None, _block: block };
        Self { waiting: Mutex::new(waiting), unready: Mutex::new(Some(unready)) }
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
        self.advance(context, |waiting| waiting.pods = Some(pods));
    }

    /// A pod has been taken over, has left, or has nothing that could be taken over.
    pub(super) fn settled(&self, pod: &PodUid, marked: Option<&BTreeSet<SocketCookie>>, context: &Context) {
        self.dealt_with(pod);
        self.advance(context, |waiting| {
            if let Some(pods) = &mut waiting.pods {
                pods.remove(pod);
            }
            for cookie in marked.into_iter().flatten() {
                waiting.unclaimed.remove(cookie);
            }
        });
    }

    fn advance(&self, context: &Context, change: impl FnOnce(&mut Waiting)) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.left.is_empty() {
            return;
        }
        change(&mut waiting);
        if !waiting.pods.as_ref().is_some_and(HashSet::is_empty) {
            return;
        }
        let Waiting { unclaimed, left, .. } = &mut *waiting;
        left.retain(|left| match left.remove(context, unclaimed) {
            Ok(()) => false,
            // A matter of waiting.
            Err(SweepError::Exemptions(PruneError::NotServed(pod))) => {
                debug!(%pod, "exemptions stay until the pod is served or gone");
                true
            }
            Err(error) => {
                warn!(%error, "it is tried again");
                true
            }
        });
        if left.is_empty() {
            debug!("all pods are taken over; what nobody claims is removed from the maps");
        }
    }
}
