//! A certificate authority in memory, for tests.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use mesh::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams,
    DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams,
    SanType,
};

use crate::tls::{TlsPolicy, WorkloadCertificate};

static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);

/// The numbers of leaves, which are told apart from that of an authority below another.
static SERIALS: AtomicU64 = AtomicU64::new(INTERMEDIATE + 1);
pub(crate) const INTERMEDIATE: u64 = 7;

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    name: DistinguishedName,
    pub(crate) root: String,
    /// What handshakes with its certificates agree on.
    pub(crate) policy: TlsPolicy,
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
    /// The leaf's number.
    pub(crate) serial: u64,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two authorities of one name are told apart by signatures only, which is another failure.
        let number = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("authority {number}"));
        Self::of(params)
    }

    fn of(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        let name = params.distinguished_name.clone();
        Self { issuer: Issuer::new(params, key), name, root, policy: TlsPolicy::default() }
    }

    /// An authority of the same name with another key.
    pub(crate) fn impostor(&self) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = self.name.clone();
        Self::of(params)
    }

    /// An authority below this one, with its own certificate.
    pub(crate) fn intermediate(&self) -> (Self, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.serial_number = Some(INTERMEDIATE.into());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let (root, policy) = (self.root.clone(), self.policy.clone());
        let name = params.distinguished_name.clone();
        (Self { issuer: Issuer::new(params, key), name, root, policy }, certificate)
    }

    pub(crate) fn issue(&self, spec: &LeafSpec) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let serial = SERIALS.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(serial.into());
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
        Issued { key: key.serialize_pem(), chain: vec![leaf, self.root.clone()], serial }
    }

    /// A list of what it has revoked, to be renewed in the year 4096 or, with `late`, long ago.
    pub(crate) fn list(&self, serials: &[u64], late: bool) -> CertificateRevocationList {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(if late { 2020 } else { 4096 }, 1, 2),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap()
    }

    /// A good certificate for a service account of the namespace `demo`.
    pub(crate) fn workload(&self, account: &str) -> WorkloadCertificate {
        self.certify(account, |_| {})
    }

    /// The same, but for what `change` does.
    pub(crate) fn certify(&self, account: &str, change: impl FnOnce(&mut LeafSpec)) -> WorkloadCertificate {
        let mut spec = LeafSpec::of(&identity(account).to_string());
        change(&mut spec);
        self.ready(&self.issue(&spec))
    }

    /// A certificate ready for handshakes.
    pub(crate) fn ready(&self, issued: &Issued) -> WorkloadCertificate {
        WorkloadCertificate::from_pem(&issued.key, &issued.chain, &self.policy).unwrap()
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
