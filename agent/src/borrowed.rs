//! Listeners that a ztunnel made by itself in a pod: Istio's takes none and gives none (Istio contract 1.6).
//!
//! To lead connections to a socket the kernel wants it shown by descriptor. The agent, which may look into ztunnel as it may into any
//! process of the node, takes a copy of each for that moment (pidfd_getfd(2), Linux 5.6). It keeps none: a socket that outlived its
//! ztunnel would take connections that nobody accepts, beside those of the next one. When they close, the kernel forgets where
//! connections were led, and what is captured is refused.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use api::zds::Listener;

use crate::listeners::{KINDS, Listeners, NotOurs};
use crate::netns::Netns;

/// `TCP_LISTEN` in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// A ztunnel's listeners cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BorrowError {
    /// The pod's sockets or the process cannot be examined.
    #[error("ztunnel's listeners in the pod cannot be found: {0}")]
    Examine(#[source] io::Error),
    /// ztunnel, which has said that it serves the pod, does not listen there, or another process does.
    #[error("ztunnel's listeners in the pod: {0}")]
    Missing(#[from] NotOurs),
}

/// Copies of what process `pid` listens with in `netns`.
pub(crate) fn borrow(pid: u32, netns: &Netns) -> Result<Listeners, BorrowError> {
    let inodes = netns.run(listening).map_err(BorrowError::Examine)?.map_err(BorrowError::Examine)?;
    let process = pidfd_open(pid).map_err(BorrowError::Examine)?;
    let mut found = Vec::new();
    for (number, inode) in sockets_of(pid).map_err(BorrowError::Examine)? {
        let Some(kind) = inodes.get(&inode) else { continue };
        // One that has been closed meanwhile is missing, which is told below.
        if let Ok(fd) = pidfd_getfd(&process, number) {
            found.push((*kind, fd));
        }
    }
    Ok(Listeners::adopt(found, netns.id())?)
}

/// What listens on our ports in the namespace of this thread: inodes.
fn listening() -> io::Result<BTreeMap<u64, Listener>> {
    let mut found = BTreeMap::new();
    for family in ["tcp", "tcp6"] {
        match fs::read_to_string(Path::new("/proc/thread-self/net").join(family)) {
            Ok(text) => found.extend(text.lines().skip(1).filter_map(listener)),
            // There is no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// A line of `/proc/net/tcp` (proc(5)).
fn listener(line: &str) -> Option<(u64, Listener)> {
    let mut fields = line.split_ascii_whitespace();
    let (_, port) = fields.nth(1)?.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if fields.nth(1)? != LISTENS {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some((inode, KINDS.into_iter().find(|kind| kind.port() == port)?))
}

/// The sockets of a process: descriptor and inode.
fn sockets_of(pid: u32) -> io::Result<Vec<(i32, u64)>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(number), Some(inode)) = (number, socket(&target)) {
            sockets.push((number, inode));
        }
    }
    Ok(sockets)
}

/// `socket:[INODE]`.
fn socket(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and touches no memory of ours.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn pidfd_getfd(process: &OwnedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three numbers and touches no memory of ours; the descriptor of the process is open.
    descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_ports_are_found_among_the_sockets_that_listen() {
        let line = |local: &str, state: &str| {
            format!(
                "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 4711 1 0"
            )
        };
        for (sentence, line, expected) in [
            (
                "outbound",
                line("00000000000000000000000000000000:3A99", "0A"),
                Some((4711, Listener::Outbound)),
            ),
            ("IPv4", line("00000000:3A9E", "0A"), Some((4711, Listener::InboundPlaintext))),
            ("HBONE", line("00000000:3AA0", "0A"), Some((4711, Listener::Hbone))),
            ("a connection of one", line("00000000:3AA0", "01"), None),
            ("another port", line("00000000:0050", "0A"), None),
            ("nothing", String::new(), None),
        ] {
            assert_eq!(listener(&line), expected, "{sentence}");
        }
    }

    #[test]
    fn a_descriptor_of_a_process_is_copied() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = socket.as_raw_fd();
        let own = sockets_of(std::process::id()).unwrap();
        let (_, inode) = own.iter().find(|(fd, _)| *fd == number).copied().unwrap();
        let copy = pidfd_getfd(&pidfd_open(std::process::id()).unwrap(), number).unwrap();
        let same = sockets_of(std::process::id()).unwrap();
        assert!(same.contains(&(copy.as_raw_fd(), inode)));
        assert!(pidfd_getfd(&pidfd_open(std::process::id()).unwrap(), i32::MAX).is_err());
    }
}
