//! Listeners and what they accept.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::netns::Netns;
use super::options::{InterceptPort, TcpOptions, reset_unless_closed};
use super::pod::Rules;

/// Connections that wait to be accepted: the kernel's own default maximum (`net.core.somaxconn` since 5.4).
const BACKLOG: i32 = 4096;

/// An accepted connection. Addresses are canonical.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, with its options set.
    pub stream: TcpStream,
    /// The client.
    pub peer: SocketAddr,
    /// The address that was dialled: with capture, the original destination.
    pub local: SocketAddr,
}

/// An accepted connection on its way to another runtime. Dropped, it is reset.
#[derive(Debug)]
pub struct Detached {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
}

impl Accepted {
    /// Takes it off the runtime it was accepted on. Failing, it is reset.
    pub fn detach(self) -> io::Result<Detached> {
        reset_unless_closed(&self.stream);
        Ok(Detached { stream: self.stream.into_std()?, peer: self.peer, local: self.local })
    }
}

impl Detached {
    /// Puts it on the runtime this is called on. Failing, it is reset.
    pub fn attach(self) -> io::Result<Accepted> {
        Ok(Accepted { stream: TcpStream::from_std(self.stream)?, peer: self.peer, local: self.local })
    }
}

/// IPv4 addresses in IPv6 form (`::ffff:a.b.c.d`), as dual-stack listeners report them, become IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Accepts a connection and sets `options`. Cancel safe: a connection is not lost by cancelling.
pub async fn accept(listener: &TcpListener, options: &TcpOptions) -> io::Result<Accepted> {
    let (stream, peer) = listener.accept().await?;
    options.apply(&stream)?;
    let local = stream.local_addr()?;
    Ok(Accepted { stream, peer: canonical(peer), local: canonical(local) })
}

/// Takes a listening TCP socket that another process made. Anything else is an error.
pub fn adopt_listener(fd: OwnedFd) -> io::Result<TcpListener> {
    let socket = Socket::from(fd);
    let listens = socket.is_listener()? && socket.r#type()? == Type::STREAM;
    if !listens || ![Domain::IPV4, Domain::IPV6].contains(&socket.domain()?) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is no listening TCP socket"));
    }
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Makes a listener inside of a pod, as `rules` want it: dual stack, or IPv4 where there is no IPv6; transparent where that is allowed,
/// so that it also takes connections to any address that are assigned to it; backlog 4096.
pub fn bind_listener(netns: &Netns, port: InterceptPort, rules: &Rules) -> io::Result<TcpListener> {
    let (socket, address) = unbound(netns, Protocol::TCP, port, rules)?;
    rules.original_source.prepare(&socket, true)?;
    if address.is_ipv6() {
        rules.original_source.prepare(&socket, false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A socket of either protocol inside of a pod, and the address to bind it to, as `rules` want them: dual stack, or IPv4 where there
/// is no IPv6.
pub(super) fn unbound(
    netns: &Netns,
    protocol: Protocol,
    port: InterceptPort,
    rules: &Rules,
) -> io::Result<(Socket, SocketAddr)> {
    let kind = if protocol == Protocol::TCP { Type::STREAM } else { Type::DGRAM };
    let socket = |domain| netns.run_in(|| Socket::new(domain, kind.nonblocking(), Some(protocol)))?;
    let ipv6 = match rules.ipv6.then(|| socket(Domain::IPV6)) {
        Some(Err(error)) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
        made => made.transpose()?,
    };
    let (socket, address) = match ipv6 {
        Some(socket) => {
            socket.set_only_v6(false)?;
            (socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.get())))
        }
        None => (socket(Domain::IPV4)?, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.get()))),
    };
    socket.set_mark(rules.mark.get())?;
    socket.set_reuse_port(rules.port_reuse)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn an_adopted_dual_stack_listener_reports_ipv4_addresses_as_ipv4() {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
        socket.listen(1).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        let listener = adopt_listener(socket.into()).unwrap();

        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let accepted = accept(&listener, &TcpOptions::default()).await.unwrap();
        assert_eq!(accepted.local, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        assert_eq!(accepted.peer, client.local_addr().unwrap());
        assert!(accepted.stream.nodelay().unwrap());
    }

    /// A client and what was accepted of it.
    async fn pair() -> (TcpStream, Accepted) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, accept(&listener, &TcpOptions::default()).await.unwrap())
    }

    #[tokio::test]
    async fn a_connection_goes_on_with_another_runtime() {
        let (mut client, accepted) = pair().await;
        let (peer, local) = (accepted.peer, accepted.local);
        let detached = accepted.detach().unwrap();
        let there = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut accepted = detached.attach().unwrap();
                assert_eq!((accepted.peer, accepted.local), (peer, local));
                let mut bytes = [0; 4];
                accepted.stream.read_exact(&mut bytes).await.unwrap();
                accepted.stream.write_all(&bytes).await.unwrap();
            });
        });
        client.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        there.join().unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_is_lost_on_the_way_to_another_runtime_is_reset() {
        let (mut client, accepted) = pair().await;
        drop(accepted.detach().unwrap());
        let error = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_does_not_listen_on_tcp_is_not_adopted() {
        let connected = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let idle = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        for (name, fd) in [("udp", OwnedFd::from(connected)), ("file", file.into()), ("idle", idle.into())] {
            assert!(adopt_listener(fd).is_err(), "{name}");
        }
    }
}
