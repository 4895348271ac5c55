//! Endpoints that keep failing, as this node finds out by connecting to them (passive outlier detection).
//!
//! An endpoint that fails several times in a row is ejected: for a while, longer each time, others are chosen in its
//! place. Then it is on probation: the next failure ejects it again, and a success clears it of everything. What is
//! ejected is only passed over, never taken away: where no other endpoint is left to choose, an ejected one is
//! chosen as if nothing were, so that a fault of this node's own cannot leave a service without endpoints. And of the
//! endpoints of a service half are ejected at most, so that the others do not have to bear what all of them could.
//!
//! Time is an argument, counted from any moment. Memory is bounded, and what has been silent for long is forgotten.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crate::balance::Endpoints;
use crate::workload::WorkloadUid;

/// So many failures in a row eject an endpoint: a packet lost once or a pod that just ends is no pattern.
const FAILURES: u32 = 3;

/// A failure so long after the one before is no longer in a row with it.
const ROW: Duration = Duration::from_secs(30);

/// Word of a pod that joins reaches its clients before its own node listens for it. For so long after the first one,
/// refusals are one failure.
const JOINING: Duration = Duration::from_millis(500);

/// The first ejection; each further one lasts twice as long as the one before.
const FIRST: Duration = Duration::from_secs(10);

/// The longest ejection.
const LONGEST: Duration = Duration::from_secs(300);

/// So long after its ejection an endpoint that was not heard of is as good as new.
const PROBATION: Duration = Duration::from_secs(300);

/// Endpoints remembered at once. Beyond it the ones that would be forgotten first are.
const REMEMBERED: usize = 1024;

/// What is ejected: a port of a workload. One application of a pod may fail while another works.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Target {
    workload: WorkloadUid,
    port: u16,
}

/// How an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing listens there, or not yet.
    Refused,
    /// In another way.
    Other,
}

/// How a target stands. One that is not remembered works, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It failed this many times in a row, for the first time then.
    Failing { count: u32, since: Duration },
    /// It is passed over until then, and on probation after; so many times in a row already.
    Ejected { until: Duration, times: u32 },
}

#[derive(Debug)]
struct Entry {
    standing: Standing,
    /// When it will be forgotten unless it is heard of.
    forget: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ejections {
    entries: HashMap<Target, Entry>,
    by_age: BTreeSet<(Duration, Target)>,
}

impl Ejections {
    /// Whether others are to be chosen in its place.
    pub fn is_ejected(&self, workload: &WorkloadUid, port: u16, now: Duration) -> bool {
        let entry = self.remembers(workload, port);
        entry.is_some_and(|entry| matches!(entry.standing, Standing::Ejected { until, .. } if now < until))
    }

    /// Whether a success of it would change anything.
    pub fn is_suspect(&self, workload: &WorkloadUid, port: u16) -> bool {
        self.remembers(workload, port).is_some()
    }

    fn remembers(&self, workload: &WorkloadUid, port: u16) -> Option<&Entry> {
        // Nearly always nothing is: then it costs nothing.
        if self.entries.is_empty() {
            return None;
        }
        self.entries.get(&Target { workload: workload.clone(), port })
    }

    /// A connection to it was made.
    pub fn succeeded(&mut self, workload: &WorkloadUid, port: u16) {
        self.forget(&Target { workload: workload.clone(), port });
    }

    /// A connection to it failed, and it is to blame. Returns for how long it is ejected, if this does it. `others`: the
    /// endpoints that it was chosen among, itself too, if it was.
    pub fn failed(
        &mut self,
        workload: &WorkloadUid,
        port: u16,
        fault: Fault,
        others: Option<&Endpoints>,
        now: Duration,
    ) -> Option<Duration> {
        while let Some((forget, target)) = self.by_age.first().cloned()
            && forget <= now
        {
            self.forget(&target);
        }
        let target = Target { workload: workload.clone(), port };
        let before = self.forget(&target).map(|entry| entry.standing);
        let eject =
            |times: u32| Standing::Ejected { until: now + ejection(times), times: times.saturating_add(1) };
        let may_eject = || others.is_none_or(|others| self.leaves_enough(others, now));
        let standing = match before {
            // # Working => Failing
            None => Standing::Failing { count: 1, since: now },
            // # Failing => Failing: it may have joined a moment ago
            Some(Standing::Failing { count, since })
                if fault == Fault::Refused && now.saturating_sub(since) < JOINING =>
            {
                Standing::Failing { count, since }
            }
            // # Failing => Failing | Ejected
            Some(Standing::Failing { count, since }) if count + 1 < FAILURES => {
                Standing::Failing { count: count + 1, since }
            }
            Some(Standing::Failing { .. }) if may_eject() => eject(0),
            Some(standing @ Standing::Failing { .. }) => standing,
            // # Ejected => Ejected: a connection that was under way, or for which no other was left
            Some(standing @ Standing::Ejected { until, .. }) if now < until => {
                self.remember(target, standing, until + PROBATION);
                return None;
            }
            // # Probation => Ejected | Probation
            Some(Standing::Ejected { times, .. }) if may_eject() => eject(times),
            Some(Standing::Ejected { times, .. }) => Standing::Ejected { until: now, times },
        };
        let (forget, ejected) = match standing {
            Standing::Failing { .. } => (now + ROW, None),
            Standing::Ejected { until, .. } => (until + PROBATION, Some(until - now)),
        };
        self.remember(target, standing, forget);
        ejected.filter(|length| !length.is_zero())
    }

    /// Whether another one of `endpoints` may be ejected. Looks at all that is remembered, which failures are rare
    /// enough for.
    fn leaves_enough(&self, endpoints: &Endpoints, now: Duration) -> bool {
        let ejected =
            |entry: &Entry| matches!(entry.standing, Standing::Ejected { until, .. } if now < until);
        let theirs =
            self.entries.iter().filter(|(_, entry)| ejected(entry)).map(|(target, _)| &target.workload);
        let count = theirs.filter(|uid| endpoints.contains(uid)).collect::<HashSet<_>>().len();
        (count + 1) * 2 <= endpoints.iter().len()
    }

    fn remember(&mut self, target: Target, standing: Standing, forget: Duration) {
        if self.entries.len() >= REMEMBERED
            && let Some((_, first)) = self.by_age.first().cloned()
        {
            self.forget(&first);
        }
        self.by_age.insert((forget, target.clone()));
        self.entries.insert(target, Entry { standing, forget });
    }

    fn forget(&mut self, target: &Target) -> Option<Entry> {
        let entry = self.entries.remove(target)?;
        self.by_age.remove(&(entry.forget, target.clone()));
        Some(entry)
    }
}

/// How long an ejection lasts that comes after `times` others.
fn ejection(times: u32) -> Duration {
    1_u32.checked_shl(times).map_or(LONGEST, |factor| FIRST.saturating_mul(factor).min(LONGEST))
}
