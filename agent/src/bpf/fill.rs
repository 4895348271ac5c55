//! How full the maps are whose entries are never evicted: full ones fail closed, so an operator wants to know before.

use std::path::Path;

use aya::maps::MapInfo;

use super::error::MapError;
use super::{Programs, in_map};

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    /// The map's name.
    pub(crate) map: &'static str,
    /// Entries it holds.
    pub(crate) entries: u64,
    /// Entries it can hold, from when it was made.
    pub(crate) capacity: u64,
}

impl Programs {
    /// The fill of every map without eviction. One system call an entry, so it is for metrics and not for a data path.
    ///
    /// # Errors
    /// A map cannot be read, or its pin is gone.
    pub(crate) fn fills(&self) -> Result<Vec<Fill>, MapError> {
        let maps = &self.maps;
        let fill = |map: &'static str, entries: usize| {
            let capacity = capacity(&self.root, map).map_err(in_map(map))?;
            Ok(Fill { map, entries: entries as u64, capacity })
        };
        [
            ("EXEMPT_CGROUPS", maps.exempt_cgroups.keys().count()),
            ("KUBELET_CGROUPS", maps.kubelet_cgroups.keys().count()),
            ("PROBE_TARGETS", maps.probe_targets.keys().count()),
            ("PRE_MESH", maps.pre_mesh.keys().count()),
            ("LISTENERS", maps.listeners.keys().count()),
            ("OUTBOUND_LISTENERS", maps.outbound_listeners.keys().count()),
            ("DNS_LISTENERS", maps.dns_listeners.keys().count()),
            ("POD_ADDRESSES", maps.pod_addresses.keys().count()),
            ("POD_COUNTERS", maps.pod_counters.keys().count()),
        ]
        .into_iter()
        .map(|(map, entries)| fill(map, entries))
        .collect()
    }
}

fn capacity(root: &Path, map: &str) -> Result<u64, aya::maps::MapError> {
    let info = MapInfo::from_pin(root.join("maps").join(map))?;
    Ok(u64::from(info.max_entries()))
}
