//! Nodes: who a caller is, by its token, and which identities run there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::type_url::ResourceType;
use mesh::workload::TunnelProtocol;
use mesh::{SpiffeId, Workload};
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use crate::connections::Peer;
use crate::kubernetes::TokenReviews;
use crate::status::Status as Counts;
use crate::tokens::Tokens;
use crate::xds::{Access, Client};

/// How long the disk or the API server may take to tell whose a token is.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Nodes' tokens and identities.
#[derive(Debug)]
pub(crate) struct Nodes {
    tokens: Arc<Tokens>,
    /// Who tells whose a token is that none of the former is.
    reviews: Option<TokenReviews>,
    /// Held by the one thread that reads tokens: a disk that hangs costs one.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// Node -> identities of the pods of the mesh on it; `None` until manifests were read.
    identities: RwLock<Option<BTreeMap<String, BTreeSet<SpiffeId>>>>,
    counts: Counts,
}

/// Whether an identity is a node's to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A pod of the mesh on that node has it.
    RunsThere,
    /// None has.
    DoesNot,
    /// It is not known yet which pods there are.
    Unknown,
}

impl Nodes {
    /// `counts` is told of those who are not let in.
    pub(crate) fn new(tokens: Tokens, reviews: Option<TokenReviews>, counts: Counts) -> Self {
        let (tokens, reading) = (Arc::new(tokens), Arc::default());
        Self { tokens, reviews, reading, identities: RwLock::new(None), counts }
    }

    /// Takes note of what runs where now.
    pub(crate) fn set_workloads(&self, workloads: &[Workload]) {
        let mut identities: BTreeMap<String, BTreeSet<SpiffeId>> = BTreeMap::new();
        for workload in workloads.iter().filter(|workload| workload.tunnel_protocol == TunnelProtocol::Hbone)
        {
            identities.entry(workload.node.clone()).or_default().insert(workload.identity());
        }
        *self.identities.write().unwrap_or_else(PoisonError::into_inner) = Some(identities);
    }

    pub(crate) fn standing(&self, node: &str, identity: &SpiffeId) -> Standing {
        let identities = self.identities.read().unwrap_or_else(PoisonError::into_inner);
        let Some(identities) = identities.as_ref() else { return Standing::Unknown };
        let runs = identities.get(node).is_some_and(|there| there.contains(identity));
        if runs { Standing::RunsThere } else { Standing::DoesNot }
    }

    /// The node whose token a request carries; its connection is the node's from then on.
    pub(crate) async fn of(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<String, Status> {
        let node = self.named_by(metadata).await?;
        match extensions.get::<Peer>() {
            Some(peer) => peer.prove(&node).map(|()| node),
            None => Ok(node),
        }
    }

    async fn named_by(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        // RFC 9110 section 11.1: the scheme's case does not matter.
        let token = header
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Err(Status::unauthenticated("a token is needed: `authorization: Bearer <token>`"));
        };
        match self.node_of(token.to_owned()).await {
            Ok(Some(node)) => Ok(node),
            Ok(None) => Err(Status::unauthenticated(
                "the token is no node's: make one with `culvert token create NODE`",
            )),
            Err(reason) => {
                tracing::error!("tokens cannot be read, nobody is let in: {reason}");
                Err(Status::unavailable("tokens cannot be read"))
            }
        }
    }

    async fn node_of(&self, token: String) -> Result<Option<String>, String> {
        let in_files = self.node_in_files(token.clone()).await?;
        match (&self.reviews, in_files) {
            (Some(reviews), None) => {
                let review = tokio::time::timeout(READ_TIMEOUT, reviews.node_of(&token)).await;
                let late = || format!("the API server does not answer within {} s", READ_TIMEOUT.as_secs());
                review.unwrap_or_else(|_| Err(late()))
            }
            (_, in_files) => Ok(in_files),
        }
    }

    /// Reads files, away from the threads that serve.
    async fn node_in_files(&self, token: String) -> Result<Option<String>, String> {
        let reading = async {
            let alone = Arc::clone(&self.reading).lock_owned().await;
            let tokens = Arc::clone(&self.tokens);
            let read = move || {
                let node = tokens.node_of(&token);
                drop(alone);
                node
            };
            tokio::task::spawn_blocking(read).await
        };
        match tokio::time::timeout(READ_TIMEOUT, reading).await {
            Ok(Ok(node)) => node.map_err(|error| error.to_string()),
            Ok(Err(failed)) => Err(failed.to_string()),
            Err(_) => Err(format!("the disk does not answer within {} s", READ_TIMEOUT.as_secs())),
        }
    }
}

#[tonic::async_trait]
impl Access for Arc<Nodes> {
    async fn admit(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<Client, Status> {
        let node = self.of(metadata, extensions).await.inspect_err(|status| {
            let peer = extensions.get::<Peer>().map(Peer::address);
            let reason = status.message();
            tracing::warn!(target: "audit", ?peer, code = ?status.code(), reason, "a stream of the mesh's state was refused");
            self.counts.stream_refused();
        })?;
        Ok(Client { name: format!("node {node}"), node: Some(node), kinds: &ResourceType::AGENT })
    }

    /// A disk that cannot be read now is no reason to cut those who have been let in.
    async fn still_admits(&self, metadata: &MetadataMap) -> bool {
        self.named_by(metadata)
            .await
            .map_or_else(|status| status.code() == tonic::Code::Unavailable, |_| true)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use tonic::Code;

    use super::*;

    /// A pipe nobody writes to stands for a disk that hangs.
    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_neither_stops_control_nor_lets_anybody_in_nor_cuts_anybody() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(&directory.path().join("state")).unwrap();
        let token = tokens.create("east").unwrap();
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {}", token.reveal()).parse().unwrap());
        let (nodes, extensions) = (Arc::new(Nodes::new(tokens, None, Counts::new())), Extensions::new());
        assert_eq!(nodes.of(&metadata, &extensions).await.unwrap(), "east");
        let pipe = directory.path().join("state/tokens/west");
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        // A thread that reads files holds the paused clock: it goes on by hand.
        for _ in 0..2 {
            let (outcome, ()) = tokio::join!(nodes.of(&metadata, &extensions), pass(READ_TIMEOUT));
            assert_eq!(outcome.unwrap_err().code(), Code::Unavailable);
        }
        let (still, ()) = tokio::join!(nodes.still_admits(&metadata), pass(READ_TIMEOUT));
        assert!(still);
        release(&pipe);
        std::fs::remove_file(&pipe).unwrap();
        assert_eq!(nodes.of(&metadata, &extensions).await.unwrap(), "east", "it answers again");
    }

    /// Lets the reader go on, which finds no token in a pipe that is closed at once. Before it has come to wait (fifo(7): ENXIO) it
    /// would wait for ever.
    fn release(pipe: &Path) {
        while open(pipe, OFlag::O_WRONLY | OFlag::O_NONBLOCK, Mode::empty()).is_err() {
            std::thread::yield_now();
        }
    }

    async fn pass(time: Duration) {
        // First those who wait begin to.
        tokio::task::yield_now().await;
        tokio::time::advance(time + Duration::from_millis(1)).await;
    }
}
