//! Handshakes. The only maker of [`VerifiedPeer`].

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::SpiffeId;
use rustls::{CipherSuite, ProtocolVersion};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificate::WorkloadCertificate;
use super::error::{PeerCertificateError, TlsError};
use super::identity::{Leaf, Role};
use super::revocation::Standing;

/// The server's end of an established connection.
pub type ServerStream<IO> = tokio_rustls::server::TlsStream<IO>;
/// The client's end of an established connection.
pub type ClientStream<IO> = tokio_rustls::client::TlsStream<IO>;

/// Who may be at the other end: SPIFFE ids as text (a workload's identity, a service's subject
/// alternative names). Sorted, without duplicates; equal sets are equal. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExpectedPeers(Arc<[Arc<str>]>);

impl ExpectedPeers {
    /// An empty list is possible and never satisfied.
    pub fn new<S: Into<Arc<str>>>(identities: impl IntoIterator<Item = S>) -> Self {
        let mut list: Vec<Arc<str>> = identities.into_iter().map(Into::into).collect();
        list.sort_unstable();
        list.dedup();
        Self(list.into())
    }

    /// Nobody.
    pub(super) fn none() -> Self {
        Self(Arc::from([]))
    }

    /// Whether `identity` is one of them.
    pub fn contains(&self, identity: &str) -> bool {
        self.0.iter().any(|expected| &**expected == identity)
    }
}

/// Joined by commas.
impl fmt::Display for ExpectedPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, identity) in self.0.iter().enumerate() {
            write!(f, "{}{identity}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl From<&SpiffeId> for ExpectedPeers {
    fn from(identity: &SpiffeId) -> Self {
        Self::new([identity.to_string()])
    }
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// The key exchange's group, such as `X25519MLKEM768`.
    pub group: &'static str,
    /// The cipher suite, such as `TLS_AES_256_GCM_SHA384`.
    pub cipher: &'static str,
}

/// The proof that the other end holds the key of a certificate with this identity. Only a handshake makes it.
#[derive(Clone, Debug)]
pub struct VerifiedPeer {
    identity: SpiffeId,
    tls: TlsFacts,
    not_after: SystemTime,
    expires: Instant,
    standing: Standing,
}

impl VerifiedPeer {
    /// Who it is.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The end of its certificate's validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the first of the connection's two certificates expires, theirs or ours: what it was proved with then
    /// counts no more.
    pub fn expires(&self) -> Instant {
        self.expires
    }

    /// Whether its certificate is revoked meanwhile.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// How the connection is protected.
    pub fn tls(&self) -> TlsFacts {
        self.tls
    }
}

/// The server's side: the client must show a certificate that chains to our roots, is meant for clients and
/// carries exactly one SPIFFE id, of our own trust domain. `timeout` is for the whole of it.
///
/// A client that offers no application protocol is accepted, one that offers others than `h2` is not
/// (Istio contract 2.1).
pub async fn accept<IO>(
    io: IO,
    certificate: &WorkloadCertificate,
    timeout: Duration,
) -> Result<(ServerStream<IO>, VerifiedPeer), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let lists = certificate.policy().revocations.number();
    let handshake = TlsAcceptor::from(certificate.server_config()).accept(io);
    let stream = finish(handshake, timeout).await?;
    let peer = verified(stream.get_ref().1, certificate, Role::Client, lists)?;
    Ok((stream, peer))
}

/// The client's side: the server's certificate must chain to our roots, be meant for servers and carry exactly
/// one SPIFFE id, one of `expected`. `timeout` is for the whole of it. That the server accepts us shows
/// only with its first bytes after it (TLS 1.3).
pub async fn connect<IO>(
    io: IO,
    certificate: &WorkloadCertificate,
    expected: &ExpectedPeers,
    timeout: Duration,
) -> Result<(ClientStream<IO>, VerifiedPeer), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // rustls wants a name; none is sent and none is compared.
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let lists = certificate.policy().revocations.number();
    let handshake = TlsConnector::from(certificate.client_config(expected)).connect(name, io);
    let stream = finish(handshake, timeout).await?;
    let peer = verified(stream.get_ref().1, certificate, Role::Server, lists)?;
    Ok((stream, peer))
}

async fn finish<T>(handshake: impl Future<Output = io::Result<T>>, timeout: Duration) -> Result<T, TlsError> {
    match tokio::time::timeout(timeout, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(TlsError::from_io(&error)),
        Err(_) => Err(TlsError::Timeout(timeout)),
    }
}

/// Reads what the handshake has proved of a peer of this role. Its verifiers have let the certificate pass, by the lists
/// of revoked ones of the number `lists` or later ones.
fn verified<D>(
    connection: &rustls::ConnectionCommon<D>,
    own: &WorkloadCertificate,
    role: Role,
    lists: u64,
) -> Result<VerifiedPeer, TlsError> {
    let chain = connection.peer_certificates().unwrap_or_default();
    let leaf = chain.first().ok_or(TlsError::PeerCertificate(PeerCertificateError::Missing))?;
    let Leaf { identity, not_after, .. } = Leaf::read(leaf).map_err(TlsError::PeerCertificate)?;
    // Nothing runs for a century; an instant further off may not exist.
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    let policy = own.policy();
    let trust = (own.roots(), policy.provider.signature_verification_algorithms);
    let left = not_after.min(own.not_after()).duration_since(SystemTime::now()).unwrap_or_default();
    Ok(VerifiedPeer {
        identity,
        not_after,
        expires: Instant::now() + left.min(CENTURY),
        standing: Standing::of(&policy.revocations, lists, chain, trust, role),
        tls: TlsFacts {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "unknown",
            },
            group: connection
                .negotiated_key_exchange_group()
                .and_then(|group| group.name().as_str())
                .unwrap_or("unknown"),
            cipher: match connection.negotiated_cipher_suite().map(|suite| suite.suite()) {
                Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
                Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
                _ => "unknown",
            },
        },
    })
}
