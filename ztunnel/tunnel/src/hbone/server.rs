//! The server's side of one HTTP/2 connection.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::budget::Share;
use super::gather::{Gathered, gathered};
use super::keepalive::Keepalive;
use super::message::{Authority, ConnectHeaders, InvalidAuthority};
use super::stream::{StreamError, TunnelStream};
use super::toll::{Toll, Tolled};
use super::unsent::Chunk;
use super::window::{Place, Streams, Windows};
use super::{Http2, SEND_BUFFER};
use crate::tls::Standing;

/// Headers of one request (contract 2.1).
const MAX_HEADER_LIST: u32 = 64 << 10;

/// How long a client that is told to calm down may take to hear it.
const CALM_DOWN_TIME: Duration = Duration::from_secs(1);

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
    /// Streams that are open when a certificate expires may go on for so long; default: until they end. They began while
    /// it was valid, and whoever keeps a connection for days must not lose it to a renewal.
    pub expiry_grace: Option<Duration>,
    /// How HTTP/2 is spoken.
    pub http2: Http2,
}

/// What a connection is served on.
#[derive(Clone, Debug)]
pub struct Terms {
    /// When the first of its two certificates expires: [`crate::tls::VerifiedPeer::expires`].
    pub expires: Instant,
    /// Whether the client's certificate is revoked meanwhile: [`crate::tls::VerifiedPeer::standing`].
    pub standing: Standing,
    /// What its windows are taken from: the share of the pod whose listener it came to.
    pub share: Share,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_streams: 200,
            preface_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            expiry_grace: None,
            http2: Http2::default(),
        }
    }
}

/// How a connection ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeEnd {
    /// The client closed it, or it broke while it carried no stream.
    Closed,
    /// It was drained: GOAWAY, and the last stream has ended.
    Drained,
    /// It carried no stream for the idle timeout.
    Idle,
    /// A certificate it was made with expired: GOAWAY, and its streams have ended or were cut.
    Expired,
    /// The client's certificate was revoked: its streams were cut.
    Revoked,
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
    /// The client had too much done for nothing: PINGs, SETTINGS, windows moved by a byte, requests taken back.
    #[error("a flood of frames and requests that move nothing")]
    Flood,
    /// The connection broke.
    #[error("connection: {0}")]
    Connection(String),
}

impl ServeError {
    /// The kind of error, one of a fixed set, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PrefaceTimeout(_) => "preface_timeout",
            Self::Protocol(_) => "protocol",
            Self::PingTimeout(_) => "ping_timeout",
            Self::Flood => "flood",
            Self::Connection(_) => "connection",
        }
    }
}

impl From<h2::Error> for ServeError {
    fn from(error: h2::Error) -> Self {
        if error.is_io() { Self::Connection(error.to_string()) } else { Self::Protocol(error.to_string()) }
    }
}

/// Drives one HTTP/2 connection until it has ended. `io` is the TLS stream. `on_connect` is called for each
/// CONNECT with a well-formed authority, and with what is to be told of anything else, which is answered 400 here. It must not
/// block: it spawns what answers. After `drain` the client is told to go elsewhere (GOAWAY) and the streams go on until they end;
/// when a certificate expires as well, but for a limited time, and no request is taken from then on. When the
/// client's certificate is revoked all ends at once, with resets; so it does when the future is dropped.
pub async fn serve<IO>(
    io: IO,
    config: &ServerConfig,
    terms: &Terms,
    drain: impl Future<Output = ()> + Send,
    mut on_connect: impl FnMut(Result<ConnectRequest, Malformed>) + Send,
) -> Result<ServeEnd, ServeError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut windows = Windows::new(&terms.share, config.http2.stream_window);
    let toll = Toll::new();
    let (io, turn) = gathered(Tolled::server(io, toll.clone()));
    let mut connection = handshake(io, config, &windows).await?;
    turn.begin();
    let streams = Streams::default();
    let keepalive = Keepalive { interval: config.ping_interval, timeout: config.ping_timeout };
    let mut silence = pin!(keepalive.silence(connection.ping_pong()));
    let mut drain = pin!(drain);
    let mut idle = pin!(tokio::time::sleep(config.idle_timeout));
    let mut expiry = pin!(tokio::time::sleep_until(terms.expires));
    let mut lost = pin!(terms.standing.lost());
    // How it will have ended, once it is told to.
    let mut ending = None;
    loop {
        windows.update(streams.count(), &mut connection);
        tokio::select! {
            biased;
            () = &mut silence => return Err(ServeError::PingTimeout(config.ping_timeout)),
            () = &mut lost => return Ok(ServeEnd::Revoked),
            () = toll.overdrawn() => {
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                // It may not listen.
                let _ = tokio::time::timeout(CALM_DOWN_TIME, poll_fn(|cx| turn.poll(cx, |cx| connection.poll_closed(cx)))).await;
                return Err(ServeError::Flood);
            }
            () = &mut expiry, if ending != Some(ServeEnd::Expired) || config.expiry_grace.is_some() => {
                if ending.replace(ServeEnd::Expired) == Some(ServeEnd::Expired) {
                    return Ok(ServeEnd::Expired);
                }
                if let Some(grace) = config.expiry_grace {
                    expiry.as_mut().reset(Instant::now() + grace);
                }
                connection.graceful_shutdown();
            }
            () = &mut drain, if ending.is_none() => {
                ending = Some(ServeEnd::Drained);
                connection.graceful_shutdown();
            }
            () = streams.changed() => idle.as_mut().reset(Instant::now() + config.idle_timeout),
            () = &mut idle, if ending.is_none() && streams.count() == 0 => {
                ending = Some(ServeEnd::Idle);
                connection.graceful_shutdown();
            }
            next = poll_fn(|cx| turn.poll(cx, |cx| connection.poll_accept(cx))) => match next {
                // Both ends say goodbye, and the one that closes first breaks the other's: nothing is lost.
                Err(_) if streams.count() == 0 => return Ok(ending.unwrap_or(ServeEnd::Closed)),
                Err(error) => return Err(ServeError::Connection(error.to_string())),
                Ok(None) => return Ok(ending.unwrap_or(ServeEnd::Closed)),
                Ok(Some(Err(error))) if error.is_io() && streams.count() == 0 => {
                    return Ok(ending.unwrap_or(ServeEnd::Closed));
                }
                Ok(Some(Err(error))) => return Err(error.into()),
                Ok(Some(Ok((request, respond)))) => {
                    // The GOAWAY may still be on its way.
                    let room = if ending == Some(ServeEnd::Expired) { 0 } else { config.max_streams };
                    if let Some(request) = admit(request, respond, &streams, room, &toll) {
                        on_connect(request);
                    }
                }
            }
        }
    }
}

async fn handshake<IO>(
    io: Gathered<IO>,
    config: &ServerConfig,
    windows: &Windows,
) -> Result<Connection<Gathered<IO>, Chunk>, ServeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(windows.stream())
        .initial_connection_window_size(windows.connection())
        .max_frame_size(config.http2.max_frame)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(config.max_streams)
        .max_send_buffer_size(SEND_BUFFER);
    match tokio::time::timeout(config.preface_timeout, builder.handshake(io)).await {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(ServeError::PrefaceTimeout(config.preface_timeout)),
    }
}

/// Makes the request that the handler gets, or answers it: malformed, or, without a word, one too many.
fn admit(
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
    streams: &Streams,
    max_streams: u32,
    toll: &Toll,
) -> Option<Result<ConnectRequest, Malformed>> {
    let (head, receive) = request.into_parts();
    let headers = ConnectHeaders::read(&head.headers);
    let authority = match (&head.method, head.uri.authority()) {
        (&Method::CONNECT, Some(authority)) => {
            authority.as_str().parse().map_err(|error: InvalidAuthority| error.to_string())
        }
        (method, _) => Err(format!("{method} is asked for, where there is only CONNECT with an authority")),
    };
    let authority = match authority {
        Ok(authority) => authority,
        Err(why) => {
            answer(&mut respond, StatusCode::BAD_REQUEST);
            toll.wasted_request();
            return Some(Err(Malformed { why, headers }));
        }
    };
    // A handler may hold a stream for longer than HTTP/2 counts it, after both ends have closed it.
    let Some(place) = streams.take(max_streams as usize) else {
        respond.send_reset(Reason::REFUSED_STREAM);
        toll.wasted_request();
        return None;
    };
    let waiting = Some(Waiting { receive, respond, place });
    Some(Ok(ConnectRequest { authority, headers, waiting, toll: toll.clone() }))
}

fn answer(respond: &mut SendResponse<Chunk>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Err(error) = respond.send_response(response, true) {
        // The client has given the stream up.
        tracing::trace!(%error, "answer not sent");
    }
}

/// A request that is no CONNECT with a well-formed authority. It was answered 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// What is wrong with it.
    pub why: String,
    /// What the client says of itself. Not verified.
    pub headers: ConnectHeaders,
}

/// A CONNECT that waits for its answer. Dropped unanswered, it is reset.
pub struct ConnectRequest {
    authority: Authority,
    headers: ConnectHeaders,
    /// Taken by the answer.
    waiting: Option<Waiting>,
    toll: Toll,
}

struct Waiting {
    receive: RecvStream,
    respond: SendResponse<Chunk>,
    place: Place,
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

    /// Answers 200, with the destination's `baggage`, and opens the stream. To be called when the application
    /// is connected.
    pub fn accept(mut self, baggage: Option<HeaderValue>) -> Result<TunnelStream, StreamError> {
        let Some(Waiting { receive, mut respond, place }) = self.waiting.take() else {
            return Err(StreamError::Stopped);
        };
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            response.headers_mut().insert(HeaderName::from_static("baggage"), baggage);
        }
        let send = respond.send_response(response, false)?;
        Ok(TunnelStream::new(send, receive, place))
    }

    /// Answers with another status: 400 (bad authority), 401 (policy), 503 (others).
    pub fn reject(mut self, status: StatusCode) {
        if let Some(mut waiting) = self.waiting.take() {
            answer(&mut waiting.respond, status);
        }
    }

    /// Ends when the client has given the request up, or the tunnel broke. Cancel safe.
    pub async fn cancelled(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            // Either it was reset, with whatever reason, or the connection failed.
            let _: Result<Reason, _> = poll_fn(|cx| waiting.respond.poll_reset(cx)).await;
            self.toll.wasted_request();
        }
    }
}

impl Drop for ConnectRequest {
    fn drop(&mut self) {
        if let Some(mut waiting) = self.waiting.take() {
            waiting.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}
