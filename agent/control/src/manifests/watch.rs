//! Reloading: a change of the directory is in effect within a second, whichever way files are replaced.
//!
//! inotify watches the directory and the directories its links lead to (a ConfigMap volume swaps a link, `..data`); what
//! is read is decided by the files' fingerprint, not by the events. A timer is the second net: it finds what inotify
//! cannot see, such as a network file system or the directory itself put in place of another. Whatever may wait for a
//! disk runs on threads of its own, so that a directory that hangs holds up nothing but its reloads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::files::{Fingerprint, load_with_fingerprint};
use super::{LoadError, Objects};

/// Quiet that must follow a change before files are read: editors and `kubectl` write several files at a time.
const QUIET: Duration = Duration::from_millis(100);
/// A reload waits no longer than this for quiet.
const PATIENCE: Duration = Duration::from_millis(400);
/// The second net's period.
const SECOND_NET: Duration = Duration::from_secs(5);

/// inotify cannot be set up at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch for changed files (inotify): {0}")]
pub struct WatchError(#[from] notify::Error);

/// A directory that is being watched.
#[derive(Debug)]
pub struct Reloads {
    directory: PathBuf,
    watches: Arc<Mutex<Watches>>,
    events: mpsc::Receiver<()>,
    seen: Option<Fingerprint>,
}

/// inotify and the directories it watches.
#[derive(Debug)]
struct Watches {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

/// Prepares to watch `directory`, which need not exist yet; nothing of it is touched before it is read first.
///
/// # Errors
/// The kernel gives no inotify instance.
pub fn watch(directory: &Path) -> Result<Reloads, WatchError> {
    // One place is enough: an event says only "look again".
    let (sender, events) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| event.kind.is_access() && !closes_a_write(&event)) {
            return;
        }
        let _ = sender.try_send(());
    })?;
    let watches = Arc::new(Mutex::new(Watches { watcher, watched: BTreeSet::new() }));
    Ok(Reloads { directory: directory.to_owned(), watches, events, seen: None })
}

fn closes_a_write(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode};
    matches!(event.kind, notify::EventKind::Access(AccessKind::Close(AccessMode::Write)))
}

impl Reloads {
    /// Waits for the next state that differs from the last one returned; the first call returns at once.
    ///
    /// Cancel safe: a change that was noticed but not returned is noticed again.
    pub async fn next(&mut self) -> Result<Objects, LoadError> {
        if self.seen.is_some() {
            self.changed().await;
        }
        let watches = Arc::clone(&self.watches);
        let (loaded, seen) = self
            .apart(move |directory| {
                watches.lock().unwrap_or_else(PoisonError::into_inner).arm(directory);
                match load_with_fingerprint(directory) {
                    Ok((objects, fingerprint)) => (Ok(objects), fingerprint),
                    Err(error) => (Err(error), look(directory)),
                }
            })
            .await;
        self.seen = Some(seen);
        loaded
    }

    /// Does what may wait for the disk, on another thread.
    async fn apart<T: Send + 'static>(&self, work: impl FnOnce(&Path) -> T + Send + 'static) -> T {
        let directory = self.directory.clone();
        match tokio::task::spawn_blocking(move || work(&directory)).await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// Until the fingerprint is another one and the directory has come to rest.
    async fn changed(&mut self) {
        loop {
            let noticed = tokio::time::timeout(SECOND_NET, self.events.recv()).await.is_ok();
            if noticed {
                self.rest().await;
            }
            let watches = Arc::clone(&self.watches);
            let now = self.apart(look).await;
            if self.seen.as_ref() != Some(&now) {
                return;
            }
            self.apart(move |directory| {
                watches.lock().unwrap_or_else(PoisonError::into_inner).arm(directory);
            })
            .await;
        }
    }

    async fn rest(&mut self) {
        let latest = Instant::now() + PATIENCE;
        while let Ok(Some(())) =
            tokio::time::timeout_at(latest.min(Instant::now() + QUIET), self.events.recv()).await
        {
            if Instant::now() >= latest {
                return;
            }
        }
    }
}

fn look(directory: &Path) -> Fingerprint {
    Fingerprint::take(directory).unwrap_or_default()
}

impl Watches {
    /// Watches the directory and wherever its files' links lead now. A watch that ended (its directory was removed) is
    /// set anew, which costs nothing where it still stands.
    fn arm(&mut self, directory: &Path) {
        let mut wanted = BTreeSet::from([directory.to_owned()]);
        for file in look(directory).files() {
            let target = file.canonicalize().ok();
            wanted.extend(target.as_deref().and_then(Path::parent).map(Path::to_owned));
        }
        for gone in self.watched.difference(&wanted) {
            let _ = self.watcher.unwatch(gone);
        }
        // What cannot be watched now is found by the second net and watched then.
        self.watched = wanted
            .into_iter()
            .filter(|directory| self.watcher.watch(directory, RecursiveMode::NonRecursive).is_ok())
            .collect();
    }
}
