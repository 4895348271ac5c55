//! Leaving certificates and keys to the next ztunnel of this node: without them a restart while the CA is away would cut the node's
//! pods off from the others.
//!
//! They lie in a sealed memfd, which the agent keeps by its descriptor and gives to nobody but the successor (see the agent's `zds`).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use api::zds::{DepositedKey, Violation, decode_keys, encode_keys};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tunnel::tls::{CertificateError, WorkloadCertificate};

use super::Identities;

/// The longest content in bytes: thousands of certificates.
const LIMIT: u64 = 64 << 20;

/// Why a deposit is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Somebody may still change it.
    #[error("it is not sealed")]
    Unsealed,
    /// It is too long.
    #[error("{0} bytes, more than {LIMIT}")]
    TooLong(u64),
    /// It is no deposit.
    #[error("it is no deposit: {0}")]
    Malformed(#[from] Violation),
    /// A certificate or its key is not one.
    #[error("a certificate in it: {0}")]
    Certificate(#[from] CertificateError),
}

fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

/// Everything that is held now; nothing if there is nothing.
pub(crate) fn make(identities: &Identities<WorkloadCertificate>) -> io::Result<Option<OwnedFd>> {
    let deposited = |certificate: &Arc<WorkloadCertificate>| {
        let (key, chain) = certificate.to_pem();
        DepositedKey { key, chain }
    };
    let keys: Vec<_> = identities.valid().iter().map(deposited).collect();
    if keys.is_empty() {
        return Ok(None);
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"ztunnel-keys", flags)?);
    file.write_all(&encode_keys(keys))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals()))?;
    Ok(Some(file.into()))
}

/// Takes over what a predecessor left; how many certificates are still valid.
pub(crate) fn take(
    identities: &Identities<WorkloadCertificate>,
    deposit: OwnedFd,
) -> Result<usize, Unusable> {
    let file = File::from(deposit);
    let has = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(io::Error::from)?;
    if !SealFlag::from_bits_truncate(has).contains(seals()) {
        return Err(Unusable::Unsealed);
    }
    let length = file.metadata()?.len();
    if length > LIMIT {
        return Err(Unusable::TooLong(length));
    }
    let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
    // Whoever else holds it shares its position.
    file.read_exact_at(&mut content, 0)?;
    let mut valid = 0;
    for DepositedKey { key, chain } in decode_keys(&content)? {
        let certificate = WorkloadCertificate::from_pem(&key, &chain)?;
        let Ok(remaining) = certificate.not_after().duration_since(SystemTime::now()) else { continue };
        let id = certificate.identity().clone();
        identities.inherit(&id, Arc::new(certificate), remaining);
        valid += 1;
    }
    Ok(valid)
}
