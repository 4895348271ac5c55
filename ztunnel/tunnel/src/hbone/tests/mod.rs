//! Client and server over an in-memory pair, and each against a peer that misbehaves.

mod expiry;
mod floods;
mod limits;
mod nested;
mod pool;
mod revocation;
mod server;
mod streams;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::authority::{self, identity};
use crate::tls::{self, ExpectedPeers, ServerStream, Standing, VerifiedPeer, WorkloadCertificate};

const TIMEOUT: Duration = Duration::from_secs(10);
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// A server's end of a connection, after TLS.
type ServerIo = ServerStream<DuplexStream>;

/// A server behind a dialer. Each dial makes a connection that `behave` serves.
#[derive(Clone)]
struct Remote {
    certificate: WorkloadCertificate,
    behave: Arc<dyn Fn(ServerIo, VerifiedPeer) -> BoxFuture<'static, ()> + Send + Sync>,
    dials: Arc<AtomicUsize>,
}

impl Remote {
    fn new<F>(ca: &authority::Authority, behave: impl Fn(ServerIo) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::knowing(ca, move |io, _| behave(io))
    }

    /// One that looks at who its client is.
    fn knowing<F>(
        ca: &authority::Authority,
        behave: impl Fn(ServerIo, VerifiedPeer) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            certificate: ca.workload("echo"),
            behave: Arc::new(move |io, peer| Box::pin(behave(io, peer))),
            dials: Arc::default(),
        }
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    fn dial(&self) -> impl Future<Output = io::Result<DuplexStream>> + Send + use<> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let (near, far) = duplex(64 << 10);
        let (certificate, behave) = (self.certificate.clone(), self.behave.clone());
        tokio::spawn(async move {
            if let Ok((io, peer)) = tls::accept(far, &certificate, TIMEOUT).await {
                behave(io, peer).await;
            }
        });
        std::future::ready(Ok(near))
    }
}

/// A client's pool and the server it talks to.
pub(crate) struct World {
    ca: authority::Authority,
    pool: Pool,
    certificate: WorkloadCertificate,
    remote: Remote,
    /// What the server is asked for.
    requests: mpsc::UnboundedReceiver<ConnectRequest>,
    /// How its connections ended.
    ends: mpsc::UnboundedReceiver<Result<ServeEnd, ServeError>>,
    /// Drains the connections that stand.
    drain: Arc<Notify>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(PoolConfig::default(), ServerConfig::default())
    }

    fn with(pool: PoolConfig, server: ServerConfig) -> Self {
        Self::of(authority::Authority::new(), pool, server)
    }

    fn of(ca: authority::Authority, pool: PoolConfig, server: ServerConfig) -> Self {
        let drain = Arc::new(Notify::new());
        let (asked, requests) = mpsc::unbounded_channel();
        let (ended, ends) = mpsc::unbounded_channel();
        let draining = drain.clone();
        let share = pool.budget.share(SERVER);
        let remote = Remote::knowing(&ca, move |io, peer| {
            let terms =
                Terms { expires: peer.expires(), standing: peer.standing().clone(), share: share.clone() };
            let (asked, ended, server, drain) =
                (asked.clone(), ended.clone(), server.clone(), draining.clone());
            async move {
                let end = serve(io, &server, &terms, drain.notified(), |request| {
                    if let Ok(request) = request {
                        let _ = asked.send(request);
                    }
                })
                .await;
                let _ = ended.send(end);
            }
        });
        let certificate = ca.workload("curl");
        Self { ca, pool: Pool::new(pool), certificate, remote, requests, ends, drain }
    }

    /// Opens a stream to the server, as on `port`.
    fn open(&self, port: u16) -> impl Future<Output = Result<Opened, OpenError>> + Send + use<> {
        self.open_at(key(port), &self.remote)
    }

    /// Opens a stream to another server.
    fn open_at(
        &self,
        key: PoolKey,
        remote: &Remote,
    ) -> impl Future<Output = Result<Opened, OpenError>> + Send + use<> {
        let remote = remote.clone();
        self.open_by(key, move || remote.dial())
    }

    /// Opens a stream by a dialer.
    fn open_by<D, F, IO>(
        &self,
        key: PoolKey,
        dial: D,
    ) -> impl Future<Output = Result<Opened, OpenError>> + Send + use<D, F, IO>
    where
        D: Fn() -> F + Send + Sync,
        F: Future<Output = io::Result<IO>> + Send + 'static,
        IO: Dialed,
    {
        let (pool, certificate) = (self.pool.clone(), self.certificate.clone());
        async move { pool.open(&key, &certificate, &target(), &ConnectHeaders::default(), dial).await }
    }

    /// The server's end of the next stream.
    async fn accepted(&mut self) -> TunnelStream {
        self.requests.recv().await.unwrap().accept(None).unwrap()
    }

    /// A stream, both ends.
    pub(crate) async fn stream(&mut self) -> (TunnelStream, TunnelStream) {
        let (opened, server) = tokio::join!(self.open(1), self.accepted());
        (opened.unwrap().stream, server)
    }
}

/// The client's end of a stream whose server has ended its direction and then stopped to read the connection.
pub(crate) async fn stuck_stream() -> (World, TunnelStream) {
    let mut world = World::new();
    let ca = authority::Authority::new();
    world.certificate = ca.workload("curl");
    let remote = Remote::new(&ca, |io| async move {
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 20);
        let mut connection: h2::server::Connection<_, Bytes> = builder.handshake(io).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
        send.send_data(Bytes::new(), true).unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(1), connection.accept()).await;
        std::future::pending::<()>().await;
    });
    let stream = world.open_at(key(1), &remote).await.unwrap().stream;
    tokio::time::sleep(Duration::from_millis(2)).await;
    (world, stream)
}

/// A key to the server on another port.
fn key(port: u16) -> PoolKey {
    PoolKey {
        source: identity("curl"),
        expected: ExpectedPeers::from(&identity("echo")),
        destination: SocketAddr::from(([10, 0, 0, 2], port)),
        source_ip: SOURCE,
    }
}

/// A server's terms that never end.
fn terms() -> Terms {
    let expires = tokio::time::Instant::now() + Duration::from_secs(1 << 31);
    Terms { expires, standing: Standing::for_good(), share: Budget::default().share(SERVER) }
}

fn target() -> Authority {
    "10.0.0.2:8080".parse().unwrap()
}

/// All that comes, to the end.
async fn read_all(stream: &mut TunnelStream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(data) = stream.read().await? {
        all.extend_from_slice(&data);
    }
    Ok(all)
}

fn bytes(count: usize) -> Bytes {
    (0..count).map(|index| u8::try_from(index % 251).unwrap()).collect()
}
