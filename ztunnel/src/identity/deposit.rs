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
use tunnel::tls::{CertificateError, TlsPolicy, WorkloadCertificate};

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
    #[error("certificate {number} of {of} in it: {error}")]
    Certificate {
        /// Which, from 1 on.
        number: usize,
        /// How many there are.
        of: usize,
        /// Why it is none.
        error: CertificateError,
    },
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

/// Takes over what a predecessor left, all of it or nothing; how many certificates are still valid.
pub(crate) fn take(
    identities: &Identities<WorkloadCertificate>,
    policy: &TlsPolicy,
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
    let keys = decode_keys(&content)?;
    let of = keys.len();
    let parse = |(index, DepositedKey { key, chain }): (usize, DepositedKey)| {
        let number = index + 1;
        WorkloadCertificate::from_pem(&key, &chain, policy).map_err(|error| Unusable::Certificate {
            number,
            of,
            error,
        })
    };
    let certificates: Vec<_> = keys.into_iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    let mut valid = 0;
    for certificate in certificates {
        let Ok(remaining) = certificate.not_after().duration_since(SystemTime::now()) else { continue };
        let id = certificate.identity().clone();
        identities.inherit(&id, Arc::new(certificate), remaining);
        valid += 1;
    }
    Ok(valid)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use futures::future::BoxFuture;
    use mesh::SpiffeId;
    use rcgen::{CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair};
    use tunnel::tls::CertificateRequest;

    use super::*;
    use crate::identity::{Issued, Source};
    use crate::telemetry::Metrics;

    struct Away;

    impl Source for Away {
        type Certificate = WorkloadCertificate;

        fn fetch<'a>(
            &'a self,
            _: &'a SpiffeId,
        ) -> BoxFuture<'a, Result<Issued<WorkloadCertificate>, String>> {
            async { Err("away".to_owned()) }.boxed()
        }
    }

    fn identities() -> Identities<WorkloadCertificate> {
        Identities::new(Away, Metrics::default())
    }

    fn certificate(account: &str) -> WorkloadCertificate {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
        let request = CertificateRequest::new(&id).unwrap();
        let mut csr = CertificateSigningRequestParams::from_pem(request.csr_pem()).unwrap();
        csr.params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let chain = [csr.signed_by(&root).unwrap().pem(), root.pem()];
        request.complete(&chain, &TlsPolicy::default()).unwrap()
    }

    fn deposited(certificate: &WorkloadCertificate) -> DepositedKey {
        let (key, chain) = certificate.to_pem();
        DepositedKey { key, chain }
    }

    /// A memfd of this content with these seals.
    fn sealed(content: &[u8], seals: SealFlag) -> OwnedFd {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create(c"test", flags).unwrap());
        file.write_all(content).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        file.into()
    }

    #[tokio::test]
    async fn what_is_left_is_taken_over_by_the_successor() {
        let (former, heir) = (identities(), identities());
        assert!(make(&former).unwrap().is_none(), "there is nothing to leave");
        let web = certificate("web");
        former.inherit(web.identity(), Arc::new(web.clone()), Duration::from_secs(60));
        assert_eq!(take(&heir, &TlsPolicy::default(), make(&former).unwrap().unwrap()).unwrap(), 1);
        assert_eq!(heir.valid()[0].identity(), web.identity());
    }

    #[tokio::test]
    async fn a_deposit_that_is_not_whole_is_refused_whole_and_the_error_says_what_is_wrong() {
        let (web, other) = (certificate("web"), certificate("other"));
        let mixed = DepositedKey { key: deposited(&other).key, chain: deposited(&web).chain };
        let whole = encode_keys(vec![deposited(&web), deposited(&other)]);
        let spoilt = encode_keys(vec![deposited(&web), mixed]);
        let cases = [
            ("certificate 2 of 2", sealed(&spoilt, seals())),
            ("it is no deposit", sealed(&whole[..whole.len() - 1], seals())),
            ("it is not sealed", sealed(&whole, SealFlag::F_SEAL_SHRINK)),
        ];
        for (expected, deposit) in cases {
            let heir = identities();
            let error = take(&heir, &TlsPolicy::default(), deposit).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
            assert_eq!(heir.valid().len(), 0, "{expected}: a part was taken over");
        }
    }
}
