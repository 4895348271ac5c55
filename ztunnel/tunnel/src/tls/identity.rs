//! What a certificate says of its bearer. Says, not proves: the chain is checked elsewhere.

use std::time::{Duration, SystemTime};

use mesh::SpiffeId;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::error::PeerCertificateError;

/// Which side of a connection a certificate is shown by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// The parts of a leaf that the mesh reads.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) identity: SpiffeId,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Decimal.
    pub(super) serial: String,
    client: bool,
    server: bool,
}

impl Leaf {
    /// Reads a leaf with exactly one SPIFFE id of the mesh's form. Other names in it are ignored (contract 2.1).
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, PeerCertificateError> {
        let invalid = |error: &dyn std::fmt::Display| PeerCertificateError::Invalid(error.to_string());
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| invalid(&error))?;
        if !rest.is_empty() {
            return Err(invalid(&"bytes after its end"));
        }
        let purpose = certificate.extended_key_usage().map_err(|error| invalid(&error))?;
        let validity = certificate.validity();
        Ok(Self {
            identity: spiffe_id(&certificate)?,
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
            serial: certificate.tbs_certificate.serial.to_str_radix(10),
            client: purpose.as_ref().is_some_and(|purpose| purpose.value.client_auth),
            server: purpose.as_ref().is_some_and(|purpose| purpose.value.server_auth),
        })
    }

    /// Fails unless it may be used by `role`. A certificate that names no purpose at all may be used by none:
    /// webpki would let it pass.
    pub(super) fn meant_for(&self, role: Role) -> Result<(), PeerCertificateError> {
        let allowed = match role {
            Role::Client => self.client,
            Role::Server => self.server,
        };
        if allowed { Ok(()) } else { Err(PeerCertificateError::WrongPurpose) }
    }
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, PeerCertificateError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| PeerCertificateError::Invalid(error.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut found = Vec::new();
    for name in names {
        match name {
            // Schemes are case-insensitive (RFC 3986 3.1). One in other letters counts, and is then malformed.
            GeneralName::URI(uri) if uri.get(..9).is_some_and(|s| s.eq_ignore_ascii_case("spiffe://")) => {
                found.push(*uri);
            }
            GeneralName::Invalid(..) => {
                return Err(PeerCertificateError::Invalid("unreadable subject alternative name".to_owned()));
            }
            _ => {}
        }
    }
    match found[..] {
        [] => Err(PeerCertificateError::NoIdentity),
        [uri] => Ok(uri.parse()?),
        _ => Err(PeerCertificateError::SeveralIdentities(found.len())),
    }
}

/// Seconds since 1970; what lies before counts as 1970.
pub(super) fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}
