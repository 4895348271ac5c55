//! The shell around `scheduler`: runs the requests, holds the certificates and lets connections wait.
//!
//! An identity is fetched because a pod of it is enrolled (it holds a [`Lease`]), never because somebody
//! asks for it, so that nothing a peer or application sends can make this node request a certificate.
//! An old certificate serves until it expires; an expired one never does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use mesh::SpiffeId;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::scheduler::{Fetch, Next, Priority, Scheduler};
use crate::telemetry::{Metrics, ResultLabel};

/// Where certificates come from.
pub(crate) trait Source: Send + Sync + 'static {
    /// A certificate with its key.
    type Certificate: Send + Sync + 'static;

    /// Makes a new key and has it certified for `id`. Bounded in time. The error is text for people.
    fn fetch<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Issued<Self::Certificate>, String>>;
}

/// A fresh certificate.
pub(crate) struct Issued<C> {
    /// The certificate with its key.
    pub(crate) certificate: Arc<C>,
    /// How long it is valid from now on.
    pub(crate) remaining: Duration,
}

/// No valid certificate came in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no certificate for {id}: {reason}")]
pub(crate) struct Unavailable {
    /// Whose.
    pub(crate) id: SpiffeId,
    /// What the last request said.
    pub(crate) reason: String,
}

/// What is held for an identity.
pub(crate) struct Held<C> {
    /// The certificate and its end.
    pub(crate) current: Option<(Arc<C>, Instant)>,
    /// Why the last request failed, if it did.
    pub(crate) error: Option<String>,
}

// By hand: a certificate need not be `Clone` for its `Arc` to be.
impl<C> Clone for Held<C> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone(), error: self.error.clone() }
    }
}

impl<C> Held<C> {
    fn valid(&self, now: Instant) -> Option<Arc<C>> {
        self.current.as_ref().filter(|(_, end)| *end > now).map(|(certificate, _)| certificate.clone())
    }
}

struct Slot<C> {
    /// Leases out.
    users: usize,
    held: watch::Sender<Held<C>>,
}

struct Inner<C> {
    scheduler: Scheduler,
    slots: HashMap<SpiffeId, Slot<C>>,
    /// A predecessor's certificates and their ends. Kept until the CA gives one, whoever claims them meanwhile (a pod whose start fails
    /// claims again): from then on whatever is missing can be had anew.
    inherited: HashMap<SpiffeId, (Arc<C>, Instant)>,
}

struct Shared<C> {
    source: Box<dyn Source<Certificate = C>>,
    inner: Mutex<Inner<C>>,
    /// Something was wanted or finished.
    wake: Notify,
    /// Counts changes of what is held.
    changes: watch::Sender<u64>,
    metrics: Metrics,
}

/// See the module. Cheap to clone.
pub(crate) struct Identities<C>(Arc<Shared<C>>);

impl<C> Clone for Identities<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A pod's claim on its identity's certificate; the last one dropped forgets it.
pub(crate) struct Lease<C> {
    identities: Identities<C>,
    id: SpiffeId,
}

impl<C: Send + Sync + 'static> Lease<C> {
    /// Whose certificate it is.
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificate, if there is a valid one.
    pub(crate) fn valid_now(&self) -> Option<Arc<C>> {
        self.identities.subscribe(&self.id).ok()?.borrow().valid(Instant::now())
    }

    /// The certificate; waits for it until `deadline` if there is no valid one.
    pub(crate) async fn certificate(&self, deadline: Instant) -> Result<Arc<C>, Unavailable> {
        let mut held = self.identities.subscribe(&self.id)?;
        if let Some(certificate) = self.valid_now() {
            return Ok(certificate);
        }
        self.identities.hurry(&self.id);
        let waited =
            tokio::time::timeout_at(deadline, held.wait_for(|held| held.valid(Instant::now()).is_some()))
                .await;
        if let Ok(Ok(held)) = &waited
            && let Some(certificate) = held.valid(Instant::now())
        {
            return Ok(certificate);
        }
        drop(waited);
        let reason =
            held.borrow().error.clone().unwrap_or_else(|| "the CA has not answered in time".to_owned());
        Err(Unavailable { id: self.id.clone(), reason })
    }
}

impl<C> Drop for Lease<C> {
    fn drop(&mut self) {
        let mut inner = self.identities.lock();
        let Some(slot) = inner.slots.get_mut(&self.id) else { return };
        slot.users -= 1;
        if slot.users == 0 {
            inner.slots.remove(&self.id);
            inner.scheduler.forget(&self.id);
            self.identities.changed();
            count_held(&self.identities.0.metrics, &inner);
        }
    }
}

impl<C: Send + Sync + 'static> Identities<C> {
    /// Nothing is fetched before [`Identities::run`] runs.
    pub(crate) fn new(source: impl Source<Certificate = C>, metrics: Metrics) -> Self {
        let inner =
            Inner { scheduler: Scheduler::default(), slots: HashMap::new(), inherited: HashMap::new() };
        Self(Arc::new(Shared {
            source: Box::new(source),
            inner: Mutex::new(inner),
            wake: Notify::new(),
            changes: watch::Sender::new(0),
            metrics,
        }))
    }

    /// A pod of this identity is enrolled: its certificate is fetched ahead.
    pub(crate) fn lease(&self, id: &SpiffeId) -> Lease<C> {
        let mut inner = self.lock();
        let now = Instant::now();
        let Inner { scheduler, slots, inherited } = &mut *inner;
        let slot = slots.entry(id.clone()).or_insert_with(|| {
            let current = inherited.get(id).filter(|(_, end)| *end > now).cloned();
            if let Some((_, end)) = &current {
                scheduler.want_renewed(id, *end - now, now);
            }
            Slot { users: 0, held: watch::Sender::new(Held { current, error: None }) }
        });
        slot.users += 1;
        scheduler.want(id, Priority::Ahead, now);
        count_held(&self.0.metrics, &inner);
        drop(inner);
        self.0.wake.notify_one();
        Lease { identities: self.clone(), id: id.clone() }
    }

    /// A predecessor's certificate, valid for another `remaining`: it serves the pods of `id` that are enrolled from now on.
    pub(crate) fn inherit(&self, id: &SpiffeId, certificate: Arc<C>, remaining: Duration) {
        self.lock().inherited.insert(id.clone(), (certificate, Instant::now() + remaining));
    }

    /// Every valid certificate, for a successor: those that were inherited and are not claimed too.
    pub(crate) fn valid(&self) -> Vec<Arc<C>> {
        let now = Instant::now();
        let inner = self.lock();
        let held: HashMap<_, _> = (inner.slots.iter())
            .filter_map(|(id, slot)| Some((id, slot.held.borrow().valid(now)?)))
            .collect();
        let left = |(id, (_, end)): &(&SpiffeId, &(Arc<C>, Instant))| *end > now && !held.contains_key(id);
        let inherited = inner.inherited.iter().filter(left).map(|(_, (certificate, _))| certificate.clone());
        let inherited: Vec<_> = inherited.collect();
        held.into_values().chain(inherited).collect()
    }

    /// Changes whenever other certificates are held.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Everything held now, for people.
    pub(crate) fn snapshot(&self) -> Vec<(SpiffeId, Held<C>)> {
        let inner = self.lock();
        inner.slots.iter().map(|(id, slot)| (id.clone(), slot.held.borrow().clone())).collect()
    }

    /// Fetches and renews; runs until dropped. `renewed` is told whose certificate has taken the place of another.
    pub(crate) async fn run(&self, renewed: impl Fn(&SpiffeId) + Send + Sync + 'static) {
        let renewed = Arc::new(renewed);
        loop {
            let next = self.lock().scheduler.next(Instant::now());
            match next {
                Next::Fetch(fetch) => {
                    let (this, renewed) = (self.clone(), renewed.clone());
                    tokio::spawn(async move {
                        if this.fetch(&fetch).await {
                            renewed(&fetch.id);
                        }
                    });
                }
                Next::Wait(due) => {
                    let woken = tokio::time::timeout_at(due, self.0.wake.notified());
                    // Either way there may be something to do now.
                    let _ = woken.await;
                }
                Next::Idle => self.0.wake.notified().await,
            }
        }
    }

    /// Whether it gave a certificate in the place of another.
    async fn fetch(&self, fetch: &Fetch) -> bool {
        let begun = Instant::now();
        let result = self.0.source.fetch(&fetch.id).await;
        let now = Instant::now();
        self.0.metrics.shared.certificate_time.0.observe((now - begun).as_secs_f64());
        let mut inner = self.lock();
        let Inner { scheduler, slots, inherited } = &mut *inner;
        let slot = slots.get(&fetch.id);
        let mut replaced = false;
        let label = match result {
            Ok(issued) => {
                inherited.clear();
                if scheduler.succeeded(fetch, issued.remaining, now)
                    && let Some(slot) = slot
                {
                    let current = Some((issued.certificate, now + issued.remaining));
                    replaced = slot.held.send_replace(Held { current, error: None }).current.is_some();
                    self.changed();
                    tracing::debug!(identity = %fetch.id, valid_for = ?issued.remaining, "certificate issued");
                }
                "ok"
            }
            Err(reason) => {
                let jitter = rand::random_range(-1.0..=1.0);
                if let Some(pause) = scheduler.failed(fetch, jitter, now) {
                    tracing::warn!(identity = %fetch.id, %reason, retry_in = ?pause, "certificate request failed");
                }
                if let Some(slot) = slot {
                    slot.held.send_modify(|held| held.error = Some(reason));
                }
                "error"
            }
        };
        self.0.metrics.certificate_requests.get_or_create(&ResultLabel { result: label }).inc();
        count_held(&self.0.metrics, &inner);
        drop(inner);
        self.0.wake.notify_one();
        replaced
    }

    fn subscribe(&self, id: &SpiffeId) -> Result<watch::Receiver<Held<C>>, Unavailable> {
        let inner = self.lock();
        let gone = || Unavailable { id: id.clone(), reason: "no pod of it is enrolled".to_owned() };
        inner.slots.get(id).map(|slot| slot.held.subscribe()).ok_or_else(gone)
    }

    /// A connection waits for `id`.
    fn hurry(&self, id: &SpiffeId) {
        self.lock().scheduler.want(id, Priority::Waiting, Instant::now());
        self.0.wake.notify_one();
    }
}

impl<C> Identities<C> {
    fn changed(&self) {
        self.0.changes.send_modify(|changes| *changes += 1);
    }

    /// A panic cannot leave the maps half-changed (each change is one insertion or removal).
    fn lock(&self) -> MutexGuard<'_, Inner<C>> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count_held<C>(metrics: &Metrics, inner: &Inner<C>) {
    let now = Instant::now();
    let held = inner.slots.values().filter(|slot| slot.held.borrow().valid(now).is_some()).count();
    metrics.certificates_held.set(i64::try_from(held).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Answers from a list, each after a second.
    struct Scripted {
        answers: Mutex<VecDeque<Result<Duration, String>>>,
        asked: AtomicUsize,
    }

    impl Source for Arc<Scripted> {
        type Certificate = usize;

        fn fetch<'a>(&'a self, _: &'a SpiffeId) -> BoxFuture<'a, Result<Issued<usize>, String>> {
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let number = self.asked.fetch_add(1, Ordering::SeqCst);
                let answer =
                    self.answers.lock().unwrap().pop_front().unwrap_or(Err("nothing left".to_owned()));
                answer.map(|remaining| Issued { certificate: Arc::new(number), remaining })
            })
        }
    }

    fn start(answers: &[Result<u64, &str>]) -> (Identities<usize>, Arc<Scripted>) {
        let answers = answers.iter().map(|answer| answer.map(Duration::from_secs).map_err(str::to_owned));
        let source =
            Arc::new(Scripted { answers: Mutex::new(answers.collect()), asked: AtomicUsize::new(0) });
        let identities = Identities::new(source.clone(), Metrics::default());
        let driver = identities.clone();
        tokio::spawn(async move { driver.run(|_| {}).await });
        (identities, source)
    }

    fn web() -> SpiffeId {
        "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
    }

    fn within(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_the_first_certificate() {
        let (identities, _) = start(&[Ok(3600)]);
        let lease = identities.lease(&web());
        assert_eq!(*lease.certificate(within(5)).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stops_waiting_and_tells_the_cas_reason() {
        let (identities, _) = start(&[Err("permission denied")]);
        let lease = identities.lease(&web());
        let begun = Instant::now();
        let error = lease.certificate(begun + Duration::from_millis(1900)).await.unwrap_err();
        assert_eq!(error.reason, "permission denied");
        assert_eq!(begun.elapsed(), Duration::from_millis(1900));
    }

    #[tokio::test(start_paused = true)]
    async fn the_old_certificate_serves_while_renewals_fail_and_not_an_instant_longer() {
        let (identities, source) =
            start(&[Ok(100), Err("away"), Err("away"), Err("away"), Err("away"), Err("away"), Err("away")]);
        let lease = identities.lease(&web());
        lease.certificate(within(5)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(99)).await;
        assert!(source.asked.load(Ordering::SeqCst) > 2, "renewals were tried");
        assert_eq!(*lease.certificate(within(0)).await.unwrap(), 0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(lease.certificate(within(0)).await.unwrap_err().reason, "away");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_certificate_replaces_the_old_one() {
        let (identities, _) = start(&[Ok(100), Ok(100)]);
        let lease = identities.lease(&web());
        assert_eq!(*lease.certificate(within(5)).await.unwrap(), 0);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(*lease.certificate(within(0)).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_told_of_and_a_first_certificate_is_not() {
        let answers = [Ok(100), Err("away"), Ok(100)].map(|answer| answer.map(Duration::from_secs));
        let answers = answers.map(|answer| answer.map_err(str::to_owned));
        let source = Arc::new(Scripted { answers: Mutex::new(answers.into()), asked: AtomicUsize::new(0) });
        let identities = Identities::new(source, Metrics::default());
        let (driver, (told, mut renewed)) = (identities.clone(), tokio::sync::mpsc::unbounded_channel());
        tokio::spawn(async move { driver.run(move |id| told.send(id.clone()).unwrap()).await });
        let lease = identities.lease(&web());
        lease.certificate(within(5)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(45)).await;
        assert!(renewed.try_recv().is_err());
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(renewed.try_recv(), Ok(web()));
        assert!(renewed.try_recv().is_err(), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_predecessor_held_serves_while_the_ca_is_away_and_is_renewed_as_soon_as_it_is_back() {
        let (identities, source) = start(&[Err("away"), Ok(100)]);
        identities.inherit(&web(), Arc::new(77), Duration::from_secs(100));
        let lease = identities.lease(&web());
        assert_eq!(*lease.certificate(within(0)).await.unwrap(), 77);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(source.asked.load(Ordering::SeqCst), 1);
        assert_eq!(*lease.certificate(within(0)).await.unwrap(), 77);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(*lease.certificate(within(0)).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_comes_to_nothing_leaves_what_was_inherited_to_the_next() {
        let (identities, _) = start(&[]);
        identities.inherit(&web(), Arc::new(77), Duration::from_secs(100));
        drop(identities.lease(&web()));
        assert_eq!(identities.valid(), [Arc::new(77)]);
        let lease = identities.lease(&web());
        assert_eq!(*lease.certificate(within(0)).await.unwrap(), 77);
        assert_eq!(identities.valid(), [Arc::new(77)], "once");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_inherited_that_has_expired_or_once_the_ca_has_answered() {
        let (identities, _) = start(&[Ok(100), Ok(100)]);
        let other: SpiffeId = "spiffe://cluster.local/ns/shop/sa/other".parse().unwrap();
        identities.inherit(&web(), Arc::new(77), Duration::from_secs(10));
        identities.inherit(&other, Arc::new(78), Duration::from_secs(1000));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(identities.valid(), [Arc::new(78)], "a successor gets what nobody has claimed yet");
        let lease = identities.lease(&web());
        assert_eq!(*lease.certificate(within(5)).await.unwrap(), 0);
        assert_eq!(*identities.lease(&other).certificate(within(5)).await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_pod_that_leaves_takes_the_certificate_with_it() {
        let (identities, source) = start(&[Ok(100)]);
        let (first, second) = (identities.lease(&web()), identities.lease(&web()));
        first.certificate(within(5)).await.unwrap();
        drop(first);
        assert_eq!(identities.snapshot().len(), 1);
        drop(second);
        assert!(identities.snapshot().is_empty());
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert_eq!(source.asked.load(Ordering::SeqCst), 1, "nothing is renewed for nobody");
    }
}
