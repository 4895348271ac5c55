//! What a run leaves outside its own process, and how it goes away: the cgroup subtree, and a directory under `target/`.
//!
//! The record `run.json` names the owner, so that [`clean`] can tell a run that is going on from what a `kill -9` left.
//! Namespaces, devices, mounts and BPF pins need no record: they end with the processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::{During, Error, Result};

/// Every cgroup of ours starts with it.
const PREFIX: &str = "culvert-";

/// The record's name in a run's directory.
const RECORD: &str = "run.json";

/// The runs of this process that have not ended, for [`end_all`].
static LIVE: Mutex<Vec<Arc<State>>> = Mutex::new(Vec::new());

/// A run: its directory and its cgroup subtree. Both are removed when it is dropped, the directory only if
/// [`Run::keep_files`] was not called.
#[derive(Debug)]
pub(crate) struct Run {
    state: Arc<State>,
    number: u32,
}

#[derive(Debug)]
struct State {
    directory: PathBuf,
    cgroup: Cgroup,
    keep: AtomicBool,
    ended: Mutex<bool>,
}

/// Who owns a run.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    pid: u32,
    /// Since pids are used again: clock ticks from boot to the owner's start.
    started: u64,
    cgroup: PathBuf,
}

impl Run {
    /// Begins a run with a directory under `parent`.
    pub(crate) fn begin(parent: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let started = start_time(pid).unwrap_or(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{pid}-{started}-{count}");
        let root = Cgroup::root()?;
        let directory = parent.join(&name);
        fs::create_dir_all(&directory).during(|| format!("making {}", directory.display()))?;
        let directory = directory.canonicalize().during(|| format!("resolving {}", directory.display()))?;
        let path = root.path().join(format!("{PREFIX}{name}"));
        let record = Record { pid, started, cgroup: path };
        let text = serde_json::to_string(&record).unwrap_or_default();
        fs::write(directory.join(RECORD), text).during(|| "writing the record of the run".into())?;
        let cgroup = match root.child(&format!("{PREFIX}{name}")) {
            Ok(cgroup) => cgroup,
            Err(error) => {
                let _ = fs::remove_dir_all(&directory);
                return Err(error);
            }
        };
        let state =
            Arc::new(State { directory, cgroup, keep: AtomicBool::new(false), ended: Mutex::new(false) });
        lock(&LIVE).push(state.clone());
        // Pids have 22 bits at most (proc_sys_kernel(5), pid_max).
        Ok(Self { state, number: pid << 8 | count & 0xff })
    }

    /// A number that no other run has that goes on at the same time.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The run's directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.state.directory
    }

    /// The root of the run's cgroup subtree.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.state.cgroup
    }

    /// Leaves the directory in place at the end, for its logs.
    pub(crate) fn keep_files(&self) {
        self.state.keep.store(true, Ordering::Relaxed);
    }

    /// Ends every process of the run and removes what it made. A second call does nothing.
    pub(crate) fn end(&self) -> Result<()> {
        let result = self.state.end();
        lock(&LIVE).retain(|other| !Arc::ptr_eq(other, &self.state));
        result
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("sandbox: {error}; `cargo xtask clean` tries again");
        }
    }
}

impl State {
    fn end(&self) -> Result<()> {
        let mut ended = lock(&self.ended);
        if *ended {
            return Ok(());
        }
        self.cgroup.remove()?;
        let remove = if self.keep.load(Ordering::Relaxed) {
            fs::remove_file(self.directory.join(RECORD))
        } else {
            fs::remove_dir_all(&self.directory)
        };
        *ended = true;
        remove.during(|| format!("removing {}", self.directory.display()))
    }
}

/// Ends every run of this process, at a signal. Errors go to the terminal: nobody else is left to hear them.
pub(crate) fn end_all() {
    let runs = lock(&LIVE).clone();
    for run in runs {
        if let Err(error) = run.end() {
            eprintln!("sandbox: {error}; `cargo xtask clean` tries again");
        }
    }
}

/// What [`clean`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// What was removed.
    pub removed: Vec<PathBuf>,
    /// Runs that are going on, which were left alone.
    pub running: Vec<PathBuf>,
}

/// Removes what runs with directories under `parent` left when they were ended by force, and cgroups of ours that
/// no process uses. Runs whose owner lives are left alone.
pub fn clean(parent: &Path) -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    for directory in subdirectories(parent) {
        let record = fs::read_to_string(directory.join(RECORD)).ok();
        let record = record.and_then(|text| serde_json::from_str::<Record>(&text).ok());
        if let Some(record) = record {
            if start_time(record.pid) == Some(record.started) {
                cleaned.running.push(directory);
                continue;
            }
            if is_ours(&record.cgroup) && record.cgroup.exists() {
                Cgroup::at(record.cgroup.clone()).remove()?;
                cleaned.removed.push(record.cgroup);
            }
        }
        fs::remove_dir_all(&directory).during(|| format!("removing {}", directory.display()))?;
        cleaned.removed.push(directory);
    }
    // A run whose directory is gone, as after `cargo clean`.
    let Ok(root) = Cgroup::root() else { return Ok(cleaned) };
    for path in subdirectories(root.path()).into_iter().filter(|path| is_ours(path)) {
        let owner_lives = owner(&path).is_some_and(|(pid, started)| start_time(pid) == Some(started));
        if !owner_lives {
            Cgroup::at(path.clone()).remove()?;
            cleaned.removed.push(path);
        }
    }
    Ok(cleaned)
}

fn subdirectories(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().filter_map(|entry| entry.ok());
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Whether a path has the shape of a run's cgroup.
fn is_ours(path: &Path) -> bool {
    owner(path).is_some()
}

/// The owner named by a cgroup `culvert-<pid>-<start time>-<count>`.
fn owner(path: &Path) -> Option<(u32, u64)> {
    let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let mut parts = name.split('-');
    let owner = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next()?.parse::<u32>().ok()?;
    parts.next().is_none().then_some(owner)
}

/// When a process started, in clock ticks after boot (proc_pid_stat(5), field 22); `None` when there is none.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let dead = matches!(fields.next()?, "Z" | "X");
    // The state is field 3, so field 22 is the 19th after it.
    let started = fields.nth(18)?.parse().ok()?;
    (!dead).then_some(started)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error unless this process may make a sandbox here.
pub fn check_requirements() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Unsupported {
            missing: "a sandbox is made of network namespaces, cgroups and BPF programs, which needs root"
                .into(),
            remedy: "run the command again as root".into(),
        });
    }
    Cgroup::root()?;
    if !Path::new("/sys/fs/bpf").is_dir() {
        return Err(Error::Unsupported {
            missing: "this kernel has no /sys/fs/bpf".into(),
            remedy: "use a kernel with CONFIG_BPF_SYSCALL, 5.15 or newer".into(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cgroups_named_as_a_run_names_them_are_ours() {
        for (name, expected) in [
            ("/c/culvert-12-3456-0", Some((12, 3456))),
            ("/c/culvert-12-3456", None),
            ("/c/culvert-system", None),
            ("/c/culvert-12-3456-0-x", None),
            ("/c/other-12-3456-0", None),
        ] {
            assert_eq!(owner(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_living_process_has_a_start_time_and_a_free_pid_has_none() {
        assert!(start_time(std::process::id()).is_some());
        assert_eq!(start_time(u32::MAX), None);
    }

    #[test]
    fn clean_removes_the_directory_of_a_dead_owner_and_leaves_a_living_ones() {
        let parent = tempfile::tempdir().unwrap();
        for (name, pid, started) in [("dead", u32::MAX, 1), ("alive", 1, start_time(1).unwrap())] {
            let directory = parent.path().join(name);
            fs::create_dir(&directory).unwrap();
            let record = Record { pid, started, cgroup: "/nonexistent/culvert-1-1-0".into() };
            fs::write(directory.join(RECORD), serde_json::to_string(&record).unwrap()).unwrap();
        }
        let cleaned = clean(parent.path()).unwrap();
        assert_eq!(cleaned.running, [parent.path().join("alive")]);
        assert!(cleaned.removed.contains(&parent.path().join("dead")));
        assert!(!parent.path().join("dead").exists());
    }
}
