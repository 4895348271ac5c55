//! The mesh's state from a file, or from the configuration itself (contract 1.5, `LOCAL_XDS_PATH` and `LOCAL_XDS`).
//!
//! A file is looked at every second, whatever way it is replaced, and used once it has stayed the same for as long. One that cannot be used leaves the last good state in force and is
//! told about once. At the start there is none yet, so there it ends the process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::local::{LocalConfig, LocalConfigError};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::mesh_state::MeshState;
use crate::telemetry::Metrics;

/// How often a file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In a file.
    File(PathBuf),
    /// Here.
    Inline(Arc<str>),
}

/// It cannot be used. Whoever wrote it is at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    /// The file cannot be read.
    #[error("cannot read {file}: {error}", file = file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// It does not say what a mesh is.
    #[error("{place}:{error}")]
    Content {
        /// The file, or the variable.
        place: String,
        /// What is wrong, after line and column.
        error: LocalConfigError,
    },
}

impl Source {
    async fn read(&self) -> Result<String, LocalError> {
        match self {
            Self::File(file) => tokio::fs::read_to_string(file)
                .await
                .map_err(|error| LocalError::Read { file: file.clone(), error }),
            Self::Inline(text) => Ok(text.to_string()),
        }
    }

    fn parse(&self, text: &str) -> Result<LocalConfig, LocalError> {
        let place = || match self {
            Self::File(file) => file.display().to_string(),
            Self::Inline(_) => "LOCAL_XDS".to_owned(),
        };
        LocalConfig::parse(text).map_err(|error| LocalError::Content { place: place(), error })
    }
}

/// What is in force, and where it came from.
#[derive(Debug)]
pub(crate) struct Local {
    source: Source,
    /// The last text that was looked at, good or not.
    text: String,
    config: LocalConfig,
}

impl Local {
    /// Brings `mesh` to what the source says now.
    pub(crate) async fn load(source: Source, mesh: &MeshState) -> Result<Self, LocalError> {
        let text = source.read().await?;
        let config = source.parse(&text)?;
        mesh.change(Instant::now(), |state| config.apply_over(&LocalConfig::default(), state));
        tracing::info!(resources = config.len(), "local configuration applied");
        Ok(Self { source, text, config })
    }

    /// Keeps it so. Runs until dropped.
    pub(crate) async fn follow(mut self, mesh: &MeshState, metrics: &Metrics) {
        if matches!(self.source, Source::Inline(_)) {
            return std::future::pending().await;
        }
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unreadable = None;
        // Not used before it has been seen twice: the first time somebody may be writing it still.
        let mut candidate = None;
        loop {
            look.tick().await;
            let read = self.source.read().await;
            let text = match read {
                Ok(text) => text,
                Err(error) => {
                    let told = error.to_string();
                    if unreadable.as_ref() != Some(&told) {
                        tracing::warn!(%error, "the last good local configuration stays in force");
                        unreadable = Some(told);
                    }
                    continue;
                }
            };
            unreadable = None;
            if text == self.text {
                candidate = None;
            } else if candidate.as_ref() == Some(&text) {
                self.take(text, mesh, metrics);
                candidate = None;
            } else {
                candidate = Some(text);
            }
        }
    }

    fn take(&mut self, text: String, mesh: &MeshState, metrics: &Metrics) {
        let parsed = self.source.parse(&text);
        self.text = text;
        match parsed {
            Ok(config) => {
                mesh.change(Instant::now(), |state| config.apply_over(&self.config, state));
                tracing::info!(resources = config.len(), "local configuration applied");
                self.config = config;
            }
            Err(error) => {
                metrics.rejected_resources.inc();
                tracing::warn!(%error, "the last good local configuration stays in force");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ONE: &str = "workloads: [{uid: a, namespace: n, workloadIps: [10.0.0.1]}]";
    const OTHER: &str = "workloads: [{uid: b, namespace: n, workloadIps: [10.0.0.2]}]";
    const WRONG: &str = "workloads:\n- {uid: c, namespace: n}\n- {uid: d, port: 1}\n";

    fn uids(mesh: &MeshState) -> Vec<String> {
        mesh.read(|state| state.workloads().map(|workload| workload.uid.to_string()).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_followed_and_one_that_is_wrong_leaves_the_last_good_state() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mesh.yaml");
        fs::write(&file, ONE).unwrap();
        let (mesh, metrics) = (MeshState::default(), Metrics::default());
        let local = Local::load(Source::File(file.clone()), &mesh).await.unwrap();
        assert_eq!(uids(&mesh), ["a"]);
        let mut progress = mesh.subscribe();
        let events = async {
            progress.mark_unchanged();
            fs::write(&file, WRONG).unwrap();
            while metrics.rejected_resources.get() == 0 {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            assert_eq!(uids(&mesh), ["a"]);
            fs::remove_file(&file).unwrap();
            tokio::time::sleep(LOOK_INTERVAL * 3).await;
            assert_eq!(uids(&mesh), ["a"]);
            assert!(!progress.has_changed().unwrap());
            // As an editor and a mounted ConfigMap do it.
            fs::write(directory.path().join("new"), OTHER).unwrap();
            fs::rename(directory.path().join("new"), &file).unwrap();
            progress.changed().await.unwrap();
            assert_eq!(uids(&mesh), ["b"]);
            assert_eq!(metrics.rejected_resources.get(), 1, "told once");
        };
        tokio::select! {
            () = local.follow(&mesh, &metrics) => panic!("it ended"),
            done = tokio::time::timeout(Duration::from_secs(600), events) => done.unwrap(),
        }
    }

    #[tokio::test]
    async fn at_the_start_what_is_wrong_is_an_error_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mesh.yaml");
        let mesh = MeshState::default();
        let missing = Local::load(Source::File(file.clone()), &mesh).await.unwrap_err();
        assert!(matches!(missing, LocalError::Read { .. }), "{missing}");
        fs::write(&file, WRONG).unwrap();
        let wrong = Local::load(Source::File(file.clone()), &mesh).await.unwrap_err().to_string();
        assert!(wrong.starts_with(&format!("{}:3:", file.display())), "{wrong}");
        let inline = Local::load(Source::Inline("workloads: 1".into()), &mesh).await.unwrap_err().to_string();
        assert!(inline.starts_with("LOCAL_XDS:1:"), "{inline}");
        assert!(uids(&mesh).is_empty());
    }
}
