//! The orderly end of a process: a first SIGTERM or SIGINT starts it, tasks finish what they hold, a deadline or a
//! second signal ends it.
//!
//! [`Drain`] belongs to `main`; each task gets a clone of the [`DrainSignal`] and holds a [`DrainGuard`] while it has
//! work that must not be cut.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Why the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// The process itself.
    Request,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All have finished.
    Completely,
    /// The deadline came first; so many guards were still held.
    DeadlineReached(usize),
}

/// Starts a drain and waits for its end.
#[derive(Debug)]
pub struct Drain {
    signal: DrainSignal,
}

/// Learns of the drain, and holds it up while guards are held. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainSignal {
    started: CancellationToken,
    held: TaskTracker,
}

/// Holds up the end until it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once it holds nothing up"]
pub struct DrainGuard {
    _held: TaskTrackerToken,
}

/// A drain that has not started.
pub fn drain() -> (Drain, DrainSignal) {
    let signal = DrainSignal { started: CancellationToken::new(), held: TaskTracker::new() };
    (Drain { signal: signal.clone() }, signal)
}

impl Drain {
    /// Tells everybody, and waits for all guards, `deadline` at the longest.
    pub async fn start(self, deadline: Duration) -> Drained {
        self.signal.started.cancel();
        self.signal.held.close();
        match tokio::time::timeout(deadline, self.signal.held.wait()).await {
            Ok(()) => Drained::Completely,
            Err(_) => Drained::DeadlineReached(self.signal.held.len()),
        }
    }
}

impl DrainSignal {
    /// Ends when the drain starts.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Whether it has started.
    pub fn is_draining(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Holds up the end.
    pub fn guard(&self) -> DrainGuard {
        DrainGuard { _held: self.held.token() }
    }
}

/// Waits for SIGTERM or SIGINT. From then on a second one ends the process at once, with status 130 or 143.
pub async fn signalled() -> std::io::Result<Cause> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cause = next(&mut terminate, &mut interrupt).await;
    tokio::spawn(async move {
        // The shells' convention: 128 plus the signal's number.
        let status = match next(&mut terminate, &mut interrupt).await {
            Cause::Interrupt => 130,
            Cause::Terminate | Cause::Request => 143,
        };
        std::process::exit(status);
    });
    Ok(cause)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> Cause {
    tokio::select! {
        _ = terminate.recv() => Cause::Terminate,
        _ = interrupt.recv() => Cause::Interrupt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_as_soon_as_the_last_guard_is_dropped() {
        let (drain, signal) = drain();
        let guard = signal.guard();
        let task = tokio::spawn(async move {
            signal.started().await;
            drop(guard);
        });
        let begun = tokio::time::Instant::now();
        let drained = drain.start(Duration::from_secs(60)).await;
        assert_eq!((drained, begun.elapsed()), (Drained::Completely, Duration::ZERO));
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_at_its_deadline_and_counts_what_is_left() {
        let (drain, signal) = drain();
        let _held = (signal.guard(), signal.guard());
        let begun = tokio::time::Instant::now();
        assert_eq!(drain.start(Duration::from_secs(25)).await, Drained::DeadlineReached(2));
        assert_eq!(begun.elapsed(), Duration::from_secs(25));
        assert!(signal.is_draining());
    }
}
