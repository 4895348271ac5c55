//! The certificate authority: one root (ECDSA P-256) per trust domain, short-lived leafs, nothing in between.
//!
//! It signs what was asked for and nothing else: of a request only the public key is taken. Its key stays in this process
//! and in `ca.key`. `roots` is how it lies on the disk, `rotation` changes its root, `ledger` knows how long what it has
//! signed lasts.

mod csr;
mod ledger;
mod roots;
mod rotation;
mod service;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mesh::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::state_directory::{StateError, private_directory};
use ledger::{Basis, Ledger};
use roots::Paths;

pub use csr::CsrError;
pub use roots::{Root, Stage};
pub use rotation::{RotateError, Rotation, rotate, status};
pub(crate) use service::service;

/// The longest a leaf is valid, its head start included.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest lifetime that can be asked for. Leafs are renewed at half of it, which takes a moment.
pub const SHORTEST_LIFETIME: Duration = Duration::from_secs(10);
/// A leaf is valid from this long before it is made: clocks of nodes differ.
pub const HEAD_START: Duration = Duration::from_secs(60);
/// How long a root is valid.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// The ledger is written so much further ahead than what is signed lasts: a quarter of it.
const AHEAD: u32 = 4;
/// How often it is looked whether another process has taken a step of a rotation.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// The authority. It follows what is on the disk with [`Authority::follow`].
pub struct Authority {
    state: PathBuf,
    trust_domain: TrustDomain,
    lifetime: Duration,
    current: watch::Sender<Arc<Issuing>>,
    ledger: Mutex<Ledger>,
}

/// What signs now, and what is trusted now.
pub(crate) struct Issuing {
    issuer: Issuer<'static, KeyPair>,
    root_expires: SystemTime,
    stage: Stage,
    basis: Basis,
    /// All roots that are trusted, as PEM.
    pub(crate) bundle_pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// The authority cannot be opened. The operator has to look.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file of it.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file is not what it should be.
    #[error("{path} cannot be used: {reason}. Restore it from a backup", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The roots are gone, of an authority that has had some.
    #[error("{root} is missing. Restore it and its key from a backup", root = root.display())]
    RootMissing {
        /// The root certificate.
        root: PathBuf,
    },
    /// The key is gone.
    #[error(
        "{root} is there but {key} is not. Restore the key from a backup; or, to begin anew with another root that every \
         node has to be given, remove {root}",
        root = root.display(), key = key.display()
    )]
    KeyMissing {
        /// The root certificate.
        root: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// They do not belong together.
    #[error("{root} has no certificate of {key}. Restore both from one backup", root = root.display(), key = key.display())]
    Mismatch {
        /// The root certificate.
        root: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The root could not be made.
    #[error("the root certificate cannot be made: {0}")]
    Make(#[from] SignError),
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
    /// It cannot be noted on the disk that it was signed, without which a rotation could cut it off.
    #[error(transparent)]
    Ledger(#[from] StateError),
    /// The root's own time is over.
    #[error("the root certificate has expired: a new one must be made and given to all")]
    RootExpired,
}

/// A certificate that was signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// It, as PEM.
    pub leaf_pem: String,
    /// The roots that vouch for it and for its peers, as PEM.
    pub roots_pem: String,
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
    /// Opens the authority kept in `state`, or makes it there on the first start. Leafs last a day.
    ///
    /// # Errors
    /// Files are open to others, do not belong together, or cannot be read or written. Nothing is ever replaced.
    pub fn open(state: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, OpenError> {
        private_directory(state)?;
        let _lock = Paths::of(state).lock()?;
        let stored = roots::open(state, trust_domain, now)?;
        let ledger = match Ledger::open(state)? {
            Some(ledger) => ledger,
            None => {
                // Of a root that was there already certificates may have been signed that no ledger tells of.
                let before = (!stored.made).then(|| (stored.basis.clone(), now + LEAF_LIFETIME));
                Ledger::begin(state, before)?
            }
        };
        Ok(Self {
            state: state.to_owned(),
            trust_domain: trust_domain.clone(),
            lifetime: LEAF_LIFETIME,
            current: watch::Sender::new(Arc::new(issuing(stored)?)),
            ledger: Mutex::new(ledger),
        })
    }

    /// Leafs last no longer than `lifetime`, which is brought within [`SHORTEST_LIFETIME`] and [`LEAF_LIFETIME`]. Those of
    /// servers last a day all the same.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime.clamp(SHORTEST_LIFETIME, LEAF_LIFETIME);
        self
    }

    /// The root certificates, as PEM: what everybody trusts. Two during a rotation.
    pub fn root_pem(&self) -> String {
        self.current.borrow().bundle_pem.clone()
    }

    /// When the root certificate that signs ends.
    pub fn root_expires(&self) -> SystemTime {
        self.current.borrow().root_expires
    }

    /// Tells of steps of a rotation from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Issuing>> {
        self.current.subscribe()
    }

    /// Takes up steps of a rotation that another process takes (`culvert ca rotate`), for as long as it is polled. What
    /// cannot be read leaves the last good state.
    pub(crate) async fn follow(&self) {
        let mut said = None;
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            let state = self.state.clone();
            let read = move || roots::read(&state).and_then(issuing);
            let Ok(read) = tokio::task::spawn_blocking(read).await else { continue };
            match read {
                Ok(issuing) => {
                    self.take_up(issuing);
                    said = None;
                }
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::error!(
                            "the authority's files cannot be used, it goes on with what it has: {error}"
                        );
                    }
                    said = Some(error);
                }
            }
        }
    }

    /// Goes on with what was read, if that is something else; whether it is.
    fn take_up(&self, read: Issuing) -> bool {
        let stage = read.stage;
        let changed = self.current.send_if_modified(|current| {
            let changed = read.basis != current.basis;
            if changed {
                *current = Arc::new(read);
            }
            changed
        });
        if changed {
            tracing::warn!(target: "audit", %stage, "the roots have changed");
        }
        changed
    }

    /// Signs a certificate for `identity` over the key of the request, which must be for exactly that identity.
    /// `validity` in seconds; 0: as long as may be. More than that is cut down to it. Blocks: now
    /// and then it writes to the disk.
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
            Ok(0) => self.lifetime,
            Ok(seconds) => Duration::from_secs(seconds).min(self.lifetime),
            Err(_) => return Err(SignError::Validity(validity)),
        };
        let key = csr::verify(csr_pem, identity)?;
        let uri = Ia5String::try_from(identity.to_string()).map_err(|_| CsrError::Identity)?;
        loop {
            let issuing = self.current.borrow().clone();
            let mut params = issuing.leaf(vec![SanType::URI(uri.clone())], wished, now)?;
            params.distinguished_name = DistinguishedName::new();
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let signed = issuing.finish(params, &key)?;
            if self.note(&issuing, signed.not_after, now)? {
                return Ok(signed);
            }
        }
    }

    /// Has it on the disk that `issuing` has signed until `until`. `false`: a step has been taken meanwhile that this process had not
    /// taken up yet, and the next may have been decided on without this certificate.
    fn note(&self, issuing: &Issuing, until: SystemTime, now: SystemTime) -> Result<bool, SignError> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if ledger.covers(&issuing.basis, until) {
            return Ok(true);
        }
        let _lock = Paths::of(&self.state).lock()?;
        // What cannot be read leaves the last good state, of which `follow` tells.
        if roots::read(&self.state).and_then(self::issuing).is_ok_and(|read| self.take_up(read)) {
            return Ok(false);
        }
        ledger.note(&issuing.basis, until, self.lifetime / AHEAD, now)?;
        Ok(true)
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
        let issuing = self.current.borrow().clone();
        let mut params =
            issuing.leaf(names.chain(addresses).collect::<Result<_, _>>()?, LEAF_LIFETIME, now)?;
        params.distinguished_name = common_name("culvert control");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuing.issuer)?.der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(ServerCertificate { certificate, key, renew_at: now + LEAF_LIFETIME / 2 })
    }
}

impl Issuing {
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
        let serial = hex(&serial);
        Ok(Signed { leaf_pem: certificate.pem(), roots_pem: self.bundle_pem.clone(), serial, not_after })
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

fn issuing(stored: roots::Stored) -> Result<Issuing, OpenError> {
    let (bundle_pem, stage, basis) = (stored.bundle(), stored.stage, stored.basis.clone());
    let (root, root_expires) = (stored.issuing().der.clone(), stored.issuing().expires);
    let issuer = Issuer::from_ca_cert_der(&root, stored.key).map_err(SignError::from)?;
    Ok(Issuing { issuer, root_expires, stage, basis, bundle_pem })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The root's own parameters. It may sign leafs and nothing that signs. Roots of different keys have different names, so
/// that who trusts only one of them is told that the issuer is unknown, and not that a signature is bad.
fn root_params(
    public_key: &[u8],
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, now - HEAD_START, now + ROOT_LIFETIME);
    params.serial_number = Some(random_serial()?);
    params.distinguished_name = common_name(&format!("Culvert root {}", &Basis::of(public_key, "").short()));
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
mod rotation_tests;
#[cfg(test)]
mod tests;
