//! How much memory peers may fill: the bytes that this process lets them send before anybody reads them.
//!
//! What a connection's window grants cannot be taken back (RFC 9113 6.9), so it is counted when it is granted and
//! given back when the connection ends: the sum bounds what is buffered, whatever peers do. A connection asks for as
//! much as its streams can keep ([`super::window`]).
//!
//! A pod is granted more only as long as it holds less than what is still free. So one pod gets at most half of the
//! budget, n greedy ones 1/(n+1) each, and there is always something left for the next. Who is granted nothing has
//! small windows, 64 KiB a stream, which are always to be had: less than a connection costs anyway, and
//! connections are counted elsewhere. The process buffers at most the budget and 64 KiB per stream.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A process's budget. Cheap to clone; clones are the same budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: u64,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    granted: u64,
    squeezed: usize,
    pods: HashMap<IpAddr, u64>,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetStats {
    /// Bytes that may be granted, but for small windows.
    pub total: u64,
    /// Bytes that peers have been granted: the bound of what is buffered now. More than `total` by small windows only.
    pub granted: u64,
    /// Connections with small windows for lack of budget.
    pub squeezed: usize,
    /// Pods that hold some of it.
    pub pods: usize,
}

impl Budget {
    /// 512 MiB: of one pod alone 64 connections of one stream each with full windows, or four that have carried 100.
    pub const DEFAULT: u64 = 512 << 20;

    /// A budget of `total` bytes. With 0 all windows are small.
    pub fn new(total: u64) -> Self {
        Self(Arc::new(Inner { total, ledger: Mutex::default() }))
    }

    /// What the connections of a pod take from. `pod` is the pod's address: the source's at the client's end, the
    /// listener's at the server's.
    pub fn share(&self, pod: IpAddr) -> Share {
        Share { budget: self.clone(), pod: pod.to_canonical() }
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> BudgetStats {
        let ledger = self.ledger();
        BudgetStats {
            total: self.0.total,
            granted: ledger.granted,
            squeezed: ledger.squeezed,
            pods: ledger.pods.len(),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of [`Budget::DEFAULT`] bytes.
impl Default for Budget {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

/// A pod's part of a budget.
#[derive(Clone, Debug)]
pub struct Share {
    budget: Budget,
    pod: IpAddr,
}

/// What one connection holds. Given back when dropped.
#[derive(Debug)]
pub(super) struct Grant {
    share: Share,
    bytes: u64,
    squeezed: bool,
}

impl Grant {
    pub(super) fn new(share: &Share) -> Self {
        Self { share: share.clone(), bytes: 0, squeezed: false }
    }

    /// Takes so many more bytes if the pod may have them.
    pub(super) fn take(&mut self, bytes: u32) -> bool {
        let bytes = u64::from(bytes);
        let total = self.share.budget.0.total;
        let mut ledger = self.share.budget.ledger();
        let held = ledger.pods.get(&self.share.pod).copied().unwrap_or(0);
        let fair = held + bytes <= total.saturating_sub(ledger.granted + bytes);
        if fair {
            ledger.add(self.share.pod, bytes);
            self.bytes += bytes;
        }
        fair
    }

    /// Takes so many more bytes in any case: for small windows.
    pub(super) fn take_anyway(&mut self, bytes: u32) {
        self.share.budget.ledger().add(self.share.pod, u64::from(bytes));
        self.bytes += u64::from(bytes);
    }

    /// Counts the connection among those with small windows, or no more.
    pub(super) fn set_squeezed(&mut self, squeezed: bool) {
        if self.squeezed != squeezed {
            self.squeezed = squeezed;
            let mut ledger = self.share.budget.ledger();
            ledger.squeezed = if squeezed { ledger.squeezed + 1 } else { ledger.squeezed - 1 };
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.set_squeezed(false);
        let mut ledger = self.share.budget.ledger();
        ledger.granted -= self.bytes;
        if let Some(held) = ledger.pods.get_mut(&self.share.pod) {
            *held -= self.bytes;
            if *held == 0 {
                ledger.pods.remove(&self.share.pod);
            }
        }
    }
}

impl Ledger {
    fn add(&mut self, pod: IpAddr, bytes: u64) {
        self.granted += bytes;
        *self.pods.entry(pod).or_default() += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    /// Takes one by one until nothing more is granted.
    fn take_all(grant: &mut Grant) -> u64 {
        while grant.take(1) {}
        grant.bytes
    }

    #[test]
    fn greedy_pods_get_equal_parts_and_leave_one_for_the_next() {
        let budget = Budget::new(1200);
        let mut grants: Vec<Grant> = (1..=5).map(|number| Grant::new(&budget.share(pod(number)))).collect();
        assert_eq!(take_all(&mut grants[0]), 600);
        assert_eq!(take_all(&mut grants[1]), 300);
        grants.remove(0);
        assert_eq!(take_all(&mut grants[0]), 600);
        grants.remove(0);
        // In turns, as they would.
        while grants.iter_mut().map(|grant| grant.take(1)).filter(|granted| *granted).count() > 0 {}
        assert!(grants.iter().all(|grant| grant.bytes == 300), "{grants:?}");
    }

    #[test]
    fn connections_of_a_pod_share_its_part_and_all_is_given_back() {
        let budget = Budget::new(1000);
        let share = budget.share(pod(1));
        let (mut first, mut second) = (Grant::new(&share), Grant::new(&share));
        assert!(first.take(300));
        assert!(!second.take(201));
        assert!(second.take(200));
        second.take_anyway(800);
        second.set_squeezed(true);
        assert_eq!(budget.stats(), BudgetStats { total: 1000, granted: 1300, squeezed: 1, pods: 1 });
        assert!(!Grant::new(&budget.share(pod(2))).take(1));
        drop((first, second));
        assert_eq!(budget.stats(), BudgetStats { total: 1000, ..BudgetStats::default() });
    }

    #[test]
    fn an_address_is_the_same_pod_in_either_form() {
        let budget = Budget::new(1000);
        let mut grant = Grant::new(&budget.share(pod(1)));
        assert!(grant.take(500));
        assert!(!Grant::new(&budget.share("::ffff:10.0.0.1".parse().unwrap())).take(1));
    }
}
