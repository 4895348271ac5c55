//! Follows kubelet's cgroup, so that its probes pass the mesh: a restart of kubelet's service removes the cgroup
//! and makes a new one, with a new id, which must count at once.
//!
//! The watch is on the nearest directory that exists above it, since a watch on the cgroup itself goes with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::bpf::CgroupId;
use crate::cgroup;

/// How often the cgroup is looked up without any event: the second net.
const RECHECK: Duration = Duration::from_secs(30);

/// Calls `changed` with the id of the cgroup at `path`, or none while there is none: at once, and on every change until `stop`.
pub(crate) async fn follow(
    path: PathBuf,
    mut changed: impl FnMut(Option<CgroupId>),
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
        let now = cgroup::of_directory(&path).ok();
        if first || now != last {
            if now.is_some() {
                info!(path = %path.display(), "kubelet's cgroup is known; its probes pass the mesh");
            } else {
                warn!(path = %path.display(), "kubelet's cgroup does not exist; its probes are captured until it does");
            }
            changed(now);
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
        let report = move |id: Option<CgroupId>| seen.send(id.is_some()).unwrap();
        let follower = tokio::spawn(follow(path.clone(), report, stop.clone()));
        assert_eq!(changes.recv().await, Some(false));
        std::fs::create_dir_all(&path).unwrap();
        assert_eq!(changes.recv().await, Some(true));
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(changes.recv().await, Some(false));
        std::fs::create_dir(&path).unwrap();
        assert_eq!(changes.recv().await, Some(true));
        stop.cancel();
        follower.await.unwrap();
    }
}
