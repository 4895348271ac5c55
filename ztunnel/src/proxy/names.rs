//! The addresses of workloads of which the mesh knows but a name (contract 1.9), asked for when a connection needs them.
//!
//! Asked is the system's resolver in ztunnel's own namespace, which is the node's or the cluster's, never a pod's: it is
//! the mesh that knows the name, not the client. It does not say for how long an answer is good, so one is kept for a
//! moment only, for those who come at the same time.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use mesh::service::Hostname;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// An answer comes within this, or the next endpoint is tried: as long as Istio's DNS waits for an upstream (contract 2.8).
const TIMEOUT: Duration = Duration::from_secs(5);

/// An answer is used again for so long.
const KEPT: Duration = Duration::from_secs(5);

/// Questions that the system is asked at once: each takes a thread until the system gives it up, which may be long
/// after [`TIMEOUT`]. More wait for their turn, within the same time.
const AT_ONCE: usize = 64;

/// Answers kept.
const REMEMBERED: usize = 1024;

/// Why a name's addresses are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    /// Of its addresses none is one to connect to.
    #[error("the name {0} has no address that can be connected to")]
    NoDestination(Hostname),
    /// It has no address, there is no such name, or the resolver cannot tell.
    #[error("the addresses of {name} are not known: {cause}")]
    Failed {
        /// Which name.
        name: Hostname,
        /// What the system said.
        cause: String,
    },
    /// No answer in time.
    #[error("asking for the addresses of {name} timed out after {after:?}")]
    Timeout {
        /// Which name.
        name: Hostname,
        /// How long.
        after: Duration,
    },
}

/// Who knows the addresses of names.
pub(crate) trait Resolve: Send + Sync + 'static {
    /// The addresses of a name, at least one. Bounded in time.
    fn addresses(&self, name: &Hostname) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>>;
}

type Answer = BoxFuture<'static, io::Result<Vec<IpAddr>>>;

/// The system's resolver.
pub(crate) struct SystemResolver(Arc<Inner>);

struct Inner {
    /// Whose threads wait for the answers, whoever asks.
    runtime: Handle,
    ask: Box<dyn Fn(String) -> Answer + Send + Sync>,
    places: Semaphore,
    kept: Mutex<HashMap<Hostname, (Instant, Vec<IpAddr>)>>,
}

impl SystemResolver {
    /// Asks from the runtime of the caller.
    pub(crate) fn new() -> Self {
        Self::asking(|name| look_up(name).boxed())
    }

    fn asking(ask: impl Fn(String) -> Answer + Send + Sync + 'static) -> Self {
        let (runtime, places) = (Handle::current(), Semaphore::new(AT_ONCE));
        Self(Arc::new(Inner { runtime, ask: Box::new(ask), places, kept: Mutex::default() }))
    }
}

async fn look_up(name: String) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((name, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

impl Resolve for SystemResolver {
    fn addresses(&self, name: &Hostname) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>> {
        let (inner, name) = (self.0.clone(), name.clone());
        if let Some(kept) = inner.kept(&name) {
            return std::future::ready(Ok(kept)).boxed();
        }
        let asked = name.clone();
        // It goes on when its asker gives up: the place is taken for as long as the thread is.
        let answer = self.0.runtime.spawn(async move { inner.ask(asked).await });
        async move {
            let failed = |cause: String| ResolveError::Failed { name: name.clone(), cause };
            match timeout(TIMEOUT, answer).await {
                Ok(Ok(answer)) => answer.map_err(|error| failed(error.to_string())),
                Ok(Err(error)) => Err(failed(error.to_string())),
                Err(_) => Err(ResolveError::Timeout { name, after: TIMEOUT }),
            }
        }
        .boxed()
    }
}

impl Inner {
    fn kept(&self, name: &Hostname) -> Option<Vec<IpAddr>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(name).filter(|(since, _)| since.elapsed() < KEPT).map(|(_, addresses)| addresses.clone())
    }

    async fn ask(&self, name: Hostname) -> io::Result<Vec<IpAddr>> {
        let _place = self.places.acquire().await.map_err(io::Error::other)?;
        // Somebody may have got it while this one waited.
        if let Some(kept) = self.kept(&name) {
            return Ok(kept);
        }
        // Whole: the system's search list is for people.
        let found = (self.ask)(format!("{}.", name.as_str().trim_end_matches('.'))).await?;
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it has none"));
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= REMEMBERED {
            kept.retain(|_, (since, _)| since.elapsed() < KEPT);
        }
        if kept.len() < REMEMBERED {
            kept.insert(name, (Instant::now(), found.clone()));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Knows `db.example.com`, says nothing of `silent.example.com`, and nobody else is there. Counts its questions.
    fn resolver() -> (SystemResolver, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let resolver = SystemResolver::asking(move |name| {
            count.fetch_add(1, Ordering::Relaxed);
            match &*name {
                "db.example.com." => async { Ok(vec!["192.0.2.7".parse().unwrap()]) }.boxed(),
                "empty.example.com." => async { Ok(Vec::new()) }.boxed(),
                "silent.example.com." => std::future::pending().boxed(),
                _ => async { Err(io::Error::other("no such name")) }.boxed(),
            }
        });
        (resolver, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_used_again_for_a_moment_and_then_asked_for_again() {
        let (resolver, asked) = resolver();
        let expected: IpAddr = "192.0.2.7".parse().unwrap();
        for (pause, questions) in [(0, 1), (0, 1), (4999, 1), (1, 2), (0, 2)] {
            tokio::time::advance(Duration::from_millis(pause)).await;
            assert_eq!(resolver.addresses(&"db.example.com".into()).await, Ok(vec![expected]));
            assert_eq!(asked.load(Ordering::Relaxed), questions, "after {pause} ms");
        }
    }

    #[tokio::test]
    async fn what_has_no_address_is_an_error_and_is_asked_for_each_time() {
        let (resolver, asked) = resolver();
        for (name, cause) in [("none.example.com", "no such name"), ("empty.example.com", "it has none")] {
            asked.store(0, Ordering::Relaxed);
            for _ in 0..2 {
                let error = resolver.addresses(&name.into()).await.unwrap_err();
                assert_eq!(error.to_string(), format!("the addresses of {name} are not known: {cause}"));
            }
            assert_eq!(asked.load(Ordering::Relaxed), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_waited_for_a_bounded_time_and_holds_its_place_while_it_lasts() {
        let (resolver, asked) = resolver();
        let begin = Instant::now();
        let silent: Vec<_> = (0..2 * AT_ONCE)
            .map(|_| tokio::spawn(resolver.addresses(&"silent.example.com".into())))
            .collect();
        for one in silent {
            let late = one.await.unwrap();
            assert!(matches!(late, Err(ResolveError::Timeout { .. })), "{late:?}");
        }
        assert!(begin.elapsed() < 2 * TIMEOUT);
        assert_eq!(asked.load(Ordering::Relaxed), AT_ONCE, "no more threads than that");
        let waiting = resolver.addresses(&"db.example.com".into()).await;
        assert!(matches!(waiting, Err(ResolveError::Timeout { .. })), "{waiting:?}");
    }
}
