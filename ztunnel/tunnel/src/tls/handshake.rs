//! Handshakes. The only maker of [`VerifiedPeer`].

use std::sync::Arc;
use std::time::Duration;

use mesh::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};

use super::certificate::WorkloadCertificate;
use super::error::TlsError;

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

    /// Whether `identity` is one of them.
    pub fn contains(&self, identity: &str) -> bool {
        self.0.iter().any(|expected| &**expected == identity)
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
    /// The cipher suite, such as `TLS13_AES_256_GCM_SHA384`.
    pub cipher: &'static str,
}

/// The proof that the other end holds the key of a certificate with this identity. Only a handshake makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    identity: SpiffeId,
    tls: TlsFacts,
}

impl VerifiedPeer {
    /// Who it is.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// How the connection is protected.
    pub fn tls(&self) -> TlsFacts {
        self.tls
    }
}

/// The server's side: the client must show a certificate that chains to our roots, is meant for clients and
/// carries exactly one SPIFFE id, of our own trust domain. `timeout` is for the whole of it.
pub async fn accept<IO>(
    io: IO,
    certificate: &WorkloadCertificate,
    timeout: Duration,
) -> Result<(ServerStream<IO>, VerifiedPeer), TlsError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    todo!()
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
    todo!()
}
