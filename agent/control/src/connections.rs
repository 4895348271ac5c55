//! Who may hold how many connections. A stranger, that is one whose connection has not carried a node's token yet, is
//! held to few places and a short time; a node to a number of its own. So all connections together are bounded by the
//! number of tokens, and a node that floods control stands in nobody's way but its own.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::Status;
use tonic::transport::server::Connected;

/// Strangers at a time, those in their handshakes among them. The others wait in the kernel's backlog.
const STRANGERS: usize = 256;
/// How long after its handshake a connection may stay a stranger's.
const PROOF_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one node. Two are in use, its stream's and its certificates'; as many more are those of an agent that is
/// replaced, or died without a word, until the transport's keepalive notices.
pub(crate) const PER_NODE: usize = 16;

/// The places there are. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    strangers: Arc<Semaphore>,
    nodes: Arc<Mutex<HashMap<String, usize>>>,
}

impl Bounds {
    pub(crate) fn new() -> Self {
        Self { strangers: Arc::new(Semaphore::new(STRANGERS)), nodes: Arc::default() }
    }

    /// Waits for a stranger's place.
    pub(crate) async fn place(&self) -> Place {
        match Arc::clone(&self.strangers).acquire_owned().await {
            Ok(permit) => Place { bounds: self.clone(), permit },
            // Nobody closes the semaphore.
            Err(_) => std::future::pending().await,
        }
    }

    fn enter(&self, node: &str) -> Result<(), Status> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let count = nodes.entry(node.to_owned()).or_default();
        if *count >= PER_NODE {
            let message = format!("node {node} has {count} connections, which is as many as a node may have");
            tracing::warn!("{message}");
            return Err(Status::resource_exhausted(message));
        }
        *count += 1;
        Ok(())
    }

    fn leave(&self, node: &str) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = nodes.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(node);
            }
        }
    }
}

/// A stranger's place.
#[derive(Debug)]
pub(crate) struct Place {
    bounds: Bounds,
    permit: OwnedSemaphorePermit,
}

impl Place {
    /// Gives it to a connection.
    pub(crate) fn taken_by(self, address: SocketAddr) -> Peer {
        let standing = Mutex::new(Standing::Stranger(self.permit));
        Peer { address, counted: Arc::new(Counted { bounds: self.bounds, standing }) }
    }
}

/// The other end of a connection, as its requests know it. Counts until the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    address: SocketAddr,
    counted: Arc<Counted>,
}

#[derive(Debug)]
struct Counted {
    bounds: Bounds,
    standing: Mutex<Standing>,
}

#[derive(Debug)]
enum Standing {
    Stranger(#[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit),
    Node(String),
}

impl Peer {
    /// Where it connects from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A request on the connection has shown the node's token.
    pub(crate) fn prove(&self, node: &str) -> Result<(), Status> {
        let mut standing = self.counted.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*standing, Standing::Node(known) if known == node) {
            return Ok(());
        }
        self.counted.bounds.enter(node)?;
        if let Standing::Node(former) = std::mem::replace(&mut *standing, Standing::Node(node.to_owned())) {
            self.counted.bounds.leave(&former);
        }
        Ok(())
    }

    fn is_stranger(&self) -> bool {
        let standing = self.counted.standing.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*standing, Standing::Stranger(_))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let standing = self.standing.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Standing::Node(node) = standing {
            self.bounds.leave(node);
        }
    }
}

/// A connection, which ends by an error of reading when it stays a stranger's for too long.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    peer: Peer,
    /// Of strangers.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, peer: Peer) -> Self {
        Self { stream, peer, deadline: Some(Box::pin(tokio::time::sleep(PROOF_TIMEOUT))) }
    }

    /// Never while the peer may go on.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.peer.is_stranger() {
            self.deadline = None;
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.as_mut().poll(cx));
        tracing::info!(peer = %self.peer.address, "a connection has shown no node's token in time and is ended");
        Poll::Ready(())
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.poll_overdue(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    use super::*;

    async fn connection(bounds: &Bounds) -> (Connection<DuplexStream>, DuplexStream) {
        let (own, other) = tokio::io::duplex(64);
        let peer = bounds.place().await.taken_by(([192, 0, 2, 1], 1).into());
        (Connection::new(own, peer), other)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_shows_no_token_ends_though_it_keeps_sending() {
        let (mut connection, mut other) = connection(&Bounds::new()).await;
        let began = Instant::now();
        let chatter = tokio::spawn(async move {
            while other.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, PROOF_TIMEOUT));
        drop(connection);
        chatter.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_nodes_connection_may_be_silent_and_gives_its_strangers_place_back() {
        let bounds = Bounds::new();
        let (mut connection, mut other) = connection(&bounds).await;
        assert_eq!(bounds.strangers.available_permits(), STRANGERS - 1);
        connection.connect_info().prove("east").unwrap();
        assert_eq!(bounds.strangers.available_permits(), STRANGERS);
        let mut read = [0];
        let reading = tokio::time::timeout(100 * PROOF_TIMEOUT, connection.read_exact(&mut read));
        assert!(reading.await.is_err(), "still waiting");
        other.write_all(b"y").await.unwrap();
        connection.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"y");
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_wait_for_a_place_and_get_it_when_one_ends() {
        let bounds = Bounds::new();
        let mut held = Vec::new();
        for _ in 0..STRANGERS {
            held.push(bounds.place().await);
        }
        assert!(tokio::time::timeout(Duration::from_secs(60), bounds.place()).await.is_err());
        held.pop();
        assert!(tokio::time::timeout(Duration::from_secs(60), bounds.place()).await.is_ok());
    }

    #[tokio::test]
    async fn a_node_has_its_number_of_connections_and_takes_none_of_anothers() {
        let bounds = Bounds::new();
        let mut peers = Vec::new();
        for _ in 0..=PER_NODE {
            peers.push(bounds.place().await.taken_by(([192, 0, 2, 1], 1).into()));
        }
        for peer in &peers[..PER_NODE] {
            peer.prove("east").unwrap();
            peer.prove("east").unwrap();
        }
        let last = peers.pop().unwrap();
        assert_eq!(last.prove("east").unwrap_err().code(), tonic::Code::ResourceExhausted);
        assert!(last.is_stranger());
        last.prove("west").unwrap();
        assert!(last.prove("east").is_err(), "another token on the same connection is counted too");
        peers.pop();
        last.prove("east").unwrap();
        drop((last, peers));
        assert!(bounds.nodes.lock().unwrap().is_empty(), "nothing is left of those that ended");
    }
}
