//! The last that control said, in a file: an agent that is restarted while control is away goes on with it, as one that
//! was not restarted does.
//!
//! The file is in the run directory: in memory, of the owner alone, and gone when the machine starts anew. It holds what control would
//! push to an agent that holds nothing, one message a type; so what is read from it is treated like a push, and replaced
//! by what control says next. It is written after each change, but not more often than it can be.
//!
//! Nothing in it is true of one start of the machine only: there is no process, device, inode or time in it, the path of a pod's namespace is
//! its manifest's word, and where pods are is looked up anew. So no boot is noted beside it: where the run directory outlives a
//! start, what it holds is as old as after an agent that was away for as long, and no more wrong.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::proto::discovery::{DeltaDiscoveryResponse, Resource};
use api::type_url::ResourceType;
use api::whole_file;
use control::xds::ResourceStore;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task;
use tracing::warn;

/// This node's pods as control sent them; none before it has.
pub(crate) type PodMessages = Option<Arc<Vec<Resource>>>;

/// Where the state is kept, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct LastState {
    path: PathBuf,
    /// Of which node by which control: another's is none.
    origin: String,
}

/// What a state is made of. Control's roots are not in it: they have a file of their own (`api::channel::Roots`).
const KINDS: [ResourceType; 3] = [ResourceType::Authorization, ResourceType::Address, ResourceType::NodePod];

/// Why there is no last state.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no state: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("it is of {0}")]
    OfAnother(String),
    #[error("it has nothing of {0}")]
    Incomplete(ResourceType),
}

impl LastState {
    /// In `directory`, for `node` under the control plane at `control`.
    pub(crate) fn new(directory: &Path, node: &str, control: &str) -> Self {
        Self { path: directory.join("last-state"), origin: format!("{node} under {control}") }
    }

    /// What was written last, one push a type; nothing if there is none, or it cannot be used.
    pub(crate) fn read(&self) -> Vec<(ResourceType, Vec<Resource>)> {
        match self.try_read() {
            Ok(pushes) => pushes,
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the last state of control is not usable; waiting for control");
                Vec::new()
            }
        }
    }

    fn try_read(&self) -> Result<Vec<(ResourceType, Vec<Resource>)>, Unusable> {
        let content = std::fs::read(&self.path)?;
        let mut rest = content.as_slice();
        let mut pushes = Vec::new();
        while !rest.is_empty() {
            let push = DeltaDiscoveryResponse::decode_length_delimited(&mut rest)?;
            if push.system_version_info != self.origin {
                return Err(Unusable::OfAnother(push.system_version_info));
            }
            if let Some(kind) = ResourceType::from_url(&push.type_url) {
                pushes.push((kind, push.resources));
            }
        }
        let missing = |kind: &ResourceType| !pushes.iter().any(|(found, _)| found == kind);
        match KINDS.into_iter().find(missing) {
            Some(kind) => Err(Unusable::Incomplete(kind)),
            None => Ok(pushes),
        }
    }

    /// Writes what changes, until one of the two is given up.
    pub(crate) async fn write(self, store: ResourceStore, mut pods: watch::Receiver<PodMessages>) {
        let mut configuration = store.watch();
        loop {
            let snapshot = Arc::clone(&configuration.borrow_and_update());
            let node_pods = pods.borrow_and_update().clone();
            if let (true, Some(node_pods)) = (snapshot.is_ready(), node_pods) {
                let this = self.clone();
                let written = task::spawn_blocking(move || {
                    let of = |kind| {
                        let resource = |(name, content): (&str, &_)| Resource {
                            name: name.to_owned(),
                            resource: Some(Clone::clone(content)),
                            ..Resource::default()
                        };
                        (kind, snapshot.contents(kind).map(resource).collect())
                    };
                    let configuration = ResourceType::ZTUNNEL.map(of);
                    let pods = [(ResourceType::NodePod, node_pods.to_vec())];
                    // One that is older than what ztunnel has been told would take a policy back; better none.
                    this.replace(configuration.into_iter().chain(pods))
                        .inspect_err(|_| drop(std::fs::remove_file(&this.path)))
                });
                if let Ok(Err(error)) = written.await {
                    warn!(path = %self.path.display(), %error, "the last state of control is not kept");
                }
            }
            let changed = tokio::select! {
                changed = configuration.changed() => changed.is_ok(),
                changed = pods.changed() => changed.is_ok(),
            };
            if !changed {
                return;
            }
        }
    }

    fn replace(&self, pushes: impl Iterator<Item = (ResourceType, Vec<Resource>)>) -> io::Result<()> {
        let mut content = Vec::new();
        for (kind, resources) in pushes {
            let push = DeltaDiscoveryResponse {
                system_version_info: self.origin.clone(),
                resources,
                type_url: kind.url().to_owned(),
                ..DeltaDiscoveryResponse::default()
            };
            content.extend(push.encode_length_delimited_to_vec());
        }
        whole_file::write(&self.path, 0o600, &content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(kind: ResourceType, name: &str) -> (ResourceType, Vec<Resource>) {
        (kind, vec![Resource { name: name.to_owned(), ..Resource::default() }])
    }

    #[test]
    fn what_was_written_comes_back_to_the_same_node_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = LastState::new(directory.path(), "east", "https://control");
        assert!(state.read().is_empty());
        let all = KINDS.map(|kind| push(kind, "a"));
        state.replace(all.clone().into_iter()).unwrap();
        assert_eq!(state.read(), all);
        assert!(LastState::new(directory.path(), "west", "https://control").read().is_empty());
    }

    #[test]
    fn what_is_damaged_or_incomplete_is_no_state() {
        let directory = tempfile::tempdir().unwrap();
        let state = LastState::new(directory.path(), "east", "https://control");
        state.replace([push(ResourceType::Address, "a")].into_iter()).unwrap();
        assert!(matches!(state.try_read(), Err(Unusable::Incomplete(ResourceType::Authorization))));
        std::fs::write(&state.path, b"\x05abc").unwrap();
        assert!(matches!(state.try_read(), Err(Unusable::Malformed(_))));
    }
}
