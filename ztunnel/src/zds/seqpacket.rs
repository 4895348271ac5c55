//! A connection of datagrams with file descriptors: AF_UNIX, SOCK_SEQPACKET (Istio contract 2.5).
//! One datagram is one message; a cut datagram or a cut list of descriptors is an error, never a message.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use api::zds::{MAX_FDS, MAX_MESSAGE};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    getsockopt, recvmsg, sendmsg, socket,
};
use nix::unistd::geteuid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One message as it came.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// The encoded message.
    pub(crate) bytes: Vec<u8>,
    /// What came with it, in order.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SeqPacket(AsyncFd<OwnedFd>);

impl SeqPacket {
    /// Connects to the socket at `path`. A full backlog of the server is `WouldBlock`: try again later. A server that is
    /// neither root nor ourselves is refused: whoever it is must not give us pods to speak for.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let server = getsockopt(&fd, PeerCredentials)?.uid();
        if server != 0 && server != geteuid().as_raw() {
            let reason = format!("the socket is served by user {server}, neither root nor ours");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        Self::new(fd)
    }

    /// A socket that is connected already and does not block.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open, and the same file, for as long as it is owned, which the `AsyncFd` does.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// The next datagram; `None` when the peer has closed. Cancel safe.
    pub(crate) async fn receive(&self) -> io::Result<Option<Datagram>> {
        self.0.async_io(Interest::READABLE, |fd| receive(fd.as_raw_fd())).await
    }

    /// Sends one datagram. Cancel safe: it is sent whole or not at all.
    pub(crate) async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        self.0.async_io(Interest::WRITABLE, |fd| send(fd.as_raw_fd(), bytes, &raw)).await
    }
}

fn send(fd: RawFd, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let sent = sendmsg::<UnixAddr>(fd, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    match sent == bytes.len() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::WriteZero, "datagram was cut on sending")),
    }
}

fn receive(fd: RawFd) -> io::Result<Option<Datagram>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let (length, flags) = (message.bytes, message.flags);
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this process, nobody else knows their
            // numbers, and each is taken once.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "datagram or its descriptors were cut on receiving",
        ));
    }
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    buffer.truncate(length);
    Ok(Some(Datagram { bytes: buffer, descriptors }))
}
