//! The bare relay: copies bytes between two connections on one thread, without TLS, identity or policy. What it costs is the least
//! that any proxy in its place can cost.
//!
//! It listens in the network namespace it is started in, and dials from another one if told to, as a node's proxy does that has its
//! sockets in the pods' namespaces.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use mio::net::TcpStream;
use nix::sched::{CloneFlags, setns};
use slab::Slab;

use super::sockets::{BUFFER_BYTES, Ready, Sockets};

/// Copy bytes between who connects and who is dialled for it.
#[derive(clap::Args)]
pub(crate) struct Relay {
    /// Where to listen, and whom to dial for those who connect there.
    #[arg(long = "route", value_name = "LISTEN=TO", required = true)]
    routes: Vec<Route>,
    /// The network namespace to dial from.
    #[arg(long, value_name = "PATH")]
    dial_from: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    listen: SocketAddr,
    to: SocketAddr,
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (listen, to) = text.split_once('=').ok_or("expected LISTEN=TO")?;
        let address = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
        Ok(Self { listen: address(listen)?, to: address(to)? })
    }
}

impl Relay {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        super::raise_descriptor_limit()?;
        let mut copier = Copier::new()?;
        for route in &self.routes {
            copier
                .sockets
                .listen(route.listen, route.to)
                .with_context(|| format!("listening at {}", route.listen))?;
        }
        if let Some(path) = &self.dial_from {
            let namespace = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("entering {}", path.display()))?;
        }
        println!("relaying");
        copier.run()?;
        Ok(())
    }
}

struct Copier {
    /// For each listener whom to dial.
    sockets: Sockets<SocketAddr>,
    /// Each has two tokens: twice its key, and one more for the dialled side.
    pairs: Slab<Pair>,
    buffer: Vec<u8>,
}

struct Pair {
    near: Side,
    far: Side,
}

struct Side {
    stream: TcpStream,
    /// What the other side sent and this one did not take yet.
    pending: Vec<u8>,
    /// Whether this side's end has come, behind what is still to be read.
    closed: bool,
    /// Whether the other side's end has been passed on to this one.
    ended: bool,
}

impl Copier {
    fn new() -> io::Result<Self> {
        let buffer = vec![0; BUFFER_BYTES];
        Ok(Self { sockets: Sockets::new()?, pairs: Slab::new(), buffer })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Sockets::<SocketAddr>::events();
        loop {
            self.sockets.wait(&mut events)?;
            for event in &events {
                match Sockets::<SocketAddr>::ready(event) {
                    Ready::Listener(number) => self.accept(number),
                    Ready::Connection(token, closed) => self.copy(token, closed),
                }
            }
        }
    }

    fn accept(&mut self, number: usize) {
        loop {
            let added = match self.sockets.accept(number) {
                Ok(Some((near, to))) => TcpStream::connect(to).and_then(|far| self.add(near, far)),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            if let Err(error) = added {
                return eprintln!("a connection is not relayed: {error}");
            }
        }
    }

    fn add(&mut self, mut near: TcpStream, mut far: TcpStream) -> io::Result<()> {
        let place = self.pairs.vacant_entry();
        for (offset, stream) in [&mut near, &mut far].into_iter().enumerate() {
            self.sockets.watch(stream, 2 * place.key() + offset)?;
        }
        place.insert(Pair { near: Side::new(near), far: Side::new(far) });
        Ok(())
    }

    fn copy(&mut self, token: usize, closed: bool) {
        // An event may have been taken together with the one that ended its pair.
        let Some(Pair { near, far }) = self.pairs.get_mut(token / 2) else { return };
        let this = if token.is_multiple_of(2) { &mut *near } else { &mut *far };
        this.closed |= closed;
        let result = match token % 2 {
            0 => pass(near, far, &mut self.buffer).and_then(|()| far.pass_on(near, &mut self.buffer)),
            _ => pass(far, near, &mut self.buffer).and_then(|()| near.pass_on(far, &mut self.buffer)),
        };
        // A failure of either side ends both.
        if result.is_err() || near.ended && far.ended {
            self.pairs.remove(token / 2);
        }
    }
}

impl Side {
    fn new(stream: TcpStream) -> Self {
        Self { stream, pending: Vec::new(), closed: false, ended: false }
    }

    /// Continues towards a side that may have room again; nothing to do unless something waited for it.
    fn pass_on(&mut self, to: &mut Self, buffer: &mut [u8]) -> io::Result<()> {
        if to.pending.is_empty() { Ok(()) } else { pass(self, to, buffer) }
    }
}

/// Copies what has come, until the reader has no more or the writer takes no more. Readiness is told once for what has come; a short
/// read means that all of it is read (epoll(7), on edges), but for the end.
fn pass(from: &mut Side, to: &mut Side, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        while !to.pending.is_empty() {
            match to.stream.write(&to.pending) {
                Ok(sent) => {
                    to.pending.drain(..sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if to.ended {
            return Ok(());
        }
        let count = match from.stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
        if count == 0 {
            to.ended = true;
            return to.stream.shutdown(Shutdown::Write);
        }
        let sent = match to.stream.write(&buffer[..count]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            other => other?,
        };
        to.pending.extend_from_slice(&buffer[sent..count]);
        if count < buffer.len() && sent == count && !from.closed {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::answer::{self, Service};

    fn relay_to(to: SocketAddr) -> SocketAddr {
        let mut copier = Copier::new().unwrap();
        let address = copier.sockets.listen("127.0.0.1:0".parse().unwrap(), to).unwrap();
        std::thread::spawn(move || copier.run());
        address
    }

    #[test]
    fn bytes_and_ends_go_through_two_relays_in_both_directions() {
        let address = relay_to(relay_to(answer::serve_for_test(Service::Echo)));
        let sent: Vec<u8> = (0_u32..8 << 20).map(|number| number.to_le_bytes()[1]).collect();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let (mut writer, all) = (stream.try_clone().unwrap(), sent.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&all).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == sent);
    }

    #[test]
    fn a_server_that_is_not_there_ends_the_connection() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut stream = std::net::TcpStream::connect(relay_to(closed)).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }

    #[test]
    fn a_route_is_two_addresses() {
        let route: Route = "127.0.0.1:1=[::1]:2".parse().unwrap();
        assert_eq!((route.listen.port(), route.to.port()), (1, 2));
        assert!("127.0.0.1:1".parse::<Route>().is_err());
    }
}
