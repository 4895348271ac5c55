//! What can go wrong, and whose fault it is.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::AlertDescription;

/// A certificate, key or chain that cannot be used. The CA's answer is at fault, or whoever made the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The chain lacks a leaf or roots.
    #[error("the chain needs a leaf and roots, it has {0} elements")]
    Incomplete(usize),
    /// An element is no PEM certificate.
    #[error("element {index} of the chain: {reason}")]
    Malformed {
        /// Which, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// The leaf does not carry exactly one SPIFFE id of the mesh's form.
    #[error("the leaf: {0}")]
    Leaf(PeerCertificateError),
    /// The leaf names somebody else.
    #[error("the leaf names {got}, asked for was {asked}")]
    WrongIdentity {
        /// Asked for.
        asked: mesh::SpiffeId,
        /// Got.
        got: mesh::SpiffeId,
    },
    /// The leaf is not of this key.
    #[error("the leaf is not of this key")]
    WrongKey,
    /// TLS cannot be set up with it.
    #[error("TLS: {0}")]
    Tls(String),
    /// The key cannot be read or made.
    #[error("key: {0}")]
    Key(String),
}

/// What is wrong with a peer's certificate. The peer, or whoever issued it, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerCertificateError {
    /// It showed none.
    #[error("no certificate")]
    Missing,
    /// It cannot be parsed or breaks a rule of X.509.
    #[error("invalid: {0}")]
    Invalid(String),
    /// It is not valid any more.
    #[error("expired")]
    Expired,
    /// It is not valid yet: one of the two clocks is wrong.
    #[error("not valid yet")]
    NotYetValid,
    /// It, or one that vouches for it, was revoked by its issuer.
    #[error("revoked")]
    Revoked,
    /// A list of revoked certificates cannot be used for it.
    #[error("whether it is revoked cannot be told: {0}")]
    RevocationUnknown(String),
    /// It does not chain to our roots.
    #[error("not issued by a root of this mesh")]
    UnknownIssuer,
    /// A signature is wrong: of the chain, or of the handshake.
    #[error("bad signature")]
    BadSignature,
    /// It must not be used for this side of a connection (extended key usage, RFC 5280 4.2.1.12).
    #[error("not meant for this side of a connection")]
    WrongPurpose,
    /// It carries no SPIFFE id.
    #[error("no SPIFFE id")]
    NoIdentity,
    /// It carries more than one SPIFFE id: which one counts would be a matter of opinion.
    #[error("{0} SPIFFE ids, exactly one is accepted")]
    SeveralIdentities(usize),
    /// Its SPIFFE id is not of the mesh's form.
    #[error("identity {0}")]
    MalformedIdentity(#[from] mesh::identity::InvalidSpiffeId),
    /// Its trust domain is not ours.
    #[error("trust domain {theirs}, ours is {ours}")]
    WrongTrustDomain {
        /// Of our own certificate.
        ours: mesh::TrustDomain,
        /// Of the peer's.
        theirs: mesh::TrustDomain,
    },
    /// It is somebody else than who should be there.
    #[error("it is {got}, expected is {expected}")]
    Unexpected {
        /// Who it is.
        got: String,
        /// Who was expected, joined by commas.
        expected: String,
    },
}

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The peer did not finish it in time.
    #[error("handshake timed out after {0:?}")]
    Timeout(Duration),
    /// We refuse the peer's certificate.
    #[error("peer certificate: {0}")]
    PeerCertificate(PeerCertificateError),
    /// The peer refused us; what its alert says (RFC 8446 6.2).
    #[error("refused by the peer: {0}")]
    Alert(String),
    /// The peer speaks other application protocols than `h2` only.
    #[error("the peer does not speak h2")]
    NoCommonProtocol,
    /// The peer offers no TLS version, cipher suite or key exchange that we accept.
    #[error("no TLS parameters in common: {0}")]
    Incompatible(String),
    /// The peer does not speak TLS, or breaks its rules.
    #[error("protocol: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("connection: {0}")]
    Connection(io::ErrorKind),
}

/// Who is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The other end.
    Peer,
    /// What lies between, or the other end's death.
    Network,
    /// One of us, which one is not to be told: the peer says that we are.
    Either,
}

impl TlsError {
    /// A short name for metrics: one of a fixed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::PeerCertificate(error) => error.reason(),
            Self::Alert(_) => "refused_by_peer",
            Self::NoCommonProtocol => "no_common_protocol",
            Self::Incompatible(_) => "incompatible",
            Self::Protocol(_) => "protocol",
            Self::Connection(_) => "connection",
        }
    }

    /// Who is at fault.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Timeout(_) | Self::Connection(_) => Blame::Network,
            Self::Alert(_) | Self::Incompatible(_) => Blame::Either,
            Self::PeerCertificate(_) | Self::NoCommonProtocol | Self::Protocol(_) => Blame::Peer,
        }
    }

    /// What a failed read or write of a TLS stream means.
    pub(crate) fn from_io(error: &io::Error) -> Self {
        let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Connection(error.kind());
        };
        match error {
            rustls::Error::InvalidCertificate(error) => Self::PeerCertificate(error.into()),
            rustls::Error::NoCertificatesPresented => Self::PeerCertificate(PeerCertificateError::Missing),
            rustls::Error::NoApplicationProtocol
            | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Self::NoCommonProtocol,
            rustls::Error::AlertReceived(alert) => {
                Self::Alert(alert.as_str().map_or_else(|| format!("{alert:?}"), str::to_owned))
            }
            rustls::Error::PeerIncompatible(reason) => Self::Incompatible(format!("{reason:?}")),
            other => Self::Protocol(other.to_string()),
        }
    }
}

impl PeerCertificateError {
    /// A short name for metrics: one of a fixed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "certificate_missing",
            Self::Invalid(_) => "certificate_invalid",
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::Revoked => "certificate_revoked",
            Self::RevocationUnknown(_) => "revocation_unknown",
            Self::UnknownIssuer => "unknown_issuer",
            Self::BadSignature => "bad_signature",
            Self::WrongPurpose => "wrong_purpose",
            Self::NoIdentity => "no_identity",
            Self::SeveralIdentities(_) => "several_identities",
            Self::MalformedIdentity(_) => "malformed_identity",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::Unexpected { .. } => "unexpected_identity",
        }
    }
}

/// Our own verdict travels through rustls as this, and comes back by the next conversion.
impl From<PeerCertificateError> for rustls::Error {
    fn from(error: PeerCertificateError) -> Self {
        Self::InvalidCertificate(match error {
            // There is an alert for it, by which the peer learns what to look into.
            PeerCertificateError::Revoked => rustls::CertificateError::Revoked,
            other => rustls::CertificateError::Other(rustls::OtherError(Arc::new(other))),
        })
    }
}

impl From<&rustls::CertificateError> for PeerCertificateError {
    fn from(error: &rustls::CertificateError) -> Self {
        use rustls::CertificateError as Rustls;
        match error {
            Rustls::Expired | Rustls::ExpiredContext { .. } => Self::Expired,
            Rustls::NotValidYet | Rustls::NotValidYetContext { .. } => Self::NotYetValid,
            Rustls::Revoked => Self::Revoked,
            Rustls::UnknownIssuer => Self::UnknownIssuer,
            Rustls::BadSignature => Self::BadSignature,
            Rustls::InvalidPurpose | Rustls::InvalidPurposeContext { .. } => Self::WrongPurpose,
            Rustls::Other(other) => match other.0.downcast_ref::<Self>() {
                Some(own) => own.clone(),
                None => Self::Invalid(other.to_string()),
            },
            other => Self::Invalid(other.to_string()),
        }
    }
}
