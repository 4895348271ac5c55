//! A fresh key and the request to have it certified.

use mesh::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

use super::certificate::WorkloadCertificate;
use super::error::CertificateError;
use super::policy::TlsPolicy;

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
    pub fn complete<S: AsRef<str>>(
        self,
        chain: &[S],
        policy: &TlsPolicy,
    ) -> Result<WorkloadCertificate, CertificateError> {
        let certificate = WorkloadCertificate::from_pem(&self.key.serialize_pem(), chain, policy)?;
        if *certificate.identity() != self.identity {
            return Err(CertificateError::WrongIdentity {
                asked: self.identity,
                got: certificate.identity().clone(),
            });
        }
        Ok(certificate)
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::pem::parse_x509_pem;
    use x509_parser::prelude::FromDer as _;

    use super::*;
    use crate::authority::{Authority, identity};

    #[test]
    fn a_request_has_an_empty_subject_one_critical_uri_and_its_own_signature() {
        let request = CertificateRequest::new(&identity("echo")).unwrap();
        let (_, pem) = parse_x509_pem(request.csr_pem().as_bytes()).unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        csr.verify_signature().unwrap();
        assert_eq!(csr.certification_request_info.subject.iter().count(), 0);
        let attributes = csr.certification_request_info.iter_attributes();
        let extensions: Vec<_> = attributes
            .filter_map(|attribute| match attribute.parsed_attribute() {
                x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(request) => {
                    Some(request.extensions.clone())
                }
                _ => None,
            })
            .flatten()
            .collect();
        let [name] = extensions.as_slice() else { panic!("{extensions:?}") };
        assert!(name.critical);
        let ParsedExtension::SubjectAlternativeName(names) = name.parsed_extension() else {
            panic!("{name:?}")
        };
        assert_eq!(names.general_names, [GeneralName::URI("spiffe://cluster.local/ns/demo/sa/echo")]);
    }

    #[test]
    fn two_requests_have_two_keys() {
        let [first, second] = [(); 2].map(|()| CertificateRequest::new(&identity("echo")).unwrap());
        assert_ne!(first.key.serialize_der(), second.key.serialize_der());
    }

    #[test]
    fn the_answer_has_to_be_for_this_key_and_this_identity() {
        let authority = Authority::new();
        let request = |account| CertificateRequest::new(&identity(account)).unwrap();
        let echo = request("echo");
        let answer = authority.sign(echo.csr_pem());
        let error = request("echo").complete(&answer, &TlsPolicy::default()).unwrap_err();
        assert_eq!(error, CertificateError::WrongKey);
        assert_eq!(echo.complete(&answer, &TlsPolicy::default()).unwrap().identity(), &identity("echo"));

        // A CA that answers another's request by mistake.
        let admin = request("admin");
        let answer = authority.sign(admin.csr_pem());
        let misled = CertificateRequest { identity: identity("echo"), ..admin };
        let error = misled.complete(&answer, &TlsPolicy::default()).unwrap_err();
        assert_eq!(
            error,
            CertificateError::WrongIdentity { asked: identity("echo"), got: identity("admin") }
        );
    }
}
