//! Nodes: who a caller is, by its token, and which identities run there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use api::type_url::ResourceType;
use mesh::workload::TunnelProtocol;
use mesh::{SpiffeId, Workload};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::tokens::Tokens;
use crate::xds::{Access, Client};

/// Nodes' tokens and identities.
#[derive(Debug)]
pub(crate) struct Nodes {
    tokens: Tokens,
    /// Node -> identities of the pods of the mesh on it; `None` until manifests were read.
    identities: RwLock<Option<BTreeMap<String, BTreeSet<SpiffeId>>>>,
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
    pub(crate) fn new(tokens: Tokens) -> Self {
        Self { tokens, identities: RwLock::new(None) }
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

    /// The node whose token the metadata carries.
    pub(crate) fn of(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        // RFC 9110 section 11.1: the scheme's case does not matter.
        let token = header
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Err(Status::unauthenticated("a token is needed: `authorization: Bearer <token>`"));
        };
        match self.tokens.node_of(token) {
            Ok(Some(node)) => Ok(node),
            Ok(None) => Err(Status::unauthenticated(
                "the token is no node's: make one with `culvert token create NODE`",
            )),
            Err(error) => {
                tracing::error!("tokens cannot be read, nobody is let in: {error}");
                Err(Status::unavailable("tokens cannot be read"))
            }
        }
    }
}

impl Access for Arc<Nodes> {
    fn admit(&self, metadata: &MetadataMap) -> Result<Client, Status> {
        let node = self.of(metadata)?;
        Ok(Client { name: format!("node {node}"), node: Some(node), kinds: &ResourceType::AGENT })
    }

    /// A disk that cannot be read now is no reason to cut those who have been let in.
    fn still_admits(&self, metadata: &MetadataMap) -> bool {
        self.of(metadata).map_or_else(|status| status.code() == tonic::Code::Unavailable, |_| true)
    }
}
