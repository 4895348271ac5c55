//! `SOCK_SEQPACKET` unix sockets that carry file descriptors (unix(7), `SCM_RIGHTS`), for tokio.
//!
//! One datagram is one message. A received descriptor is owned by the value it comes in and closed with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use api::zds::MAX_MESSAGE;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    accept4, bind, listen, recvmsg, sendmsg, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::local_socket;

/// As many descriptors as the kernel passes at once (`SCM_MAX_FD`), so that none is ever cut off and lost.
const DESCRIPTOR_LIMIT: usize = 253;

/// What arrived in one datagram.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// The message.
    pub(crate) bytes: Vec<u8>,
    /// The descriptors that came with it, in order.
    pub(crate) fds: Vec<OwnedFd>,
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same descriptor, for as long as the `AsyncFd` owns it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct SeqPacket(AsyncFd<OwnedFd>);

impl SeqPacket {
    /// Takes over a connected socket in non-blocking mode. Needs a runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(register(fd)?))
    }

    /// Sends one message with descriptors.
    pub(crate) async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let send = |fd: &OwnedFd| {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            sendmsg::<UnixAddr>(fd.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
                .map_err(io::Error::from)
        };
        let sent = self.0.async_io(Interest::WRITABLE, send).await?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next message; none when the peer has closed.
    pub(crate) async fn receive(&self) -> io::Result<Option<Datagram>> {
        let datagram = self.0.async_io(Interest::READABLE, |fd| receive(fd.as_fd())).await?;
        Ok((!datagram.bytes.is_empty()).then_some(datagram))
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

fn receive(fd: BorrowedFd<'_>) -> io::Result<Datagram> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTOR_LIMIT]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(fd.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for this message; nothing else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of more than 1024 bytes"));
    }
    bytes.truncate(length);
    Ok(Datagram { bytes, fds })
}

/// A socket that accepts connections.
#[derive(Debug)]
pub(crate) struct SeqPacketListener(AsyncFd<OwnedFd>);

impl SeqPacketListener {
    /// Listens on `path`, mode 0600. A socket file that nobody serves is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when another process serves `path`; whatever else the kernel refuses.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let new = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        };
        local_socket::make_way(path, new()?)?;
        let fd = new()?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        local_socket::restrict(path)?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Self(register(fd)?))
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<SeqPacket> {
        let accept = |fd: &OwnedFd| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            accept4(fd.as_raw_fd(), flags).map_err(io::Error::from)
        };
        let fd = self.0.async_io(Interest::READABLE, accept).await?;
        // SAFETY: accept4 returned a new descriptor that nothing else owns.
        SeqPacket::new(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two connected ends.
    pub(crate) fn pair() -> (SeqPacket, SeqPacket) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) =
            nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        (SeqPacket::new(a).unwrap(), SeqPacket::new(b).unwrap())
    }

    #[tokio::test]
    async fn a_message_arrives_with_its_descriptors_in_order() {
        let (a, b) = pair();
        let files: Vec<_> =
            ["/proc/self/status", "/proc/self/stat"].map(|path| std::fs::File::open(path).unwrap()).into();
        a.send(b"hello", &[files[0].as_fd(), files[1].as_fd()]).await.unwrap();
        a.send(b"again", &[]).await.unwrap();
        let first = b.receive().await.unwrap().unwrap();
        assert_eq!((first.bytes.as_slice(), first.fds.len()), (b"hello".as_slice(), 2));
        let target = std::fs::read_link(format!("/proc/self/fd/{}", first.fds[1].as_raw_fd())).unwrap();
        assert!(target.ends_with("stat"), "{target:?}");
        let second = b.receive().await.unwrap().unwrap();
        assert_eq!((second.bytes.as_slice(), second.fds.len()), (b"again".as_slice(), 0));
    }

    #[tokio::test]
    async fn a_closed_peer_is_the_end_and_an_oversized_message_an_error() {
        let (a, b) = pair();
        a.send(&[7; MAX_MESSAGE + 1], &[]).await.unwrap();
        assert_eq!(b.receive().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(a);
        assert!(b.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_socket_that_is_served_is_not_taken_and_a_stale_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zds.sock");
        let first = SeqPacketListener::bind(&path).unwrap();
        assert_eq!(SeqPacketListener::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        SeqPacketListener::bind(&path).unwrap();
    }
}
