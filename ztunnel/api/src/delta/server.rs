//! The server's side, of one connection.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::Any;

use super::WILDCARD;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use crate::type_url::ResourceType;

/// A resource at a version.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned {
    /// Differs from that of every other content the resource has had or will have; never empty.
    pub version: String,
    /// The content.
    pub content: Any,
}

/// What a server has to offer to one client.
pub trait Source {
    /// Calls `each` with every resource of the type.
    fn all(&self, kind: ResourceType, each: &mut dyn FnMut(&str, &Versioned));
    /// The resource of this name; `None`: there is none.
    fn get(&self, kind: ResourceType, name: &str) -> Option<Versioned>;
}

/// What a client holds and what it is still to be told.
///
/// One push a type is under way at a time: what changes until its answer goes into the next. So a slow client
/// costs memory by the number of resources, not of changes.
#[derive(Debug, Default)]
pub struct ServerState {
    /// In the order of subscription, in which they are pushed.
    types: Vec<Subscription>,
    next_nonce: u64,
}

#[derive(Debug)]
struct Subscription {
    kind: ResourceType,
    /// Name -> version of what the client was last sent or has said to hold.
    sent: BTreeMap<String, String>,
    due: Due,
    /// The nonce of the push that is under way.
    under_way: Option<String>,
}

/// What to tell the client next.
#[derive(Debug)]
enum Due {
    /// Whatever differs, and be it nothing: the answer to a subscription.
    Answer,
    /// Whatever differs.
    All,
    /// What differs of these.
    Names(BTreeSet<String>),
}

/// What a request meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A subscription; a push is due.
    Subscribed(ResourceType),
    /// The push was applied.
    Ack(ResourceType),
    /// The push was applied but for the resources the message names.
    Nack {
        /// The type.
        kind: ResourceType,
        /// The client's words.
        message: String,
    },
    /// An answer to a push that is not under way; of no consequence.
    Stale(ResourceType),
}

/// How a client breaks the protocol, or asks what this server does not offer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerViolation {
    /// A type that is not offered.
    #[error("resources of type `{0}` are not offered")]
    UnknownType(String),
    /// A subscription to something less than everything.
    #[error("only subscriptions to all resources of a type are offered")]
    NotWildcard,
    /// An answer before a subscription.
    #[error("an answer for {0}, which was not subscribed to")]
    NotSubscribed(ResourceType),
}

impl ServerState {
    /// A connection on which nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what the client says.
    pub fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, ServerViolation> {
        let kind = ResourceType::from_url(&request.type_url)
            .ok_or_else(|| ServerViolation::UnknownType(request.type_url.clone()))?;
        if request.resource_names_subscribe.iter().any(|name| name != WILDCARD)
            || !request.resource_names_unsubscribe.is_empty()
        {
            return Err(ServerViolation::NotWildcard);
        }
        let known = self.types.iter_mut().find(|subscription| subscription.kind == kind);
        match known {
            Some(subscription) if !request.response_nonce.is_empty() => Ok(subscription.answered(&request)),
            Some(subscription) => {
                subscription.due = Due::Answer;
                Ok(Heard::Subscribed(kind))
            }
            None if !request.response_nonce.is_empty() => Err(ServerViolation::NotSubscribed(kind)),
            None => {
                self.types.push(Subscription {
                    kind,
                    sent: request.initial_resource_versions,
                    due: Due::Answer,
                    under_way: None,
                });
                Ok(Heard::Subscribed(kind))
            }
        }
    }

    /// Notes that the resource may have changed, appeared or gone.
    pub fn changed(&mut self, kind: ResourceType, name: &str) {
        for subscription in self.types.iter_mut().filter(|subscription| subscription.kind == kind) {
            if let Due::Names(names) = &mut subscription.due {
                names.insert(name.to_owned());
            }
        }
    }

    /// Notes that anything may have changed: for a server that has lost count.
    pub fn all_changed(&mut self) {
        for subscription in &mut self.types {
            if matches!(subscription.due, Due::Names(_)) {
                subscription.due = Due::All;
            }
        }
    }

    /// The next push, if one is due and its type's last one is answered. To be called until `None` after each
    /// [`receive`](Self::receive) and each change.
    pub fn next_push(&mut self, source: &dyn Source) -> Option<DeltaDiscoveryResponse> {
        for subscription in &mut self.types {
            if subscription.under_way.is_some() {
                if subscription.is_due() {
                    // What comes later may build on it: a workload names policies, which are to be known before.
                    return None;
                }
                continue;
            }
            if let Some(mut response) = subscription.push(source) {
                self.next_nonce += 1;
                response.nonce = self.next_nonce.to_string();
                subscription.under_way = Some(response.nonce.clone());
                return Some(response);
            }
        }
        None
    }

    /// Whether the client has subscribed to the type.
    pub fn is_subscribed(&self, kind: ResourceType) -> bool {
        self.types.iter().any(|subscription| subscription.kind == kind)
    }

    /// Whether nothing is due or under way.
    pub fn is_idle(&self) -> bool {
        self.types.iter().all(|subscription| subscription.under_way.is_none() && !subscription.is_due())
    }
}

impl Subscription {
    /// Whether something may have to be told once the push under way is answered.
    fn is_due(&self) -> bool {
        !matches!(&self.due, Due::Names(names) if names.is_empty())
    }

    fn answered(&mut self, request: &DeltaDiscoveryRequest) -> Heard {
        if self.under_way.as_ref() != Some(&request.response_nonce) {
            return Heard::Stale(self.kind);
        }
        self.under_way = None;
        match &request.error_detail {
            // What was rejected counts as sent: the same content would be rejected again.
            Some(error) => Heard::Nack { kind: self.kind, message: error.message.clone() },
            None => Heard::Ack(self.kind),
        }
    }

    fn push(&mut self, source: &dyn Source) -> Option<DeltaDiscoveryResponse> {
        let due = std::mem::replace(&mut self.due, Due::Names(BTreeSet::new()));
        let (resources, removed) = match &due {
            Due::Names(names) => self.differences_of(names, source),
            Due::All | Due::Answer => self.differences(source),
        };
        if resources.is_empty() && removed.is_empty() && !matches!(due, Due::Answer) {
            return None;
        }
        for name in &removed {
            self.sent.remove(name);
        }
        for resource in &resources {
            self.sent.insert(resource.name.clone(), resource.version.clone());
        }
        Some(DeltaDiscoveryResponse {
            type_url: self.kind.url().to_owned(),
            resources,
            removed_resources: removed,
            ..DeltaDiscoveryResponse::default()
        })
    }

    fn differences(&self, source: &dyn Source) -> (Vec<Resource>, Vec<String>) {
        let mut gone: BTreeSet<&str> = self.sent.keys().map(String::as_str).collect();
        let mut resources = Vec::new();
        source.all(self.kind, &mut |name, resource| {
            gone.remove(name);
            resources.extend(self.news(name, resource));
        });
        (resources, gone.into_iter().map(str::to_owned).collect())
    }

    fn differences_of(&self, names: &BTreeSet<String>, source: &dyn Source) -> (Vec<Resource>, Vec<String>) {
        let (mut resources, mut gone) = (Vec::new(), Vec::new());
        for name in names {
            match source.get(self.kind, name) {
                Some(resource) => resources.extend(self.news(name, &resource)),
                None if self.sent.contains_key(name) => gone.push(name.clone()),
                None => {}
            }
        }
        (resources, gone)
    }

    /// The resource, unless the client has it at this version.
    fn news(&self, name: &str, resource: &Versioned) -> Option<Resource> {
        (self.sent.get(name) != Some(&resource.version)).then(|| Resource {
            name: name.to_owned(),
            version: resource.version.clone(),
            resource: Some(resource.content.clone()),
            aliases: Vec::new(),
        })
    }
}
