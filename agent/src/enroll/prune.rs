//! Ends exemptions from capture that nothing is left of: those of ztunnels and agents whose cgroups are gone.
//!
//! An agent's cgroup outlives it as long as a listener does that it made: what is accepted from it is of that cgroup. So a cgroup counts
//! as gone only when its directory is and no socket of any captured pod is of it. Ids are never used twice, so that a stale
//! exemption exempts nobody; but places are limited, and an agent that restarts often would run out of them.

use std::collections::BTreeSet;
use std::io;

use tracing::info;

use super::Context;
use super::pod::PodUid;
use crate::bpf::{AttachError, CgroupId, MapError, cgroups_of_sockets};
use crate::cgroup;

/// Why exemptions stay as they are.
#[derive(Debug, thiserror::Error)]
pub(super) enum PruneError {
    /// A map of the kernel programs.
    #[error(transparent)]
    Map(#[from] MapError),
    /// What is pinned cannot be read.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A pod is captured and not served, as while it drains: its sockets are not known.
    #[error("the pod {0} is captured and not served")]
    NotServed(PodUid),
    /// The tree of cgroups, or the sockets of a pod.
    #[error("cgroups in use cannot be listed: {0}")]
    Cgroups(#[from] io::Error),
}

impl Context {
    /// To be called when all pods have been taken over, on a blocking thread.
    ///
    /// # Errors
    /// Nothing is removed while a pod that is captured is not known by its namespace ([`PruneError::NotServed`]).
    pub(super) fn prune_exemptions(&self) -> Result<(), PruneError> {
        let exempt = self.kernel.exempt_cgroups()?;
        let in_use = self.in_use()?;
        for id in exempt.difference(&in_use) {
            self.kernel.unexempt_cgroup(*id)?;
            info!(
                cgroup = id.0,
                "a cgroup that is gone, with all its sockets, is exempt from capture no more"
            );
        }
        Ok(())
    }

    fn in_use(&self) -> Result<BTreeSet<CgroupId>, PruneError> {
        let namespaces = self.hub.namespaces();
        let attached = self.kernel.attached_pods()?;
        for unknown in attached.iter().filter(|uid| !namespaces.contains_key(*uid)) {
            // What is captured inward only is refused: no ztunnel has a socket in it.
            if self.kernel.links(unknown)?.outbound {
                return Err(PruneError::NotServed(unknown.clone()));
            }
        }
        let root = cgroup::mount_point()?.ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
        let mut known = cgroup::all(&root)?;
        for netns in namespaces.values() {
            known.extend(cgroups_of_sockets(netns)?);
        }
        Ok(known)
    }
}
