//! Relays between real sockets, directly and through a tunnel.
//!
//! In the second topology two relays stand in a row, as on two nodes: what the applications see must be the same.

mod endings;
mod fairness;
mod transfer;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::hbone::tests::World;

const IDLE: Duration = Duration::from_secs(3600);

/// What lies between the two applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    /// One relay.
    Relay,
    /// A relay, a tunnel, a relay.
    Tunnel,
}

const BOTH: [Between; 2] = [Between::Relay, Between::Tunnel];

/// Two applications and what lies between them.
struct Topology {
    client: TcpStream,
    server: TcpStream,
    /// From the client's side on.
    relays: Vec<JoinHandle<End<&'static str>>>,
    transferred: Arc<Transferred>,
    cut: CutHandle<&'static str>,
    /// Keeps the tunnel's other half.
    _world: Option<World>,
}

/// Two connected sockets with small buffers, so that what is in flight is little.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (dialed, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let pair = (dialed.unwrap(), accepted.unwrap().0);
    for stream in [&pair.0, &pair.1] {
        SockRef::from(stream).set_send_buffer_size(64 << 10).unwrap();
        SockRef::from(stream).set_recv_buffer_size(64 << 10).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    pair
}

impl Topology {
    async fn new(between: Between) -> Self {
        let (client, near) = pair().await;
        let (far, server) = pair().await;
        let transferred = Arc::new(Transferred::default());
        let (handle, cut) = cut();
        let counted = transferred.clone();
        let mut world = None;
        let relays = match between {
            Between::Relay => {
                vec![tokio::spawn(async move { relay(near, far, &counted, IDLE, cut).await })]
            }
            Between::Tunnel => {
                let (entry, exit) = world.insert(World::new()).stream().await;
                let first = tokio::spawn(async move { relay(near, entry, &counted, IDLE, cut).await });
                let second = tokio::spawn(async move {
                    relay(exit, far, &Transferred::default(), IDLE, std::future::pending()).await
                });
                vec![first, second]
            }
        };
        Self { client, server, relays, transferred, cut: handle, _world: world }
    }
}

/// How all relays ended.
async fn ends(relays: Vec<JoinHandle<End<&'static str>>>) -> Vec<End<&'static str>> {
    let mut ends = Vec::new();
    for relay in relays {
        ends.push(within(relay).await.unwrap());
    }
    ends
}

/// Fails the test rather than hang it.
async fn within<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(20), future).await.expect("took too long")
}

/// Reads to the end or to an error, and says what came before it.
async fn read_to_error(stream: &mut TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut all = Vec::new();
    let result = within(stream.read_to_end(&mut all)).await;
    (all, result.map(drop))
}

fn is_reset(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}
