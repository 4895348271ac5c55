//! Asking the servers of a pod, from its namespace.
//!
//! Over UDP each query has a socket of its own, connected to the server, with a port that the kernel draws, and a random id; a reply
//! counts only with that id and the question (RFC 5452). One that is cut is asked for again over TCP if the client could take more.
//! A query that came over TCP goes on over TCP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};
use tunnel::socket::DialError;

use super::message::{Request, Transport, is_truncated};
use super::resolver::PORT;
use crate::pods::Pod;
use crate::proxy::Node;
use crate::telemetry::DnsLabels;

/// After this a datagram counts as lost.
const LOST: Duration = Duration::from_secs(1);
/// Within this a server answers, or another one is asked. Stub resolvers wait 5 s; with this two dead servers out of three are
/// passed by within that time.
const PATIENCE: Patience = Patience { datagrams: 2 };
/// How long the only server that is to be asked may take: nobody stands in for it, and who asks has given up by then.
const LAST_PATIENCE: Patience = Patience { datagrams: 5 };

/// How long a server may take to answer: as long as this many datagrams need to count as lost, one after the other.
#[derive(Clone, Copy, Debug)]
struct Patience {
    datagrams: u32,
}

impl Patience {
    const fn time(self) -> Duration {
        LOST.saturating_mul(self.datagrams)
    }
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// Nobody is to be asked.
    #[error("no server is known: the pod's resolv.conf names none")]
    NoServer,
    /// One server, which failed.
    #[error("{server}: {error}")]
    Server {
        /// Which; the last one that was asked.
        server: SocketAddr,
        /// How.
        error: AskError,
    },
}

/// Why a server has not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nothing came in time.
    #[error("no answer")]
    Silent,
    /// The kernel, or a host on the way, refused.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// It takes no connection.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// What came on the connection is no answer.
    #[error("what it sent is no answer to the query")]
    Stranger,
}

/// A query on its way.
pub(crate) struct Forward {
    pub(crate) node: Arc<Node>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) request: Request,
    /// The application's address, under which its server knows it.
    pub(crate) client: IpAddr,
    pub(crate) labels: DnsLabels,
}

/// Whom to ask.
struct Route {
    order: Vec<SocketAddr>,
    trial: Option<SocketAddr>,
    /// They are the pod's own, so that what they say may be kept and whether they answer counts.
    own: bool,
}

impl Forward {
    /// Asks for the query that the pod sent to `asked`, if that is known.
    pub(crate) async fn run(self: &Arc<Self>, asked: Option<SocketAddr>) -> Result<Vec<u8>, ForwardError> {
        let route = self.route(asked);
        if route.own
            && let Some(known) = self.pod.dns.negative(|negative| negative.get(&self.request, Instant::now()))
        {
            return Ok(known);
        }
        if let Some(trial) = route.trial {
            let this = self.clone();
            // Its outcome alone is of interest, and noted where it is asked.
            tokio::spawn(async move { this.ask_own(trial, PATIENCE).await.map(drop) });
        }
        let metrics = &self.node.metrics;
        metrics.shared.dns.upstream_requests.get_or_create(&self.labels).inc();
        let began = Instant::now();
        let result = self.ask_in_turn(&route).await;
        metrics
            .shared
            .dns
            .upstream_duration
            .get_or_create(&self.labels)
            .observe(began.elapsed().as_secs_f64());
        match &result {
            Ok(reply) if route.own => {
                self.pod.dns.negative(|negative| negative.keep(&self.request, reply, Instant::now()));
            }
            Ok(_) => {}
            Err(_) => {
                metrics.shared.dns.upstream_failures.get_or_create(&self.labels).inc();
            }
        }
        result
    }

    /// See the module `dns`.
    fn route(&self, asked: Option<SocketAddr>) -> Route {
        let known = self.pod.dns.resolver().is_some();
        let is_own = |server| self.pod.dns.upstreams(|upstreams| upstreams.contains(server));
        match asked {
            Some(server) if known && !is_own(server) => {
                Route { order: vec![server], trial: None, own: false }
            }
            _ if known => {
                let plan = self.pod.dns.upstreams(|upstreams| upstreams.plan(asked, Instant::now()));
                Route { order: plan.order, trial: plan.trial, own: true }
            }
            _ => {
                let own = &self.node.dns.own.servers;
                let others = own.iter().copied().filter(|server| Some(*server) != asked);
                Route { order: asked.into_iter().chain(others).collect(), trial: None, own: false }
            }
        }
    }

    async fn ask_in_turn(self: &Arc<Self>, route: &Route) -> Result<Vec<u8>, ForwardError> {
        let patience = if route.order.len() == 1 { LAST_PATIENCE } else { PATIENCE };
        let mut failed = ForwardError::NoServer;
        for &server in &route.order {
            let asked = if route.own {
                self.ask_own(server, patience).await
            } else {
                self.ask(server, patience).await
            };
            match asked {
                Ok(reply) => return Ok(reply),
                Err(error) => {
                    tracing::debug!(pod = %self.pod.name, namespace = %self.pod.namespace, %server, %error, "a DNS server has not answered");
                    failed = ForwardError::Server { server, error };
                }
            }
        }
        Err(failed)
    }

    /// Asks one of the pod's servers, and takes note of whether it answers.
    async fn ask_own(&self, server: SocketAddr, patience: Patience) -> Result<Vec<u8>, AskError> {
        let began = Instant::now();
        let result = self.ask(server, patience).await;
        self.pod.dns.upstreams(|upstreams| match &result {
            Ok(_) => upstreams.answered(server, Instant::now()),
            Err(_) => upstreams.silent(server, began, Instant::now()),
        });
        result
    }

    async fn ask(&self, server: SocketAddr, patience: Patience) -> Result<Vec<u8>, AskError> {
        if self.request.transport() == Transport::Tcp {
            return within(patience, self.ask_over_tcp(server)).await;
        }
        let reply = self.ask_over_udp(server, patience).await?;
        // To a client that takes no more than every server sends, what is cut stays cut.
        if !is_truncated(&reply) || !self.request.takes_more() {
            return Ok(reply);
        }
        Ok(within(patience, self.ask_over_tcp(server)).await.unwrap_or(reply))
    }

    async fn ask_over_udp(&self, server: SocketAddr, patience: Patience) -> Result<Vec<u8>, AskError> {
        let socket = self.node.dialer.datagrams(&self.pod.netns, self.source(server), server)?;
        let id = rand::random();
        let query = self.request.forwarded(id);
        for _ in 0..patience.datagrams {
            socket.send(&query).await?;
            match timeout(LOST, self.reply(&socket, id)).await {
                Ok(reply) => return Ok(reply?),
                Err(_) => tracing::trace!(%server, "a datagram is lost, or its answer"),
            }
        }
        Err(AskError::Silent)
    }

    /// The next reply that is the answer; all others are passed over.
    async fn reply(&self, socket: &UdpSocket, id: u16) -> io::Result<Vec<u8>> {
        // What a server sends is no longer than the client can take.
        let mut buffer = vec![0; self.request.limit()];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if self.request.is_answered_by(id, &buffer[..length]) {
                return Ok(buffer[..length].to_vec());
            }
        }
    }

    async fn ask_over_tcp(&self, server: SocketAddr) -> Result<Vec<u8>, AskError> {
        let source = self.source(server);
        let mut stream = self.node.dialer.network(&self.pod.netns, source, server).await?;
        let id = rand::random();
        write_message(&mut stream, &self.request.forwarded(id)).await?;
        let first = stream.read_u8().await?;
        let reply = read_rest(&mut stream, first).await?;
        if self.request.is_answered_by(id, &reply) { Ok(reply) } else { Err(AskError::Stranger) }
    }

    /// The address to ask from.
    fn source(&self, server: SocketAddr) -> Option<IpAddr> {
        self.pod.source_for(self.client, server.ip())
    }
}

async fn within<T>(
    patience: Patience,
    work: impl Future<Output = Result<T, AskError>>,
) -> Result<T, AskError> {
    timeout(patience.time(), work).await.unwrap_or(Err(AskError::Silent))
}

/// Whether a query can have been meant for this address: port 53, and no address that only the pod itself has.
pub(crate) fn is_server(to: SocketAddr) -> bool {
    to.port() == PORT && !to.ip().is_loopback() && !to.ip().is_unspecified()
}

/// The rest of a message on a connection of which one octet has been read (RFC 1035 4.2.2: its length comes first).
pub(crate) async fn read_rest(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    first: u8,
) -> io::Result<Vec<u8>> {
    let length = u16::from_be_bytes([first, stream.read_u8().await?]);
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message in one piece.
pub(crate) async fn write_message(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}
