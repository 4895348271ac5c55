//! Ending in an orderly way: everybody is told, everybody may finish, nobody for longer than the deadline.

use std::time::Duration;

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
pub struct Drain {}

/// Learns of the drain, and holds it up while guards are held. Cheap to clone.
#[derive(Clone)]
pub struct DrainSignal {}

/// Holds up the end until it is dropped.
#[must_use = "dropped at once it holds nothing up"]
pub struct DrainGuard {}

/// A drain that has not started.
pub fn drain() -> (Drain, DrainSignal) {
    todo!()
}

impl Drain {
    /// Tells everybody, and waits for all guards, `deadline` at the longest.
    pub async fn start(self, deadline: Duration) -> Drained {
        todo!()
    }
}

impl DrainSignal {
    /// Ends when the drain starts.
    pub async fn started(&self) {
        todo!()
    }

    /// Whether it has started.
    pub fn is_draining(&self) -> bool {
        todo!()
    }

    /// Holds up the end.
    pub fn guard(&self) -> DrainGuard {
        todo!()
    }
}

/// Waits for SIGTERM or SIGINT. From then on a second one ends the process at once, with status 130 or 143.
pub async fn signalled() -> std::io::Result<Cause> {
    todo!()
}
