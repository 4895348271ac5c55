//! Requests (PKCS#10, RFC 2986): what must hold before anything of one is used.

use mesh::SpiffeId;
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// The longest request that is read. One of ours has some 500 bytes.
const SIZE_LIMIT: usize = 16 << 10;

/// A request is not what it has to be. The client is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Too long.
    #[error("the request has more than {SIZE_LIMIT} bytes")]
    TooLong,
    /// No PEM, or no PKCS#10 in it.
    #[error("the request is no PKCS#10 in PEM")]
    Malformed,
    /// Signed with another key than the one it is for, or not at all.
    #[error("the request's signature is not by the key it is for")]
    Signature,
    /// Its key is none that is signed for.
    #[error("the request's key is none of ECDSA P-256 and P-384")]
    Key,
    /// Its names are not exactly the identity asked for.
    #[error("the request must have one name, a URI, and it must be the identity asked for")]
    Identity,
}

/// The key of a request that is for `identity` and nothing else, and that whoever sent it holds.
pub(super) fn verify(pem: &str, identity: &SpiffeId) -> Result<SubjectPublicKeyInfo, CsrError> {
    if pem.len() > SIZE_LIMIT {
        return Err(CsrError::TooLong);
    }
    let der =
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::Malformed)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let key = &request.certification_request_info.subject_pki;
    // A curve is told by its point's length, the first byte of an uncompressed point being 4.
    let curve = match key.parsed() {
        Ok(PublicKey::EC(point)) => point.data().len(),
        _ => return Err(CsrError::Key),
    };
    if curve != 1 + 2 * 32 && curve != 1 + 2 * 48 {
        return Err(CsrError::Key);
    }
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    if only_uri(&request) != Some(identity.to_string()) {
        return Err(CsrError::Identity);
    }
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| CsrError::Key)
}

/// The one URI that is the only name of the request, over all of its attributes; `None` for anything else.
fn only_uri(request: &X509CertificationRequest<'_>) -> Option<String> {
    let mut uri = None;
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(extensions) = attribute.parsed_attribute() else { continue };
        for extension in &extensions.extensions {
            let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                continue;
            };
            for name in &names.general_names {
                let GeneralName::URI(text) = name else { return None };
                if uri.replace((*text).to_owned()).is_some() {
                    return None;
                }
            }
        }
    }
    uri
}
