//! Links by their pins: made, adopted, updated and removed, never held by this process.
//!
//! A pinned link outlives the agent, so capture does; the kernel is asked what a link really holds instead of remembering it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::error::LinkError;
use super::sys::{self, Hook, LinkInfo, LinkPlace};

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

/// Makes the link pinned at `path` hold `program` on `hook`, where `place` is what the kernel says of such a link. What is pinned there
/// is taken for that link only if it stands on the hook indeed: a pin may be older than what it names, or another pod's.
pub(crate) fn ensure(
    path: &Path,
    program: &LoadedProgram,
    hook: Hook<'_>,
    place: LinkPlace,
) -> Result<LinkChange, LinkError> {
    match sys::open_pinned(path) {
        Ok(link) => match standing(link.as_fd(), Some(hook), place)? {
            Some(info) if info.program == program.id => return Ok(LinkChange::Nothing),
            Some(_) => {
                sys::link_update(link.as_fd(), program.fd.as_fd())?;
                return Ok(LinkChange::Updated);
            }
            None => unpin(path)?,
        },
        Err(error) if error.is_not_found() => {}
        // A directory, or something that is no object of the kernel's.
        Err(_) => unpin(path)?,
    }
    let link = sys::link_create(program.fd.as_fd(), hook)?;
    sys::pin(link.as_fd(), path)?;
    Ok(LinkChange::Created)
}

/// Makes a link of `program` on `hook` and pins it at `path` in place of what is there, whatever that is: for hooks whose links cannot
/// be given another program and do not say where they are. For a moment both stand.
pub(crate) fn replace(path: &Path, program: &LoadedProgram, hook: Hook<'_>) -> Result<(), LinkError> {
    let link = sys::link_create(program.fd.as_fd(), hook)?;
    unpin(path)?;
    Ok(sys::pin(link.as_fd(), path)?)
}

/// What the pinned object says of itself if it is a link at `place`; for devices `hook` is asked as well, on a thread in its namespace.
pub(crate) fn standing(
    object: BorrowedFd<'_>,
    hook: Option<Hook<'_>>,
    place: LinkPlace,
) -> Result<Option<LinkInfo>, LinkError> {
    if !sys::is_link(object) {
        return Ok(None);
    }
    let info = sys::link_info(object)?;
    // A link knows the index of its device only, which is another device's in another namespace.
    let here = match (place, hook) {
        (LinkPlace::Device(_), Some(hook)) => sys::links_on(hook)?.contains(&info.id),
        (place, _) => !matches!(place, LinkPlace::Device(_)),
    };
    Ok((here && info.place == place).then_some(info))
}

/// Detaches and unpins the link at `path`, of which it must be known whose it is. Something else pinned there is only unpinned.
pub(crate) fn remove(path: &Path) -> Result<(), LinkError> {
    if let Ok(link) = sys::open_pinned(path) {
        // Fails for what is detached already, or is no link; either way the pin goes.
        let _ = sys::link_detach(link.as_fd());
    }
    unpin(path)
}

/// Removes the pin. What it names goes with its last pin, and stays if it has another one, which may be another pod's.
pub(crate) fn unpin(path: &Path) -> Result<(), LinkError> {
    let removed = match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => std::fs::remove_dir_all(path),
        other => other,
    };
    match removed {
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
