//! When which certificate is fetched: priorities, concurrency, renewal at half life, backoff.
//!
//! Pure: the clock and the jitter are arguments, and what is to be done is returned. `manager` owns
//! the keys, the requests and the waiting connections.
//!
//! Invariants: an identity is being fetched at most once at a time; at most `CONCURRENCY` are in all; a
//! failure never takes away a certificate that is still valid (the manager holds it until it expires).

use std::collections::HashMap;
use std::time::Duration;

use mesh::SpiffeId;
use tokio::time::Instant;

/// Requests under way at once; Istio's value, which spares the CA a thundering herd after a restart.
pub(crate) const CONCURRENCY: usize = 8;

/// The first pause after a failure.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest pause while no certificate is held: its pods are refused until one comes, and must not be for much
/// longer than the CA was away.
const BACKOFF_MAX_WITHOUT: Duration = Duration::from_secs(15);
/// The longest pause of a renewal: the old one still serves.
const BACKOFF_MAX: Duration = Duration::from_secs(150);

/// Who waits for it. Ordered: the greater goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// A renewal: the old one still serves.
    Renewal,
    /// A pod was enrolled; its first connection will want it.
    Ahead,
    /// A connection is waiting.
    Waiting,
}

/// Where an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be fetched from `due` on. Left by [`Scheduler::next`].
    Due { due: Instant, priority: Priority },
    /// A request is under way. Left by `succeeded` or `failed`.
    Fetching,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    /// Failures in a row.
    failures: u32,
    /// The end of the certificate that is held, if one is.
    expires: Option<Instant>,
    /// Raised for each `want`, so that a result of an identity forgotten and wanted anew is known as stale.
    generation: u64,
}

/// One request to make. Handed back with its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fetch {
    /// For whom.
    pub(crate) id: SpiffeId,
    generation: u64,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Start this request and ask again.
    Fetch(Fetch),
    /// Nothing before then, unless something is wanted or finishes.
    Wait(Instant),
    /// Nothing until something is wanted or finishes.
    Idle,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    entries: HashMap<SpiffeId, Entry>,
    in_flight: usize,
    generation: u64,
}

impl Scheduler {
    /// Wants `id`, now. Known identities only move up in priority; one that waits out a backoff is
    /// brought forward by nobody, or each connection would cost the CA a request.
    pub(crate) fn want(&mut self, id: &SpiffeId, priority: Priority, now: Instant) {
        if let Some(entry) = self.entries.get_mut(id) {
            if let Phase::Due { priority: held, .. } = &mut entry.phase {
                *held = (*held).max(priority);
            }
            return;
        }
        self.generation += 1;
        let phase = Phase::Due { due: now, priority };
        let entry = Entry { phase, failures: 0, expires: None, generation: self.generation };
        self.entries.insert(id.clone(), entry);
    }

    /// Wants `id`, for which a predecessor's certificate is held that is valid for another `remaining`. Renewal is due at once: the roots
    /// may have changed since that was issued.
    pub(crate) fn want_renewed(&mut self, id: &SpiffeId, remaining: Duration, now: Instant) {
        self.generation += 1;
        let phase = Phase::Due { due: now, priority: Priority::Renewal };
        let entry = Entry { phase, failures: 0, expires: Some(now + remaining), generation: self.generation };
        self.entries.insert(id.clone(), entry);
    }

    /// Nobody uses `id` any more. A request under way finishes and is then ignored.
    pub(crate) fn forget(&mut self, id: &SpiffeId) {
        self.entries.remove(id);
    }

    /// Whether it is wanted.
    #[cfg(test)]
    pub(crate) fn knows(&self, id: &SpiffeId) -> bool {
        self.entries.contains_key(id)
    }

    /// The next thing to do: of those due, the highest priority, then the longest due.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if self.in_flight >= CONCURRENCY {
            return Next::Idle;
        }
        let due_of = |entry: &Entry| match entry.phase {
            Phase::Due { due, priority } => Some((due, priority)),
            Phase::Fetching => None,
        };
        let ready = self
            .entries
            .iter_mut()
            .filter_map(|(id, entry)| Some((due_of(entry)?, id, entry)))
            .filter(|((due, _), ..)| *due <= now)
            .max_by_key(|((due, priority), ..)| (*priority, std::cmp::Reverse(*due)));
        if let Some((_, id, entry)) = ready {
            entry.phase = Phase::Fetching;
            self.in_flight += 1;
            return Next::Fetch(Fetch { id: id.clone(), generation: entry.generation });
        }
        match self.entries.values().filter_map(due_of).map(|(due, _)| due).min() {
            Some(due) => Next::Wait(due),
            None => Next::Idle,
        }
    }

    /// A request gave a certificate that is valid for another `remaining`. False: nobody wants it any
    /// more, drop it. Renewal is due at half of that.
    pub(crate) fn succeeded(&mut self, fetch: &Fetch, remaining: Duration, now: Instant) -> bool {
        let Some(entry) = self.finish(fetch) else { return false };
        entry.failures = 0;
        entry.expires = Some(now + remaining);
        entry.phase = Phase::Due { due: now + remaining / 2, priority: Priority::Renewal };
        true
    }

    /// A request failed. `jitter` of -1.0..=1.0 spreads the retry by up to 20 % either way. While a
    /// certificate is held, the retry is no later than its expiry. Returns the pause, `None` if nobody
    /// wants it any more.
    pub(crate) fn failed(&mut self, fetch: &Fetch, jitter: f64, now: Instant) -> Option<Duration> {
        let entry = self.finish(fetch)?;
        entry.failures += 1;
        let left =
            entry.expires.and_then(|end| end.checked_duration_since(now)).filter(|left| !left.is_zero());
        let (priority, longest) = match left {
            Some(_) => (Priority::Renewal, BACKOFF_MAX),
            None => (Priority::Ahead, BACKOFF_MAX_WITHOUT),
        };
        let mut pause = backoff(entry.failures).min(longest).mul_f64(1.0 + 0.2 * jitter.clamp(-1.0, 1.0));
        if let Some(left) = left {
            pause = pause.min(left.max(BACKOFF_FIRST));
        }
        entry.phase = Phase::Due { due: now + pause, priority };
        Some(pause)
    }

    fn finish(&mut self, fetch: &Fetch) -> Option<&mut Entry> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.entries.get_mut(&fetch.id).filter(|entry| entry.generation == fetch.generation)
    }
}

/// 1 s, doubled for each failure, at most 150 s.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (BACKOFF_FIRST * 2u32.pow(doublings)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
    }

    fn fetch(scheduler: &mut Scheduler, now: Instant) -> Fetch {
        match scheduler.next(now) {
            Next::Fetch(fetch) => fetch,
            other => panic!("expected a fetch, got {other:?}"),
        }
    }

    #[test]
    fn a_waiting_connection_goes_before_pods_enrolled_earlier() {
        let now = Instant::now();
        let mut scheduler = Scheduler::default();
        scheduler.want(&id("early"), Priority::Ahead, now);
        scheduler.want(&id("late"), Priority::Ahead, now + Duration::from_millis(5));
        scheduler.want(&id("late"), Priority::Waiting, now + Duration::from_millis(6));
        let later = now + Duration::from_millis(10);
        assert_eq!(fetch(&mut scheduler, later).id, id("late"));
        assert_eq!(fetch(&mut scheduler, later).id, id("early"));
        assert_eq!(scheduler.next(later), Next::Idle);
    }

    #[test]
    fn no_more_than_eight_requests_run_at_once() {
        let now = Instant::now();
        let mut scheduler = Scheduler::default();
        for number in 0..20 {
            scheduler.want(&id(&number.to_string()), Priority::Ahead, now);
        }
        let running: Vec<Fetch> = (0..CONCURRENCY).map(|_| fetch(&mut scheduler, now)).collect();
        assert_eq!(scheduler.next(now), Next::Idle);
        assert!(scheduler.succeeded(&running[0], DAY, now));
        fetch(&mut scheduler, now);
        assert_eq!(scheduler.next(now), Next::Idle);
    }

    #[test]
    fn a_certificate_is_renewed_at_half_of_its_life() {
        let now = Instant::now();
        let mut scheduler = Scheduler::default();
        scheduler.want(&id("web"), Priority::Ahead, now);
        let first = fetch(&mut scheduler, now);
        assert!(scheduler.succeeded(&first, DAY, now));
        assert_eq!(scheduler.next(now), Next::Wait(now + DAY / 2));
        assert_eq!(fetch(&mut scheduler, now + DAY / 2).id, id("web"));
    }

    #[test]
    fn failures_back_off_doubling_to_a_bound_and_a_success_starts_anew() {
        let mut now = Instant::now();
        let mut scheduler = Scheduler::default();
        scheduler.want(&id("web"), Priority::Ahead, now);
        for seconds in [1, 2, 4, 8, 15, 15, 15] {
            let failed = fetch(&mut scheduler, now);
            let pause = scheduler.failed(&failed, 0.0, now);
            assert_eq!(pause, Some(Duration::from_secs(seconds)));
            scheduler.want(&id("web"), Priority::Waiting, now);
            assert_eq!(scheduler.next(now), Next::Wait(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
        }
        let last = fetch(&mut scheduler, now);
        assert!(scheduler.succeeded(&last, DAY, now));
        now += DAY / 2;
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150] {
            let renewal = fetch(&mut scheduler, now);
            let pause = Duration::from_secs(seconds);
            assert_eq!(scheduler.failed(&renewal, 0.0, now), Some(pause), "a renewal can wait");
            now += pause;
        }
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        let now = Instant::now();
        for (jitter, millis) in [(-1.0, 800), (1.0, 1200), (9.0, 1200), (0.5, 1100)] {
            let mut scheduler = Scheduler::default();
            scheduler.want(&id("web"), Priority::Ahead, now);
            let failed = fetch(&mut scheduler, now);
            let pause = scheduler.failed(&failed, jitter, now).unwrap();
            assert_eq!(pause.as_millis(), millis, "{jitter}");
        }
    }

    #[test]
    fn a_retry_is_not_put_off_beyond_the_end_of_the_certificate_held() {
        let mut now = Instant::now();
        let mut scheduler = Scheduler::default();
        scheduler.want(&id("web"), Priority::Ahead, now);
        let first = fetch(&mut scheduler, now);
        scheduler.succeeded(&first, Duration::from_secs(20), now);
        now += Duration::from_secs(10);
        for pause in [1, 2, 4, 3] {
            let failed = fetch(&mut scheduler, now);
            assert_eq!(scheduler.failed(&failed, 0.0, now), Some(Duration::from_secs(pause)));
            now += Duration::from_secs(pause);
        }
    }

    #[test]
    fn a_result_for_an_identity_forgotten_meanwhile_is_stale() {
        let now = Instant::now();
        let mut scheduler = Scheduler::default();
        scheduler.want(&id("web"), Priority::Ahead, now);
        let old = fetch(&mut scheduler, now);
        scheduler.forget(&id("web"));
        assert!(!scheduler.knows(&id("web")));
        scheduler.want(&id("web"), Priority::Ahead, now);
        assert!(!scheduler.succeeded(&old, DAY, now), "result of the forgotten one");
        let new = fetch(&mut scheduler, now);
        assert!(scheduler.succeeded(&new, DAY, now));
    }
}
