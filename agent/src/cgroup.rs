//! Cgroups of version 2: where a process is, and the number by which kernel programs know a cgroup.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::bpf::CgroupId;

/// Why a cgroup could not be identified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The process is gone or hidden.
    #[error("cannot read the cgroup of process {pid}: {source}")]
    Process {
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process is in no cgroup of version 2.
    #[error("process {0} is in no cgroup of version 2")]
    NoVersion2(u32),
    /// It shares its cgroup with whatever else was put nowhere.
    #[error("process {0} runs in the root cgroup, as others may: give it a cgroup of its own")]
    Root(u32),
    /// The tree is not mounted.
    #[error("no cgroup tree of version 2 is mounted")]
    NotMounted,
    /// The agent sees only part of the tree.
    #[error("process {0} is outside the agent's cgroup namespace: the agent must run in the host's")]
    OtherNamespace(u32),
    /// The directory cannot be examined.
    #[error("cannot examine the cgroup {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The cgroup of process `pid`, which must be one that processes are put into on purpose: what is exempted by its cgroup
/// must share it with nobody.
pub(crate) fn of_process(pid: u32) -> Result<CgroupId, CgroupError> {
    let root = mount_point().ok().flatten().ok_or(CgroupError::NotMounted)?;
    let cgroups = paths_of(pid)?;
    let path = version2_path(&cgroups).ok_or(CgroupError::NoVersion2(pid))?;
    if path == "/" {
        return Err(CgroupError::Root(pid));
    }
    if path.split('/').any(|component| component == "..") {
        return Err(CgroupError::OtherNamespace(pid));
    }
    let directory = root.join(path.trim_start_matches('/'));
    of_directory(&directory).map_err(|source| CgroupError::Directory { path: directory, source })
}

/// The paths of the cgroups of process `pid`, one line for each hierarchy (cgroups(7)).
pub(crate) fn paths_of(pid: u32) -> Result<String, CgroupError> {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .map_err(|source| CgroupError::Process { pid, source })
}

/// The path within the tree of version 2, from `/proc/PID/cgroup` (cgroups(7): the line of hierarchy 0).
pub(crate) fn version2_path(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The number of the cgroup at `directory`: its inode, which on 64-bit kernels is the whole id (Linux 5.5) and is never used again.
pub(crate) fn of_directory(directory: &Path) -> io::Result<CgroupId> {
    Ok(CgroupId(std::fs::metadata(directory)?.ino()))
}

/// The numbers of all cgroups there are in the tree at `root`. What goes meanwhile is passed over.
///
/// # Errors
/// The root cannot be read, so that nothing is known.
pub(crate) fn all(root: &Path) -> io::Result<BTreeSet<CgroupId>> {
    let mut found = BTreeSet::from([of_directory(root)?]);
    let mut waiting = vec![std::fs::read_dir(root)?];
    while let Some(entries) = waiting.pop() {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            found.extend(of_directory(&entry.path()));
            waiting.extend(std::fs::read_dir(entry.path()));
        }
    }
    Ok(found)
}

/// Whether a path within the tree is `top` or below it.
pub(crate) fn is_within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where version 2 is mounted, from `/proc/self/mountinfo` (proc(5)): the first such mount.
pub(crate) fn mount_point() -> io::Result<Option<PathBuf>> {
    Ok(find_mount(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// The path within the tree, as `/proc/PID/cgroup` states paths, of the cgroup at `directory`; none when no tree of version 2 is
/// mounted there.
pub(crate) fn path_of_directory(directory: &Path) -> io::Result<Option<String>> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(path_in_tree(&mountinfo, &directory.canonicalize()?))
}

/// The same of a cgroup that need not exist.
pub(crate) fn path_of_coming_directory(directory: &Path) -> io::Result<Option<String>> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    let standing = directory.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
    let missing = directory.strip_prefix(standing).unwrap_or(Path::new(""));
    Ok(path_in_tree(&mountinfo, &standing.canonicalize()?.join(missing)))
}

/// The inode of the first cgroup namespace, in which paths are the kernel's own (`PROC_CGROUP_INIT_INO` of linux/proc_ns.h).
const FIRST_NAMESPACE: u64 = 0xeffffffb;

/// Whether this process sees the cgroups' paths as the kernel does.
pub(crate) fn sees_whole_paths() -> bool {
    std::fs::metadata("/proc/self/ns/cgroup").is_ok_and(|namespace| namespace.ino() == FIRST_NAMESPACE)
}

fn path_in_tree(mountinfo: &str, directory: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (top, point) = (fields.next()?, fields.next()?);
        filesystem.starts_with("cgroup2 ").then_some((top, Path::new(point)))
    });
    let (top, point) = mounts
        .filter(|(_, point)| directory.starts_with(point))
        .max_by_key(|(_, point)| point.components().count())?;
    let path = Path::new(top).join(directory.strip_prefix(point).ok()?);
    Some(path.to_str()?.trim_end_matches('/').to_owned())
}

fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        filesystem.starts_with("cgroup2 ").then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_version_2_is_that_of_hierarchy_0() {
        let hybrid = "9:name=systemd:/a\n4:memory:/b\n0::/kubepods/pod1/c\n";
        assert_eq!(version2_path(hybrid), Some("/kubepods/pod1/c"));
        assert_eq!(version2_path("4:memory:/b\n"), None);
    }

    #[test]
    fn what_is_below_a_cgroup_is_told_by_whole_names() {
        for (path, expected) in [
            ("/node/ztunnel", true),
            ("/node/ztunnel/a", true),
            ("/node/ztunnel-2", false),
            ("/node", false),
            ("/other/node/ztunnel", false),
        ] {
            assert_eq!(is_within(path, "/node/ztunnel"), expected, "{path}");
        }
    }

    #[test]
    fn all_cgroups_of_a_tree_are_found() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::fs::create_dir(root.path().join("c")).unwrap();
        let expected = ["", "a", "a/b", "c"].map(|name| of_directory(&root.path().join(name)).unwrap());
        assert_eq!(all(root.path()).unwrap(), expected.into());
    }

    #[test]
    fn a_directory_is_named_by_its_path_within_the_tree() {
        let mounts = "24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 24 0:36 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n\
                      41 24 0:36 /part /mnt/part rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        let cases = [
            ("/sys/fs/cgroup/unified", Some("")),
            ("/sys/fs/cgroup/unified/run/east", Some("/run/east")),
            ("/mnt/part", Some("/part")),
            ("/mnt/part/a", Some("/part/a")),
            ("/sys/fs/cgroup/memory", None),
        ];
        for (directory, expected) in cases {
            assert_eq!(path_in_tree(mounts, Path::new(directory)).as_deref(), expected, "{directory}");
        }
    }

    #[test]
    fn the_tree_of_version_2_is_found_wherever_it_is_mounted() {
        let hybrid = "24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 24 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      40 24 0:36 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_mount("24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"), None);
    }
}
