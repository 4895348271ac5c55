//! Links by their pins: made, adopted, updated and removed, never held by this process.
//!
//! A pinned link outlives the agent, so capture does; the kernel is asked what a link really holds instead of remembering it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::error::LinkError;
use super::sys::{self, Hook, LinkPlace};

/// A loaded program as links need it.
#[derive(Debug)]
pub(crate) struct LoadedProgram {
    /// Name in the object.
    pub(crate) name: &'static str,
    /// The kernel's id of it.
    pub(crate) id: u32,
    /// A descriptor of it.
    pub(crate) fd: OwnedFd,
}

/// What bringing a link into its wanted state took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkChange {
    /// It stood already.
    Nothing,
    /// It held another program, of an earlier agent or for another mode.
    Updated,
    /// It was missing, or what it was attached to is gone.
    Created,
}

/// Makes the link pinned at `path` hold `program` on `hook`, where `place` is what the kernel says of such a link.
pub(crate) fn ensure(
    path: &Path,
    program: &LoadedProgram,
    hook: Hook<'_>,
    place: LinkPlace,
) -> Result<LinkChange, LinkError> {
    match sys::open_pinned(path) {
        Ok(link) => {
            let info = sys::link_info(link.as_fd())?;
            if info.place == place {
                if info.program == program.id {
                    return Ok(LinkChange::Nothing);
                }
                sys::link_update(link.as_fd(), program.fd.as_fd())?;
                return Ok(LinkChange::Updated);
            }
            remove(path)?;
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let link = sys::link_create(program.fd.as_fd(), hook)?;
    sys::pin(link.as_fd(), path)?;
    Ok(LinkChange::Created)
}

/// Detaches and unpins the link at `path`. Something else pinned there is only unpinned.
pub(crate) fn remove(path: &Path) -> Result<(), LinkError> {
    if let Ok(link) = sys::open_pinned(path) {
        // Fails for what is detached already, or is no link; either way the pin goes.
        let _ = sys::link_detach(link.as_fd());
    }
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LinkError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// What the kernel says of a link on the cgroup behind `cgroup`: a cgroup's id is the inode of its directory.
pub(crate) fn cgroup_place(cgroup: BorrowedFd<'_>, path: &Path) -> Result<LinkPlace, LinkError> {
    let stat = nix::sys::stat::fstat(cgroup)
        .map_err(|source| LinkError::File { path: path.to_owned(), source: source.into() })?;
    Ok(LinkPlace::Cgroup(stat.st_ino))
}
