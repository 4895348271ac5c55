//! What the programs of any layout let pass, read from its pinned maps without loading a program: for taking capture off a node.

use std::collections::BTreeSet;
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};

use super::error::MapError;
use super::{CgroupId, SocketCookie, in_map};

/// Whom the programs leave alone.
#[derive(Debug, Default)]
pub(crate) struct LeftAlone {
    /// The cgroups of ztunnels and agents.
    pub(crate) cgroups: BTreeSet<CgroupId>,
    /// Sockets from before their pod joined, and those the programs have learnt.
    pub(crate) sockets: BTreeSet<SocketCookie>,
}

impl LeftAlone {
    /// Those of the layout in which `directory` (`pods/UID/net-INODE` of it) is pinned.
    ///
    /// # Errors
    /// A map's pin is gone, or it is not shaped as ours.
    pub(crate) fn of(directory: &Path) -> Result<Self, MapError> {
        let layout = directory.ancestors().nth(3).unwrap_or(directory);
        let cgroups = keys::<u8>(layout, "EXEMPT_CGROUPS")?.into_iter().map(CgroupId).collect();
        let mut sockets = keys::<u8>(layout, "PRE_MESH")?;
        sockets.extend(keys::<u32>(layout, "OUTSIDE")?);
        Ok(Self { cgroups, sockets: sockets.into_iter().map(SocketCookie).collect() })
    }
}

fn keys<V: Pod>(layout: &Path, name: &'static str) -> Result<Vec<u64>, MapError> {
    let read = || {
        let map = Map::from_map_data(MapData::from_pin(layout.join("maps").join(name))?)?;
        HashMap::<_, u64, V>::try_from(map)?.keys().collect::<Result<_, _>>()
    };
    read().map_err(in_map(name))
}
