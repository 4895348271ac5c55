//! The client's tunnels.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use mesh::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};

use super::message::{Authority, ConnectHeaders};
use super::stream::TunnelStream;
use crate::tls::{ExpectedPeers, TlsError, VerifiedPeer, WorkloadCertificate};

/// What makes two connections able to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Who we are.
    pub source: SpiffeId,
    /// Who the server has to be.
    pub expected: ExpectedPeers,
    /// Where it is.
    pub destination: SocketAddr,
    /// Where we come from: the pod's address.
    pub source_ip: IpAddr,
}

/// Bounds of a pool.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Streams a tunnel carries at once, or fewer if the server says so; default 100 (contract 2.8).
    pub streams_per_tunnel: u32,
    /// Tunnels in all, being dialled included; default 4096. At the bound idle ones make room, then dials fail.
    pub max_tunnels: usize,
    /// Tunnels with the same source address; default 1024: one pod cannot take the pool from the others.
    pub max_tunnels_per_source: usize,
    /// A tunnel without streams is closed after so long; default 5 min (contract 2.8).
    pub idle_release: Duration,
    /// Until the dialer's connection stands; default 10 s.
    pub dial_timeout: Duration,
    /// For the TLS handshake; default 10 s.
    pub tls_timeout: Duration,
    /// For the HTTP/2 preface to be written; default 10 s.
    pub preface_timeout: Duration,
    /// Until a CONNECT is answered; default 15 s, more than the server's own dial takes at most (10 s).
    pub reply_timeout: Duration,
    /// A PING is sent so often; default 10 s.
    pub ping_interval: Duration,
    /// And must be answered within; default 20 s, or the tunnel is dead.
    pub ping_timeout: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            streams_per_tunnel: 100,
            max_tunnels: 4096,
            max_tunnels_per_source: 1024,
            idle_release: Duration::from_secs(300),
            dial_timeout: Duration::from_secs(10),
            tls_timeout: Duration::from_secs(10),
            preface_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
        }
    }
}

/// Why no stream could be opened. Cheap to clone: all who waited for a dial get its error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The pool is full, or full of this source's tunnels.
    #[error("no room for another tunnel ({0} held)")]
    PoolFull(usize),
    /// The server could not be reached; what the dialer said.
    #[error("dial: {0}")]
    Dial(Arc<std::io::Error>),
    /// The server could not be reached in time.
    #[error("dial timed out after {0:?}")]
    DialTimeout(Duration),
    /// The handshake failed.
    #[error("TLS: {0}")]
    Tls(TlsError),
    /// The server takes the bytes of the preface too slowly.
    #[error("HTTP/2 preface timed out after {0:?}")]
    PrefaceTimeout(Duration),
    /// The tunnel broke before the CONNECT was answered, or the server does not speak HTTP/2.
    #[error("HTTP/2: {0}")]
    Http2(String),
    /// The CONNECT was not answered in time.
    #[error("CONNECT timed out after {0:?}")]
    ReplyTimeout(Duration),
    /// The server refused the CONNECT: 401 by policy, 503 as the application cannot be reached, 400.
    #[error("CONNECT refused with status {0}")]
    Rejected(StatusCode),
    /// The server reset the stream instead of an answer.
    #[error("CONNECT reset ({0})")]
    Reset(h2::Reason),
}

/// What a dialer gives: a connected socket, or anything that carries bytes.
pub trait Dialed: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static> Dialed for IO {}

/// An open stream and what is known of the other end.
pub struct Opened {
    /// The stream.
    pub stream: TunnelStream,
    /// The server.
    pub peer: Arc<VerifiedPeer>,
    /// What the server says of the destination. Not verified.
    pub baggage: Option<HeaderValue>,
    /// Whether the tunnel stood before.
    pub reused: bool,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Tunnels, being dialled included.
    pub tunnels: usize,
    /// Open streams.
    pub streams: usize,
    /// Keys with a tunnel or a dial.
    pub keys: usize,
}

/// The tunnels of a node. Cheap to clone.
#[derive(Clone)]
pub struct Pool {}

impl Pool {
    /// An empty pool.
    pub fn new(config: PoolConfig) -> Self {
        todo!()
    }

    /// Opens a stream to `authority`: on a tunnel with room, or on a new one that `dial` connects. Callers with
    /// the same key share one dial, which goes on in a task of its own if they give up; its failure
    /// reaches all of them. A CONNECT that a reused tunnel did not process is tried once more, on a fresh tunnel.
    pub async fn open<D, F, IO>(
        &self,
        key: &PoolKey,
        certificate: &WorkloadCertificate,
        authority: &Authority,
        headers: &ConnectHeaders,
        dial: D,
    ) -> Result<Opened, OpenError>
    where
        D: Fn() -> F + Send + Sync,
        F: Future<Output = std::io::Result<IO>> + Send + 'static,
        IO: Dialed,
    {
        todo!()
    }

    /// Takes the matching tunnels out: no new streams; each is closed when its last stream ends.
    pub fn retire(&self, matches: impl Fn(&PoolKey) -> bool) {
        todo!()
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> PoolStats {
        todo!()
    }
}
