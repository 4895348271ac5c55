//! Numbers and options of sockets.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

/// A socket's mark (`SO_MARK`): it routes, it never exempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketMark(u32);

impl SocketMark {
    /// The proxy's connections to the network (Istio contract 2.6).
    pub const NETWORK: Self = Self(0x539);
    /// The proxy's connections to the application of its pod: routed to `lo`.
    pub const APPLICATION: Self = Self(0x53a);

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// A port of the proxy in each pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterceptPort(u16);

impl InterceptPort {
    /// Connections the pod makes.
    pub const OUTBOUND: Self = Self(mesh::ports::OUTBOUND);
    /// Connections to the pod from outside the mesh.
    pub const INBOUND_PLAINTEXT: Self = Self(mesh::ports::INBOUND_PLAINTEXT);
    /// HBONE.
    pub const HBONE: Self = Self(mesh::ports::HBONE);

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// Options of every TCP socket that carries traffic (contract 1.3).
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Silence before the first keepalive probe, and between probes; default 180 s.
    pub keepalive: Duration,
    /// Probes without an answer until the connection is dead; default 9.
    pub keepalive_probes: u32,
    /// `TCP_USER_TIMEOUT`: sent bytes may stay unacknowledged so long; default none (the kernel's, about 15 min).
    pub user_timeout: Option<Duration>,
    /// Until a dial stands; default 10 s.
    pub connect_timeout: Duration,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(180),
            keepalive_probes: 9,
            user_timeout: None,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl TcpOptions {
    /// Sets them on an accepted stream. Dialled ones have them.
    pub fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        todo!()
    }
}

/// Closes with RST: the other end's reads and writes fail instead of seeing an end.
pub fn reset(stream: TcpStream) {
    todo!()
}
