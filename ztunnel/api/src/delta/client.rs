//! The client's side.

use std::collections::{BTreeMap, BTreeSet};

use super::WILDCARD;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use crate::type_url::ResourceType;

/// gRPC's code of a request that is at fault, which a NACK states.
const INVALID_ARGUMENT: i32 = 3;

/// The version under which a resource is held whose content was not taken, or not yet: the server knows no
/// such version, so it sends the resource anew or, if it is gone, says so.
const UNKNOWN_VERSION: &str = "";

/// What a client holds of each type it subscribes to.
#[derive(Debug)]
pub struct ClientState {
    node: Node,
    /// In the order of subscription.
    types: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    kind: ResourceType,
    /// It is asked for by name, and not for all there is.
    by_name: bool,
    /// Name -> version of everything a consumer has been given.
    versions: BTreeMap<String, String>,
    answered: bool,
}

/// A push to be applied.
#[derive(Debug)]
pub struct Push {
    /// The type.
    pub kind: ResourceType,
    /// What is new or changed.
    pub resources: Vec<Resource>,
    /// What is gone.
    pub removed: Vec<String>,
    /// What the answer needs.
    pub receipt: Receipt,
}

/// What is to be handed to [`ClientState::answer`] once the push is applied.
#[derive(Debug)]
#[must_use = "a push that is not answered stays the last one of its type"]
pub struct Receipt {
    kind: ResourceType,
    nonce: String,
    /// Name -> version of what it carried.
    versions: Vec<(String, String)>,
    removed: Vec<String>,
}

/// A resource that the consumer did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// How a server breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientViolation {
    /// A push of a type that was not subscribed to.
    #[error("a push of {0}, which was not subscribed to")]
    UnknownType(String),
}

impl ClientState {
    /// A client that holds nothing and will subscribe to all of `types`, in this order.
    pub fn new(node: Node, types: &[ResourceType]) -> Self {
        let held = |kind: &ResourceType| Held {
            kind: *kind,
            by_name: false,
            versions: BTreeMap::new(),
            answered: false,
        };
        Self { node, types: types.iter().map(held).collect() }
    }

    /// Takes note that the consumer holds these from an earlier process, of whatever versions.
    pub fn hold(&mut self, kind: ResourceType, names: impl IntoIterator<Item = String>) {
        if let Some(held) = self.types.iter_mut().find(|held| held.kind == kind) {
            held.versions.extend(names.into_iter().map(|name| (name, UNKNOWN_VERSION.to_owned())));
        }
    }

    /// From now on resources of this type are asked for by name.
    pub fn ask_by_name(&mut self, kind: ResourceType) {
        if let Some(held) = self.types.iter_mut().find(|held| held.kind == kind) {
            held.by_name = true;
        }
    }

    /// What to say first on a new stream: one subscription a type, with what is held: to all there is, or, of types that are asked for
    /// by name, to `names`.
    pub fn connect(&self, names: &[String]) -> Vec<DeltaDiscoveryRequest> {
        let subscribe = |held: &Held| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: held.kind.url().to_owned(),
            initial_resource_versions: held.versions.clone(),
            resource_names_subscribe: match held.by_name {
                // To name nothing is to ask for everything, unless that is taken back in the same breath (contract 2.3).
                true => std::iter::once(WILDCARD.to_owned()).chain(names.iter().cloned()).collect(),
                false => Vec::new(),
            },
            resource_names_unsubscribe: held.by_name.then(|| WILDCARD.to_owned()).into_iter().collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.types.iter().map(subscribe).collect()
    }

    /// What to say on a stream to ask for further names of a type, and to let go of others. What was held of those is not
    /// looked after any more, so that they had better be names of nothing.
    pub fn ask(
        &self,
        kind: ResourceType,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
    ) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes a push, to be answered before the next one is taken. From here on what it names counts as held
    /// under no known version, because the consumer may apply some of it and never get to answer.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Result<Push, ClientViolation> {
        let kind = ResourceType::from_url(&response.type_url);
        let held = self.types.iter_mut().find(|held| Some(held.kind) == kind);
        let Some(held) = held else { return Err(ClientViolation::UnknownType(response.type_url)) };
        for resource in &response.resources {
            held.versions.insert(resource.name.clone(), UNKNOWN_VERSION.to_owned());
        }
        for name in &response.removed_resources {
            if let Some(version) = held.versions.get_mut(name) {
                UNKNOWN_VERSION.clone_into(version);
            }
        }
        let version = |resource: &Resource| (resource.name.clone(), resource.version.clone());
        let receipt = Receipt {
            kind: held.kind,
            nonce: response.nonce,
            versions: response.resources.iter().map(version).collect(),
            removed: response.removed_resources.clone(),
        };
        Ok(Push {
            kind: held.kind,
            resources: response.resources,
            removed: response.removed_resources,
            receipt,
        })
    }

    /// The answer to a push that was applied, but for `rejected`: an ACK, or a NACK that names these.
    pub fn answer(&mut self, receipt: Receipt, rejected: &[Rejection]) -> DeltaDiscoveryRequest {
        if let Some(held) = self.types.iter_mut().find(|held| held.kind == receipt.kind) {
            held.answered = true;
            for name in &receipt.removed {
                held.versions.remove(name);
            }
            let refused: BTreeSet<&str> = rejected.iter().map(|rejection| rejection.name.as_str()).collect();
            for (name, version) in receipt.versions {
                let version =
                    if refused.contains(name.as_str()) { UNKNOWN_VERSION.to_owned() } else { version };
                held.versions.insert(name, version);
            }
        }
        DeltaDiscoveryRequest {
            type_url: receipt.kind.url().to_owned(),
            response_nonce: receipt.nonce,
            error_detail: error_detail(rejected),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Whether a push of every type of which all is asked for has been answered. A push of which parts were rejected counts: the rest is
    /// applied, and one malformed resource must not keep a node from serving.
    pub fn is_synced(&self) -> bool {
        self.types.iter().all(|held| held.answered || held.by_name)
    }

    /// How many resources of a type are held.
    pub fn held(&self, kind: ResourceType) -> usize {
        self.types.iter().find(|held| held.kind == kind).map_or(0, |held| held.versions.len())
    }
}

fn error_detail(rejected: &[Rejection]) -> Option<Status> {
    let line = |rejection: &Rejection| format!("{}: {}", rejection.name, rejection.reason);
    (!rejected.is_empty()).then(|| Status {
        code: INVALID_ARGUMENT,
        message: rejected.iter().map(line).collect::<Vec<_>>().join("; "),
        details: Vec::new(),
    })
}
