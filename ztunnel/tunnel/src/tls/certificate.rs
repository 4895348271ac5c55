//! A workload's certificate with its key, and the TLS configurations made of it once.

use std::sync::Arc;
use std::time::SystemTime;

use mesh::SpiffeId;

use super::error::CertificateError;

/// A workload's certificate, its key and its roots of trust, ready for handshakes. Cheap to clone.
#[derive(Clone)]
pub struct WorkloadCertificate(Arc<Inner>);

struct Inner {
    identity: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    chain_pem: Vec<String>,
    roots_pem: Vec<String>,
}

impl WorkloadCertificate {
    /// From a PKCS#8 PEM key and a PEM chain: first the leaf, then intermediates, last the roots.
    pub fn from_pem<S: AsRef<str>>(key: &str, chain: &[S]) -> Result<Self, CertificateError> {
        todo!()
    }

    /// Whom it names.
    pub fn identity(&self) -> &SpiffeId {
        &self.0.identity
    }

    /// The start of its validity.
    pub fn not_before(&self) -> SystemTime {
        self.0.not_before
    }

    /// The end of its validity.
    pub fn not_after(&self) -> SystemTime {
        self.0.not_after
    }

    /// The serial number, decimal.
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// The leaf and the intermediates, one PEM each.
    pub fn chain_pem(&self) -> &[String] {
        &self.0.chain_pem
    }

    /// The roots, one PEM each.
    pub fn roots_pem(&self) -> &[String] {
        &self.0.roots_pem
    }
}
