//! The resource types of an xDS stream and their names on it.

use std::fmt;

/// Workloads and services: [`Address`](crate::proto::workload::Address).
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Policies: [`Authorization`](crate::proto::security::Authorization).
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// A node's own pods: [`Pod`](crate::proto::node::Pod). Culvert's extension, for agents.
pub const NODE_POD: &str = "type.googleapis.com/culvert.node.Pod";
/// The roots of the trust domain: [`TrustBundle`](crate::proto::node::TrustBundle). Culvert's extension, for agents.
pub const TRUST_BUNDLE: &str = "type.googleapis.com/culvert.node.TrustBundle";

/// A resource type.
///
/// The order is the one they are subscribed to and, in our server, pushed in: policies are in force before a
/// workload that they protect is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// See [`AUTHORIZATION`].
    Authorization,
    /// See [`ADDRESS`].
    Address,
    /// See [`NODE_POD`].
    NodePod,
    /// See [`TRUST_BUNDLE`].
    TrustBundle,
}

impl ResourceType {
    /// What a ztunnel subscribes to.
    pub const ZTUNNEL: [Self; 2] = [Self::Authorization, Self::Address];
    /// What an agent subscribes to.
    pub const AGENT: [Self; 4] = [Self::Authorization, Self::Address, Self::NodePod, Self::TrustBundle];

    /// Its name on the stream.
    pub fn url(self) -> &'static str {
        match self {
            Self::Authorization => AUTHORIZATION,
            Self::Address => ADDRESS,
            Self::NodePod => NODE_POD,
            Self::TrustBundle => TRUST_BUNDLE,
        }
    }

    /// The type of this name; `None`: not one of ours.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::AGENT.into_iter().find(|kind| kind.url() == url)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url())
    }
}
