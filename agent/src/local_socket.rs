//! The agent's unix sockets: who may use them, and how their files come to stand.
//!
//! The directory is 0700, the sockets 0600, and every peer's credentials are checked on top of that (`daemon::visitors`):
//! a peer must run as the agent's own user.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use daemon::visitors::Refusals;
use futures::Stream;
use nix::sys::socket::{UnixAddr, connect};
use tokio::net::{UnixListener, UnixStream};

/// Makes the run directory, mode 0700; tightens one that stands. A link, or a directory of another user, is not taken: whoever made it
/// could put other sockets into the place of ours.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        let reason = format!("{} is a link, or another user's", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// Removes a socket file at `path` that nobody serves. `probe` is a fresh socket of the kind that would serve it.
pub(crate) fn make_way(path: &Path, probe: OwnedFd) -> io::Result<()> {
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(nix::Error::ENOENT) => Ok(()),
        Err(nix::Error::ECONNREFUSED) => std::fs::remove_file(path),
        // Connected, or a full queue, or a socket of another type: somebody is there.
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("{} is served by another process", path.display()),
        )),
    }
}

/// Leaves `path` to its owner.
pub(crate) fn restrict(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// Listens on a stream socket at `path`, mode 0600.
///
/// # Errors
/// `AddrInUse` when another process serves it; whatever else the kernel refuses.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let probe = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM.nonblocking(), None)?;
    make_way(path, probe.into())?;
    let listener = UnixListener::bind(path)?;
    restrict(path)?;
    Ok(listener)
}

/// The connections to `listener`, called `name`, whose peers are let in; the others are closed, counted and logged.
pub(crate) fn admitted(
    listener: UnixListener,
    name: &'static str,
    refusals: Refusals,
) -> impl Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold((listener, refusals), move |(listener, refusals)| async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => return Some((Err(error), (listener, refusals))),
            };
            if refusals.let_in(&stream, name).is_some() {
                return Some((Ok(stream), (listener, refusals)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_and_their_directory_belong_to_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("a/run");
        make_directory(&run).unwrap();
        let _listener = listen(&run.join("agent.sock")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&run), mode(&run.join("agent.sock"))), (0o700, 0o600));
    }

    #[test]
    fn a_link_is_no_place_for_sockets() {
        let directory = tempfile::tempdir().unwrap();
        let (there, link) = (directory.path().join("there"), directory.path().join("run"));
        std::fs::create_dir(&there).unwrap();
        std::os::unix::fs::symlink(&there, &link).unwrap();
        assert_eq!(make_directory(&link).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        make_directory(&there).unwrap();
    }

    #[tokio::test]
    async fn a_served_socket_is_not_taken_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        listen(&path).unwrap();
    }
}
