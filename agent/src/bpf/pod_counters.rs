//! What the programs did with the packets of each pod, and why: `POD_COUNTERS`, which has an entry for each address of each pod.

use std::collections::BTreeMap;

use aya::maps::{MapError as AyaMapError, PerCpuValues};
use aya::util::nr_cpus;
use ebpf_common::{Address, Counter, PodCounts};

use super::error::MapError;
use super::{PodKey, Programs, absent_is_fine, in_map, is_absent};

/// The map's name.
const MAP: &str = "POD_COUNTERS";

/// `BPF_NOEXIST` of linux/bpf.h: an entry that is there stays as it is.
const NOT_IF_THERE: u64 = 1;

/// Packets of a pod by the reason for what was done with them, without those of which there were none.
pub(crate) type Counted = BTreeMap<Counter, u64>;

impl Programs {
    /// Counts for `address`: from now on if `anew`, else since it was last called so.
    pub(super) fn begin_counts(&mut self, address: std::net::IpAddr, anew: bool) -> Result<(), MapError> {
        let cpus = nr_cpus().map_err(|(_, error)| in_map(MAP)(error.into()))?;
        let none: PodCounts = [0; Counter::COUNT as usize];
        let values = PerCpuValues::try_from(vec![none; cpus]).map_err(|error| in_map(MAP)(error.into()))?;
        let flags = if anew { 0 } else { NOT_IF_THERE };
        match self.maps.pod_counters.insert(Address::from(address), values, flags) {
            Err(error) if is_there(&error) => Ok(()),
            result => result.map_err(in_map(MAP)),
        }
    }

    /// Forgets what was counted for `address`.
    pub(super) fn end_counts(&mut self, address: Address) -> Result<(), MapError> {
        absent_is_fine(self.maps.pod_counters.remove(&address)).map_err(in_map(MAP))
    }

    /// What was done with the packets of each pod, by the addresses they bear: a pod that forges its source is counted as whom it claims
    /// to be, if that is a pod of this node. The packets of captured connections are not among it ([`Counter::is_of_pods`]).
    ///
    /// # Errors
    /// The map cannot be read.
    pub(crate) fn pod_counters(&self) -> Result<BTreeMap<PodKey, Counted>, MapError> {
        let mut counts = Vec::new();
        for (address, pod) in &self.addresses {
            match self.maps.pod_counters.get(&Address::from(*address), 0) {
                Ok(of_cpus) => counts.extend(of_cpus.iter().map(|counts| (pod, *counts))),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(in_map(MAP)(error)),
            }
        }
        Ok(sums(counts))
    }
}

/// Whether the counts for an address begin when it is named as the pod's. For an agent that has just started they do: nothing says whose
/// the ones were that its predecessor left.
pub(super) fn is_anew(before: Option<&PodKey>, pod: &PodKey) -> bool {
    before != Some(pod)
}

/// The sums over CPUs and addresses.
fn sums<'a>(counts: impl IntoIterator<Item = (&'a PodKey, PodCounts)>) -> BTreeMap<PodKey, Counted> {
    let mut pods: BTreeMap<PodKey, Counted> = BTreeMap::new();
    for (pod, counts) in counts {
        let counted = Counter::ALL.iter().zip(counts).filter(|(_, count)| *count > 0);
        for (counter, count) in counted {
            *pods.entry(pod.clone()).or_default().entry(*counter).or_default() += count;
        }
    }
    pods
}

fn is_there(error: &AyaMapError) -> bool {
    match error {
        AyaMapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(Counter, u64)]) -> PodCounts {
        let mut counts = [0; Counter::COUNT as usize];
        of.iter().for_each(|(counter, count)| counts[*counter as usize] = *count);
        counts
    }

    #[test]
    fn counts_begin_when_an_address_is_first_named_and_when_it_becomes_another_pods() {
        let (web, db) = (PodKey::new("web"), PodKey::new("db"));
        assert!(is_anew(None, &web));
        assert!(is_anew(Some(&db), &web));
        assert!(!is_anew(Some(&web), &web));
    }

    #[test]
    fn a_pods_counts_are_the_sums_over_its_addresses_and_all_cpus_and_nobody_elses() {
        use Counter::{CapturedInbound, DroppedFragment, DroppedMalformed};
        let (web, db, quiet) = (PodKey::new("web"), PodKey::new("db"), PodKey::new("quiet"));
        let pods = sums([
            (&web, counts(&[(DroppedFragment, 1), (CapturedInbound, 4)])),
            (&web, counts(&[(DroppedFragment, 2)])),
            (&db, counts(&[(DroppedMalformed, 7)])),
            (&quiet, counts(&[])),
        ]);
        let expected = [
            (web, Counted::from([(DroppedFragment, 3), (CapturedInbound, 4)])),
            (db, Counted::from([(DroppedMalformed, 7)])),
        ];
        assert_eq!(pods, BTreeMap::from(expected));
    }
}
