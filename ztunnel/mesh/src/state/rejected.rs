//! Workloads and services that were received and cannot be used as written.
//!
//! What such a one means is not known: that a waypoint or a policy stands before it, that it takes no plaintext. Forgotten,
//! its address would be one that the mesh does not know, and pass. So it is held in the place of what was known of it, and
//! connections to it are refused until it can be read or is gone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::ranges::Ranges;
use super::remove_from_set;
use crate::identity::Namespace;
use crate::workload::{NetworkAddress, NetworkRange};

/// A workload or service that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedAddress {
    /// The name of its resource: a workload's uid, or `namespace/hostname` of a service.
    pub resource: String,
    /// The pod it is of, as far as that could be read: namespace and name.
    pub pod: Option<(Namespace, String)>,
    /// The addresses that could be read.
    pub addresses: Vec<NetworkAddress>,
    /// The ranges of virtual addresses that could be read.
    pub ranges: Vec<NetworkRange>,
    /// What is wrong with it.
    pub reason: String,
}

impl RejectedAddress {
    /// Takes over addresses that the resource had before: that they are not stated any more cannot be told.
    pub(super) fn keep(&mut self, before: impl IntoIterator<Item = NetworkAddress>) {
        for address in before {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
    }

    /// The same, of ranges.
    pub(super) fn keep_ranges(&mut self, before: impl IntoIterator<Item = NetworkRange>) {
        for range in before {
            if !self.ranges.contains(&range) {
                self.ranges.push(range);
            }
        }
    }
}

/// All of them, each found by what connections are made to.
#[derive(Debug, Default)]
pub(super) struct RejectedAddresses {
    by_resource: HashMap<Arc<str>, Arc<RejectedAddress>>,
    by_address: HashMap<NetworkAddress, BTreeSet<Arc<str>>>,
    by_range: Ranges<Arc<str>>,
}

impl RejectedAddresses {
    /// Adds one, or replaces what was held under its name.
    pub(super) fn insert(&mut self, rejected: RejectedAddress) {
        self.remove(&rejected.resource);
        let resource: Arc<str> = rejected.resource.as_str().into();
        for address in &rejected.addresses {
            self.by_address.entry(address.clone()).or_default().insert(resource.clone());
        }
        for range in &rejected.ranges {
            self.by_range.insert(range, &resource);
        }
        self.by_resource.insert(resource, Arc::new(rejected));
    }

    /// Forgets the one of this name, and returns it.
    pub(super) fn remove(&mut self, resource: &str) -> Option<Arc<RejectedAddress>> {
        let (resource, rejected) = self.by_resource.remove_entry(resource)?;
        for address in &rejected.addresses {
            remove_from_set(&mut self.by_address, address, &resource);
        }
        for range in &rejected.ranges {
            self.by_range.remove(range, &resource);
        }
        Some(rejected)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_resource.is_empty()
    }

    /// The one of this name.
    pub(super) fn get(&self, resource: &str) -> Option<&Arc<RejectedAddress>> {
        self.by_resource.get(resource)
    }

    /// The first by name of those with this address.
    pub(super) fn at(&self, address: &NetworkAddress) -> Option<&Arc<RejectedAddress>> {
        if self.is_empty() {
            return None;
        }
        self.get(self.by_address.get(address)?.first()?)
    }

    /// The first by name of those with the longest range that the address lies in.
    pub(super) fn covering(&self, address: &NetworkAddress) -> Option<&Arc<RejectedAddress>> {
        if self.is_empty() {
            return None;
        }
        self.get(self.by_range.covering(address).next()?.first()?)
    }

    /// All of them, in no order that means anything.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<RejectedAddress>> {
        self.by_resource.values()
    }

    /// Whether nothing is left of anything.
    #[cfg(test)]
    pub(super) fn indexes_are_empty(&self) -> bool {
        self.by_address.is_empty() && self.by_range.is_empty()
    }
}
