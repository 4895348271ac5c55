//! A Kubernetes API server as the source of objects: the same objects that a directory of manifests gives, read by the same readers.
//!
//! Who owns what: `decode` takes what the API server sends and leaves out what nobody asks for, [`meaning`](mod@meaning) reads it, `store` knows what has
//! been said so far (all three pure), [`Watches`] keeps listening, and [`Cluster`] is where to.

mod cluster;
mod decode;
mod meaning;
mod node_pods;
mod pauses;
mod store;
mod watches;

#[cfg(test)]
mod api_server;
#[cfg(test)]
mod tests;

pub use cluster::{Cluster, ConnectError};
pub use node_pods::NodePods;
pub use watches::{Scope, Watches};
