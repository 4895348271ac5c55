//! The sockets that wait for a pod's captured connections: made by the agent inside the pod's namespace,
//! shared with ztunnel by descriptor.
//!
//! A socket cannot be pinned, so both processes hold these; each gets them back from the other. Accepted
//! sockets inherit the cgroup of the process that made the listener, which is why the agent's cgroup is exempt
//! from capture before any listener exists.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use api::zds::Listener;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::{Netns, NetnsId};

/// Connections that may wait to be accepted, per listener (capped by `net.core.somaxconn` of the pod).
const BACKLOG: i32 = 4096;

/// Those of every pod, in the order in which they travel over ZDS.
pub(crate) const KINDS: [Listener; 3] = [Listener::Outbound, Listener::InboundPlaintext, Listener::Hbone];
/// After them those of a pod whose DNS is captured.
const DNS_KINDS: [Listener; 2] = [Listener::DnsStream, Listener::DnsDatagram];

/// Why a pod's listeners cannot stand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The application occupies a port of ours.
    #[error("port {0} is in use by the application; the mesh needs 15001, 15006 and 15008 in the pod{also}", also = also(.0))]
    PortInUse(u16),
    /// The socket could not be made.
    #[error("cannot listen on port {port} in the pod: {source}")]
    Socket {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The namespace cannot be entered.
    #[error("cannot enter the pod's network namespace: {0}")]
    Enter(#[source] io::Error),
}

fn also(port: &u16) -> &'static str {
    if *port == Listener::DnsStream.port() {
        ", and 15053 unless its DNS is left alone (annotation ambient.istio.io/dns-capture: \"false\")"
    } else {
        ""
    }
}

/// Why a descriptor handed back by ztunnel is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotOurs {
    /// Not a listening socket on that port.
    #[error("it is no socket listening on port {0}")]
    NotListening(u16),
    /// It belongs to another namespace.
    #[error("it belongs to another network namespace")]
    OtherNetns,
    /// One of the kinds is missing.
    #[error("the listener on port {0} is missing")]
    Missing(u16),
}

/// The listeners of one pod.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// In the order of [`KINDS`].
    all: [OwnedFd; 3],
    dns: Option<DnsListeners>,
}

/// The listeners for the DNS of one pod, in the order of [`DNS_KINDS`].
#[derive(Debug)]
pub(crate) struct DnsListeners([OwnedFd; 2]);

impl DnsListeners {
    fn make(netns: &Netns) -> Result<Self, ListenError> {
        let port = Listener::DnsStream.port();
        let make = || Ok(Self([listen(port)?, receive(port)?]));
        netns.run(make).map_err(ListenError::Enter)?
    }

    /// The one for TCP.
    pub(crate) fn stream(&self) -> BorrowedFd<'_> {
        self.0[0].as_fd()
    }
}

impl Listeners {
    /// Makes them in `netns`, those for DNS too if that is captured: dual stack where the namespace speaks IPv6.
    pub(crate) fn make(netns: &Netns, dns: bool) -> Result<Self, ListenError> {
        let [outbound, inbound, hbone] = KINDS.map(Listener::port);
        let all = netns
            .run(|| Ok([listen(outbound)?, listen(inbound)?, listen(hbone)?]))
            .map_err(ListenError::Enter)??;
        let dns = dns.then(|| DnsListeners::make(netns)).transpose()?;
        Ok(Self { all, dns })
    }

    /// Takes descriptors that ztunnel held, after checking that each is what it is said to be.
    pub(crate) fn adopt(held: Vec<(Listener, OwnedFd)>, netns: NetnsId) -> Result<Self, NotOurs> {
        let (mut found, mut dns) = ([None, None, None], [None, None]);
        for (kind, fd) in held {
            let place = match kind {
                Listener::Outbound => &mut found[0],
                Listener::InboundPlaintext => &mut found[1],
                Listener::Hbone => &mut found[2],
                Listener::DnsStream => &mut dns[0],
                Listener::DnsDatagram => &mut dns[1],
            };
            let wanted = if kind == Listener::DnsDatagram { Type::DGRAM } else { Type::STREAM };
            check(fd.as_fd(), kind.port(), wanted, netns)?;
            *place = Some(fd);
        }
        let [outbound, inbound, hbone] = found;
        let missing = |kind: Listener| NotOurs::Missing(kind.port());
        let all = [
            outbound.ok_or(missing(Listener::Outbound))?,
            inbound.ok_or(missing(Listener::InboundPlaintext))?,
            hbone.ok_or(missing(Listener::Hbone))?,
        ];
        let dns = match dns {
            [Some(stream), Some(datagram)] => Some(DnsListeners([stream, datagram])),
            [None, None] => None,
            _ => return Err(missing(Listener::DnsStream)),
        };
        Ok(Self { all, dns })
    }

    /// The same listeners, with or without those for DNS.
    pub(crate) fn with_dns(&self, netns: &Netns, dns: bool) -> Result<Self, ListenError> {
        let copy = |kind: Listener| {
            let failed = |source| ListenError::Socket { port: kind.port(), source };
            self.get(kind).try_clone_to_owned().map_err(failed)
        };
        let [outbound, inbound, hbone] = KINDS;
        let all = [copy(outbound)?, copy(inbound)?, copy(hbone)?];
        let dns = dns.then(|| DnsListeners::make(netns)).transpose()?;
        Ok(Self { all, dns })
    }

    /// Takes any descriptors, for tests that only pass them on.
    #[cfg(test)]
    pub(crate) fn unchecked(all: [OwnedFd; 3], dns: Option<[OwnedFd; 2]>) -> Self {
        Self { all, dns: dns.map(DnsListeners) }
    }

    /// The listener of this kind, which every pod has.
    pub(crate) fn get(&self, kind: Listener) -> BorrowedFd<'_> {
        let place = KINDS.iter().position(|one| *one == kind).unwrap_or(0);
        self.all[place].as_fd()
    }

    /// Those for DNS, if it is captured.
    pub(crate) fn dns(&self) -> Option<&DnsListeners> {
        self.dns.as_ref()
    }

    /// All, in the order in which they travel over ZDS; those for DNS only `with_dns`.
    pub(crate) fn all(&self, with_dns: bool) -> impl Iterator<Item = (Listener, BorrowedFd<'_>)> {
        let dns = self.dns.iter().filter(move |_| with_dns).flat_map(|dns| &dns.0);
        let dns = DNS_KINDS.into_iter().zip(dns.map(AsFd::as_fd));
        KINDS.into_iter().zip(self.all.iter().map(AsFd::as_fd)).chain(dns)
    }
}

fn listen(port: u16) -> Result<OwnedFd, ListenError> {
    in_either_stack(port, dual_stack, v4_only)
}

/// A UDP socket that datagrams for any address are led to. It is bound to `lo`, over which those come: for what comes from outside, and
/// for what the pod sends to its own address, nobody is there.
fn receive(port: u16) -> Result<OwnedFd, ListenError> {
    let v6 = |port| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        socket.set_only_v6(false)?;
        socket.set_ip_transparent_v6(true)?;
        bind_to_loopback(socket, IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
    };
    let v4 = |port| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        bind_to_loopback(socket, IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
    };
    in_either_stack(port, v6, v4)
}

fn bind_to_loopback(socket: Socket, address: IpAddr, port: u16) -> io::Result<Socket> {
    socket.set_ip_transparent_v4(true)?;
    socket.bind_device(Some(b"lo"))?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    Ok(socket)
}

fn in_either_stack(
    port: u16,
    dual: impl Fn(u16) -> io::Result<Socket>,
    v4: impl Fn(u16) -> io::Result<Socket>,
) -> Result<OwnedFd, ListenError> {
    let socket = dual(port).or_else(|error| match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => v4(port),
        _ => Err(error),
    });
    socket.map(OwnedFd::from).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => ListenError::PortInUse(port),
        _ => ListenError::Socket { port, source },
    })
}

fn dual_stack(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    // One bit in the kernel, two levels of options: connections to any address, not only the pod's, are accepted.
    socket.set_ip_transparent_v4(true)?;
    socket.set_ip_transparent_v6(true)?;
    start(socket, IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

fn v4_only(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_ip_transparent_v4(true)?;
    start(socket, IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

fn start(socket: Socket, address: IpAddr, port: u16) -> io::Result<Socket> {
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn check(fd: BorrowedFd<'_>, port: u16, wanted: Type, netns: NetnsId) -> Result<(), NotOurs> {
    let socket = socket2::SockRef::from(&fd);
    let local = socket.local_addr().ok().and_then(|address| address.as_socket());
    let listening = (wanted != Type::STREAM || socket.is_listener().unwrap_or(false))
        && socket.r#type().is_ok_and(|kind| kind == wanted);
    if !listening || local.is_none_or(|address| address.port() != port) {
        return Err(NotOurs::NotListening(port));
    }
    if netns_of(fd).is_ok_and(|id| id == netns) { Ok(()) } else { Err(NotOurs::OtherNetns) }
}

/// The namespace a socket belongs to (`SIOCGSKNS`, socket(7) and Linux 4.10; needs `CAP_NET_ADMIN` there).
fn netns_of(socket: BorrowedFd<'_>) -> io::Result<NetnsId> {
    const SIOCGSKNS: libc::c_ulong = 0x894C;
    // SAFETY: the ioctl takes no argument, and the descriptor is open for the length of the borrow.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl returned a new descriptor that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(Netns::from_fd(fd)?.id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_that_are_no_such_listeners_are_not_taken() {
        let netns = Netns::own().unwrap().id();
        let pipe = || OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let held = KINDS.map(|kind| (kind, pipe())).into();
        assert_eq!(Listeners::adopt(held, netns).unwrap_err(), NotOurs::NotListening(15001));
    }

    #[test]
    fn a_pod_with_a_listener_missing_is_not_taken() {
        let netns = Netns::own().unwrap().id();
        assert_eq!(Listeners::adopt(vec![], netns).unwrap_err(), NotOurs::Missing(15001));
    }

    #[test]
    fn a_busy_port_is_named() {
        let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        // Binding needs CAP_NET_ADMIN for IP_TRANSPARENT; without it the socket fails earlier, for another reason.
        match listen(port).unwrap_err() {
            ListenError::PortInUse(named) => assert_eq!(named, port),
            ListenError::Socket { source, .. } => assert_eq!(source.raw_os_error(), Some(libc::EPERM)),
            ListenError::Enter(error) => panic!("no namespace was entered: {error}"),
        }
    }
}
