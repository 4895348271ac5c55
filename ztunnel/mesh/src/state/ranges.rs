//! Names (services', above all) by ranges of virtual addresses.
//!
//! An address is looked up once per prefix length that its network has at all, which is a handful in practice and 129
//! at most, whatever the number of ranges.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use crate::workload::{Network, NetworkAddress, NetworkRange};

/// See the module.
#[derive(Debug)]
pub(super) struct Ranges<N> {
    names: HashMap<NetworkRange, BTreeSet<N>>,
    /// How many ranges of each length a network has, of IPv4 (`true`) and of IPv6.
    lengths: HashMap<(Network, bool), BTreeMap<u8, usize>>,
}

// By hand: a name need not have a default.
impl<N> Default for Ranges<N> {
    fn default() -> Self {
        Self { names: HashMap::new(), lengths: HashMap::new() }
    }
}

impl<N: Ord + Clone> Ranges<N> {
    /// The one of this name has the range.
    pub(super) fn insert(&mut self, range: &NetworkRange, name: &N) {
        let names = self.names.entry(range.clone()).or_default();
        if names.is_empty() {
            *self.lengths.entry(key(range)).or_default().entry(range.range().prefix_len()).or_default() += 1;
        }
        names.insert(name.clone());
    }

    /// The one of this name has not the range any more.
    pub(super) fn remove(&mut self, range: &NetworkRange, name: &N) {
        let Some(names) = self.names.get_mut(range) else { return };
        names.remove(name);
        if !names.is_empty() {
            return;
        }
        self.names.remove(range);
        let key = key(range);
        let Some(lengths) = self.lengths.get_mut(&key) else { return };
        if let Some(count) = lengths.get_mut(&range.range().prefix_len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&range.range().prefix_len());
            }
        }
        if lengths.is_empty() {
            self.lengths.remove(&key);
        }
    }

    /// The names of each range that the address lies in, the longest prefix first.
    pub(super) fn covering(&self, address: &NetworkAddress) -> impl Iterator<Item = &BTreeSet<N>> {
        let lengths = self.lengths.get(&(address.network.clone(), address.ip.is_ipv4()));
        lengths.into_iter().flat_map(BTreeMap::keys).rev().filter_map(|length| {
            let range = IpNet::new(address.ip, *length).ok()?;
            self.names.get(&NetworkRange::new(address.network.clone(), range))
        })
    }

    /// All of them, in no order that means anything.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&NetworkRange, &BTreeSet<N>)> {
        self.names.iter()
    }

    /// Whether nothing is left of anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.lengths.is_empty()
    }
}

fn key(range: &NetworkRange) -> (Network, bool) {
    (range.network().clone(), matches!(range.range(), IpNet::V4(_)))
}
