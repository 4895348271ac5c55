//! The sockets of ZDS: AF_UNIX, SOCK_SEQPACKET, with file descriptors (unix(7), `SCM_RIGHTS`; Istio contract 2.5),
//! for tokio. Who may be at the other end is its user's to check.
//!
//! One datagram is one message. A cut datagram or a cut list of descriptors is an error, never a message; a received
//! descriptor is owned by the value it comes in and closed with it.

#[cfg(test)]
mod tests;

use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::{UnixDatagram, UnixListener};

use crate::zds::MAX_MESSAGE;

/// Descriptors that a datagram is received with at most: what the kernel passes at once (`SCM_MAX_FD`), so that none
/// is cut off. How many a message may have is the codec's to say.
const MAX_RECEIVED: usize = 253;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// One message as it came.
#[derive(Debug)]
pub struct Datagram {
    /// The encoded message.
    pub bytes: Vec<u8>,
    /// What came with it, in order.
    pub descriptors: Vec<OwnedFd>,
}

/// One end of a connection.
// To tokio and the standard library one unix socket is like another: readiness is all that is used of theirs.
#[derive(Debug)]
pub struct SeqPacket(UnixDatagram);

/// A socket of the kind, neither bound nor connected, that does not block.
pub fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl SeqPacket {
    /// Connects to the socket at `path`, within a tokio runtime. A full backlog of the server is `WouldBlock`: try
    /// again later.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = socket()?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Self::new(fd)
    }

    /// Takes over a connected socket, within a tokio runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self(UnixDatagram::from_std(socket)?))
    }

    /// Two connected ends, within a tokio runtime.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self::new(one)?, Self::new(other)?))
    }

    /// The next datagram; `None` when the peer has closed. Cancel safe.
    ///
    /// # Errors
    /// `InvalidData` when the datagram (more than [`MAX_MESSAGE`] bytes) or its descriptors were cut; what is left of
    /// them is closed. Whatever the kernel says otherwise.
    pub async fn receive(&self) -> io::Result<Option<Datagram>> {
        self.0.async_io(Interest::READABLE, || receive(self.0.as_fd())).await
    }

    /// Sends one datagram. Cancel safe: it is sent whole or not at all. Waits while the peer reads nothing, without a
    /// bound.
    pub async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, || send(self.0.as_fd(), bytes, descriptors)).await
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Accepts connections.
#[derive(Debug)]
pub struct SeqPacketListener(UnixListener);

impl SeqPacketListener {
    /// Listens at `path`, where nothing stands yet, with mode 0600; within a tokio runtime. The file is the caller's.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let fd = socket()?;
        rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
        // Before `listen`, so that nobody else gets in meanwhile.
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        rustix::net::listen(&fd, BACKLOG)?;
        Ok(Self(UnixListener::from_std(fd.into())?))
    }

    /// The next connection. Cancel safe.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        let (stream, _) = self.0.accept().await?;
        SeqPacket::new(stream.into_std()?.into())
    }
}

fn send(fd: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let rights = SendAncillaryMessage::ScmRights(descriptors);
    let mut space = vec![MaybeUninit::uninit(); rights.size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(rights) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match sendmsg(fd, &[IoSlice::new(bytes)], &mut control, flags)? == bytes.len() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::WriteZero, "datagram was cut on sending")),
    }
}

fn receive(fd: BorrowedFd<'_>) -> io::Result<Option<Datagram>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_RECEIVED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for control in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = control {
            descriptors.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        let reason = "datagram or its descriptors were cut on receiving";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    if message.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    bytes.truncate(message.bytes);
    Ok(Some(Datagram { bytes, descriptors }))
}
