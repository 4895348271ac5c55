//! The cgroup v2 subtree of a run: every process of a sandbox lives in it, so that ending the subtree ends them all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{During, Error, Result};
use crate::wait;

/// How long the kernel may take to end the processes of a subtree.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A directory in the cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The root of the cgroup v2 hierarchy, wherever it is mounted.
    pub fn root() -> Result<Self> {
        let table =
            fs::read_to_string("/proc/self/mountinfo").during(|| "reading /proc/self/mountinfo".into())?;
        let path = mount_point(&table).ok_or_else(|| Error::Unsupported {
            missing: "no cgroup v2 hierarchy is mounted".into(),
            remedy:
                "mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
                    .into(),
        })?;
        Ok(Self { path })
    }

    /// Takes an existing directory as a cgroup.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the child `name`, which may have several components; existing ones are used.
    pub fn child(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).during(|| format!("making the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// The file into which a process writes `0` to move itself here.
    pub(crate) fn entrance(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).during(|| format!("opening {}", path.display()))
    }

    /// The ids of the processes that live here now, those of children not among them.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let path = self.path.join("cgroup.procs");
        let text = fs::read_to_string(&path).during(|| format!("reading {}", path.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Whether any process lives in the subtree.
    pub(crate) fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"))
    }

    /// Ends every process of the subtree and removes it. A subtree that is gone already is fine.
    pub fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        // cgroup.kill (kernel 5.14) reaches processes that fork while being ended, which a loop over pids does not.
        fs::write(self.path.join("cgroup.kill"), "1").during(|| format!("ending {}", self.path.display()))?;
        wait::until(
            KILL_DEADLINE,
            || format!("the end of all processes in {}", self.path.display()),
            || (!self.is_populated()).then_some(()),
        )?;
        wait::until(
            KILL_DEADLINE,
            || format!("the removal of {}", self.path.display()),
            || remove_tree(&self.path).ok(),
        )
    }
}

/// Removes cgroup directories from the leaves up. Files in them are the kernel's and go with them.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The mount point of the first cgroup v2 file system in a mount table (proc_pid_mountinfo(5)).
fn mount_point(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (file_system.split(' ').next() == Some("cgroup2"))
            .then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_v2_mount_is_found_wherever_it_is() {
        for (name, table, expected) in [
            ("unified", "30 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", Some("/sys/fs/cgroup")),
            (
                "beside version 1, with optional fields",
                "40 31 0:37 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n41 31 0:38 / /sys/fs/cgroup/unified rw shared:10 master:1 - cgroup2 none rw\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("version 1 alone", "40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", None),
        ] {
            assert_eq!(mount_point(table), expected.map(PathBuf::from), "{name}");
        }
    }
}
