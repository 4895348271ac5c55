//! Which cgroups are kubelet's, for the programs that recognise its probes.
//!
//! The kernel notices a new one itself (`kubelet_cgroup_made`), with no agent needed; what it cannot notice, one that was there before
//! it was told the path, the agent finds by looking.

use std::os::fd::AsFd;

use ebpf_common::CgroupPath;

use super::error::{LinkError, LoadError, MapError};
use super::object::{self, program};
use super::sys::Hook;
use super::tracepoint::{self, TracepointError};
use super::{CgroupId, Programs, absent_is_fine, in_map, link};

/// The kernel does not notice a new cgroup of kubelet's. The agent does, some milliseconds later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoticeError {
    /// The event is not to be had.
    #[error(transparent)]
    Tracepoint(#[from] TracepointError),
    /// The program was refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It could not be attached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It could not be told the path.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl Programs {
    /// Has the kernel take the cgroup that is made at `path` for kubelet's from then on, whether there is an agent or not.
    ///
    /// # Errors
    /// It cannot: see [`NoticeError`].
    pub(crate) fn expect_kubelet(&mut self, path: CgroupPath) -> Result<(), NoticeError> {
        self.set_kubelet_path(path)?;
        let event = tracepoint::cgroup_made()?;
        let program = object::load(&mut self.ebpf, program::KUBELET)?;
        let pin = self.root.join("node").join(program::KUBELET);
        Ok(link::replace(&pin, &program, Hook::Event(event.as_fd()))?)
    }

    /// Takes that back, and no cgroup for kubelet's.
    pub(crate) fn expect_no_kubelet(&mut self) -> Result<(), MapError> {
        self.set_kubelet_path(CgroupPath::NONE)?;
        self.find_kubelet(|| None).map(drop)
    }

    fn set_kubelet_path(&mut self, path: CgroupPath) -> Result<(), MapError> {
        self.maps.kubelet_path.set(0, path, 0).map_err(in_map("KUBELET_PATH"))
    }

    /// Takes the cgroup that `look` finds for kubelet's, and none that was known before. One that the kernel notices in this very
    /// moment is neither.
    pub(crate) fn find_kubelet(
        &mut self,
        look: impl FnOnce() -> Option<CgroupId>,
    ) -> Result<Option<CgroupId>, MapError> {
        let failed = in_map("KUBELET_CGROUPS");
        let known: Vec<u64> = self.maps.kubelet_cgroups.keys().collect::<Result<_, _>>().map_err(failed)?;
        let found = look();
        if let Some(id) = found {
            self.maps.kubelet_cgroups.insert(id.0, 1, 0).map_err(failed)?;
        }
        for id in known.into_iter().filter(|id| found != Some(CgroupId(*id))) {
            absent_is_fine(self.maps.kubelet_cgroups.remove(&id)).map_err(failed)?;
        }
        Ok(found)
    }
}
