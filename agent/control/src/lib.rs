//! The control plane: objects to mesh state, delta xDS to the nodes, and the certificate authority.
//!
//! One process per trust domain holds the CA's key. It knows nodes by their tokens, gives every node the mesh's state and
//! its own pods, and signs for a node only identities of pods that run on it. `control::xds` serves the agent's local
//! clients too, from the copy the agent keeps.
//!
//! Who owns what: [`manifests`] reads objects and watches files, [`kubernetes`] watches an API server, [`translate`] gives objects their meaning (pure), [`xds`] holds and
//! serves the result, [`ca`] owns the key, [`tokens`] the nodes' credentials, and [`run`] joins them.

#![forbid(unsafe_code)]

pub mod ca;
mod configuration;
mod connections;
pub mod kubernetes;
pub mod manifests;
mod nodes;
mod routes;
mod server;
mod source;
mod state_directory;
pub mod status;
mod tls;
pub mod tokens;
pub mod translate;
pub mod xds;

pub use routes::Routes;
pub use server::{ControlConfig, ControlError, run, serve};
pub use source::ObjectSource;
pub use state_directory::StateError;
pub use tls::{SERVER_NAME, TlsError};

#[cfg(test)]
mod server_tests;
