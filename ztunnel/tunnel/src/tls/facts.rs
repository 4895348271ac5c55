//! What people are shown of a certificate, whoever's it is.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::identity::system_time;

/// Of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The serial number, decimal.
    pub serial: String,
    /// The start of its validity.
    pub not_before: SystemTime,
    /// The end of its validity.
    pub not_after: SystemTime,
}

impl CertificateFacts {
    /// Of the first certificate in `pem`, if there is one.
    pub fn of(pem: &str) -> Option<Self> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        let validity = certificate.validity();
        Some(Self {
            serial: certificate.tbs_certificate.serial.to_str_radix(10),
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;

    #[test]
    fn a_leafs_facts_are_those_of_its_certificate_and_a_root_has_some_too() {
        let certificate = Authority::new().workload("web");
        let expected = CertificateFacts {
            serial: certificate.serial().to_owned(),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
        };
        assert_eq!(CertificateFacts::of(&certificate.chain_pem()[0]), Some(expected));
        assert!(CertificateFacts::of(&certificate.roots_pem()[0]).is_some());
        assert_eq!(CertificateFacts::of("no certificate"), None);
    }
}
