//! What can go wrong, and whose fault it is.

use std::time::Duration;

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
        asked: String,
        /// Got.
        got: String,
    },
    /// The leaf is not of this key.
    #[error("the leaf is not of this key")]
    WrongKey,
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
    Connection(std::io::ErrorKind),
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
        todo!()
    }

    /// Who is at fault.
    pub fn blame(&self) -> Blame {
        todo!()
    }
}
