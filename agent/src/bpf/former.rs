//! Taking over from an agent of another layout version, be it older or newer: what it pinned is below `<bpffs>/culvert/v<its layout>/`.
//!
//! The pins of its pods move below our own version at once; the links behind them hold its programs until the pod's turn comes, and are
//! then updated as after any restart, so that each device goes from one version to the other in one step and none is without. Until
//! then those programs go on with their own maps, which stay pinned for that, together with the links that recognise probes: both
//! versions' run side by side. All of it is removed when every pod has had its turn ([`Programs::drop_former`]).
//!
//! What stands in the former maps alone is carried over, as far as the kinds and sizes of keys and values are the same: which cgroups
//! are exempt, and which connections run past the mesh. Listeners and what kubelet may probe every agent states anew; connections of
//! probes last no longer than the step, and counters begin at 0.

use std::fs;
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError as AyaMapError};
use tracing::{info, warn};

use super::directory::{create_directory, entries, subdirectories};
use super::error::{AttachError, LinkError, LoadError, MapError};
use super::object::Maps;
use super::{CgroupId, PodKey, Programs, SocketCookie, absent_is_fine, in_map, link, node};

/// What is left of another layout's pins after the pods' were taken.
pub(super) struct Former {
    root: PathBuf,
    exempt_cgroups: Option<HashMap<MapData, u64, u8>>,
    pre_mesh: Option<HashMap<MapData, u64, u8>>,
    outside: Option<HashMap<MapData, u64, u32>>,
}

/// The directories of all layouts there are below `bpffs`.
pub(super) fn layouts(bpffs: &Path) -> Result<Vec<PathBuf>, AttachError> {
    let is_layout = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix('v')).is_some_and(|number| number.parse::<u32>().is_ok())
    };
    Ok(subdirectories(&bpffs.join("culvert"))?.into_iter().filter(is_layout).collect())
}

/// Moves the pods of all other layouts below `root`, and carries over what `maps` lacks.
pub(super) fn take_over(bpffs: &Path, root: &Path, maps: &mut Maps) -> Result<Vec<Former>, LoadError> {
    let mut all = Vec::new();
    for other in layouts(bpffs)?.into_iter().filter(|layout| layout != root) {
        info!(from = %other.display(), "taking over from an agent of another layout version");
        for pod in subdirectories(&other.join("pods"))? {
            let Some(name) = pod.file_name() else { continue };
            move_pins(&pod, &root.join("pods").join(name))?;
        }
        let mut former = Former {
            exempt_cgroups: open(&other, "EXEMPT_CGROUPS"),
            pre_mesh: open(&other, "PRE_MESH"),
            outside: open(&other, "OUTSIDE"),
            root: other,
        };
        former.carry_exempt(maps)?;
        former.carry_connections(maps)?;
        all.push(former);
    }
    Ok(all)
}

/// A map that is not as ours cannot be read as ours: what it says is lost, on which capture closes and does not open.
fn open<K: Pod, V: Pod>(root: &Path, name: &str) -> Option<HashMap<MapData, K, V>> {
    let path = root.join("maps").join(name);
    let opened = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(HashMap::try_from);
    opened.inspect_err(|error| warn!(map = %path.display(), %error, "not carried over")).ok()
}

/// Moves what is in a directory, and removes it. A pin that stands on both sides is ours already, from a try that was interrupted.
fn move_pins(from: &Path, to: &Path) -> Result<(), LoadError> {
    create_directory(to)?;
    for entry in entries(from)? {
        let Some(name) = entry.file_name() else { continue };
        let target = to.join(name);
        let failed = |source| LoadError::Directory { path: entry.clone(), source };
        if entry.is_dir() {
            move_pins(&entry, &target)?;
        } else if target.try_exists().map_err(failed)? {
            link::remove(&entry).map_err(|source| LoadError::Link { name: "a former link", source })?;
        } else {
            fs::rename(&entry, &target).map_err(failed)?;
        }
    }
    fs::remove_dir(from).map_err(|source| LoadError::Directory { path: from.to_owned(), source })
}

impl Former {
    fn carry_exempt(&self, maps: &mut Maps) -> Result<(), MapError> {
        carry(self.exempt_cgroups.as_ref(), &mut maps.exempt_cgroups, "EXEMPT_CGROUPS")
    }

    /// The former programs of a pod may have let go of connections since.
    fn carry_connections(&mut self, maps: &mut Maps) -> Result<(), MapError> {
        carry(self.pre_mesh.as_ref(), &mut maps.pre_mesh, "PRE_MESH")?;
        carry(self.outside.as_ref(), &mut maps.outside, "OUTSIDE")
    }
}

fn carry<K: Pod, V: Pod>(
    from: Option<&HashMap<MapData, K, V>>,
    to: &mut HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<(), MapError> {
    let failed = in_map(name);
    for entry in from.into_iter().flat_map(|map| map.iter()) {
        let (key, value) = entry.map_err(failed)?;
        match to.get(&key, 0) {
            Ok(_) => {}
            Err(AyaMapError::KeyNotFound) => to.insert(key, value, 0).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

impl Programs {
    /// Carries over what former programs have learnt of connections. For a pod whose programs are to be replaced next, and only then:
    /// what the new ones have forgotten since, such as a socket that was connected anew, must stay forgotten.
    pub(super) fn carry_over(&mut self, pod: &PodKey) -> Result<(), MapError> {
        let Self { former, maps, carried, .. } = self;
        if former.is_empty() || carried.contains(pod) {
            return Ok(());
        }
        former.iter_mut().try_for_each(|former| former.carry_connections(maps))?;
        carried.insert(pod.clone());
        Ok(())
    }

    /// Tells former programs of a cgroup whose exemption has changed.
    pub(super) fn exempt_formerly(&mut self, id: CgroupId, exempt: bool) -> Result<(), MapError> {
        let maps = self.former.iter_mut().filter_map(|former| former.exempt_cgroups.as_mut());
        for map in maps {
            let done = if exempt { map.insert(id.0, 1, 0) } else { absent_is_fine(map.remove(&id.0)) };
            done.map_err(in_map("EXEMPT_CGROUPS"))?;
        }
        Ok(())
    }

    /// Has former programs forget sockets too, or they would be carried over again.
    pub(super) fn forget_formerly(&mut self, cookies: &[SocketCookie]) -> Result<(), MapError> {
        for former in &mut self.former {
            for cookie in cookies {
                if let Some(map) = &mut former.pre_mesh {
                    absent_is_fine(map.remove(&cookie.0)).map_err(in_map("PRE_MESH"))?;
                }
                if let Some(map) = &mut former.outside {
                    absent_is_fine(map.remove(&cookie.0)).map_err(in_map("OUTSIDE"))?;
                }
            }
        }
        Ok(())
    }

    /// Removes what agents of other layouts left. For when every pod's programs are this agent's.
    pub(crate) fn drop_former(&mut self) -> Result<(), LinkError> {
        while let Some(former) = self.former.last() {
            node::remove_tree(&former.root)?;
            info!(layout = %former.root.display(), "nothing is left of another layout version");
            self.former.pop();
        }
        self.carried.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_versions_are_taken_for_layouts() {
        let bpffs = tempfile::tempdir().unwrap();
        for name in ["v1", "v12", "vx", "w1", "v1.old"] {
            fs::create_dir_all(bpffs.path().join("culvert").join(name)).unwrap();
        }
        let mut found = layouts(bpffs.path()).unwrap();
        found.sort();
        assert_eq!(found, ["v1", "v12"].map(|name| bpffs.path().join("culvert").join(name)));
    }

    #[test]
    fn pins_move_whatever_an_interrupted_move_left() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("v1/pods/a"), directory.path().join("v2/pods/a"));
        for path in ["net-1/lo", "net-1/egress-2", "net-2/lo"] {
            fs::create_dir_all(from.join(path).parent().unwrap()).unwrap();
            fs::write(from.join(path), "former").unwrap();
        }
        fs::create_dir_all(from.join("net-1/joining")).unwrap();
        fs::create_dir_all(to.join("net-1")).unwrap();
        fs::write(to.join("net-1/lo"), "ours").unwrap();
        move_pins(&from, &to).unwrap();
        assert!(!from.exists() && to.join("net-1/joining").is_dir());
        let read = |path: &str| fs::read_to_string(to.join(path)).unwrap();
        assert_eq!(
            [read("net-1/lo"), read("net-1/egress-2"), read("net-2/lo")],
            ["ours", "former", "former"]
        );
    }
}
