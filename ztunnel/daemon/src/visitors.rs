//! Who may use a unix socket of ours: processes of our own user, whatever the modes of its file and directory say.
//!
//! Modes are the first hurdle, and the one that an administrator can move by accident; the kernel's word for who
//! connected (`SO_PEERCRED`, unix(7)) is the second. A peer of a user namespace counts as whom it is in ours.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Who is at the other end of a connection: as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visitor {
    /// The process; 0 when it lives in a PID namespace that this process cannot see into.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

/// A visitor that is not let in.
#[derive(Debug, thiserror::Error)]
pub enum VisitorRefused {
    /// It runs as somebody else.
    #[error("process {} runs as user {}, which is not ours", .0.pid, .0.uid)]
    OtherUser(Visitor),
    /// The kernel did not say who it is.
    #[error("the peer's credentials cannot be read: {0}")]
    Unknown(#[from] io::Error),
}

/// Reads who is at the other end, and lets in only our own user.
///
/// # Errors
/// See the type.
pub fn let_in(socket: &impl AsFd) -> Result<Visitor, VisitorRefused> {
    let credentials = getsockopt(&socket.as_fd(), PeerCredentials).map_err(io::Error::from)?;
    let visitor =
        Visitor { pid: u32::try_from(credentials.pid()).unwrap_or_default(), uid: credentials.uid() };
    if visitor.uid == nix::unistd::geteuid().as_raw() {
        Ok(visitor)
    } else {
        Err(VisitorRefused::OtherUser(visitor))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Socket {
    socket: String,
}

/// The count of those who were not let in, by socket. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Family<Socket, Counter>);

impl Refusals {
    /// Makes it known to a registry, which adds the process's prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "local_socket_refusals",
            "Connections to unix sockets of this process that were refused for their user, by socket",
            self.0.clone(),
        );
    }

    /// Lets in as [`let_in`] does; whoever is refused is counted and named in the log. `socket` is the file's name.
    pub fn let_in(&self, peer: &impl AsFd, socket: &str) -> Option<Visitor> {
        let_in(peer).map_err(|refused| self.refused(socket, &refused)).ok()
    }

    /// Counts a refusal and names it in the log.
    pub fn refused(&self, socket: &str, refused: &VisitorRefused) {
        self.0.get_or_create(&Socket { socket: socket.to_owned() }).inc();
        tracing::warn!(socket, reason = %refused, "a connection to a local socket was refused");
    }

    /// How many were refused at `socket`.
    pub fn count(&self, socket: &str) -> u64 {
        self.0.get_or_create(&Socket { socket: socket.to_owned() }).get()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_own_user_is_let_in_and_named() {
        let (a, _b) = UnixStream::pair().unwrap();
        let refusals = Refusals::default();
        let expected = Visitor { pid: std::process::id(), uid: nix::unistd::geteuid().as_raw() };
        assert_eq!(refusals.let_in(&a, "a.sock"), Some(expected));
        assert_eq!(refusals.count("a.sock"), 0);
    }

    #[test]
    fn what_is_no_unix_socket_is_refused_and_counted() {
        let refusals = Refusals::default();
        assert_eq!(refusals.let_in(&std::fs::File::open("/dev/null").unwrap(), "a.sock"), None);
        assert_eq!((refusals.count("a.sock"), refusals.count("b.sock")), (1, 0));
    }
}
