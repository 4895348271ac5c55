//! Carries bytes between two connections, faithfully.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

mod endpoint;

pub use endpoint::Endpoint;

/// Bytes that were handed on so far, for metrics and the access log while the connection lives.
#[derive(Debug, Default)]
pub struct Transferred {
    from_source: AtomicU64,
    from_destination: AtomicU64,
}

impl Transferred {
    /// Bytes from the source (who opened the connection), written to the destination.
    pub fn from_source(&self) -> u64 {
        self.from_source.load(Ordering::Relaxed)
    }

    /// Bytes from the destination, written to the source.
    pub fn from_destination(&self) -> u64 {
        self.from_destination.load(Ordering::Relaxed)
    }
}

/// One of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who opened the connection.
    Source,
    /// Who was dialled.
    Destination,
}

/// How a connection ended. `C` is why it was cut.
#[derive(Debug)]
pub enum End<C> {
    /// Both sides have finished, and all bytes were handed on.
    Finished,
    /// A side reset the connection, or it broke there; the other side was reset too.
    Broken {
        /// Which.
        side: Side,
        /// What the kernel or the tunnel said.
        error: std::io::Error,
    },
    /// No byte moved either way for so long; both sides were reset.
    Idle(Duration),
    /// It was cut from outside; both sides were reset.
    Cut(C),
}

/// Relays until both directions have finished or one side breaks. `idle` is how long no byte may move. When
/// `cut` ends first, both sides are reset. Dropping the future resets both as well.
pub async fn relay<S, D, C>(
    source: S,
    destination: D,
    transferred: &Arc<Transferred>,
    idle: Duration,
    cut: impl Future<Output = C> + Send,
) -> End<C>
where
    S: Endpoint,
    D: Endpoint,
{
    todo!()
}

/// Makes a handle that can cut a relay, and the future to give it. A dropped handle cuts nothing.
pub fn cut<C: Send>() -> (CutHandle<C>, impl Future<Output = C> + Send + use<C>) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    (CutHandle(sender), async move {
        match receiver.await {
            Ok(reason) => reason,
            Err(_) => std::future::pending().await,
        }
    })
}

/// Cuts a relay.
#[derive(Debug)]
pub struct CutHandle<C>(tokio::sync::oneshot::Sender<C>);

impl<C> CutHandle<C> {
    /// Cuts it; `false` if it has ended already.
    pub fn cut(self, reason: C) -> bool {
        self.0.send(reason).is_ok()
    }
}
