//! Services by ranges of virtual addresses.
//!
//! An address is looked up once per prefix length that its network has at all, which is a handful in practice and 129
//! at most, whatever the number of ranges.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use crate::service::ServiceName;
use crate::workload::{Network, NetworkAddress, NetworkRange};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    services: HashMap<NetworkRange, BTreeSet<ServiceName>>,
    /// How many ranges of each length a network has, of IPv4 (`true`) and of IPv6.
    lengths: HashMap<(Network, bool), BTreeMap<u8, usize>>,
}

impl Ranges {
    /// The service has the range.
    pub(super) fn insert(&mut self, range: &NetworkRange, service: &ServiceName) {
        let services = self.services.entry(range.clone()).or_default();
        if services.is_empty() {
            *self.lengths.entry(key(range)).or_default().entry(range.range().prefix_len()).or_default() += 1;
        }
        services.insert(service.clone());
    }

    /// The service has not the range any more.
    pub(super) fn remove(&mut self, range: &NetworkRange, service: &ServiceName) {
        let Some(services) = self.services.get_mut(range) else { return };
        services.remove(service);
        if !services.is_empty() {
            return;
        }
        self.services.remove(range);
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

    /// The services of each range that the address lies in, the longest prefix first.
    pub(super) fn covering(&self, address: &NetworkAddress) -> impl Iterator<Item = &BTreeSet<ServiceName>> {
        let lengths = self.lengths.get(&(address.network.clone(), address.ip.is_ipv4()));
        lengths.into_iter().flat_map(BTreeMap::keys).rev().filter_map(|length| {
            let range = IpNet::new(address.ip, *length).ok()?;
            self.services.get(&NetworkRange::new(address.network.clone(), range))
        })
    }

    /// All of them, in no order that means anything.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&NetworkRange, &BTreeSet<ServiceName>)> {
        self.services.iter()
    }

    /// Whether nothing is left of anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.lengths.is_empty()
    }
}

fn key(range: &NetworkRange) -> (Network, bool) {
    (range.network().clone(), matches!(range.range(), IpNet::V4(_)))
}
