//! The live connections of one pod: listed for people, and cut when the pod leaves, when the process's time
//! is over, or when configuration no longer allows them.
//!
//! A connection is entered before its authorization is decided. A change of configuration therefore either
//! comes before the decision, which then sees it, or after, and then finds the connection here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tunnel::copy::Transferred;

use super::failure::Failure;

/// Claims that are asked about in one go: a pod with many connections must not hold up the others of its worker.
const BATCH: usize = 256;

/// What is listed of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The client.
    pub(crate) source: SocketAddr,
    /// What the client dialled.
    pub(crate) original: SocketAddr,
    /// Where it goes.
    pub(crate) actual: SocketAddr,
    /// `HBONE` or `TCP`.
    pub(crate) protocol: &'static str,
}

struct Entry<C> {
    listed: Listed,
    /// What its authorization depended on; none for outbound ones, where the other end decides.
    claim: Option<Arc<C>>,
    moved: Arc<Transferred>,
    /// Bytes it had moved at the last look.
    seen: u64,
    /// Used at most once; the entry stays until the connection has really ended.
    cut: Option<oneshot::Sender<Failure>>,
}

impl<C> Entry<C> {
    fn cut(&mut self, why: Failure) -> bool {
        // An error: it is ending by itself.
        self.cut.take().is_some_and(|sender| sender.send(why).is_ok())
    }
}

struct Entries<C> {
    next: u64,
    live: HashMap<u64, Entry<C>>,
}

/// See the module. `C` is what is needed to authorize a connection again.
pub(crate) struct LiveConnections<C> {
    entries: Mutex<Entries<C>>,
    /// The last one has ended.
    idle: Notify,
}

/// A live connection's entry; dropping it takes the connection from the list.
pub(crate) struct Live<C> {
    list: Arc<LiveConnections<C>>,
    key: u64,
    cut: oneshot::Receiver<Failure>,
}

impl<C> Live<C> {
    /// Returns when the connection is to be cut. Never returns otherwise. Cancel safe; not to be called again
    /// after it returned.
    pub(crate) async fn cut(&mut self) -> Failure {
        match (&mut self.cut).await {
            Ok(failure) => failure,
            // The list lives as long as this entry, and lets go of a sender only by using it.
            Err(_) => std::future::pending().await,
        }
    }

    /// It is now known where it goes.
    pub(crate) fn routed(&self, actual: SocketAddr, protocol: &'static str) {
        if let Some(entry) = self.list.lock().live.get_mut(&self.key) {
            entry.listed.actual = actual;
            entry.listed.protocol = protocol;
        }
    }
}

impl<C> Drop for Live<C> {
    fn drop(&mut self) {
        let mut entries = self.list.lock();
        entries.live.remove(&self.key);
        if entries.live.is_empty() {
            self.list.idle.notify_waiters();
        }
    }
}

impl<C> LiveConnections<C> {
    /// None yet.
    pub(crate) fn new() -> Arc<Self> {
        let entries = Entries { next: 0, live: HashMap::new() };
        Arc::new(Self { entries: Mutex::new(entries), idle: Notify::new() })
    }

    /// Enters a connection. `claim` is what [`Self::recheck`] will be asked about, `moved` counts its bytes.
    pub(crate) fn enter(
        self: &Arc<Self>,
        listed: Listed,
        claim: Option<Arc<C>>,
        moved: Arc<Transferred>,
    ) -> Live<C> {
        let (sender, cut) = oneshot::channel();
        let mut entries = self.lock();
        let key = entries.next;
        entries.next += 1;
        entries.live.insert(key, Entry { listed, claim, moved, seen: u64::MAX, cut: Some(sender) });
        Live { list: self.clone(), key, cut }
    }

    /// Asks about each claim again and cuts those that are refused. Returns how many.
    pub(crate) async fn recheck(&self, allowed: impl Fn(&C) -> Result<(), Failure>) -> usize {
        // The question is asked without the lock, or connections would wait for all of the answers.
        let claims: Vec<(u64, Arc<C>)> = {
            let entries = self.lock();
            entries.live.iter().filter_map(|(key, entry)| Some((*key, entry.claim.clone()?))).collect()
        };
        let mut refused = 0;
        for batch in claims.chunks(BATCH) {
            for (key, claim) in batch {
                if let Err(failure) = allowed(claim)
                    && let Some(entry) = self.lock().live.get_mut(key)
                {
                    refused += usize::from(entry.cut(failure));
                }
            }
            tokio::task::yield_now().await;
        }
        refused
    }

    /// Cuts all of them.
    pub(crate) fn cut_all(&self, why: impl Fn() -> Failure) {
        for entry in self.lock().live.values_mut() {
            entry.cut(why());
        }
    }

    /// Cuts those on which nothing has moved since this was last called.
    pub(crate) fn cut_still(&self, why: impl Fn() -> Failure) {
        for entry in self.lock().live.values_mut() {
            let moved = entry.moved.from_source().wrapping_add(entry.moved.from_destination());
            if std::mem::replace(&mut entry.seen, moved) == moved {
                entry.cut(why());
            }
        }
    }

    /// Returns when there is none.
    pub(crate) async fn ended(&self) {
        let mut idle = std::pin::pin!(self.idle.notified());
        loop {
            idle.as_mut().enable();
            if self.lock().live.is_empty() {
                return;
            }
            idle.as_mut().await;
            idle.set(self.idle.notified());
        }
    }

    /// All of them, for people; with each whether it has a claim, which is whether it is inbound.
    pub(crate) fn list(&self) -> Vec<(bool, Listed)> {
        self.lock().live.values().map(|entry| (entry.claim.is_some(), entry.listed.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries<C>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> Listed {
        let any: SocketAddr = "10.0.0.1:1".parse().unwrap();
        Listed { source: any, original: any, actual: any, protocol: "TCP" }
    }

    fn is_cut(live: &mut Live<u8>) -> Option<Failure> {
        live.cut.try_recv().ok()
    }

    #[tokio::test]
    async fn others_have_their_turn_while_many_claims_are_asked_about() {
        let all = LiveConnections::new();
        let _live: Vec<_> =
            (0..2 * BATCH).map(|_| all.enter(listed(), Some(Arc::new(0)), Arc::default())).collect();
        let asked = std::cell::Cell::new(0);
        let recheck = all.recheck(|_: &u8| {
            asked.set(asked.get() + 1);
            Ok(())
        });
        let meanwhile = async { asked.get() };
        assert_eq!(tokio::join!(recheck, meanwhile), (0, BATCH));
        assert_eq!(asked.get(), 2 * BATCH);
    }

    #[tokio::test]
    async fn only_the_refused_claims_are_cut() {
        let all = LiveConnections::new();
        let mut kept = all.enter(listed(), Some(Arc::new(1)), Arc::default());
        let mut refused = all.enter(listed(), Some(Arc::new(2)), Arc::default());
        let mut outbound = all.enter(listed(), None, Arc::default());
        let count = all.recheck(|claim| if *claim == 2 { Err(Failure::Idle) } else { Ok(()) }).await;
        assert_eq!(count, 1);
        assert!(is_cut(&mut kept).is_none());
        assert!(is_cut(&mut outbound).is_none());
        assert!(matches!(is_cut(&mut refused), Some(Failure::Idle)));
    }

    #[tokio::test]
    async fn the_end_is_awaited_until_the_last_one_is_gone() {
        let all = LiveConnections::<u8>::new();
        let (first, second) =
            (all.enter(listed(), None, Arc::default()), all.enter(listed(), None, Arc::default()));
        let waiting = tokio::spawn({
            let all = all.clone();
            async move { all.ended().await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        all.ended().await;
    }

    #[tokio::test]
    async fn cutting_all_tells_each_of_them_why() {
        let all = LiveConnections::<u8>::new();
        let mut live = [
            all.enter(listed(), None, Arc::default()),
            all.enter(listed(), Some(Arc::new(0)), Arc::default()),
        ];
        all.cut_all(|| Failure::Drained);
        for one in &mut live {
            assert!(matches!(one.cut().await, Failure::Drained));
        }
    }
}
