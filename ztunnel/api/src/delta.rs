//! Delta xDS, as bookkeeping without a stream (Istio contract 2.3): what each side holds, which push an answer
//! is for, and what has to be said after a reconnect.
//!
//! [`ClientState`] outlives its connections, [`ServerState`] is one connection's. Joined by any stream that
//! keeps order, the two converge: once the client has answered the last push, it holds what the server's
//! [`Source`] holds, but for what it rejected.

mod client;
mod server;
#[cfg(test)]
mod tests;

pub use client::{ClientState, ClientViolation, Push, Receipt, Rejection};
pub use server::{Heard, ServerState, ServerViolation, Source, Versioned};

/// The name that subscribes to everything.
const WILDCARD: &str = "*";
