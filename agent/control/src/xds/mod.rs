//! Delta xDS (Istio contract 2.3), server side: a store of versioned resources, and the service that tells clients of
//! them. Control serves it to agents over TLS, an agent serves its copy to its node's proxy on a unix socket.

mod service;
mod store;
mod stream;

pub use service::{Access, Client, DeltaAds, Local, service};
pub use store::{Entry, ResourceStore, Snapshot};

#[cfg(test)]
mod tests;
