//! A fresh key and the request to have it certified.

use mesh::SpiffeId;

use super::certificate::WorkloadCertificate;
use super::error::CertificateError;

/// A fresh ECDSA P-256 key with its certificate request: empty subject, one critical URI SAN.
///
/// The key never leaves this process: it comes out only inside of the [`WorkloadCertificate`].
pub struct CertificateRequest {
    identity: SpiffeId,
    key: rcgen::KeyPair,
    csr_pem: String,
}

impl CertificateRequest {
    /// Makes a key and a request for `identity`.
    pub fn new(identity: &SpiffeId) -> Result<Self, CertificateError> {
        todo!()
    }

    /// Whose certificate is asked for.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The PKCS#10 request in PEM: what the CA's `csr` field takes.
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// Joins the key with the CA's answer: PEM elements, first the leaf, then intermediates, last the roots
    /// (one or several concatenated). Fails unless the leaf is of this key and names exactly this identity.
    pub fn complete<S: AsRef<str>>(self, chain: &[S]) -> Result<WorkloadCertificate, CertificateError> {
        todo!()
    }
}
