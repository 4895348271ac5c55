//! Whose processes there are: pods by the cgroups of the processes on this node.
//!
//! Only processes below the agent's `--cgroup-root` are looked at: procfs may show those of another node that runs in the same
//! kernel, with pods of the same uids.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::cgroup;
use crate::enroll::pod::PodUid;

/// The processes of this node.
///
/// Where pods come together, as all of a node do when the agent starts, the walk over procfs that finds the first finds the others too: a
/// walk for each would be pods times processes. What a walk has seen is believed once for each pod, and only of processes
/// that are still the pod's: whoever finds no use in it asks again, and has another walk made.
#[derive(Debug)]
pub(crate) struct Processes {
    proc_root: PathBuf,
    /// The path, within the tree of version 2, below which this node's processes are.
    confines: String,
    /// By the uids in the names of their cgroups; held during a walk, so that who comes meanwhile waits for what it sees.
    seen: Mutex<HashMap<String, Vec<u32>>>,
}

impl Processes {
    /// Those that procfs at `proc_root` shows with cgroups below the path `confines`.
    pub(crate) fn new(proc_root: PathBuf, confines: String) -> Self {
        Self { proc_root, confines, seen: Mutex::default() }
    }

    /// Those with cgroups below the directory `cgroup_root`.
    ///
    /// # Errors
    /// It is in no tree of version 2.
    pub(crate) fn below(cgroup_root: &Path) -> io::Result<Self> {
        let missing = || {
            io::Error::other(format!("{} is no cgroup of version 2 (--cgroup-root)", cgroup_root.display()))
        };
        let confines = cgroup::path_of_directory(cgroup_root)?.ok_or_else(missing)?;
        Ok(Self::new(PathBuf::from("/proc"), confines))
    }

    /// Where procfs is mounted.
    pub(crate) fn proc_root(&self) -> &Path {
        &self.proc_root
    }

    /// The processes of a pod, lowest id first.
    pub(crate) fn of(&self, pod: &PodUid) -> Vec<u32> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let still = self.confirmed(pod, seen.remove(pod.as_str()));
        if !still.is_empty() {
            return still;
        }
        *seen = self.walk();
        self.confirmed(pod, seen.remove(pod.as_str()))
    }

    /// Those that are the pod's by now: ids are used again.
    fn confirmed(&self, pod: &PodUid, seen: Option<Vec<u32>>) -> Vec<u32> {
        let cgroups =
            |pid: &u32| std::fs::read_to_string(self.proc_root.join(pid.to_string()).join("cgroup"));
        let is_its = |pid: &u32| cgroups(pid).is_ok_and(|cgroups| is_of(&cgroups, &self.confines, pod));
        seen.into_iter().flatten().filter(is_its).collect()
    }

    /// Everything that may be a pod's.
    fn walk(&self) -> HashMap<String, Vec<u32>> {
        let mut found: HashMap<String, Vec<u32>> = HashMap::new();
        let Ok(entries) = std::fs::read_dir(&self.proc_root) else { return found };
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(cgroups) = std::fs::read_to_string(entry.path().join("cgroup")) else { continue };
            for uid in candidates(&cgroups, &self.confines) {
                found.entry(uid).or_default().push(pid);
            }
        }
        for pids in found.values_mut() {
            pids.sort_unstable();
            // Each hierarchy of version 1 names the pod once more.
            pids.dedup();
        }
        found
    }
}

/// Whether a process with this `/proc/PID/cgroup` belongs to `pod`.
fn is_of(cgroups: &str, confines: &str, pod: &PodUid) -> bool {
    candidates(cgroups, confines).any(|uid| uid == pod.as_str())
}

/// The uids that a process with this `/proc/PID/cgroup` may belong to, if its cgroup of version 2 is below `confines`: the first that
/// is some pod's decides.
///
/// Kubelet names a pod's cgroup `pod<uid>` or, with systemd, `kubepods-<class>-pod<uid>.slice` with underscores
/// for dashes. The outermost component that names a pod decides: what a container makes below its own cgroup
/// claims nothing.
fn candidates(cgroups: &str, confines: &str) -> impl Iterator<Item = String> {
    let inside = cgroup::version2_path(cgroups).and_then(|path| path.strip_prefix(confines));
    let here = confines.is_empty() || inside.is_some_and(|path| path.is_empty() || path.starts_with('/'));
    let paths = cgroups.lines().filter(move |_| here).filter_map(move |line| match inside {
        // What lies above names no pod of this node.
        Some(path) if line.starts_with("0::") => Some(path),
        _ => line.splitn(3, ':').nth(2),
    });
    paths.flat_map(|path| {
        let mut decided = false;
        path.split('/').filter_map(uid_of).take_while(move |uid| {
            let before = decided;
            decided |= is_kubernetes_uid(uid);
            !before
        })
    })
}

/// The uid a cgroup's name carries, with dashes.
fn uid_of(component: &str) -> Option<String> {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => &name[name.find("-pod")? + "-pod".len()..],
    };
    (!uid.is_empty()).then(|| uid.replace('_', "-"))
}

/// Whether this is certainly the uid of some pod: a UUID, or the 32 hexadecimal digits of a static pod.
fn is_kubernetes_uid(uid: &str) -> bool {
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    digits == 32 && uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0b5e1c9a-7b39-4c6e-9f65-0a1b2c3d4e5f";
    const B: &str = "11111111-2222-3333-4444-555555555555";

    #[test]
    fn a_process_belongs_to_the_pod_its_cgroup_names() {
        let cases = [
            ("cgroupfs, v2", format!("0::/kubepods/burstable/pod{A}/3f2a"), Some(A)),
            ("cgroupfs, guaranteed", format!("0::/kubepods/pod{A}"), Some(A)),
            (
                "systemd, underscores",
                format!(
                    "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice/cri-1.scope",
                    A.replace('-', "_")
                ),
                Some(A),
            ),
            (
                "systemd, guaranteed",
                format!("0::/kubepods.slice/kubepods-pod{}.slice", A.replace('-', "_")),
                Some(A),
            ),
            ("version 1 controller", format!("5:devices:/x\n4:memory:/kubepods/pod{A}/c\n0::/"), Some(A)),
            ("below a tree of its own", format!("0::/node-east/kubelet/kubepods/pod{A}/app"), Some(A)),
            ("another pod", format!("0::/kubepods/pod{B}/c"), None),
            ("a nested cgroup that claims to be ours", format!("0::/kubepods/pod{B}/c/pod{A}"), None),
            ("a longer uid", format!("0::/kubepods/pod{A}0/c"), None),
            ("not a pod", "0::/system.slice/podman-1.scope".to_owned(), None),
            ("within something that only begins like a pod", format!("0::/podman-1/pod{A}"), Some(A)),
            ("no path", "garbage".to_owned(), None),
        ];
        for (name, cgroups, expected) in cases {
            assert_eq!(is_of(&cgroups, "", &PodUid::from(A)), expected.is_some(), "{name}");
        }
    }

    #[test]
    fn only_processes_below_the_cgroup_root_are_a_nodes() {
        let cases = [
            ("below it", format!("0::/run-1/east/pods/pod{A}/app"), Some(A)),
            ("another node", format!("0::/run-1/west/pods/pod{A}/app"), None),
            ("another sandbox", format!("0::/run-2/east/pods/pod{A}/app"), None),
            ("a node whose name begins alike", format!("0::/run-1/east2/pods/pod{A}"), None),
            ("above it", format!("0::/pod{A}"), None),
            ("version 1 alone", format!("4:memory:/run-1/east/pods/pod{A}\n"), None),
            ("version 1, but elsewhere by version 2", format!("4:memory:/kubepods/pod{A}\n0::/"), None),
        ];
        for (name, cgroups, expected) in cases {
            assert_eq!(is_of(&cgroups, "/run-1/east", &PodUid::from(A)), expected.is_some(), "{name}");
        }
        let nested = format!("0::/kubepods/pod{B}/run-1/east/pod{A}/app");
        let confines = format!("/kubepods/pod{B}/run-1/east");
        assert!(is_of(&nested, &confines, &PodUid::from(A)), "a node within a pod");
    }

    /// Makes a process, or moves it.
    fn put(proc: &Path, pid: &str, pod: &str) {
        std::fs::create_dir_all(proc.join(pid)).unwrap();
        std::fs::write(
            proc.join(pid).join("cgroup"),
            format!("4:memory:/pod{pod}\n0::/kubepods/pod{pod}/c\n"),
        )
        .unwrap();
    }

    #[test]
    fn one_walk_over_proc_finds_the_processes_of_all_pods_and_is_believed_once() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, pod) in [("12", A), ("7", A), ("9", B), ("self", A)] {
            put(proc.path(), pid, pod);
        }
        let processes = Processes::new(proc.path().to_owned(), String::new());
        assert_eq!(processes.of(&PodUid::from(A)), [7, 12]);
        // What came since shows that no walk has been made since.
        put(proc.path(), "10", B);
        assert_eq!(processes.of(&PodUid::from(B)), [9]);
        assert_eq!(processes.of(&PodUid::from(B)), [9, 10]);
    }

    #[test]
    fn a_process_whose_id_has_become_anothers_is_not_believed() {
        let proc = tempfile::tempdir().unwrap();
        put(proc.path(), "7", A);
        put(proc.path(), "9", B);
        let processes = Processes::new(proc.path().to_owned(), String::new());
        assert_eq!(processes.of(&PodUid::from(A)), [7]);
        put(proc.path(), "9", A);
        put(proc.path(), "10", B);
        assert_eq!(processes.of(&PodUid::from(B)), [10]);
    }
}
