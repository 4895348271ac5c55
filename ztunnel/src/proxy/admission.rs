//! Who may hold how many connections: a cap per pod and a fair share of the process's file descriptors.
//!
//! A pod is admitted another connection as long as it holds fewer than its cap and fewer than are still
//! free for everybody (the dynamic threshold of shared switch buffers, with alpha = 1). So one greedy pod
//! alone stops at half of the whole, two at a third each, and whoever comes next always finds room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Connections the process may hold in all.
#[derive(Debug)]
pub(crate) struct Capacity {
    total: u32,
    held: AtomicU32,
}

/// File descriptors kept for everything that is no proxied connection: listeners and namespaces of the
/// pods, the control plane, the tunnels' own sockets, the log.
const RESERVED_DESCRIPTORS: u64 = 1024;

impl Capacity {
    /// For a process that may open `descriptors` files. A proxied connection takes at most two.
    pub(crate) fn of_descriptors(descriptors: u64) -> Arc<Self> {
        let free = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(RESERVED_DESCRIPTORS / 4);
        Self::new(u32::try_from(free / 2).unwrap_or(u32::MAX))
    }

    /// For `total` connections.
    pub(crate) fn new(total: u32) -> Arc<Self> {
        Arc::new(Self { total, held: AtomicU32::new(0) })
    }
}

/// One pod's account.
#[derive(Debug)]
pub(crate) struct Share {
    capacity: Arc<Capacity>,
    cap: u32,
    held: AtomicU32,
}

/// Leave to hold one connection, given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<Share>);

impl Share {
    /// An account that holds at most `cap`.
    pub(crate) fn new(capacity: Arc<Capacity>, cap: u32) -> Arc<Self> {
        Arc::new(Self { capacity, cap, held: AtomicU32::new(0) })
    }

    /// Another connection, if the pod may hold one more. Concurrent callers may together overshoot by
    /// their number, which is bounded by the worker threads: the caps are no exact quantity.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let total = self.capacity.held.load(Ordering::Relaxed);
        let own = self.held.load(Ordering::Relaxed);
        if own >= allowed(self.cap, self.capacity.total, total) {
            return None;
        }
        self.capacity.held.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_add(1, Ordering::Relaxed);
        Some(Admitted(self.clone()))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
        self.0.capacity.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many a pod may hold when `held` of `total` are taken in all.
fn allowed(cap: u32, total: u32, held: u32) -> u32 {
    cap.min(total.saturating_sub(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(share: &Arc<Share>) -> Vec<Admitted> {
        std::iter::from_fn(|| share.admit()).collect()
    }

    #[test]
    fn one_greedy_pod_leaves_half_and_the_next_still_finds_room() {
        let capacity = Capacity::new(120);
        let [greedy, second, third] = [(); 3].map(|()| Share::new(capacity.clone(), 1000));
        let first = fill(&greedy);
        assert_eq!(first.len(), 60);
        let others = fill(&second);
        assert_eq!(others.len(), 30);
        assert!(greedy.admit().is_none());
        assert_eq!(fill(&third).len(), 15);
    }

    #[test]
    fn the_cap_of_a_pod_holds_when_there_is_plenty() {
        let share = Share::new(Capacity::new(1000), 7);
        assert_eq!(fill(&share).len(), 7);
    }

    #[test]
    fn an_ended_connection_gives_its_place_back() {
        let share = Share::new(Capacity::new(4), 2);
        let mut held = fill(&share);
        assert!(share.admit().is_none());
        held.pop();
        assert!(share.admit().is_some());
        drop(held);
        assert_eq!(share.capacity.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_small_descriptor_limit_still_leaves_some_connections() {
        for (descriptors, total) in [(0, 128), (1024, 128), (1_048_576, 523_776)] {
            assert_eq!(Capacity::of_descriptors(descriptors).total, total, "{descriptors}");
        }
    }
}
