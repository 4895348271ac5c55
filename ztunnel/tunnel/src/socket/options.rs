//! Numbers and options of sockets.

use std::io;
use std::time::Duration;

use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::net::TcpStream;

/// A socket's mark (`SO_MARK`): it routes, it never exempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketMark(u32);

impl SocketMark {
    /// The proxy's connections to the network (Istio contract 2.6).
    pub const NETWORK: Self = Self(ebpf_common::MARK_PROXY);
    /// The proxy's connections to the application of its pod: routed to `lo`.
    pub const APPLICATION: Self = Self(ebpf_common::MARK_APPLICATION);

    /// One that somebody else's rules know; not 0, which is none.
    pub fn of_rules(mark: std::num::NonZeroU32) -> Self {
        Self(mark.get())
    }

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
    /// DNS.
    pub const DNS: Self = Self(mesh::ports::DNS);

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// Keepalives, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe; default 180 s.
    pub time: Duration,
    /// Between probes; default 180 s.
    pub interval: Duration,
    /// Probes without an answer until the connection is dead; default 9.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { time: Duration::from_secs(180), interval: Duration::from_secs(180), probes: 9 }
    }
}

impl Keepalive {
    /// From the last sign of life until the connection counts as dead.
    pub fn until_dead(&self) -> Duration {
        self.time + self.interval * self.probes
    }
}

/// Options of every TCP socket that carries traffic (contract 1.3).
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Keepalives; default [`Keepalive::default`]; none: they are not sent.
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT`: sent bytes may stay unacknowledged so long; default none (the kernel's, about 15 min).
    pub user_timeout: Option<Duration>,
    /// Until a dial stands; default 10 s.
    pub connect_timeout: Duration,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl TcpOptions {
    /// Sets them on an accepted stream. Dialled ones have them.
    pub fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        self.set(&SockRef::from(stream))
    }

    pub(super) fn set(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if let Some(Keepalive { time, interval, probes }) = self.keepalive {
            let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(probes);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        // HBONE cannot carry urgency (RFC 9293 3.8.5), but the byte itself must not get lost: out of line, reads skip it. In line is
        // what RFC 6093 4 recommends too.
        socket.set_out_of_band_inline(true)?;
        match self.user_timeout {
            Some(_) => socket.set_tcp_user_timeout(self.user_timeout),
            None => Ok(()),
        }
    }
}

/// Closes with RST: the other end's reads and writes fail instead of seeing an end. What it has not
/// received yet is lost.
pub fn reset(stream: TcpStream) {
    reset_unless_closed(&stream);
    drop(stream);
}

/// From now on the stream ends with RST whatever ends it, this process's death included, which the other end must
/// not take for the end of the data; until [`close_as_usual`].
pub fn reset_unless_closed(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        // Then the end is FIN. There is no second way to say it.
        tracing::debug!(%error, "cannot set SO_LINGER");
    }
}

/// Takes [`reset_unless_closed`] back: what was written still goes out when the stream ends.
pub fn close_as_usual(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(None) {
        tracing::debug!(%error, "cannot take SO_LINGER back");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialed, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (dialed.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn options_reach_the_kernel() {
        let (stream, _other) = pair().await;
        let keepalive =
            Keepalive { time: Duration::from_secs(10), interval: Duration::from_secs(2), probes: 5 };
        let options = TcpOptions {
            keepalive: Some(keepalive),
            user_timeout: Some(keepalive.until_dead()),
            ..TcpOptions::default()
        };
        options.apply(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert!(socket.out_of_band_inline().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(2));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(20)));
    }

    #[tokio::test]
    async fn without_keepalives_none_are_sent() {
        let (stream, _other) = pair().await;
        TcpOptions { keepalive: None, ..TcpOptions::default() }.apply(&stream).unwrap();
        assert!(!SockRef::from(&stream).keepalive().unwrap());
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_a_reset_and_not_as_an_end() {
        let (stream, mut other) = pair().await;
        reset(stream);
        let error = other.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
