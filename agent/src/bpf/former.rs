//! Taking over from an agent of another layout version, be it older or newer: what it pinned is below `<bpffs>/culvert/v<its layout>/`.
//!
//! The pins of its pods move below our own version at once; the links behind them hold its programs until the pod's turn comes, and are
//! then updated as after any restart, so that each device goes from one version to the other in one step and none is without. Until
//! then those programs go on with their own maps, which stay pinned for that, together with the links that recognise probes: both
//! versions' run side by side. All of it is removed when every pod has had its turn ([`Programs::drop_former`]).
//!
//! What stands in the former maps alone, which cgroups are exempt and which connections run past the mesh, is not copied: programs of
//! both versions have the very same maps for it, as far as their kinds and the sizes of keys and values are the same. A copy would go
//! on exempting what the former programs forget meanwhile, such as a socket that is connected anew and captured. Listeners and what
//! kubelet may probe every agent states anew; connections of probes last no longer than the step, and counters begin at 0.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use tracing::{info, warn};

use super::Programs;
use super::directory::{DNS, create_directory, entries, subdirectories};
use super::error::{AttachError, LinkError, LoadError};
use super::{link, node};

/// The maps that programs of several layouts have in common: name, kind, and the sizes of keys and values.
const SHARED: [(&str, MapType, u32, u32); 3] = [
    ("EXEMPT_CGROUPS", MapType::Hash, 8, 1),
    ("PRE_MESH", MapType::Hash, 8, 1),
    ("OUTSIDE", MapType::LruHash, 8, 4),
];

/// The directories of all layouts there are below `bpffs`.
pub(super) fn layouts(bpffs: &Path) -> Result<Vec<PathBuf>, AttachError> {
    let is_layout = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix('v')).is_some_and(|number| number.parse::<u32>().is_ok())
    };
    Ok(subdirectories(&bpffs.join("culvert"))?.into_iter().filter(is_layout).collect())
}

/// Pins the maps of other layouts that ours has in common with them below `root` as well, where it has none yet. To be called before the
/// programs are loaded.
pub(super) fn share_maps(bpffs: &Path, root: &Path) -> Result<(), LoadError> {
    for other in layouts(bpffs)?.into_iter().filter(|layout| layout != root) {
        for shape in SHARED {
            let (theirs, ours) = (other.join("maps").join(shape.0), root.join("maps").join(shape.0));
            let id = match id_if_shaped(&theirs, shape) {
                Ok(id) => id,
                // What it says is lost, on which capture closes and does not open.
                Err(reason) => {
                    warn!(map = %theirs.display(), %reason, "not carried over");
                    continue;
                }
            };
            if !ours.exists() {
                fs::hard_link(&theirs, &ours)
                    .map_err(|source| LoadError::Directory { path: ours.clone(), source })?;
            } else if id_if_shaped(&ours, shape) != Ok(id) {
                warn!(map = %theirs.display(), reason = "ours is another one", "not carried over");
            }
        }
    }
    Ok(())
}

/// The kernel's number of the map pinned at `path`, if it is shaped like that.
fn id_if_shaped(path: &Path, (_, kind, key, value): (&str, MapType, u32, u32)) -> Result<u32, String> {
    let info = MapInfo::from_pin(path).map_err(|error| error.to_string())?;
    let found = info.map_type().map_err(|error| error.to_string())?;
    if (found, info.key_size(), info.value_size()) == (kind, key, value) {
        Ok(info.id())
    } else {
        Err(format!("it is a {found:?} of {} to {} bytes", info.key_size(), info.value_size()))
    }
}

/// Moves the pods of all other layouts below `root`. Returns what is left of those, for [`Programs::drop_former`].
pub(super) fn take_over(bpffs: &Path, root: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut all = Vec::new();
    for other in layouts(bpffs)?.into_iter().filter(|layout| layout != root) {
        info!(from = %other.display(), "taking over from an agent of another layout version");
        for pod in subdirectories(&other.join("pods"))? {
            let Some(name) = pod.file_name() else { continue };
            move_pins(&pod, &root.join("pods").join(name))?;
        }
        if other.join(DNS).is_dir() {
            move_pins(&other.join(DNS), &root.join(DNS))?;
        }
        all.push(other);
    }
    Ok(all)
}

/// Moves what is in a directory, and removes it. A pin that stands on both sides is ours already, from a try that was interrupted.
fn move_pins(from: &Path, to: &Path) -> Result<(), LoadError> {
    create_directory(to)?;
    for entry in entries(from)? {
        let Some(name) = entry.file_name() else { continue };
        let target = to.join(name);
        let failed = |source: io::Error| LoadError::Directory { path: entry.clone(), source };
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

impl Programs {
    /// Removes what agents of other layouts left. For when every pod's programs are this agent's.
    pub(crate) fn drop_former(&mut self) -> Result<(), LinkError> {
        while let Some(former) = self.former.last() {
            node::remove_tree(former)?;
            info!(layout = %former.display(), "nothing is left of another layout version");
            self.former.pop();
        }
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
