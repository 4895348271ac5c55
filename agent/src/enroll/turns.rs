//! Turns at blocking work: however many pods come or go at once, a few threads at a time are in the kernel for them.
//!
//! Without that, every pod's task that waits for the kernel programs' lock would hold a thread: 50 pods that came together left 145
//! threads behind, each with a stack and an arena of the allocator, and the agent grew by 16 MiB over 1,000 pods.

use tokio::sync::Semaphore;
use tokio::task::block_in_place;

/// One works with the kernel programs, which are locked; the others enter namespaces and read meanwhile.
const AT_ONCE: usize = 4;

/// Whose turn it is.
#[derive(Debug)]
pub(crate) struct Turns(Semaphore);

impl Turns {
    /// All turns are free.
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }

    /// Does `work`, which may block for some milliseconds, when it is its turn: first come, first served. `work` must not wait for
    /// another turn.
    pub(crate) async fn blocking<T>(&self, work: impl FnOnce() -> T) -> T {
        // An error would say that the semaphore is closed, which nobody does; the work is to be done all the same.
        let _turn = self.0.acquire().await;
        block_in_place(work)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 8)]
    async fn a_few_work_at_once_and_no_more_and_all_get_their_turn() {
        let (turns, working, most) =
            (Arc::new(Turns::new()), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let begun = Instant::now();
        let tasks: Vec<_> = (0..AT_ONCE * 10)
            .map(|_| {
                let (turns, working, most) = (Arc::clone(&turns), Arc::clone(&working), Arc::clone(&most));
                let work = move || {
                    most.fetch_max(working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    // The first ones stay until as many are there as may be; only a failing test has them lose patience.
                    while most.load(Ordering::SeqCst) < AT_ONCE && begun.elapsed() < Duration::from_secs(10) {
                        std::thread::yield_now();
                    }
                    working.fetch_sub(1, Ordering::SeqCst);
                };
                tokio::spawn(async move { turns.blocking(work).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }
}
