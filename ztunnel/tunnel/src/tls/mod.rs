//! Mutual TLS between workloads: keys and requests, certificates, and handshakes that verify SPIFFE
//! identities (Istio contract 1.4 and 2.1).

mod certificate;
mod error;
mod handshake;
mod identity;
mod request;
mod verify;

pub use certificate::WorkloadCertificate;
pub use error::{Blame, CertificateError, PeerCertificateError, TlsError};
pub use handshake::{ClientStream, ExpectedPeers, ServerStream, TlsFacts, VerifiedPeer, accept, connect};
pub use request::CertificateRequest;

#[cfg(test)]
mod tests;
