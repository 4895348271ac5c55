//! A small HTTP/1.1 server for operators and probes: TCP or a unix socket, a table of exact paths, bounded requests.
//!
//! Binding is separate from serving: an address in use is an error before the process promises anything.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::visitors::Refusals;

/// A peer that does not finish its request head in this time is dropped (Istio contract 2.8: 2 s).
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// A request whose body has not come in this time is answered 408.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; more wait in the kernel's queue. The metrics port is open to the network, and must not
/// cost the process its descriptors.
const MAX_CONNECTIONS: usize = 64;
/// The same on a unix socket, where only our own user is let in. The CNI plugin asks on one, for each pod that starts, and waits with
/// a connection open until it is captured: more than kubelet starts at once (110 pods a node, unless it is told otherwise).
const MAX_LOCAL_CONNECTIONS: usize = 512;
/// The largest request body, bytes.
const MAX_BODY: usize = 1024 * 1024;
/// How long the acceptor rests when the kernel refuses a connection, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests in progress may take to end once the server stops.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// A request with its body, which was read whole (1 MiB at most).
pub type AdminRequest = Request<Bytes>;
/// An answer.
pub type AdminResponse = Response<Bytes>;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket, made with mode 0600, in a directory that is made with mode 0700 where there is none; a stale one is
    /// replaced. It serves our own user alone, whatever becomes of the modes.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has the address.
    #[error("{address} is in use already; choose another with {flag}")]
    InUse {
        /// The address, with its port.
        address: String,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on {address} ({flag}): {error}")]
    Failed {
        /// The address.
        address: String,
        /// The flag that sets it.
        flag: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

type Answer = Pin<Box<dyn Future<Output = AdminResponse> + Send>>;
type Handler = Box<dyn Fn(AdminRequest) -> Answer + Send + Sync>;

/// What is served: exact paths, each with the methods it takes. An unknown path is answered 404, a method that
/// a path does not take 405; HEAD is answered as GET.
#[derive(Default)]
pub struct Routes {
    paths: HashMap<&'static str, Vec<(Method, Handler)>>,
}

impl Routes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET of `path`.
    #[must_use]
    pub fn get<H, F>(self, path: &'static str, handler: H) -> Self
    where
        H: Fn(AdminRequest) -> F + Send + Sync + 'static,
        F: Future<Output = AdminResponse> + Send + 'static,
    {
        self.route(Method::GET, path, handler)
    }

    /// Answers POST of `path`.
    #[must_use]
    pub fn post<H, F>(self, path: &'static str, handler: H) -> Self
    where
        H: Fn(AdminRequest) -> F + Send + Sync + 'static,
        F: Future<Output = AdminResponse> + Send + 'static,
    {
        self.route(Method::POST, path, handler)
    }

    fn route<H, F>(mut self, method: Method, path: &'static str, handler: H) -> Self
    where
        H: Fn(AdminRequest) -> F + Send + Sync + 'static,
        F: Future<Output = AdminResponse> + Send + 'static,
    {
        let handler: Handler = Box::new(move |request| Box::pin(handler(request)));
        self.paths.entry(path).or_default().push((method, handler));
        self
    }

    async fn answer(&self, request: AdminRequest) -> AdminResponse {
        let Some(methods) = self.paths.get(request.uri().path()) else {
            let mut known: Vec<&str> = self.paths.keys().copied().collect();
            known.sort_unstable();
            return status(StatusCode::NOT_FOUND, format!("not found; there is: {}\n", known.join(" ")));
        };
        let wanted = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        match methods.iter().find(|(method, _)| method == wanted) {
            Some((_, handler)) => handler(request).await,
            None => status(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n"),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    /// The file goes before the listener: while it stands somebody is behind it, so that a successor which finds nobody
    /// there never has its own file removed.
    Unix(SocketFile, UnixListener),
}

/// A bound server that does not serve yet.
pub struct Admin {
    listener: Listener,
    refusals: Refusals,
}

impl Admin {
    /// Binds, within a tokio runtime. `flag` is what the error tells people to change.
    pub fn bind(address: &Address, flag: &'static str) -> Result<Self, BindError> {
        let bound = match address {
            Address::Tcp(address) => bind_tcp(*address).map(Listener::Tcp),
            Address::Unix(path) => {
                bind_unix(path).map(|listener| Listener::Unix(SocketFile(path.clone()), listener))
            }
        };
        match bound {
            Ok(listener) => Ok(Self { listener, refusals: Refusals::default() }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(BindError::InUse { address: address.to_string(), flag })
            }
            Err(error) => Err(BindError::Failed { address: address.to_string(), flag, error }),
        }
    }

    /// The address that it listens on, where that is TCP.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }

    /// Has those who are not let in to a unix socket counted by `refusals`.
    #[must_use]
    pub fn counting(self, refusals: &Refusals) -> Self {
        Self { refusals: refusals.clone(), ..self }
    }

    /// Serves until `stop`; requests in progress are answered. A unix socket's file is removed then.
    pub async fn serve(self, routes: Routes, stop: impl Future<Output = ()> + Send) {
        let routes = Arc::new(routes);
        let connections = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(match self.listener {
            Listener::Tcp(_) => MAX_CONNECTIONS,
            Listener::Unix(..) => MAX_LOCAL_CONNECTIONS,
        }));
        let mut stop = pin!(stop);
        loop {
            let next = async {
                let place = places.clone().acquire_owned().await;
                (self.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                () = &mut stop => break,
                next = next => next,
            };
            match accepted {
                Ok(stream) => {
                    let connection =
                        http1().serve_connection(TokioIo::new(stream), answering(routes.clone()));
                    let connection = connections.watch(connection);
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "admin connection ended early");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting an admin connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // A peer that reads nothing must not keep the process alive.
        let _ = timeout(STOP_DEADLINE, connections.shutdown()).await;
    }

    /// The next connection of somebody who may be here.
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match &self.listener {
            Listener::Tcp(listener) => Ok(Box::new(listener.accept().await?.0)),
            Listener::Unix(file, listener) => loop {
                let (stream, _) = listener.accept().await?;
                if self.refusals.let_in(&stream, &file.name()).is_some() {
                    return Ok(Box::new(stream));
                }
            },
        }
    }
}

/// A unix socket's file, removed with its listener.
struct SocketFile(PathBuf);

impl SocketFile {
    fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already; nobody is left to tell of anything else.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Either kind of stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    // Whoever answers on it is alive; a socket nobody answers on is what a killed process left.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn http1() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
}

fn answering(
    routes: Arc<Routes>,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<Full<Bytes>>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send,
> {
    service_fn(move |request: Request<Incoming>| {
        let routes = routes.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
            let response = match body {
                Ok(Ok(body)) => routes.answer(Request::from_parts(head, body.to_bytes())).await,
                Ok(Err(_)) => {
                    status(StatusCode::PAYLOAD_TOO_LARGE, "the request body is too large or was cut off\n")
                }
                Err(_) => status(StatusCode::REQUEST_TIMEOUT, "the request body came too slowly\n"),
            };
            Ok(response.map(Full::new))
        }
    })
}

/// 200 with a text.
pub fn text(body: impl Into<Bytes>) -> AdminResponse {
    status(StatusCode::OK, body)
}

/// 200 with JSON.
pub fn json(value: &serde_json::Value) -> AdminResponse {
    let mut response = Response::new(Bytes::from(format!("{value:#}\n")));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Another status with a text.
pub fn status(status: StatusCode, body: impl Into<Bytes>) -> AdminResponse {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The first value of a query parameter, percent-decoded.
pub fn query(request: &AdminRequest, name: &str) -> Option<String> {
    let pairs = request.uri().query()?.split('&');
    let (_, value) =
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(key, _)| *key == name)?;
    Some(percent_decoded(value))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let decoded = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match decoded {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn routes() -> Routes {
        Routes::new().get("/level", |request| async move { text(query(&request, "of").unwrap_or_default()) })
    }

    async fn exchange(request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(4096);
        let serving =
            tokio::spawn(http1().serve_connection(TokioIo::new(server), answering(Arc::new(routes()))));
        client.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        serving.await.unwrap().unwrap();
        reply
    }

    #[tokio::test]
    async fn requests_get_the_reply_of_their_path_and_method() {
        let cases = [
            ("a known path", "GET /level?of=a%3Ddebug+x HTTP/1.1", "200 OK", "\r\n\r\na=debug x"),
            ("an unknown path", "GET /nothing HTTP/1.1", "404 Not Found", "there is: /level"),
            ("another method", "POST /level HTTP/1.1", "405 Method Not Allowed", ""),
            ("HEAD as GET", "HEAD /level?of=debug HTTP/1.1", "200 OK", "content-length: 5"),
        ];
        for (name, line, status, content) in cases {
            let reply = exchange(&format!("{line}\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
            assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {reply}");
            assert!(reply.contains(content), "{name}: {reply}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_finishes_its_request_is_dropped() {
        let (mut client, server) = tokio::io::duplex(4096);
        let serving =
            tokio::spawn(http1().serve_connection(TokioIo::new(server), answering(Arc::new(routes()))));
        client.write_all(b"GET /level HTTP/1.1\r\n").await.unwrap();
        let begun = tokio::time::Instant::now();
        client.read_to_end(&mut Vec::new()).await.unwrap();
        assert!(serving.await.unwrap().is_err());
        assert!(begun.elapsed() >= HEADER_TIMEOUT && begun.elapsed() < HEADER_TIMEOUT * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_whose_body_does_not_come_is_told_so() {
        let begun = tokio::time::Instant::now();
        let reply =
            exchange("POST /level HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhell")
                .await;
        assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
        assert_eq!(begun.elapsed(), BODY_TIMEOUT);
    }

    #[tokio::test]
    async fn peers_beyond_the_limit_wait_for_their_turn() {
        let admin = Admin::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap()), "--admin").unwrap();
        let address = admin.local_addr().unwrap();
        tokio::spawn(admin.serve(routes(), std::future::pending()));
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            // Kept open by a request that has not ended: it is served, and so holds a place.
            stream
                .write_all(
                    b"POST /level HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n",
                )
                .await
                .unwrap();
            assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
            idle.push(stream);
        }
        let mut next = tokio::net::TcpStream::connect(address).await.unwrap();
        next.write_all(b"GET /level?of=x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        let early = timeout(Duration::from_millis(200), next.read_to_string(&mut reply)).await;
        assert!(early.is_err(), "{reply}");
        idle.pop();
        next.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_the_flag_that_changes_it() {
        let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let first = Admin::bind(&loopback, "--admin").unwrap();
        let taken = Address::Tcp(first.local_addr().unwrap());
        let error = Admin::bind(&taken, "--admin").err().unwrap().to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("--admin"), "{error}");
    }

    #[tokio::test]
    async fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let address = Address::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = Admin::bind(&address, "--socket").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Admin::bind(&address, "--socket"), Err(BindError::InUse { .. })));
        drop(live);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_directory_of_a_unix_socket_is_made_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let parent = directory.path().join("run");
        let _live = Admin::bind(&Address::Unix(parent.join("admin.sock")), "--socket").unwrap();
        assert_eq!(std::fs::metadata(&parent).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
