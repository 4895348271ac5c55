//! A certificate authority in memory, for tests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use mesh::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};

use crate::tls::WorkloadCertificate;

static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: String,
}

/// What a leaf says.
pub(crate) struct LeafSpec {
    pub(crate) uris: Vec<String>,
    pub(crate) purposes: Vec<ExtendedKeyUsagePurpose>,
    /// Years of its validity.
    pub(crate) years: (i32, i32),
    /// Its end, from now, instead of a year.
    pub(crate) lifetime: Option<Duration>,
}

impl LeafSpec {
    pub(crate) fn of(uri: &str) -> Self {
        Self {
            uris: vec![uri.to_owned()],
            purposes: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            years: (2020, 4096),
            lifetime: None,
        }
    }
}

/// A leaf with its key, in PEM.
pub(crate) struct Issued {
    pub(crate) key: String,
    /// The leaf, then the root.
    pub(crate) chain: Vec<String>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two authorities of one name are told apart by signatures only, which is another failure.
        let number = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("authority {number}"));
        let root = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// An authority below this one, with its own certificate.
    pub(crate) fn intermediate(&self) -> (Self, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        (Self { issuer: Issuer::new(params, key), root: self.root.clone() }, certificate)
    }

    pub(crate) fn issue(&self, spec: &LeafSpec) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            spec.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        params.extended_key_usages.clone_from(&spec.purposes);
        params.not_before = rcgen::date_time_ymd(spec.years.0, 1, 1);
        params.not_after = match spec.lifetime {
            Some(lifetime) => (SystemTime::now() + lifetime).into(),
            None => rcgen::date_time_ymd(spec.years.1, 1, 1),
        };
        let leaf = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { key: key.serialize_pem(), chain: vec![leaf, self.root.clone()] }
    }

    /// A good certificate for a service account of the namespace `demo`.
    pub(crate) fn workload(&self, account: &str) -> WorkloadCertificate {
        self.certify(account, |_| {})
    }

    /// The same, but for what `change` does.
    pub(crate) fn certify(&self, account: &str, change: impl FnOnce(&mut LeafSpec)) -> WorkloadCertificate {
        let mut spec = LeafSpec::of(&identity(account).to_string());
        change(&mut spec);
        let issued = self.issue(&spec);
        WorkloadCertificate::from_pem(&issued.key, &issued.chain).unwrap()
    }

    /// Answers a request as a CA does.
    pub(crate) fn sign(&self, csr: &str) -> Vec<String> {
        let request = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        let mut params = request.params;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&request.public_key, &self.issuer).unwrap().pem();
        vec![leaf, self.root.clone()]
    }
}

/// `spiffe://cluster.local/ns/demo/sa/<account>`.
pub(crate) fn identity(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/demo/sa/{account}").parse().unwrap()
}
