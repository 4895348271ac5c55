//! One tunnel of the client's: from dial to close, and CONNECTs on it.
//!
//! A task of its own drives each tunnel. It owns the connection; the pool and the requests share the [`Tunnel`].

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, select};
use h2::Reason;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::SEND_BUFFER;
use super::budget::Share;
use super::gather::{Gathered, Turn, gathered};
use super::keepalive::Keepalive;
use super::message::{Authority, ConnectHeaders};
use super::pool::PoolConfig;
use super::stream::TunnelStream;
use super::unsent::Chunk;
use super::window::{Place, Streams, Windows};
use crate::tls::{
    self, ClientStream, ExpectedPeers, PeerCertificateError, TlsError, VerifiedPeer, WorkloadCertificate,
};

/// Headers of one answer (contract 2.1).
const MAX_HEADER_LIST: u32 = 16 << 10;

/// A CONNECT that has not even left after so long waits for a server that takes fewer streams than we thought.
/// Another tunnel serves it sooner.
const DEPARTURE_TIMEOUT: Duration = Duration::from_secs(1);

/// Streams fail a moment before the driver knows why; the reason is worth waiting this long for.
const CAUSE_TIMEOUT: Duration = Duration::from_millis(100);

/// A closing tunnel may take so long to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no stream could be opened. Cheap to clone: all who waited for a dial get its error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The pool is full, or full of this source's tunnels.
    #[error("no room for another tunnel ({0} held)")]
    PoolFull(usize),
    /// The server could not be reached; what the dialer said.
    #[error("dial: {0}")]
    Dial(Arc<io::Error>),
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
    /// The pool retired the tunnel while it was dialled; nothing was asked of the server.
    #[error("the tunnel was given up while it was dialled")]
    GivenUp,
    /// The CONNECT was not answered in time.
    #[error("CONNECT timed out after {0:?}")]
    ReplyTimeout(Duration),
    /// The server refused the CONNECT: 401 by policy, 503 as the application cannot be reached, 400.
    #[error("CONNECT refused with status {0}")]
    Rejected(StatusCode),
    /// The server reset the stream instead of an answer.
    #[error("CONNECT reset ({0})")]
    Reset(Reason),
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

/// Why a CONNECT on a tunnel failed.
pub(super) enum RequestError {
    /// The server cannot have connected anything for it, or nothing that would have got a byte: it may be
    /// made again elsewhere.
    Unprocessed(OpenError),
    /// As before, and nothing was wrong: the server sent GOAWAY or REFUSED_STREAM, or the pool retired the tunnel.
    Refused(OpenError),
    /// It was decided.
    Failed(OpenError),
}

/// A tunnel.
pub(super) struct Tunnel {
    /// `None` once the tunnel takes no more streams. HTTP/2 closes it when the last stream has ended.
    sender: Mutex<Option<SendRequest<Chunk>>>,
    /// Ours, with which it was made.
    certificate: WorkloadCertificate,
    peer: Arc<VerifiedPeer>,
    pub(super) streams: Streams,
    limit: usize,
    reply_timeout: Duration,
    /// The server closed it in order, before its time.
    dismissed: AtomicBool,
    /// Why it ended.
    cause: watch::Sender<Option<OpenError>>,
    /// When its last stream ended.
    idle_since: Mutex<Instant>,
}

/// A tunnel's connection, to be driven.
pub(super) struct Driver<IO> {
    connection: Connection<Gathered<Observed<IO>>, Chunk>,
    turn: Turn<Observed<IO>>,
    refusal: Arc<OnceLock<TlsError>>,
    windows: Windows,
    keepalive: Keepalive,
    idle_release: Duration,
    expiry_grace: Option<Duration>,
}

impl Tunnel {
    /// TLS and HTTP/2 over a fresh connection.
    pub(super) async fn establish<IO: Dialed>(
        io: IO,
        certificate: &WorkloadCertificate,
        expected: &ExpectedPeers,
        share: &Share,
        config: &PoolConfig,
    ) -> Result<(Arc<Self>, Driver<IO>), OpenError> {
        let (io, peer) =
            tls::connect(io, certificate, expected, config.tls_timeout).await.map_err(OpenError::Tls)?;
        let refusal = Arc::default();
        let (io, turn) = gathered(Observed { io, refusal: Arc::clone(&refusal) });
        let windows = Windows::new(share, config.http2.stream_window);
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(windows.stream())
            .initial_connection_window_size(windows.connection())
            .max_frame_size(config.http2.max_frame)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(config.streams_per_tunnel as usize)
            .enable_push(false);
        let (sender, connection) = match timeout(config.preface_timeout, builder.handshake(io)).await {
            Ok(result) => result.map_err(|error| OpenError::Http2(error.to_string()))?,
            Err(_) => return Err(OpenError::PrefaceTimeout(config.preface_timeout)),
        };
        let tunnel = Self {
            sender: Mutex::new(Some(sender)),
            certificate: certificate.clone(),
            peer: Arc::new(peer),
            streams: Streams::default(),
            limit: config.streams_per_tunnel as usize,
            reply_timeout: config.reply_timeout,
            dismissed: AtomicBool::new(false),
            cause: watch::Sender::new(None),
            idle_since: Mutex::new(Instant::now()),
        };
        turn.begin();
        let driver = Driver {
            connection,
            turn,
            refusal,
            windows,
            keepalive: Keepalive { interval: config.ping_interval, timeout: config.ping_timeout },
            idle_release: config.idle_release,
            expiry_grace: config.expiry_grace,
        };
        Ok((Arc::new(tunnel), driver))
    }

    fn sender(&self) -> Option<SendRequest<Chunk>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Room for one more stream: within our limit and what the server says it takes, while its certificates are
    /// valid.
    pub(super) fn take_place(&self) -> Option<Place> {
        if self.expired() {
            return None;
        }
        let limit = self.limit.min(self.sender()?.current_max_send_streams());
        self.streams.take(limit)
    }

    fn expired(&self) -> bool {
        Instant::now() >= self.peer.expires()
    }

    /// Whether it was made with a certificate that `certificate` has replaced.
    pub(super) fn is_outdated_by(&self, certificate: &WorkloadCertificate) -> bool {
        self.certificate.is_replaced_by(certificate)
    }

    /// Takes no more streams; those that are open go on.
    pub(super) fn retire(&self) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(sender);
    }

    /// Why it takes no more streams, if it does not.
    pub(super) fn ended(&self) -> Option<RequestError> {
        if self.sender().is_some() && !self.expired() {
            return None;
        }
        Some(match self.cause.borrow().clone() {
            Some(error) if self.dismissed.load(Ordering::Acquire) => RequestError::Refused(error),
            Some(error) => RequestError::Failed(error),
            // The pool has taken it out, for a newer certificate or for room.
            None => RequestError::Refused(OpenError::Http2("the tunnel is closing".to_owned())),
        })
    }

    /// Since when it carries no stream.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.streams.count() == 0).then(|| *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a CONNECT and waits for its answer.
    pub(super) async fn open(
        &self,
        place: Place,
        reused: bool,
        authority: &Authority,
        headers: &ConnectHeaders,
    ) -> Result<Opened, RequestError> {
        let unprocessed = |error: h2::Error| {
            let cause = OpenError::Http2(error.to_string());
            match dismissal(&error) {
                true => RequestError::Refused(cause),
                false => RequestError::Unprocessed(cause),
            }
        };
        let retired = || RequestError::Refused(OpenError::Http2("the tunnel is closing".to_owned()));
        let mut sender = self.sender().ok_or_else(retired)?.ready().await.map_err(unprocessed)?;
        let request = request(authority, headers).map_err(RequestError::Failed)?;
        let (response, send) = sender.send_request(request, false).map_err(unprocessed)?;
        let answered = timeout(self.reply_timeout, answer(sender, response)).await;
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.explain(error).await),
            Err(_) => return Err(RequestError::Failed(OpenError::ReplyTimeout(self.reply_timeout))),
        };
        let (head, receive) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(RequestError::Failed(OpenError::Rejected(head.status)));
        }
        Ok(Opened {
            stream: TunnelStream::new(send, receive, place),
            peer: self.peer.clone(),
            baggage: head.headers.get(HeaderName::from_static("baggage")).cloned(),
            reused,
        })
    }

    async fn explain(&self, error: AnswerError) -> RequestError {
        let error = match error {
            AnswerError::NotDeparted => {
                return RequestError::Unprocessed(OpenError::Http2(
                    "the server takes no more streams".to_owned(),
                ));
            }
            AnswerError::Http2(error) => error,
        };
        match error.reason() {
            // RFC 9113 8.7: it did not reach the server's application.
            Some(Reason::REFUSED_STREAM) if error.is_reset() => {
                RequestError::Refused(OpenError::Reset(Reason::REFUSED_STREAM))
            }
            Some(reason) if error.is_reset() => RequestError::Failed(OpenError::Reset(reason)),
            // A GOAWAY ends only streams that it excludes (RFC 9113 6.8). When the connection broke the server may have
            // connected the application, but no byte was sent to it: we send none before the answer.
            _ if dismissal(&error) => RequestError::Refused(self.cause(&error).await),
            _ => RequestError::Unprocessed(self.cause(&error).await),
        }
    }

    /// Why the tunnel ended.
    async fn cause(&self, error: &h2::Error) -> OpenError {
        let mut cause = self.cause.subscribe();
        let known = timeout(CAUSE_TIMEOUT, cause.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(known)) => known.clone(),
            _ => None,
        }
        .unwrap_or_else(|| OpenError::Http2(error.to_string()))
    }
}

/// The server has sent GOAWAY.
fn dismissal(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote()
}

enum AnswerError {
    Http2(h2::Error),
    NotDeparted,
}

/// The answer to a request that was queued, unless it cannot even leave.
async fn answer(
    mut sender: SendRequest<Chunk>,
    response: ResponseFuture,
) -> Result<http::Response<h2::RecvStream>, AnswerError> {
    let departed = timeout(DEPARTURE_TIMEOUT, poll_fn(|cx| sender.poll_ready(cx)));
    match select(response, pin!(departed)).await {
        Either::Left((response, _)) => response.map_err(AnswerError::Http2),
        // An error here is of later requests; this one's own comes from its response.
        Either::Right((Ok(_), response)) => response.await.map_err(AnswerError::Http2),
        Either::Right((Err(_), _)) => Err(AnswerError::NotDeparted),
    }
}

/// CONNECT with an authority and neither scheme nor path (RFC 9113 8.5).
fn request(authority: &Authority, headers: &ConnectHeaders) -> Result<Request<()>, OpenError> {
    let authority = authority.to_string();
    let uri = Uri::builder().authority(authority.as_str()).build();
    let uri = uri.map_err(|error| OpenError::Http2(format!("authority {authority}: {error}")))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    headers.write(request.headers_mut());
    Ok(request)
}

impl<IO: Dialed> Driver<IO> {
    /// Drives the tunnel to its end. `release` is asked when it has been idle for long, and takes it out of
    /// the pool unless somebody was faster; when a certificate has expired it is told, by `true`, to do so anyway.
    pub(super) async fn run(self, tunnel: &Tunnel, release: impl Fn(bool) -> bool) {
        let Self { mut connection, turn, refusal, mut windows, keepalive, idle_release, expiry_grace } = self;
        let mut silence = pin!(keepalive.silence(connection.ping_pong()));
        let mut expiry = pin!(tokio::time::sleep_until(tunnel.peer.expires()));
        let mut expired = false;
        let mut lost = pin!(tunnel.peer.standing().lost());
        let mut idle = pin!(tokio::time::sleep(idle_release));
        let mut closing = false;
        let cause = loop {
            windows.update(tunnel.streams.count(), &mut connection);
            tokio::select! {
                biased;
                () = &mut silence => {
                    break OpenError::Http2(format!("no answer to a PING within {:?}", keepalive.timeout));
                }
                () = &mut lost => {
                    break OpenError::Tls(TlsError::PeerCertificate(PeerCertificateError::Revoked));
                }
                () = &mut expiry, if !expired || expiry_grace.is_some() => {
                    if expired {
                        break OpenError::Http2("a certificate of the tunnel has expired".to_owned());
                    }
                    expired = true;
                    if let Some(grace) = expiry_grace {
                        expiry.as_mut().reset(Instant::now() + grace);
                    }
                    release(true);
                    tunnel.retire();
                }
                () = tunnel.streams.changed(), if !closing => {
                    *tunnel.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                    idle.as_mut().reset(Instant::now() + idle_release);
                }
                () = &mut idle, if closing || tunnel.streams.count() == 0 => {
                    if closing {
                        break OpenError::Http2("the server does not take our goodbye".to_owned());
                    }
                    if release(false) {
                        tunnel.retire();
                        closing = true;
                        idle.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
                    }
                }
                result = poll_fn(|cx| turn.poll(cx, |cx| Pin::new(&mut connection).poll(cx))) => {
                    let (dismissed, result) = match result {
                        Ok(Ok(())) => (true, Ok(())),
                        Ok(Err(error)) => (dismissal(&error), Err(error.to_string())),
                        Err(error) => (false, Err(error.to_string())),
                    };
                    tunnel.dismissed.store(dismissed, Ordering::Release);
                    break cause_of(result, refusal.get());
                }
            }
        };
        // Before the connection is dropped, which fails its streams: they ask for the cause. And before it is retired:
        // without a cause that would be the pool's doing.
        tunnel.cause.send_replace(Some(cause));
        tunnel.retire();
    }
}

/// TLS 1.3: that the server refuses our certificate shows here, after the handshake.
fn cause_of(result: Result<(), String>, refusal: Option<&TlsError>) -> OpenError {
    match (result, refusal) {
        (_, Some(refusal)) => OpenError::Tls(refusal.clone()),
        (Err(error), None) => OpenError::Http2(error),
        (Ok(()), None) => OpenError::Http2("the server closed the tunnel".to_owned()),
    }
}

/// Remembers what TLS says when a read fails: HTTP/2 keeps only the text of it.
struct Observed<IO> {
    io: ClientStream<IO>,
    refusal: Arc<OnceLock<TlsError>>,
}

impl<IO: Dialed> AsyncRead for Observed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &result {
            match TlsError::from_io(error) {
                TlsError::Connection(_) => {}
                refusal => drop(self.refusal.set(refusal)),
            }
        }
        result
    }
}

impl<IO: Dialed> AsyncWrite for Observed<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
