//! What carries a connection between two workloads: mutual TLS ([`tls`]), HBONE over HTTP/2 ([`hbone`]),
//! the copy loop ([`copy`]), what an application is told first ([`proxy_protocol`]), and the sockets it all stands on
//! ([`socket`]).
//!
//! Two facts are types here: a [`tls::VerifiedPeer`] exists only after a handshake that proved it, and an
//! application is dialled only with a [`mesh::authorize::Permit`]. Every stage ends: each has its timeout.

#![forbid(unsafe_code)]

pub mod copy;
pub mod hbone;
pub mod proxy_protocol;
pub mod socket;
pub mod tls;

#[cfg(test)]
mod authority;
#[cfg(test)]
mod instructions;
