//! Certificates that count no more before their time, by lists of their issuers (RFC 5280 5; Istio contract 1.4).
//!
//! Each certificate of a chain is looked up in its issuer's list. One whose issuer has none is not revoked. A list counts
//! after its `nextUpdate` too: who distributes lists may be late, and an old list is better than none. One that its issuer
//! has not signed tells nothing, and then whoever it would be about is refused.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::RootCertStore;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio::sync::watch;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::error::PeerCertificateError;
use super::identity::Role;

/// Why there are no lists in a text. Whoever wrote it is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevocationListError {
    /// There is none in it.
    #[error("there is no revocation list in it")]
    Empty,
    /// One is none.
    #[error("list {number}: {reason}")]
    Malformed {
        /// Which, from 1 on.
        number: usize,
        /// Why.
        reason: String,
    },
}

/// Lists of revoked certificates.
pub struct RevocationLists(Vec<CertRevocationList<'static>>);

impl RevocationLists {
    /// Reads one or several lists, all of them or none: PEM with a block for each, or DER, one after the other.
    pub fn parse(content: &[u8]) -> Result<Self, RevocationListError> {
        let lists = match is_pem(content) {
            true => from_pem(content)?,
            false => from_der(content)?,
        };
        if lists.is_empty() {
            return Err(RevocationListError::Empty);
        }
        let read = |(index, der): (usize, CertificateRevocationListDer<'_>)| {
            let list = OwnedCertRevocationList::from_der(&der).map_err(|error| malformed(index, &error))?;
            Ok(CertRevocationList::from(list))
        };
        lists.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether a chain that leads to `roots` is free of revoked certificates.
    fn check(&self, chain: &Chain<'_>, evidence: &Verified<'_>) -> Result<(), PeerCertificateError> {
        let lists: Vec<&CertRevocationList<'_>> = self.0.iter().collect();
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else { return Ok(()) };
        let options = options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore);
        let usage = match evidence.role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let unknown = |error: webpki::Error| PeerCertificateError::RevocationUnknown(error.to_string());
        let leaf = EndEntityCert::try_from(chain.leaf).map_err(unknown)?;
        let verified = leaf.verify_for_usage(
            evidence.algorithms.all,
            &evidence.roots.roots,
            chain.intermediates,
            evidence.at,
            usage,
            Some(options.build()),
            None,
        );
        match verified {
            Ok(_) => Ok(()),
            Err(webpki::Error::CertRevoked) => Err(PeerCertificateError::Revoked),
            Err(other) => Err(unknown(other)),
        }
    }
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RevocationLists({})", self.0.len())
    }
}

/// DER begins with the tag of a SEQUENCE, text with anything else.
fn is_pem(content: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    content.first().is_some_and(|first| *first != SEQUENCE)
}

fn malformed(index: usize, reason: &dyn fmt::Display) -> RevocationListError {
    RevocationListError::Malformed { number: index + 1, reason: reason.to_string() }
}

fn from_pem(content: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, RevocationListError> {
    let blocks = CertificateRevocationListDer::pem_slice_iter(content).enumerate();
    blocks.map(|(index, block)| block.map_err(|error| malformed(index, &error))).collect()
}

fn from_der(content: &[u8]) -> Result<Vec<CertificateRevocationListDer<'_>>, RevocationListError> {
    let (mut lists, mut rest) = (Vec::new(), content);
    while !rest.is_empty() {
        let (after, _) =
            CertificateRevocationList::from_der(rest).map_err(|error| malformed(lists.len(), &error))?;
        let (list, _) = rest.split_at(rest.len() - after.len());
        lists.push(CertificateRevocationListDer::from(list));
        rest = after;
    }
    Ok(lists)
}

/// The lists in force, of which each version is told by a number.
#[derive(Clone, Debug)]
struct InForce {
    number: u64,
    lists: Arc<RevocationLists>,
}

/// The lists that count in all handshakes of a process, and over what stands already. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Revocations(Option<watch::Sender<InForce>>);

impl Revocations {
    /// There are none, and there will be none.
    pub fn none() -> Self {
        Self(None)
    }

    /// These, until they are replaced.
    pub fn new(lists: RevocationLists) -> Self {
        Self(Some(watch::Sender::new(InForce { number: 0, lists: Arc::new(lists) })))
    }

    /// Puts others in their place. Of no effect where there are to be none.
    pub fn replace(&self, lists: RevocationLists) {
        if let Some(sender) = &self.0 {
            sender.send_modify(|held| {
                *held = InForce { number: held.number + 1, lists: Arc::new(lists) };
            });
        }
    }

    /// Which lists are in force, to be asked before a handshake.
    pub(super) fn number(&self) -> u64 {
        self.0.as_ref().map_or(0, |sender| sender.borrow().number)
    }

    /// Whether a peer's chain, which was verified otherwise, is free of revoked certificates now.
    pub(super) fn check(
        &self,
        chain: &Chain<'_>,
        verified: &Verified<'_>,
    ) -> Result<(), PeerCertificateError> {
        match &self.0 {
            None => Ok(()),
            Some(sender) => {
                let lists = sender.borrow().lists.clone();
                lists.check(chain, verified)
            }
        }
    }
}

/// A peer's certificates.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    pub(super) leaf: &'a CertificateDer<'a>,
    pub(super) intermediates: &'a [CertificateDer<'a>],
}

/// What they are verified by.
#[derive(Clone, Copy)]
pub(super) struct Verified<'a> {
    pub(super) roots: &'a RootCertStore,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) at: UnixTime,
    pub(super) role: Role,
}

/// Whether a peer's certificate still counts, after the handshake. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Standing(Option<Arc<Evidence>>);

struct Evidence {
    revocations: watch::Sender<InForce>,
    /// The lists before the handshake: what came since may not have been looked at.
    number: u64,
    chain: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    /// When it was verified: that it has expired since is not what is asked for here.
    at: UnixTime,
    role: Role,
    lost: AtomicBool,
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evidence").field("role", &self.role).field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Standing {
    /// One that no list can end.
    pub fn for_good() -> Self {
        Self(None)
    }

    /// Of a peer of this role that has just been let in while the lists of `number`, or later ones, were in force.
    pub(super) fn of(
        revocations: &Revocations,
        number: u64,
        chain: &[CertificateDer<'static>],
        (roots, algorithms): (&Arc<RootCertStore>, WebPkiSupportedAlgorithms),
        role: Role,
    ) -> Self {
        let evidence = |sender: &watch::Sender<InForce>| {
            Arc::new(Evidence {
                revocations: sender.clone(),
                number,
                chain: chain.to_vec(),
                roots: roots.clone(),
                algorithms,
                at: UnixTime::now(),
                role,
                lost: AtomicBool::new(false),
            })
        };
        Self(revocations.0.as_ref().map(evidence))
    }

    /// Returns when a certificate of the peer has been revoked. Cancel safe.
    pub async fn lost(&self) {
        if let Some(evidence) = &self.0 {
            let mut lists = evidence.revocations.subscribe();
            loop {
                let now = lists.borrow_and_update().clone();
                if now.number != evidence.number && evidence.is_revoked_by(&now.lists) {
                    evidence.lost.store(true, Ordering::Release);
                    return;
                }
                if lists.changed().await.is_err() {
                    break;
                }
            }
        }
        std::future::pending::<()>().await;
    }

    /// Whether [`Self::lost`] has returned for somebody.
    pub fn is_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|evidence| evidence.lost.load(Ordering::Acquire))
    }
}

impl Evidence {
    fn is_revoked_by(&self, lists: &RevocationLists) -> bool {
        let Some((leaf, intermediates)) = self.chain.split_first() else { return false };
        let Self { roots, algorithms, at, role, .. } = self;
        let verified = Verified { roots, algorithms: *algorithms, at: *at, role: *role };
        lists.check(&Chain { leaf, intermediates }, &verified) == Err(PeerCertificateError::Revoked)
    }
}
