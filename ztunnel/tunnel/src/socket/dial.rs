//! Dials into the network and to applications.
//!
//! An application sees its client's own address (under somebody else's rules if these say so, see [`super::Rules`]). The connection to it
//! is therefore bound to that address, marked
//! so that it goes over `lo`, and takes its source port from a range that clients do not use: with a
//! live client's own port, the kernel would take the client's packets for this connection's.
//!
//! An application that is told of its client by the PROXY protocol is reached over the loopback ([`ToldAt::Loopback`]),
//! where nobody outside of the pod can tell it anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use mesh::authorize::{Entry, Permit};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use super::options::{SocketMark, TcpOptions};
use super::pod::{OriginalSource, PodNetns, Redirection};
use super::taken::are_taken;

/// Source ports of connections to applications, under the client's address. Below the kernel's default ephemeral
/// range (32768 on), above most servers' ports: 12,768 connections for each client address and pod port. The kernel programs know them.
pub const LEG_PORTS: RangeInclusive<u16> = ebpf_common::PORTS_LEG.0..=ebpf_common::PORTS_LEG.1;

/// Ports that are tried before they count as exhausted. At 99 of 100 taken, 99.4 % of dials still find one, in at
/// most about 5 ms.
const PORT_ATTEMPTS: usize = 512;

/// After so many failed attempts in a row other tasks get a turn.
const ATTEMPTS_A_TURN: usize = 16;

/// An application that listens has answered by then, as the kernel does it within the call; if not, something else may have its place.
const UNANSWERED: Duration = Duration::from_millis(20);

/// And as often as that it is looked at again: after each SYN, roughly.
const STILL_UNANSWERED: Duration = Duration::from_secs(1);

/// Why a host of the network could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The kernel or the destination refused.
    #[error("{to}: {error}")]
    Failed {
        /// Whom.
        to: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// Not connected in time.
    #[error("{to}: timed out after {after:?}")]
    Timeout {
        /// Whom.
        to: SocketAddr,
        /// How long.
        after: Duration,
    },
}

/// Why an application could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum ApplicationDialError {
    /// The kernel or the application refused.
    #[error("application at {to}: {error}")]
    Failed {
        /// Whom.
        to: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// Not connected in time: its accept queue is full, or the namespace drops packets.
    #[error("application at {to}: timed out after {after:?}")]
    Timeout {
        /// Whom.
        to: SocketAddr,
        /// How long.
        after: Duration,
    },
    /// No port of [`LEG_PORTS`] was found free under the client's address.
    #[error("application at {to}: no source port is free under {client}")]
    PortsExhausted {
        /// Whom.
        to: SocketAddr,
        /// The client.
        client: IpAddr,
    },
    /// The client's address is of another family than the application's.
    #[error("application at {to}: {client} is of another address family")]
    Family {
        /// Whom.
        to: SocketAddr,
        /// The client.
        client: IpAddr,
    },
}

/// Where an application is dialled that is told of its clients by the PROXY protocol (contract 1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToldAt {
    /// On the pod's loopback, from there.
    #[default]
    Loopback,
    /// At the pod's address, from the client's.
    PodAddress,
}

/// Dials the application that `permit` is for, inside of its pod's `netns`, from the client's address, unless the pod's rules are to
/// hide it; one that is told of its clients as `told_at` says.
pub async fn dial_application(
    netns: &PodNetns,
    client: IpAddr,
    permit: &Permit,
    told_at: ToldAt,
    options: &TcpOptions,
) -> Result<TcpStream, ApplicationDialError> {
    let destination = permit.destination();
    let to = match (permit.entry(), told_at) {
        (Entry::Plain, _) => destination,
        (Entry::Proxy { port }, ToldAt::PodAddress) => SocketAddr::new(destination.ip(), port),
        (Entry::Proxy { port }, ToldAt::Loopback) => {
            let loopback: IpAddr = match destination.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            return dial_loopback(netns, SocketAddr::new(loopback, port), options).await;
        }
    };
    let client = client.to_canonical();
    if client.is_ipv4() != to.is_ipv4() {
        return Err(ApplicationDialError::Family { to, client });
    }
    let leg = Leg { netns, client, to, options };
    let failed = |error| ApplicationDialError::Failed { to, error };
    let dial = async {
        if !leg.shows_client().map_err(failed)? {
            let socket = make(netns, to, options, netns.application_mark()).map_err(failed)?;
            start_connect(&socket, to).map_err(failed)?;
            return established(socket).await.map_err(failed);
        }
        let mut patience = Patience::Short;
        loop {
            let socket = leg.start(rand::random()).await.map_err(failed)?;
            let socket = socket.ok_or(ApplicationDialError::PortsExhausted { to, client })?;
            match leg.answered(socket, patience).await.map_err(failed)? {
                Answer::Connected(stream) => return Ok(stream),
                Answer::EndsTaken => {}
                Answer::None => patience = Patience::Long,
            }
        }
    };
    let after = options.connect_timeout;
    let dialled = tokio::time::timeout(after, dial).await;
    dialled.unwrap_or(Err(ApplicationDialError::Timeout { to, after }))
}

/// Nobody else's packets can have the two ends, so the kernel chooses the port.
async fn dial_loopback(
    netns: &PodNetns,
    to: SocketAddr,
    options: &TcpOptions,
) -> Result<TcpStream, ApplicationDialError> {
    let dial = async {
        let socket = make(netns, to, options, netns.application_mark())?;
        start_connect(&socket, to)?;
        established(socket).await
    };
    let after = options.connect_timeout;
    match tokio::time::timeout(after, dial).await {
        Ok(dialled) => dialled.map_err(|error| ApplicationDialError::Failed { to, error }),
        Err(_) => Err(ApplicationDialError::Timeout { to, after }),
    }
}

/// Dials `to` from inside of the pod's `netns`, from `source` (the pod's address; `None`: the kernel's choice).
pub async fn dial_network(
    netns: &PodNetns,
    source: Option<IpAddr>,
    to: SocketAddr,
    options: &TcpOptions,
) -> Result<TcpStream, DialError> {
    let dial = async {
        let socket = make(netns, to, options, netns.network_mark())?;
        if let Some(source) = source {
            // The port is chosen when both ends are known: then it need only be free for this destination.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(source.to_canonical(), 0).into())?;
        }
        start_connect(&socket, to)?;
        established(socket).await
    };
    let after = options.connect_timeout;
    match tokio::time::timeout(after, dial).await {
        Ok(dialled) => dialled.map_err(|error| DialError::Failed { to, error }),
        Err(_) => Err(DialError::Timeout { to, after }),
    }
}

/// What came of a connection to an application.
enum Answer {
    Connected(TcpStream),
    /// None can come: a client has the same two ends.
    EndsTaken,
    /// Nobody knows why.
    None,
}

/// How long an application is waited for.
#[derive(Clone, Copy)]
enum Patience {
    /// What had these two ends may have swallowed the SYN and be gone since, as what is left of a client's connection is in its last
    /// moments: another SYN is answered at once, where the kernel would send this one again after a second.
    Short,
    /// The application is full, or the namespace drops packets: that is the kernel's to deal with.
    Long,
}

/// A connection to an application that looks for its source port.
struct Leg<'a> {
    netns: &'a PodNetns,
    client: IpAddr,
    to: SocketAddr,
    options: &'a TcpOptions,
}

impl Leg<'_> {
    /// Binds and starts to connect; `None` if no port is free. Whether a port is free shows in both calls: in
    /// `bind` when a listener has it, in `connect` when a connection with the same two ends has it.
    async fn start(&self, seed: u16) -> io::Result<Option<Socket>> {
        let mut bound: Option<Socket> = None;
        for (attempt, port) in ports(seed).take(PORT_ATTEMPTS).enumerate() {
            if attempt % ATTEMPTS_A_TURN == ATTEMPTS_A_TURN - 1 {
                tokio::task::yield_now().await;
            }
            // A socket that connects to its own address and port is its own peer (RFC 9293 3.5, simultaneous open).
            if self.is_hairpin() && port == self.to.port() {
                continue;
            }
            let socket = match bound.take() {
                Some(socket) => socket,
                None => self.make()?,
            };
            match socket.bind(&SocketAddr::new(self.client, port).into()) {
                Ok(()) => {}
                Err(error) if is_taken(&error) => {
                    bound = Some(socket);
                    continue;
                }
                Err(error) => return Err(error),
            }
            match start_connect(&socket, self.to) {
                Ok(()) => return Ok(Some(socket)),
                // A bound socket cannot be bound again: the next attempt needs a new one.
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Waits until the application answers.
    async fn answered(&self, socket: Socket, patience: Patience) -> io::Result<Answer> {
        let stream = TcpStream::from_std(socket.into())?;
        let from = stream.local_addr()?;
        let mut wait = UNANSWERED;
        while tokio::time::timeout(wait, stream.writable()).await.is_err() {
            // This end of a connection that has come about has a peer; its far end has these ends too.
            if stream.peer_addr().is_ok() {
                continue;
            }
            if are_taken(self.netns.netns(), self.to, from).unwrap_or(false) {
                tracing::debug!(application = %self.to, %from, "a client has these two ends; another port is tried");
                return Ok(Answer::EndsTaken);
            }
            match patience {
                Patience::Short => return Ok(Answer::None),
                Patience::Long => wait = STILL_UNANSWERED,
            }
        }
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(Answer::Connected(stream)),
        }
    }

    /// The pod dials itself.
    fn is_hairpin(&self) -> bool {
        self.client == self.to.ip()
    }

    /// Whether the application is to see the client's address, and can.
    fn shows_client(&self) -> io::Result<bool> {
        let Redirection::Rules(rules) = self.netns.redirection() else { return Ok(true) };
        // A pod that calls itself comes from its own address in any case.
        if rules.original_source == OriginalSource::Off || self.is_hairpin() {
            return Ok(false);
        }
        let probe = make(self.netns, self.to, self.options, self.netns.application_mark())?;
        rules.original_source.prepare(&probe, self.client.is_ipv4())
    }

    fn make(&self) -> io::Result<Socket> {
        let socket = make(self.netns, self.to, self.options, self.netns.application_mark())?;
        OriginalSource::Required.prepare(&socket, self.client.is_ipv4())?;
        // Or every port in TIME_WAIT would be taken.
        socket.set_reuse_address(true)?;
        if matches!(self.netns.redirection(), Redirection::Rules(_)) {
            return Ok(socket);
        }
        // So that capture sees it come from `lo` and lets it pass. What a pod sends to itself passes anyhow, and the
        // kernel reports its replies as received on the device that has the address: bound to `lo`, the socket
        // would never get them.
        if !self.is_hairpin() {
            socket.bind_device(Some(b"lo"))?;
        }
        Ok(socket)
    }
}

/// The ports of the range in a scattered order that `seed` chooses, each once.
fn ports(seed: u16) -> impl Iterator<Item = u16> {
    /// Prime, and no divisor of the range's size: adding it again and again visits every port.
    const STRIDE: usize = 4243;
    let (first, size) = (*LEG_PORTS.start(), LEG_PORTS.len());
    (0..size).map(move |step| {
        let offset = (usize::from(seed) + step * STRIDE) % size;
        first + u16::try_from(offset).unwrap_or(0)
    })
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// A non-blocking socket of the namespace.
fn make(netns: &PodNetns, to: SocketAddr, options: &TcpOptions, mark: SocketMark) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking();
    let socket =
        netns.netns().run_in(|| Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP)))??;
    socket.set_mark(mark.get())?;
    options.set(&socket)?;
    Ok(socket)
}

fn start_connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        result => result,
    }
}

async fn established(socket: Socket) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_port_of_the_range_is_tried_once_whatever_the_seed() {
        for seed in [0, 1, 12_767, 12_768, u16::MAX] {
            let tried: HashSet<u16> = ports(seed).collect();
            assert_eq!(tried.len(), LEG_PORTS.len());
            assert!(tried.iter().all(|port| LEG_PORTS.contains(port)));
        }
    }

    #[test]
    fn neighbouring_seeds_do_not_run_into_each_other() {
        let first: HashSet<u16> = ports(100).take(3).collect();
        assert!(ports(101).take(3).all(|port| !first.contains(&port)));
    }
}
