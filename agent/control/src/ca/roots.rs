//! The authority on the disk: `ca.key` (0600), the key that signs; `root.pem` (0644), the roots that everybody trusts, one
//! of which is that key's; and during a rotation `next.key` (0600). All in the state directory (0700), and changed under the lock on
//! `ca.lock` alone.
//!
//! The stage of a rotation is not written down anywhere: it is which keys belong to which roots. Each step is one file
//! put in place of another, so that there is no state in between:
//!
//! | stage | `ca.key` is of | `root.pem` has | `next.key` |
//! |---|---|---|---|
//! | settled | the root | the root | none, or one that no root is of (it is used by the next rotation) |
//! | both trusted | the old root | the old and the new root | of the new root |
//! | new one issues | the new root | the old and the new root | none |

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh::TrustDomain;
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::ledger::Basis;
use super::{OpenError, SignError, root_params};
use crate::state_directory::{Locked, StateError, check_private, lock, move_file, read_file, write_file};

/// How far a rotation of the root has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is one root.
    Settled,
    /// A new root is trusted beside the one that issues.
    BothTrusted,
    /// The new root issues; the old one is still trusted.
    NewIssues,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Settled => "settled",
            Self::BothTrusted => "both-trusted",
            Self::NewIssues => "new-issues",
        })
    }
}

/// A root certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its common name, which holds the beginning of its key's hash.
    pub name: String,
    /// The SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// When it ends.
    pub expires: SystemTime,
    /// Whether its key signs.
    pub issues: bool,
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
}

/// What is on the disk, read and found to belong together.
pub(super) struct Stored {
    pub(super) key: KeyPair,
    pub(super) roots: Vec<Root>,
    pub(super) stage: Stage,
    pub(super) basis: Basis,
    /// There was no root before.
    pub(super) made: bool,
}

pub(super) struct Paths {
    pub(super) key: PathBuf,
    pub(super) roots: PathBuf,
    pub(super) next: PathBuf,
    lock: PathBuf,
}

impl Paths {
    pub(super) fn of(state: &Path) -> Self {
        let file = |name: &str| state.join(name);
        Self { key: file("ca.key"), roots: file("root.pem"), next: file("next.key"), lock: file("ca.lock") }
    }

    /// Held by whoever reads, decides and writes: two processes that take steps, or one and control that signs.
    pub(super) fn lock(&self) -> Result<Locked, StateError> {
        lock(&self.lock)
    }
}

impl Stored {
    /// The root whose key signs.
    pub(super) fn issuing(&self) -> &Root {
        // `read` takes nothing without one.
        self.roots.iter().find(|root| root.issues).unwrap_or(&self.roots[0])
    }

    /// All roots, as one PEM text.
    pub(super) fn bundle(&self) -> String {
        self.roots.iter().map(|root| root.pem.as_str()).collect()
    }
}

/// Reads what is there.
///
/// # Errors
/// Something is missing, or does not belong to the rest. Nothing is made: a directory that is not mounted, or was emptied, must not
/// become a mesh with another root.
pub(super) fn read(state: &Path) -> Result<Stored, OpenError> {
    let paths = Paths::of(state);
    let pem = read_file(&paths.roots)?.ok_or_else(|| OpenError::RootMissing { root: paths.roots.clone() })?;
    match read_key(&paths.key)? {
        Some(key) => assemble(paths, key, &pem, false),
        None => Err(OpenError::KeyMissing { root: paths.roots, key: paths.key }),
    }
}

/// Reads what is there, and makes what is missing on a first start.
pub(super) fn open(state: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Stored, OpenError> {
    let paths = Paths::of(state);
    if paths.roots.exists() {
        return read(state);
    }
    let key = match read_key(&paths.key)? {
        Some(key) => key,
        None => {
            let key = make_key(&paths.key)?;
            tracing::info!(path = %paths.key.display(), "made the certificate authority's key");
            key
        }
    };
    // A root made anew of the same key and names is as good as the one before: leafs of either verify with both. It is
    // missing after a first start that was cut short.
    let pem = make_root(&key, trust_domain, now)?;
    write_file(&paths.roots, 0o644, pem.as_bytes())?;
    tracing::info!(path = %paths.roots.display(), "made the root certificate; nodes need it to trust control");
    assemble(paths, key, &pem, true)
}

fn assemble(paths: Paths, key: KeyPair, pem: &str, made: bool) -> Result<Stored, OpenError> {
    let roots = parse(&paths.roots, pem, &key)?;
    if !roots.iter().any(|root| root.issues) {
        return Err(OpenError::Mismatch { root: paths.roots, key: paths.key });
    }
    let stage = match (roots.len(), read_key(&paths.next)?) {
        (1, _) => Stage::Settled,
        (_, Some(next)) if parse(&paths.roots, pem, &next)?.iter().any(|root| root.issues) => {
            Stage::BothTrusted
        }
        _ => Stage::NewIssues,
    };
    let basis = Basis::of(key.der_bytes(), pem);
    Ok(Stored { key, roots, stage, basis, made })
}

pub(super) fn read_key(path: &Path) -> Result<Option<KeyPair>, OpenError> {
    let Some(pem) = read_file(path)? else { return Ok(None) };
    check_private(path, 0o600)?;
    let unusable =
        |error: rcgen::Error| OpenError::Unusable { path: path.to_owned(), reason: error.to_string() };
    KeyPair::from_pem(&pem).map(Some).map_err(unusable)
}

pub(super) fn make_key(path: &Path) -> Result<KeyPair, OpenError> {
    let key = KeyPair::generate().map_err(SignError::from)?;
    write_file(path, 0o600, key.serialize_pem().as_bytes())?;
    Ok(key)
}

pub(super) fn make_root(key: &KeyPair, domain: &TrustDomain, now: SystemTime) -> Result<String, OpenError> {
    let params = root_params(key.der_bytes(), domain, now)?;
    Ok(params.self_signed(key).map_err(SignError::from)?.pem())
}

/// The roots in `pem`; those of `key` issue.
fn parse(path: &Path, pem: &str, key: &KeyPair) -> Result<Vec<Root>, OpenError> {
    const END: &str = "-----END CERTIFICATE-----";
    let unusable = |reason: String| OpenError::Unusable { path: path.to_owned(), reason };
    let mut roots = Vec::new();
    for text in pem.split_inclusive(END).filter(|text| !text.trim().is_empty()) {
        let der =
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| unusable(error.to_string()))?;
        let expires = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let issues = parsed.public_key().subject_public_key.data.as_ref() == key.der_bytes();
        let (name, expires) =
            (name.unwrap_or_default().to_owned(), SystemTime::UNIX_EPOCH + Duration::from_secs(expires));
        let fingerprint = super::hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der).as_ref());
        let pem = format!("{}\n", text.trim());
        roots.push(Root { name, fingerprint, expires, issues, pem, der: der.clone() });
    }
    match roots.is_empty() {
        true => Err(unusable("it has no certificate".to_owned())),
        false => Ok(roots),
    }
}

/// Puts the next key in the place of the one that signs.
pub(super) fn promote(paths: &Paths) -> Result<(), OpenError> {
    Ok(move_file(&paths.next, &paths.key)?)
}
