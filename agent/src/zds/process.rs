//! The process at the other end of a ZDS connection, held by a pidfd so that its number cannot come to mean another one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use daemon::visitors::Visitor as Peer;

/// `SO_PEERPIDFD` (Linux 6.5): a pidfd of the very process that connected.
const SO_PEERPIDFD: libc::c_int = 77;

/// Which process, once and for all: its number, and when it started (clock ticks since boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessId {
    pub(super) pid: u32,
    pub(super) started: u64,
}

/// A process that is held: while it lives, `/proc/PID` is its own.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process that connected, within a tokio runtime.
    ///
    /// # Errors
    /// It has ended, or lives in a PID namespace that cannot be seen from here.
    pub(crate) fn of_peer(socket: &impl AsFd, peer: Peer) -> io::Result<Self> {
        let fd = match of_socket(socket) {
            // Kernels before 6.5: by number. Who reads `/proc` must see to it that it is the same process throughout.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => by_number(peer.pid)?,
            fd => fd?,
        };
        Self::new(peer.pid, fd)
    }

    fn new(pid: u32, fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` stays open, and the same descriptor, for as long as the `AsyncFd` owns it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { pid, fd })
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended: then everything read from `/proc/PID` so far was of it.
    pub(crate) fn is_alive(&self) -> io::Result<bool> {
        // A pidfd is readable once the process has ended (pidfd_open(2)).
        let mut fds = [PollFd::new(self.fd.get_ref().as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::ZERO)? == 0)
    }

    /// What names it for good.
    pub(crate) fn id(&self) -> io::Result<ProcessId> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let started = start_time(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(ProcessId { pid: self.pid, started })
    }

    /// Resolves when it has ended.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.fd.readable().await.map(|_| ())
    }
}

fn of_socket(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of_val(&fd)).map_err(io::Error::other)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes to `fd`, which is that long; both outlive the call.
    let result = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn by_number(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)), counted after the name, which may contain anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_found_behind_any_name() {
        let rest = (3..30).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_time(&format!("1 (a) 5 b)) {rest}")), Some(22));
        assert_eq!(start_time("1 (a"), None);
    }

    #[tokio::test]
    async fn a_process_is_alive_until_it_ends() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let process = Process::new(child.id(), by_number(child.id()).unwrap()).unwrap();
        assert!(process.is_alive().unwrap());
        assert_eq!(process.id().unwrap(), process.id().unwrap());
        drop(child.stdin.take());
        process.ended().await.unwrap();
        assert!(!process.is_alive().unwrap());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn the_peer_of_a_socket_is_the_process_that_made_it() {
        let (a, _b) = tokio::net::UnixStream::pair().unwrap();
        let peer = daemon::visitors::let_in(&a).unwrap();
        let process = Process::of_peer(&a, peer).unwrap();
        assert_eq!(process.pid(), std::process::id());
        assert!(process.is_alive().unwrap());
    }
}
