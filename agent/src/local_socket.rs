//! The agent's unix sockets: who may use them, and how their files come to stand.
//!
//! The directory is 0700, the sockets 0600, and every peer's credentials are checked on top of that:
//! a peer must run as the agent's own user.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use futures::Stream;
use nix::sys::socket::{UnixAddr, connect, getsockopt, sockopt::PeerCredentials};
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// Who is at the other end of a connection (`SO_PEERCRED`, unix(7)): as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The process.
    pub(crate) pid: u32,
    /// Its user.
    pub(crate) uid: u32,
}

/// A peer of another user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerRefused {
    /// It runs as somebody else.
    #[error("process {} runs as user {}, not as the agent's", .0.pid, .0.uid)]
    OtherUser(Peer),
    /// The kernel did not say who it is.
    #[error("the peer's credentials cannot be read: {0}")]
    Unknown(#[from] io::Error),
}

/// Reads who is at the other end, and admits only the agent's own user.
pub(crate) fn admit(socket: &impl AsFd) -> Result<Peer, PeerRefused> {
    let credentials = getsockopt(&socket.as_fd(), PeerCredentials).map_err(io::Error::from)?;
    // A pid of 0 means that the peer lives in a PID namespace that this process cannot see into.
    let peer = Peer { pid: u32::try_from(credentials.pid()).unwrap_or_default(), uid: credentials.uid() };
    if peer.uid == nix::unistd::geteuid().as_raw() { Ok(peer) } else { Err(PeerRefused::OtherUser(peer)) }
}

/// Makes the run directory, mode 0700; tightens one that stands.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
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

/// The connections to `listener` whose peers are admitted; the others are closed and logged.
pub(crate) fn admitted(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures::stream::unfold(listener, |listener| async {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => return Some((Err(error), listener)),
            };
            match admit(&stream) {
                Ok(_) => return Some((Ok(stream), listener)),
                Err(error) => warn!(%error, "a connection to a local socket was refused"),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_own_user_is_admitted_and_named() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = admit(&a).unwrap();
        assert_eq!((peer.pid, peer.uid), (std::process::id(), nix::unistd::geteuid().as_raw()));
    }

    #[tokio::test]
    async fn sockets_and_their_directory_belong_to_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("a/run");
        make_directory(&run).unwrap();
        let _listener = listen(&run.join("agent.sock")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&run), mode(&run.join("agent.sock"))), (0o700, 0o600));
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
