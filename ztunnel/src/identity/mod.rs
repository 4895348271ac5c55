//! Certificates of the node's enrolled pods: fetched ahead, renewed at half life, shared, left to a successor, forgotten.

mod authority;
pub(crate) mod deposit;
mod manager;
mod revocation;
#[cfg(test)]
mod revocation_tests;
mod scheduler;

pub(crate) use authority::Authority;
pub(crate) use manager::{Held, Identities, Lease, Unavailable};
#[cfg(test)]
pub(crate) use manager::{Issued, Source};
pub(crate) use revocation::{CrlFile, Pace};
