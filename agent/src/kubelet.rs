//! Follows kubelet's cgroup, so that its probes pass the mesh: a restart of kubelet's service removes the cgroup
//! and makes a new one, with a new id, which must count at once.
//!
//! The kernel notices a new one by itself where it can (`crate::bpf`); this finds the one that is there already, and is the second
//! net. The watch is on the nearest directory that exists above it, since a watch on the cgroup itself goes with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ebpf_common::CgroupPath;
use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bpf::CgroupId;
use crate::cgroup;

/// How often the cgroup is looked up without any event: the second net's second net.
const RECHECK: Duration = Duration::from_secs(30);

/// The path by which the kernel will know the cgroup at `path`; none, and why, if it cannot.
pub(crate) fn as_the_kernel_says(path: &Path) -> Result<CgroupPath, &'static str> {
    if !cgroup::sees_whole_paths() {
        return Err("the agent is in a cgroup namespace of its own");
    }
    let within = cgroup::path_of_coming_directory(path).ok().flatten();
    let within = within.ok_or("it is in no cgroup tree of version 2")?;
    CgroupPath::new(&within).ok_or("its path is longer than 254 bytes")
}

/// Calls `look`, which finds the cgroup at `path` and tells the kernel: at once, and on every change until `stop`.
pub(crate) async fn follow(
    path: PathBuf,
    mut look: impl FnMut() -> Option<CgroupId>,
    stop: CancellationToken,
) {
    let events = Arc::new(Notify::new());
    let mut last = None;
    let mut first = true;
    loop {
        // The watch stands before the look, so that no change falls between the two.
        let watch = watch(&path, Arc::clone(&events));
        if let Err(error) = &watch {
            warn!(%error, path = %path.display(), "kubelet's cgroup cannot be watched; it is looked up every {RECHECK:?}");
        }
        let now = look();
        if first || now != last {
            if now.is_some() {
                info!(path = %path.display(), "kubelet's cgroup is known; its probes pass the mesh");
            } else {
                warn!(path = %path.display(), "kubelet's cgroup does not exist; its probes are captured until it does");
            }
            (first, last) = (false, now);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = events.notified() => {}
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
}

/// Watches the directory in which `path`, or the first missing part of it, is or would be.
fn watch(path: &Path, events: Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |_| events.notify_one())?;
    watcher.watch(nearest_parent(path), RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// The nearest ancestor that exists, not the path itself.
fn nearest_parent(path: &Path) -> &Path {
    path.ancestors().skip(1).find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watch_is_on_what_exists() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("system.slice/kubelet.service");
        assert_eq!(nearest_parent(&path), root.path());
        std::fs::create_dir_all(&path).unwrap();
        assert_eq!(nearest_parent(&path), path.parent().unwrap());
    }

    #[tokio::test]
    async fn a_cgroup_that_goes_and_comes_again_is_noticed_by_events() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("system.slice/kubelet.service");
        let (seen, mut changes) = tokio::sync::mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let looked_at = path.clone();
        let look = move || {
            let found = cgroup::of_directory(&looked_at).ok();
            seen.send(found.is_some()).unwrap();
            found
        };
        let follower = tokio::spawn(follow(path.clone(), look, stop.clone()));
        // Events may come one by one for what is one change.
        let mut until = async |there| while changes.recv().await.unwrap() != there {};
        until(false).await;
        std::fs::create_dir_all(&path).unwrap();
        until(true).await;
        std::fs::remove_dir(&path).unwrap();
        until(false).await;
        std::fs::create_dir(&path).unwrap();
        until(true).await;
        stop.cancel();
        follower.await.unwrap();
    }
}
