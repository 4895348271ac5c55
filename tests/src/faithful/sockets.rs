//! Kinds of sockets, and what they can be asked for: whatever an application makes reaches its destination.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, send, setsockopt, socket,
    sockopt,
};
use sandbox::Family;

use super::ways::{Pair, Way, accept, ensure_quiet, everywhere, listen, set_strict, time_to_reset};
use crate::world::{SETTLE, World, pods, ports};

/// Sockets an application may make for a connection over a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of the family.
    Plain,
    /// An IPv6 socket to `::ffff:a.b.c.d`.
    Mapped,
    /// Bound to an address and port of the pod.
    Bound,
    /// Both.
    MappedAndBound,
    /// Bound to the pod's device (`SO_BINDTODEVICE`).
    Device,
    /// Not waiting for the connection to stand.
    NonBlocking,
}

impl Kind {
    fn of(family: Family) -> &'static [Self] {
        match family {
            Family::V4 => &[
                Self::Plain,
                Self::Mapped,
                Self::Bound,
                Self::MappedAndBound,
                Self::Device,
                Self::NonBlocking,
            ],
            Family::V6 => &[Self::Plain, Self::Bound, Self::Device, Self::NonBlocking],
        }
    }

    fn is_mapped(self) -> bool {
        matches!(self, Self::Mapped | Self::MappedAndBound)
    }

    fn is_bound(self) -> bool {
        matches!(self, Self::Bound | Self::MappedAndBound)
    }

    fn form(self, address: SocketAddr) -> SockaddrStorage {
        let form = match address.ip() {
            IpAddr::V4(ip) if self.is_mapped() => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
            _ => address,
        };
        form.into()
    }

    /// Connects from the namespace of this thread, with `own` as the address to bind to.
    fn connect(self, own: SocketAddr, to: SocketAddr) -> nix::Result<TcpStream> {
        let family =
            if to.is_ipv6() || self.is_mapped() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if self == Self::Device {
            setsockopt(&fd, sockopt::BindToDevice, &"eth0".into())?;
        }
        if self.is_bound() {
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &self.form(own))?;
        }
        let stream = TcpStream::from(fd);
        if self == Self::NonBlocking {
            stream.set_nonblocking(true).map_err(|_| nix::errno::Errno::last())?;
        }
        match connect(stream.as_raw_fd(), &self.form(to)) {
            Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        stream.set_nonblocking(false).map_err(|_| nix::errno::Errno::last())?;
        Ok(stream)
    }
}

/// The number of a port to bind to: each is used once, so that none has to be waited for.
fn next_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(41_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where a pod connects to, and from which address the server is to see it come.
fn destinations(world: &World, family: Family) -> anyhow::Result<Vec<(String, &'static str, SocketAddr)>> {
    let mut all = Vec::new();
    for way in Way::ALL {
        all.push((format!("{way:?}"), way.client(), world.address(way.server(), family, ports::ECHO)?));
    }
    all.push(("own address".into(), pods::NEAR, world.address(pods::NEAR, family, ports::ECHO)?));
    for (name, client) in [("own Service", "near"), ("Service", "client")] {
        let services = &world.sandbox.manifests().services;
        let service = services.iter().find(|service| service.name == "near").context("no Service")?;
        let address = service.addresses.iter().find(|address| family.has(**address)).context("no address")?;
        let client = if client == "near" { pods::NEAR } else { pods::CLIENT };
        all.push((name.into(), client, SocketAddr::new(*address, ports::ECHO)));
    }
    Ok(all)
}

pub(super) fn kinds(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, false)?;
    for family in Family::BOTH {
        for (name, client, to) in destinations(world, family)? {
            for kind in Kind::of(family) {
                let own = SocketAddr::new(world.sandbox.pod(client)?.address(family)?, next_port());
                let result = world.sandbox.pod(client)?.net().run(|| kind.connect(own, to))?;
                let check = || -> anyhow::Result<()> {
                    let mut stream = result?;
                    stream.set_read_timeout(Some(SETTLE))?;
                    stream.write_all(b"hello")?;
                    let mut answer = [0; 5];
                    stream.read_exact(&mut answer)?;
                    ensure!(&answer == b"hello", "{answer:?}");
                    let canonical =
                        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
                    ensure!(canonical(stream.peer_addr()?) == to, "the peer is {}", stream.peer_addr()?);
                    let local = canonical(stream.local_addr()?);
                    ensure!(local.ip() == own.ip(), "it is known as {local}");
                    ensure!(!kind.is_bound() || local == own, "it is known as {local} in place of {own}");
                    Ok(())
                };
                check().with_context(|| format!("{kind:?} to {name} over {family}"))?;
            }
        }
    }
    Ok(())
}

/// What is captured comes to a server over `lo`, so that one bound to another device is not there for it.
pub(super) fn bound_servers(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, false)?;
    for (way, family) in everywhere() {
        let own = SocketAddr::new(world.sandbox.pod(way.server())?.address(family)?, 0);
        for device in [None, Some("eth0"), Some("lo")] {
            let listener = listen(world, way.server(), own)?;
            if let Some(device) = device {
                setsockopt(&listener, sockopt::BindToDevice, &device.into())?;
            }
            let reached = match device {
                None => true,
                Some(device) => (device == "eth0") == (way == Way::Outward),
            };
            let check = || -> anyhow::Result<()> {
                if !reached {
                    return time_to_reset(world, way.client(), listener.local_addr()?).map(|_| ());
                }
                let client = world.connect(way.client(), listener.local_addr()?)?;
                Pair { client, server: accept(&listener)? }.check()
            };
            check().with_context(|| format!("{way:?} over {family}, bound to {device:?}"))?;
        }
    }
    Ok(())
}

/// HBONE has no word for urgency, so that a byte sent with `MSG_OOB` loses it. What must not happen is that it gets lost itself.
pub(super) fn urgent(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, false)?;
    for (way, family) in everywhere() {
        for client_sends in [true, false] {
            for inline in [true, false] {
                let (one, mut other) = Pair::open(world, way, family)?.ends(client_sends);
                if inline {
                    set_inline(&other)?;
                }
                let mut check = || -> anyhow::Result<()> {
                    (&one).write_all(b"before")?;
                    ensure!(
                        send(one.as_raw_fd(), b"!", MsgFlags::MSG_OOB)? == 1,
                        "the urgent byte was not sent"
                    );
                    (&one).write_all(b"after")?;
                    // All of it comes without an end that follows.
                    let mut received = [0; b"before!after".len()];
                    other.read_exact(&mut received)?;
                    ensure!(&received == b"before!after", "{:?}", received.escape_ascii().to_string());
                    one.shutdown(std::net::Shutdown::Write)?;
                    ensure!(other.read(&mut received)? == 0, "more than was sent");
                    Ok(())
                };
                check().with_context(|| {
                    format!("{way:?} over {family}, by the client: {client_sends}, {inline}")
                })?;
            }
        }
    }
    Ok(())
}

fn set_inline(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::OobInline, &true)
}

pub(super) fn keepalive(world: &mut World) -> anyhow::Result<()> {
    /// Longer than the kernel waits for the answer to the one keepalive it sends: unanswered, the connection is gone.
    const IDLE: Duration = Duration::from_secs(4);
    set_strict(world, false)?;
    let mut open = Vec::new();
    for (way, family) in everywhere() {
        let pair = Pair::open(world, way, family)?;
        for end in [&pair.client, &pair.server] {
            setsockopt(end, sockopt::KeepAlive, &true)?;
            setsockopt(end, sockopt::TcpKeepIdle, &1)?;
            setsockopt(end, sockopt::TcpKeepInterval, &1)?;
            setsockopt(end, sockopt::TcpKeepCount, &1)?;
        }
        open.push((format!("{way:?} over {family}"), pair));
    }
    for (index, (what, pair)) in open.iter_mut().enumerate() {
        let pause = if index == 0 { IDLE } else { Duration::from_millis(1) };
        ensure_quiet(&mut pair.client, pause).with_context(|| what.clone())?;
        ensure_quiet(&mut pair.server, Duration::from_millis(1)).with_context(|| what.clone())?;
        pair.check().with_context(|| what.clone())?;
    }
    Ok(())
}
