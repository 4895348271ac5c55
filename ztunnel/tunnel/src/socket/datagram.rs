//! Datagrams that the kernel leads to a listener in a pod, the answers to them, and datagrams to the network.
//!
//! A captured datagram keeps both its ends: the receiver is told which address it was for, and answers in its name, from a socket that
//! is bound to it. The pod's application sees nothing but the server it asked.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::sockopt::{Ipv4OrigDstAddr, Ipv6OrigDstAddr};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg,
    sendmsg, setsockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::listen::{canonical, unbound};
use super::netns::Netns;
use super::options::{InterceptPort, SocketMark};
use super::pod::{PodNetns, Rules};

/// Sockets kept to answer from: one for each address that was asked lately. Most pods ask one or two.
const ANSWERING: usize = 64;

/// A datagram that was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Its length in bytes.
    pub length: usize,
    /// Whom it came from.
    pub from: SocketAddr,
    /// Whom it was for.
    pub to: SocketAddr,
}

/// A socket that captured datagrams arrive at.
#[derive(Debug)]
pub struct DatagramListener {
    socket: UdpSocket,
    netns: Netns,
    /// The last one used comes last.
    answering: Mutex<VecDeque<(SocketAddr, Arc<Socket>)>>,
}

impl DatagramListener {
    /// Takes a bound UDP socket of `netns` that another process made. Anything else is an error.
    pub fn adopt(fd: OwnedFd, netns: Netns) -> io::Result<Self> {
        let socket = Socket::from(fd);
        let is_bound = socket.local_addr()?.as_socket().is_some_and(|address| address.port() != 0);
        if socket.r#type()? != Type::DGRAM || !is_bound {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is no bound UDP socket"));
        }
        Self::of(socket, netns)
    }

    /// Makes one inside of `netns`, as `rules` want it, for datagrams that they lead to `port` of the pod's own.
    pub fn bind(netns: &Netns, port: InterceptPort, rules: &Rules) -> io::Result<Self> {
        let (socket, address) = unbound(netns, Protocol::UDP, port, rules)?;
        socket.bind(&address.into())?;
        Self::of(socket, netns.clone())
    }

    fn of(socket: Socket, netns: Netns) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        setsockopt(&socket, Ipv4OrigDstAddr, &true)?;
        if socket.domain()? == Domain::IPV6 {
            setsockopt(&socket, Ipv6OrigDstAddr, &true)?;
        }
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket, netns, answering: Mutex::default() })
    }

    /// The next datagram, into `buffer`; what does not fit is lost. Addresses are canonical. Cancel safe.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Captured> {
        self.socket.async_io(Interest::READABLE, || receive(&self.socket, buffer)).await
    }

    /// Answers `captured` in the name of whom it was for. Never leaves the pod: an answer to an address that is not the pod's has no way.
    pub fn answer(&self, captured: &Captured, bytes: &[u8]) -> io::Result<()> {
        let socket = self.answering(captured.to)?;
        socket.send_to(bytes, &captured.from.into()).map(drop)
    }

    /// Answers `captured` from this socket, in the name of the address it arrived at: for datagrams that rules with connection tracking
    /// led here, which turn the answer round as well.
    pub fn answer_here(&self, captured: &Captured, bytes: &[u8]) -> io::Result<()> {
        let slices = [io::IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let fd = self.socket.as_raw_fd();
        let sent = match (captured.to.ip(), captured.from) {
            (IpAddr::V4(own), SocketAddr::V4(from)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(own.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                if self.socket.local_addr()?.is_ipv4() {
                    sendmsg(fd, &slices, &control, flags, Some(&SockaddrIn::from(from)))
                } else {
                    let mapped = SocketAddrV6::new(from.ip().to_ipv6_mapped(), from.port(), 0, 0);
                    sendmsg(fd, &slices, &control, flags, Some(&SockaddrIn6::from(mapped)))
                }
            }
            (IpAddr::V6(own), SocketAddr::V6(from)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: own.octets() },
                    ipi6_ifindex: 0,
                };
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(fd, &slices, &control, flags, Some(&SockaddrIn6::from(from)))
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "ends of two families")),
        };
        sent.map(drop).map_err(io::Error::from)
    }

    /// A socket bound to `address`, which is not the pod's own.
    fn answering(&self, address: SocketAddr) -> io::Result<Arc<Socket>> {
        let mut all = self.answering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = all.iter().position(|(one, _)| *one == address) {
            if let Some(used) = all.remove(place) {
                all.push_back(used);
            }
        } else {
            let socket = Arc::new(bound_to(&self.netns, address)?);
            all.push_back((address, socket));
            if all.len() > ANSWERING {
                all.pop_front();
            }
        }
        match all.back() {
            Some((_, socket)) => Ok(socket.clone()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// It only sends. The mark routes to `lo` what is for no address of the pod's, so that nobody outside gets answers that a pod asked for
/// in his name.
fn bound_to(netns: &Netns, address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = netns.run_in(|| Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP)))??;
    socket.set_mark(SocketMark::APPLICATION.get())?;
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    // A successor answers in the same name while this one ends.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Captured> {
    let mut slices = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(libc::sockaddr_in, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let from = message.address.as_ref().and_then(to_std);
    let mut to = None;
    for one in message.cmsgs()? {
        match one {
            ControlMessageOwned::Ipv4OrigDstAddr(address) => {
                to = Some(SocketAddr::V4(SocketAddrV4::from(SockaddrIn::from(address))));
            }
            ControlMessageOwned::Ipv6OrigDstAddr(address) => {
                to = Some(SocketAddr::V6(SocketAddrV6::from(SockaddrIn6::from(address))));
            }
            _ => {}
        }
    }
    let length = message.bytes;
    match (from, to) {
        (Some(from), Some(to)) => Ok(Captured { length, from: canonical(from), to: canonical(to) }),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a datagram without its two ends")),
    }
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4(SocketAddrV4::from(*address)));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6(SocketAddrV6::from(*address))))
}

/// A UDP socket of the pod's that exchanges datagrams with `to` and nobody else, from `source` (the pod's address; `None`: the kernel's
/// choice) and a port that the kernel draws.
pub fn connect_datagram(netns: &PodNetns, source: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let kind = Type::DGRAM.nonblocking();
    let socket =
        netns.netns().run_in(|| Socket::new(Domain::for_address(to), kind, Some(Protocol::UDP)))??;
    socket.set_mark(netns.network_mark().get())?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source.to_canonical(), 0).into())?;
    }
    socket.connect(&to.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn listener(domain: Domain, address: SocketAddr) -> DatagramListener {
        let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
        if domain == Domain::IPV6 {
            socket.set_only_v6(false).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        DatagramListener::adopt(socket.into(), Netns::current().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn both_ends_of_a_datagram_are_known_and_the_answer_comes_from_where_it_went() {
        let listener = listener(Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
        let port = listener.socket.local_addr().unwrap().port();
        for own in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv4Addr::new(127, 0, 0, 9).into(),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let to = SocketAddr::new(own, port);
            let client = UdpSocket::bind(SocketAddr::new(
                if own.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { own },
                0,
            ))
            .await
            .unwrap();
            // Takes nothing from anybody else.
            client.connect(to).await.unwrap();
            client.send(b"question").await.unwrap();
            let mut buffer = [0; 64];
            let captured = listener.receive(&mut buffer).await.unwrap();
            assert_eq!(captured, Captured { length: 8, from: client.local_addr().unwrap(), to });
            listener.answer_here(&captured, b"answer").unwrap();
            let length = client.recv(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], b"answer");
        }
    }

    #[tokio::test]
    async fn what_is_no_bound_udp_socket_is_not_adopted() {
        let netns = Netns::current().unwrap();
        let stream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unbound = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for (name, fd) in [("tcp", OwnedFd::from(stream)), ("unbound", unbound.into()), ("file", file.into())]
        {
            assert!(DatagramListener::adopt(fd, netns.clone()).is_err(), "{name}");
        }
    }
}
