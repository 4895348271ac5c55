//! What the agent tells of a pod.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use api::zds::Listener;
use mesh::{Namespace, ServiceAccount};
use tunnel::socket::{Netns, Redirection, Rules};

use crate::dns::Resolver;

/// A pod's Kubernetes uid; unrelated to the uid of its workload.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PodUid(Arc<str>);

impl From<&str> for PodUid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl PodUid {
    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the listeners come from.
#[derive(Debug)]
pub(crate) enum Listeners {
    /// The agent made them and holds them too: what arrives while no ztunnel runs waits in their queues.
    Handed(Vec<(Listener, OwnedFd)>),
    /// Istio's agent leaves them to us; its rules redirect with conntrack.
    Ours,
}

impl Listeners {
    /// What brings the pod's traffic here: whoever makes the listeners has a way of its own. `rules`: how sockets are to be where
    /// that is rules.
    pub(crate) fn redirection(&self, rules: Rules) -> Redirection {
        match self {
            Self::Handed(_) => Redirection::Programs,
            Self::Ours => Redirection::Rules(rules),
        }
    }
}

/// A pod to serve.
#[derive(Debug)]
pub(crate) struct PodSpec {
    /// Its Kubernetes uid.
    pub(crate) uid: PodUid,
    /// Its name.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: Namespace,
    /// Its service account.
    pub(crate) service_account: ServiceAccount,
    /// Its addresses; empty when the agent does not tell them, then those of its workload hold.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub(crate) netns: Netns,
    /// Where the listeners come from.
    pub(crate) listeners: Listeners,
    /// How the pod resolves names, if the agent tells it.
    pub(crate) resolver: Option<Resolver>,
}
