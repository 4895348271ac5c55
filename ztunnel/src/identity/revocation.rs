//! The file with lists of revoked certificates: read at start, and again whenever it changes.
//!
//! Without lists that were asked for nothing starts. Later, what cannot be read leaves the last good lists in force, is
//! counted and told. inotify watches the file's directory, since files are replaced and not written (a ConfigMap volume
//! swaps a link); a timer finds what inotify cannot see, such as a network file system.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tunnel::tls::{RevocationListError, RevocationLists, Revocations};

use crate::telemetry::{Metrics, ResultLabel};

/// The longest file in bytes: more than a million certificates.
const LIMIT: u64 = 64 << 20;

/// Why the lists cannot be used. Whoever wrote the file is at fault, or the node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CrlError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too long.
    #[error("{0} is longer than {LIMIT} bytes")]
    TooLong(PathBuf),
    /// The file has no lists, or some that are none.
    #[error("{path}: {source}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        source: RevocationListError,
    },
}

/// When a change is acted on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Quiet that must follow a change (contract 2.8).
    pub(crate) quiet: Duration,
    /// But no longer than this.
    pub(crate) patience: Duration,
    /// The file is looked at so often without a word of a change.
    pub(crate) second_net: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(2),
            patience: Duration::from_secs(10),
            second_net: Duration::from_secs(30),
        }
    }
}

/// What was seen of the file last.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Content(u64),
    Unreadable(String),
}

/// The file, and the lists that are kept up to date with it.
#[derive(Debug)]
pub(crate) struct CrlFile {
    path: PathBuf,
    seen: Seen,
    revocations: Revocations,
}

impl CrlFile {
    /// Reads the file for the first time.
    pub(crate) fn open(path: &Path) -> Result<Self, CrlError> {
        let content = read(path)?;
        let lists = parse(path, &content)?;
        tracing::info!(path = %path.display(), lists = lists.count(), "certificates are looked up in lists of revoked ones");
        let seen = Seen::Content(digest(&content));
        Ok(Self { path: path.to_owned(), seen, revocations: Revocations::new(lists) })
    }

    /// What handshakes and tunnels look at.
    pub(crate) fn revocations(&self) -> Revocations {
        self.revocations.clone()
    }

    /// Keeps the lists up to date. Runs until dropped.
    pub(crate) async fn follow(mut self, pace: Pace, metrics: Metrics) {
        // One place is enough: an event says only "look again".
        let (sender, mut events) = mpsc::channel(1);
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let _watcher = watch(directory.unwrap_or(Path::new(".")), sender.clone())
            .inspect_err(|error| tracing::warn!(path = %self.path.display(), %error, every = ?pace.second_net, "the file's directory cannot be watched; the file is looked at now and then"));
        loop {
            self.look(&metrics).await;
            if timeout(pace.second_net, events.recv()).await.is_ok() {
                let latest = Instant::now() + pace.patience;
                while timeout_at(latest.min(Instant::now() + pace.quiet), events.recv()).await.is_ok()
                    && Instant::now() < latest
                {}
            }
        }
    }

    async fn look(&mut self, metrics: &Metrics) {
        let path = self.path.clone();
        // A disk that hangs holds up nothing but this.
        let read = tokio::task::spawn_blocking(move || {
            let content = read(&path)?;
            Ok((digest(&content), parse(&path, &content)))
        });
        let read = read.await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
        let (seen, lists) = match read {
            Ok((digest, lists)) => (Seen::Content(digest), lists),
            Err(error) => (Seen::Unreadable(CrlError::to_string(&error)), Err(error)),
        };
        if std::mem::replace(&mut self.seen, seen) == self.seen {
            return;
        }
        let result = match lists {
            Ok(lists) => {
                tracing::info!(path = %self.path.display(), lists = lists.count(), "the lists of revoked certificates have changed");
                self.revocations.replace(lists);
                "ok"
            }
            Err(error) => {
                tracing::error!(%error, "the lists of revoked certificates cannot be used; the last good ones stay in force");
                "error"
            }
        };
        metrics.crl_reloads.get_or_create(&ResultLabel { result }).inc();
    }
}

fn watch(directory: &Path, changed: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is no change, and this process reads.
        if !event.is_ok_and(|event| event.kind.is_access() && !closes_a_write(&event)) {
            let _ = changed.try_send(());
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

fn closes_a_write(event: &notify::Event) -> bool {
    use notify::event::{AccessKind, AccessMode};
    matches!(event.kind, notify::EventKind::Access(AccessKind::Close(AccessMode::Write)))
}

fn read(path: &Path) -> Result<Vec<u8>, CrlError> {
    let failed = |source| CrlError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    File::open(path).map_err(failed)?.take(LIMIT + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > LIMIT { Err(CrlError::TooLong(path.to_owned())) } else { Ok(content) }
}

fn parse(path: &Path, content: &[u8]) -> Result<RevocationLists, CrlError> {
    RevocationLists::parse(content).map_err(|source| CrlError::Content { path: path.to_owned(), source })
}

fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
