//! The threads that carry connections: one a core, each with a runtime of its own.
//!
//! A connection stays on one worker from its acceptance to its end, and its tunnel is driven by the same one, so that no byte's way
//! crosses threads. A pod's connections begin on the pod's home; when that has clearly more to do than another worker, the next
//! ones begin there. What is no connection (the control plane, the agent, certificates, the endpoints) runs on the main thread.
//!
//! A runtime that spreads its tasks over threads wakes an idle thread with each message, to look for work that is already being done.
//! Measured against one, with a worker a core of two, between two nodes, by `cargo xtask bench` with both in turns; medians:
//!
//! | work | | tasks spread | one runtime a core |
//! |---|---|---|---|
//! | ping of 1 KiB, 1 connection | context switches of the proxies for each | 7.1 | 4.1 |
//! | | latency p50, least of three | 73 us | 67 us |
//! | 16 connections | processor time of the proxies for 1,000 | 49 ms | 40 ms |
//! | 64 connections | the same | 43 ms | 39 ms |
//! | | requests a second | 18,800 | 23,300 |
//! | connect, ask, close; 16 at a time | a second | 3,200 | 4,100 |
//! | one stream | context switches for each MiB | 19.7 | 6.8 |
//! | | processor time for a GiB | 1.65 s | 1.63 s |

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// So many connections more than the least burdened worker has, and a pod's home gets no more of them. Fewer would spread a pod's
/// few connections over workers, each with a tunnel of its own; more would leave cores idle beside a busy one. Measured by eight
/// streams on one node of two cores: with 8 all of them on one worker, 10.3 Gbit/s; with 4 on both, 17.3 (a bare relay: 17.6); pings on
/// 64 connections 73,000 and 86,000 a second, on 16 alike. Fewer than 4 were no better for streams, and worse for pings between nodes.
const LEAN: usize = 4;

/// So many tasks have had their turn, and the kernel is asked for news: a message must not wait for all streams of its worker, each of
/// which takes about 0.1 ms in its turn. The runtime's own 61 turns would be 6 ms.
const TURNS: u32 = 16;

/// All workers of the process; one at least.
pub(crate) struct Workers {
    all: Vec<Arc<Worker>>,
    /// How many homes have been given.
    homes: AtomicUsize,
}

/// A thread's runtime, and what it has to do.
pub(crate) struct Worker {
    runtime: Handle,
    /// Connections, with streams counted singly.
    held: AtomicUsize,
}

/// A connection's weight on its worker, which it has until this is dropped.
pub(crate) struct Burden(Arc<Worker>);

/// Ends the workers, when dropped.
pub(crate) struct Threads(CancellationToken);

impl Workers {
    /// Starts `count` of them.
    pub(crate) fn start(count: usize) -> io::Result<(Self, Threads)> {
        let threads = Threads(CancellationToken::new());
        let runtimes = (0..count).map(|number| {
            let runtime = Builder::new_current_thread().enable_all().event_interval(TURNS).build()?;
            let (handle, end) = (runtime.handle().clone(), threads.0.clone());
            thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                runtime.block_on(end.cancelled());
                // What is still there has been told and cut; it does not hold up the end.
                runtime.shutdown_background();
            })?;
            Ok(handle)
        });
        Ok((Self::on(runtimes.collect::<io::Result<_>>()?), threads))
    }

    /// On runtimes that somebody else drives.
    pub(crate) fn on(runtimes: Vec<Handle>) -> Self {
        assert!(!runtimes.is_empty(), "connections need a worker");
        let worker = |runtime| Arc::new(Worker { runtime, held: AtomicUsize::new(0) });
        Self { all: runtimes.into_iter().map(worker).collect(), homes: AtomicUsize::new(0) }
    }

    /// Their runtimes, in order.
    pub(crate) fn runtimes(&self) -> impl Iterator<Item = &Handle> {
        self.all.iter().map(|worker| worker.runtime())
    }

    /// Where another pod's connections begin: in turn.
    pub(crate) fn home(&self) -> Arc<Worker> {
        self.all[self.homes.fetch_add(1, Ordering::Relaxed) % self.all.len()].clone()
    }

    /// Where a connection begins whose pod has this home.
    pub(crate) fn place(&self, home: &Arc<Worker>) -> Burden {
        let least = self.all.iter().min_by_key(|worker| worker.held()).unwrap_or(home);
        Burden::new(if home.held() >= least.held() + LEAN { least } else { home })
    }
}

impl Worker {
    /// Its runtime.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Burden {
    fn new(worker: &Arc<Worker>) -> Self {
        worker.held.fetch_add(1, Ordering::Relaxed);
        Self(worker.clone())
    }

    /// The worker that has it.
    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.0
    }
}

/// Another one on the same worker.
impl Clone for Burden {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Burden {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pods_connections_stay_at_home_until_another_worker_has_clearly_less_to_do() {
        let workers = Workers::on(vec![Handle::current(); 3]);
        let home = workers.home();
        let held: Vec<Burden> = (0..LEAN).map(|_| workers.place(&home)).collect();
        assert!(held.iter().all(|burden| Arc::ptr_eq(burden.worker(), &home)));
        let next = workers.place(&home);
        assert!(!Arc::ptr_eq(next.worker(), &home));
        drop(held);
        assert!(Arc::ptr_eq(workers.place(&home).worker(), &home));
    }

    #[tokio::test]
    async fn many_connections_of_one_pod_are_spread_over_all_workers() {
        let workers = Workers::on(vec![Handle::current(); 4]);
        let home = workers.home();
        let held: Vec<Burden> = (0..400).map(|_| workers.place(&home)).collect();
        for worker in &workers.all {
            assert!(worker.held().abs_diff(100) <= LEAN, "{}", worker.held());
        }
        drop(held);
        assert!(workers.all.iter().all(|worker| worker.held() == 0));
    }

    #[tokio::test]
    async fn pods_have_their_homes_in_turn() {
        let workers = Workers::on(vec![Handle::current(); 2]);
        let homes = [(); 4].map(|()| workers.home());
        assert!(Arc::ptr_eq(&homes[0], &homes[2]) && Arc::ptr_eq(&homes[1], &homes[3]));
        assert!(!Arc::ptr_eq(&homes[0], &homes[1]));
    }

    #[tokio::test]
    async fn a_workers_tasks_run_on_its_own_thread_and_end_with_the_threads() {
        let (workers, threads) = Workers::start(1).unwrap();
        let (told, here) = tokio::sync::oneshot::channel();
        let (_held, ended) = tokio::sync::oneshot::channel::<()>();
        let task = workers.home().runtime().spawn(async move {
            let name = thread::current().name().map(str::to_owned);
            told.send(name).unwrap();
            let _ = ended.await;
        });
        assert_eq!(here.await.unwrap().as_deref(), Some("worker-0"));
        drop(threads);
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
