//! The mesh's vocabulary and its decisions: who a workload is, where a service lives, what a policy
//! allows and where a connection goes.
//!
//! Nothing here knows a runtime, a socket or a clock: time, bytes and randomness come in as arguments,
//! so that every rule is a table in a test. The wire forms of these types are the crate `api`'s.

#![forbid(unsafe_code)]

pub mod accept;
pub mod authorize;
pub mod balance;
pub mod ejection;
#[cfg(test)]
mod fixtures;
pub mod gateway;
pub mod identity;
#[cfg(test)]
mod instructions;
pub mod names;
pub mod policy;
pub mod ports;
pub mod route;
pub mod service;
pub mod state;
pub mod workload;

pub use gateway::GatewayAddress;
pub use identity::{Namespace, ServiceAccount, SpiffeId, TrustDomain};
pub use policy::{Authorization, PolicyName};
pub use service::{Service, ServiceName};
pub use state::State;
pub use workload::{Network, NetworkAddress, NetworkRange, Workload, WorkloadUid};
