//! `ca.key` (0600) and `root.pem` (0644) in the state directory (0700).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh::TrustDomain;
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{Authority, SignError, root_params};
use crate::state_directory::{StateError, check_private, private_directory, read_file, write_file};

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
    #[error("{root} is not the certificate of {key}. Restore both from one backup", root = root.display(), key = key.display())]
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

pub(super) fn open(
    state: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Authority, OpenError> {
    private_directory(state)?;
    let (key_path, root_path) = (state.join("ca.key"), state.join("root.pem"));
    let stored_root = read_file(&root_path)?;
    let key = match read_file(&key_path)? {
        Some(pem) => {
            check_private(&key_path, 0o600)?;
            let unusable = |error: rcgen::Error| OpenError::Unusable {
                path: key_path.clone(),
                reason: error.to_string(),
            };
            KeyPair::from_pem(&pem).map_err(unusable)?
        }
        None if stored_root.is_some() => {
            return Err(OpenError::KeyMissing { root: root_path, key: key_path });
        }
        None => {
            let key = KeyPair::generate().map_err(SignError::from)?;
            write_file(&key_path, 0o600, key.serialize_pem().as_bytes())?;
            tracing::info!(path = %key_path.display(), "made the certificate authority's key");
            key
        }
    };
    // A root made anew of the same key and names is as good as the one before: leafs of either verify with both. It is
    // missing after a first start that was cut short.
    let root_pem = match stored_root {
        Some(pem) => pem,
        None => {
            let pem = root_params(trust_domain, now)?.self_signed(&key).map_err(SignError::from)?.pem();
            write_file(&root_path, 0o644, pem.as_bytes())?;
            tracing::info!(path = %root_path.display(), "made the root certificate; nodes need it to trust control");
            pem
        }
    };
    let unusable = |reason: String| OpenError::Unusable { path: root_path.clone(), reason };
    let root =
        CertificateDer::from_pem_slice(root_pem.as_bytes()).map_err(|error| unusable(error.to_string()))?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&root).map_err(|error| unusable(error.to_string()))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err(OpenError::Mismatch { root: root_path.clone(), key: key_path });
    }
    let expires = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    let root_expires = SystemTime::UNIX_EPOCH + Duration::from_secs(expires);
    drop(parsed);
    let issuer = Issuer::from_ca_cert_der(&root, key).map_err(|error| unusable(error.to_string()))?;
    Ok(Authority { issuer, root_pem, root_expires, trust_domain: trust_domain.clone() })
}
