//! The orderly end of a process: a first SIGTERM or SIGINT starts it, tasks finish what they hold, a deadline or a
//! second signal ends it.
//!
//! [`Drain`] belongs to `main`; each task gets a clone of the [`DrainSignal`] and holds a [`DrainGuard`] while it has
//! work that must not be cut.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
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

/// How long a drain may take, which may be changed while it goes on: the clones are one. Always from the drain's beginning.
#[derive(Clone, Debug)]
pub struct Deadline(watch::Sender<Duration>);

impl Deadline {
    /// So long at first.
    pub fn new(after: Duration) -> Self {
        Self(watch::Sender::new(after))
    }

    /// So long now.
    pub fn get(&self) -> Duration {
        *self.0.borrow()
    }

    /// So long from now on, also for what has begun.
    pub fn set(&self, after: Duration) {
        self.0.send_replace(after);
    }

    /// Ends when a drain that began at `begun` has only `but` of its time left; at once if that was so already.
    pub async fn passed(&self, begun: Instant, but: impl Fn(Duration) -> Duration) {
        let mut changes = self.0.subscribe();
        loop {
            let after = *changes.borrow_and_update();
            tokio::select! {
                () = sleep_until(begun + after.saturating_sub(but(after))) => return,
                // Nobody is left to change it only when this is dropped as well.
                _ = changes.changed() => {}
            }
        }
    }
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
    /// Tells everybody, and waits for all guards, until `deadline` at the longest.
    pub async fn start(self, deadline: &Deadline) -> Drained {
        let begun = Instant::now();
        self.signal.started.cancel();
        self.signal.held.close();
        tokio::select! {
            biased;
            () = self.signal.held.wait() => Drained::Completely,
            () = deadline.passed(begun, |_| Duration::ZERO) => Drained::DeadlineReached(self.signal.held.len()),
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

    /// Guards that are held.
    pub fn held(&self) -> usize {
        self.held.len()
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
        let begun = Instant::now();
        let drained = drain.start(&Deadline::new(Duration::from_secs(60))).await;
        assert_eq!((drained, begun.elapsed()), (Drained::Completely, Duration::ZERO));
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_at_its_deadline_and_counts_what_is_left() {
        let (drain, signal) = drain();
        let _held = (signal.guard(), signal.guard());
        let begun = Instant::now();
        let deadline = Deadline::new(Duration::from_secs(25));
        assert_eq!(drain.start(&deadline).await, Drained::DeadlineReached(2));
        assert_eq!(begun.elapsed(), Duration::from_secs(25));
        assert!(signal.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_can_be_put_off_and_brought_forward_while_the_drain_goes_on() {
        const AT: [u64; 2] = [20, 50];
        for (second, ends_after) in [(60, 60), (55, 55), (10, 50), (0, 50)] {
            let (drain, signal) = drain();
            let _held = signal.guard();
            let deadline = Deadline::new(Duration::from_secs(25));
            let change = deadline.clone();
            let begun = Instant::now();
            let changes = tokio::spawn(async move {
                for (at, to) in AT.into_iter().zip([120, second]) {
                    sleep_until(begun + Duration::from_secs(at)).await;
                    change.set(Duration::from_secs(to));
                }
            });
            assert_eq!(drain.start(&deadline).await, Drained::DeadlineReached(1));
            assert_eq!(begun.elapsed(), Duration::from_secs(ends_after), "then {second} s");
            changes.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_to_happen_before_the_deadline_moves_with_it() {
        let deadline = Deadline::new(Duration::from_secs(100));
        let begun = Instant::now();
        let change = async {
            sleep_until(begun + Duration::from_secs(80)).await;
            deadline.set(Duration::from_secs(200));
        };
        tokio::join!(deadline.passed(begun, |whole| whole / 10), change);
        assert_eq!(begun.elapsed(), Duration::from_secs(180));
    }
}
