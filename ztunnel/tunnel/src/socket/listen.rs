//! Listeners and what they accept.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use tokio::net::{TcpListener, TcpStream};

use super::netns::Netns;
use super::options::{InterceptPort, TcpOptions};

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

/// IPv4 addresses in IPv6 form (`::ffff:a.b.c.d`) become IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Accepts a connection and sets `options`.
pub async fn accept(listener: &TcpListener, options: &TcpOptions) -> io::Result<Accepted> {
    todo!()
}

/// Takes a listening TCP socket that another process made. It must be one.
pub fn adopt_listener(fd: OwnedFd) -> io::Result<TcpListener> {
    todo!()
}

/// Makes a listener inside of `netns`: dual stack, or IPv4 where there is no IPv6; transparent; backlog 4096.
pub fn bind_listener(netns: &Netns, port: InterceptPort) -> io::Result<TcpListener> {
    todo!()
}
