//! Connections from a chosen port.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::libc::linger;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use sandbox::NetNamespace;

/// How long a connection may take to be made, and each answer. Longer than a lost SYN takes to be sent again (1 s) would hide a loss.
pub(crate) const AT_ONCE: Duration = Duration::from_millis(900);

/// Connects from `from` to `to` inside of a namespace, as soon as the client's kernel has done with an earlier connection of the same
/// ends: until the last acknowledgement of its end has come, it has no such address to give (`LAST_ACK`).
pub(crate) fn dial(net: &NetNamespace, from: SocketAddr, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match dial_now(net, from, to)? {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && begun.elapsed() < AT_ONCE => {
                std::thread::yield_now();
            }
            dialled => return dialled.with_context(|| format!("connecting from {from} to {to}")),
        }
    }
}

fn dial_now(
    net: &NetNamespace,
    from: SocketAddr,
    to: SocketAddr,
) -> anyhow::Result<std::io::Result<TcpStream>> {
    Ok(net.run(|| -> std::io::Result<TcpStream> {
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        let stream = TcpStream::from(socket);
        // Holds for `connect` as well (socket(7), SO_SNDTIMEO).
        stream.set_write_timeout(Some(AT_ONCE))?;
        stream.set_read_timeout(Some(AT_ONCE))?;
        connect(stream.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(stream)
    })?)
}

/// Sends what names this connection and nothing else, and expects it back.
pub(crate) fn exchange(stream: &mut TcpStream, number: usize) -> anyhow::Result<()> {
    let text = format!("{:>8}/{:?}", number, stream.local_addr()?);
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).with_context(|| format!("no answer to {text}"))?;
    ensure!(answer == text.as_bytes(), "{text} was answered {:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// How a connection is ended, so that its client may use its port again at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// By the server first.
    Server,
    /// By a reset from the client.
    Reset,
}

impl End {
    /// Has `stream` ended so when it is dropped.
    pub(crate) fn make(self, stream: &TcpStream) -> std::io::Result<()> {
        if matches!(self, Self::Reset) {
            setsockopt(stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
        }
        Ok(())
    }
}

/// An address with a port.
pub(crate) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
