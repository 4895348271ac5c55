//! Carries bytes between two connections, faithfully: every byte once and in order, an end as an end, a reset as
//! a reset, and no faster than the receiver takes them.
//!
//! A direction reads only when the other end has room, so at most one piece is held in between: 64 KiB from a
//! socket, one frame from a tunnel (1 MiB at most, charged to its window until it is written). A direction
//! that waits holds nothing.
//!
//! To have the kernel move the bytes of two sockets by `splice(2)`, through a pipe, was tried with the bare relay of the benchmark: no
//! more bytes a second, one stream or eight, for between 16 % less and 15 % more processor time a GiB, and requests as fast as before.
//! It was not kept: bytes could not be counted until they had left the pipe.

mod endpoint;
mod pump;
mod tcp;
mod tunnel;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

pub use endpoint::{Endpoint, Reader, SendFailure, Taken, Writer};
use pump::{Broken, Progress, Pump};
use tokio::time::timeout;

/// What an end sent before it broke is still handed on, for so long. Then the other end is reset whether or not
/// it has taken it all.
const RESET_GRACE: Duration = Duration::from_secs(1);

/// Idleness is looked at so many times within its limit.
const IDLE_LOOKS: u32 = 4;

/// Bytes that were handed on so far, for metrics and the access log while the connection lives.
#[derive(Debug, Default)]
pub struct Transferred {
    from_source: AtomicU64,
    from_destination: AtomicU64,
}

impl Transferred {
    /// Counts bytes from one side that were written to the other.
    pub fn count(&self, from: Side, bytes: u64) {
        let counter = match from {
            Side::Source => &self.from_source,
            Side::Destination => &self.from_destination,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes from the source (who opened the connection), written to the destination.
    pub fn from_source(&self) -> u64 {
        self.from_source.load(Ordering::Relaxed)
    }

    /// Bytes from the destination, written to the source.
    pub fn from_destination(&self) -> u64 {
        self.from_destination.load(Ordering::Relaxed)
    }

    /// Ends when no byte has moved for `limit`, or a quarter more.
    async fn idle(&self, limit: Duration) {
        let mut last = (0, 0);
        let mut quiet = 0;
        while quiet < IDLE_LOOKS {
            tokio::time::sleep(limit / IDLE_LOOKS).await;
            let now = (self.from_source(), self.from_destination());
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
        }
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

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
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
        error: io::Error,
    },
    /// No byte moved either way for so long; both sides were reset.
    Idle(Duration),
    /// It was cut from outside; both sides were reset.
    Cut(C),
}

/// Relays until both directions have finished or one side breaks. `idle` is how long no byte may move; it takes
/// up to a quarter more to be noticed. When `cut` ends first, both sides are reset. Dropping the future
/// resets both as well.
pub async fn relay<S, D, C>(
    source: S,
    destination: D,
    transferred: &Transferred,
    idle: Duration,
    cut: impl Future<Output = C> + Send,
) -> End<C>
where
    S: Endpoint,
    D: Endpoint,
{
    let (mut source, mut destination) = (Guarded::new(source), Guarded::new(destination));
    let end = run(source.get(), destination.get(), transferred, idle, cut).await;
    if matches!(end, End::Finished) {
        source.close();
        destination.close();
    }
    end
}

async fn run<S, D, C>(
    source: &mut S,
    destination: &mut D,
    transferred: &Transferred,
    idle: Duration,
    cut: impl Future<Output = C> + Send,
) -> End<C>
where
    S: Endpoint,
    D: Endpoint,
{
    let (forth, back) = (Progress::default(), Progress::default());
    let (source_reader, source_writer) = source.split();
    let (destination_reader, destination_writer) = destination.split();
    let mut forward = pin!(
        Pump {
            reader: source_reader,
            writer: destination_writer,
            transferred,
            from: Side::Source,
            own: &forth,
            other: &back,
        }
        .run()
    );
    let mut backward = pin!(
        Pump {
            reader: destination_reader,
            writer: source_writer,
            transferred,
            from: Side::Destination,
            own: &back,
            other: &forth,
        }
        .run()
    );
    // Polled after both directions, whenever one has got on.
    let finished =
        poll_fn(|_| if forth.is_done() && back.is_done() { Poll::Ready(()) } else { Poll::Pending });
    tokio::select! {
        biased;
        reason = cut => End::Cut(reason),
        // Boxed, since it is over soon: the task keeps no room for it while the connection lives.
        broken = &mut forward => Box::pin(end_of(broken, Side::Source, &back, backward)).await,
        broken = &mut backward => Box::pin(end_of(broken, Side::Destination, &forth, forward)).await,
        () = finished => End::Finished,
        () = transferred.idle(idle) => End::Idle(idle),
    }
}

/// What it means that the direction which reads `from` broke, once the other one has handed on its last bytes.
async fn end_of<C>(
    broken: Broken,
    from: Side,
    progress: &Progress,
    other: impl Future<Output = Broken>,
) -> End<C> {
    let to = from.other();
    match broken {
        Broken::Reader(error) => End::Broken { side: from, error },
        Broken::Writer(error) => {
            last_bytes(progress, other).await;
            End::Broken { side: to, error }
        }
        // Who has ended as well, and is gone for good, may answer what comes after that with a reset: it misses nothing.
        Broken::AfterEnd(error) => match last_bytes(progress, other).await {
            Some(Broken::Reader(error)) => End::Broken { side: to, error },
            Some(Broken::Writer(error)) => End::Broken { side: from, error },
            Some(Broken::AfterEnd(_)) => End::Finished,
            None if progress.is_done() => End::Finished,
            None => End::Broken { side: to, error },
        },
    }
}

/// Hands on what an end sent before it broke: a server that answers and closes without having read the whole
/// request breaks the connection, and its answer counts. Returns how that direction broke, if it did.
async fn last_bytes(progress: &Progress, direction: impl Future<Output = Broken>) -> Option<Broken> {
    let mut direction = pin!(direction);
    let handed_on = poll_fn(|cx| match direction.as_mut().poll(cx) {
        Poll::Ready(broken) => Poll::Ready(Some(broken)),
        Poll::Pending if progress.is_done() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    if progress.is_done() { None } else { timeout(RESET_GRACE, handed_on).await.ok().flatten() }
}

/// A connection that is reset unless it is closed, also when the process is killed: a cut answer must not look like a whole one.
struct Guarded<E: Endpoint>(Option<E>);

impl<E: Endpoint> Guarded<E> {
    fn new(endpoint: E) -> Self {
        endpoint.guard();
        Self(Some(endpoint))
    }

    #[expect(clippy::expect_used, reason = "only `close` and `drop` take it, and both end the guard")]
    fn get(&mut self) -> &mut E {
        self.0.as_mut().expect("not closed yet")
    }

    fn close(mut self) {
        if let Some(endpoint) = self.0.take() {
            endpoint.close();
        }
    }
}

impl<E: Endpoint> Drop for Guarded<E> {
    fn drop(&mut self) {
        if let Some(endpoint) = self.0.take() {
            endpoint.reset();
        }
    }
}

/// Makes a handle that can cut a relay, and the future to give it. A dropped handle cuts nothing.
pub fn cut<C: Send>() -> (CutHandle<C>, impl Future<Output = C> + Send + use<C>) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let cut = async move {
        match receiver.await {
            Ok(reason) => reason,
            Err(_) => std::future::pending().await,
        }
    };
    (CutHandle(sender), cut)
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

#[cfg(test)]
mod tests;
