//! A fresh key and the request to have it certified.

use mesh::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

use super::certificate::WorkloadCertificate;
use super::error::CertificateError;

/// A fresh ECDSA P-256 key with its certificate request: empty subject, one URI SAN, critical since the
/// subject is empty (RFC 5280 4.1.2.6; Istio contract 1.4).
///
/// The key never leaves this process: it comes out only inside of the [`WorkloadCertificate`].
pub struct CertificateRequest {
    identity: SpiffeId,
    key: KeyPair,
    csr_pem: String,
}

impl CertificateRequest {
    /// Makes a key and a request for `identity`.
    pub fn new(identity: &SpiffeId) -> Result<Self, CertificateError> {
        let key_error = |error: rcgen::Error| CertificateError::Key(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(key_error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().map_err(key_error)?)];
        let csr_pem = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(key_error)?;
        Ok(Self { identity: identity.clone(), key, csr_pem })
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
        let certificate = WorkloadCertificate::from_pem(&self.key.serialize_pem(), chain)?;
        if *certificate.identity() != self.identity {
            return Err(CertificateError::WrongIdentity {
                asked: self.identity,
                got: certificate.identity().clone(),
            });
        }
        Ok(certificate)
    }
}
