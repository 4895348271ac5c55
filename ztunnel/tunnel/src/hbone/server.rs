//! The server's side of one HTTP/2 connection.

use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::message::{Authority, ConnectHeaders};
use super::stream::{StreamError, TunnelStream};

/// Limits of a server connection.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Streams at once; default 200 (contract 2.1), 1 to 1000. More are refused (REFUSED_STREAM).
    pub max_streams: u32,
    /// The client's HTTP/2 preface must have come after so long; default 10 s.
    pub preface_timeout: Duration,
    /// A connection that carries no stream for so long is ended with GOAWAY; default 10 min, which is longer than
    /// a client keeps idle tunnels (5 min). A client that never asks for anything is ended by the same.
    pub idle_timeout: Duration,
    /// A PING is sent so often; default 10 s.
    pub ping_interval: Duration,
    /// And must be answered within; default 20 s, or the connection is dead.
    pub ping_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_streams: 200,
            preface_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
        }
    }
}

/// How a connection ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeEnd {
    /// The client closed it.
    Closed,
    /// It was drained: GOAWAY, and the last stream has ended.
    Drained,
    /// It carried no stream for the idle timeout.
    Idle,
}

/// How a connection failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// No HTTP/2 preface in time.
    #[error("no HTTP/2 preface within {0:?}")]
    PrefaceTimeout(Duration),
    /// The client does not speak HTTP/2, or breaks its rules.
    #[error("HTTP/2: {0}")]
    Protocol(String),
    /// The client did not answer a PING.
    #[error("no answer to a PING within {0:?}")]
    PingTimeout(Duration),
    /// The connection broke.
    #[error("connection: {0}")]
    Connection(String),
}

/// Drives one HTTP/2 connection until it has ended. `io` is the TLS stream. `on_connect` is called for each CONNECT with a
/// well-formed authority (anything else is answered 400 here) and must not block: it spawns what answers.
/// After `drain` the client is told to go elsewhere (GOAWAY) and the streams go on until they end; dropping
/// the future ends all at once, with resets.
pub async fn serve<IO>(
    io: IO,
    config: &ServerConfig,
    drain: impl Future<Output = ()> + Send,
    on_connect: impl FnMut(ConnectRequest) + Send,
) -> Result<ServeEnd, ServeError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    todo!()
}

/// A CONNECT that waits for its answer. Dropped unanswered, it is reset.
pub struct ConnectRequest {
    authority: Authority,
    headers: ConnectHeaders,
}

impl ConnectRequest {
    /// Where to.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the client says of itself. Not verified.
    pub fn headers(&self) -> &ConnectHeaders {
        &self.headers
    }

    /// Answers 200, with the destination's `baggage`, and opens the stream. To be called when the application is connected.
    pub fn accept(self, baggage: Option<HeaderValue>) -> Result<TunnelStream, StreamError> {
        todo!()
    }

    /// Answers with another status: 400 (bad authority), 401 (policy), 503 (others).
    pub fn reject(self, status: StatusCode) {
        todo!()
    }

    /// Ends when the client has given the request up.
    pub async fn cancelled(&mut self) {
        todo!()
    }
}
