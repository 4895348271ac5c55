//! The certificate authority: one root (ECDSA P-256) per trust domain, short-lived leafs, nothing in between.
//!
//! It signs what was asked for and nothing else: of a request only the public key is taken. Its key stays in this process
//! and in `ca.key`.

mod csr;
mod service;
mod storage;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mesh::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub use csr::CsrError;
pub(crate) use service::service;
pub use storage::OpenError;

/// The longest a leaf is valid, its head start included.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// A leaf is valid from this long before it is made: clocks of nodes differ.
pub const HEAD_START: Duration = Duration::from_secs(60);
/// How long a root is valid.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root_expires: SystemTime,
    trust_domain: TrustDomain,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// A certificate was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request is at fault.
    #[error(transparent)]
    Request(#[from] CsrError),
    /// The identity is of another mesh.
    #[error("the trust domain here is `{own}`, and the identity asked for is {asked}")]
    TrustDomain {
        /// This authority's.
        own: TrustDomain,
        /// What was asked for.
        asked: SpiffeId,
    },
    /// A validity that is none.
    #[error("a validity of {0} s was asked for")]
    Validity(i64),
    /// The authority itself is at fault.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
    /// The kernel gives no random bytes.
    #[error("no random bytes from the kernel: {0}")]
    Random(rand::rand_core::OsError),
    /// The root's own time is over.
    #[error("the root certificate has expired: a new one must be made and given to all")]
    RootExpired,
}

/// A certificate that was signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// It, as PEM.
    pub leaf_pem: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: SystemTime,
}

/// A certificate and key of the server's own.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// When it should be replaced: half of its life.
    pub renew_at: SystemTime,
}

impl Authority {
    /// Opens the authority kept in `state`, or makes it there on the first start.
    ///
    /// # Errors
    /// Files are open to others, do not belong together, or cannot be read or written. Nothing is ever replaced.
    pub fn open(state: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, OpenError> {
        storage::open(state, trust_domain, now)
    }

    /// The root certificate, as PEM: what everybody trusts.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// When the root certificate ends.
    pub fn root_expires(&self) -> SystemTime {
        self.root_expires
    }

    /// Signs a certificate for `identity` over the key of the request, which must be for exactly that identity.
    /// `validity` in seconds; 0: as long as may be. More than [`LEAF_LIFETIME`] is cut down to it.
    ///
    /// # Errors
    /// See the type. Nothing is signed then.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &SpiffeId,
        validity: i64,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        if identity.trust_domain != self.trust_domain {
            return Err(SignError::TrustDomain { own: self.trust_domain.clone(), asked: identity.clone() });
        }
        let wished = match u64::try_from(validity) {
            Ok(0) => LEAF_LIFETIME,
            Ok(seconds) => Duration::from_secs(seconds).min(LEAF_LIFETIME),
            Err(_) => return Err(SignError::Validity(validity)),
        };
        let key = csr::verify(csr_pem, identity)?;
        let uri = Ia5String::try_from(identity.to_string()).map_err(|_| CsrError::Identity)?;
        let mut params = self.leaf(vec![SanType::URI(uri)], wished, now)?;
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.finish(params, &key)
    }

    /// Makes a key and a certificate for a TLS server of these names and addresses.
    ///
    /// # Errors
    /// Signing failed.
    pub fn server_certificate(
        &self,
        names: &[&str],
        addresses: &[IpAddr],
        now: SystemTime,
    ) -> Result<ServerCertificate, SignError> {
        let names = names
            .iter()
            .map(|name| Ia5String::try_from(*name).map(SanType::DnsName).map_err(SignError::from));
        let addresses = addresses.iter().map(|address| Ok(SanType::IpAddress(*address)));
        let mut params = self.leaf(names.chain(addresses).collect::<Result<_, _>>()?, LEAF_LIFETIME, now)?;
        params.distinguished_name = common_name("culvert control");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(ServerCertificate { certificate, key, renew_at: now + LEAF_LIFETIME / 2 })
    }

    /// What all leafs have in common.
    fn leaf(
        &self,
        names: Vec<SanType>,
        validity: Duration,
        now: SystemTime,
    ) -> Result<CertificateParams, SignError> {
        if self.root_expires <= now {
            return Err(SignError::RootExpired);
        }
        let not_before = now - HEAD_START;
        let not_after = (now + validity).min(not_before + LEAF_LIFETIME).min(self.root_expires);
        let mut params = CertificateParams::default();
        set_validity(&mut params, not_before, not_after);
        params.serial_number = Some(random_serial()?);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn finish(&self, params: CertificateParams, key: &impl PublicKeyData) -> Result<Signed, SignError> {
        let not_after = SystemTime::from(params.not_after);
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let certificate = params.signed_by(key, &self.issuer)?;
        let serial = serial.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Signed { leaf_pem: certificate.pem(), serial, not_after })
    }
}

/// RFC 5280 section 4.1.2.2: positive, at most 20 bytes. 16 random ones, the first bit cleared and the next set, so that
/// every serial has the same length.
fn random_serial() -> Result<SerialNumber, SignError> {
    use rand::TryRngCore;
    let mut bytes = [0_u8; 16];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(SignError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The root's own parameters. It may sign leafs and nothing that signs.
fn root_params(trust_domain: &TrustDomain, now: SystemTime) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, now - HEAD_START, now + ROOT_LIFETIME);
    params.serial_number = Some(random_serial()?);
    params.distinguished_name = common_name("Culvert root");
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Sets the validity, in whole seconds.
fn set_validity(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |at: SystemTime| {
        Duration::from_secs(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
    };
    params.not_before = epoch + since(not_before);
    params.not_after = epoch + since(not_after);
}

#[cfg(test)]
mod tests;
