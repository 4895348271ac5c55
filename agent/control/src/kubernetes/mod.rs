//! A Kubernetes API server as the source of objects: the same objects that a directory of manifests gives, read by the same readers.
//!
//! Who owns what: `decode` takes what the API server sends and leaves out what nobody asks for, [`meaning`](mod@meaning) reads it, `store` knows what has
//! been said so far (all three pure), [`Watches`] keeps listening, and [`Cluster`] is where to.

mod cluster;
mod decode;
mod home;
mod meaning;
mod node_pods;
mod pauses;
mod retirement;
mod store;
mod token_reviews;
mod watches;

#[cfg(test)]
mod api_server;
#[cfg(test)]
mod tests;

pub use cluster::{Cluster, ConnectError};
pub(crate) use home::Home;
pub use home::HomeError;
pub use node_pods::{NodePods, NodeState};
pub use retirement::Retirement;
pub(crate) use token_reviews::TokenReviews;
pub use watches::{Scope, Watches};
