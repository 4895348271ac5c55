//! The client of a certificate authority (Istio contract 2.4).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use mesh::SpiffeId;
use prost_types::{Struct, Value, value::Kind};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::channel::{ConnectError, Credentials, Server, connect_lazily};
use crate::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};

/// The key of the request's metadata under which the identity is named.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// How long a call may take, the connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A certificate and what vouches for it, each as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateChain {
    /// The certificate of the identity.
    pub leaf: String,
    /// Those between it and a root, nearest first.
    pub intermediates: Vec<String>,
    /// All roots of the trust domain, in one text.
    pub roots: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Our token or configuration is at fault.
    #[error(transparent)]
    Local(#[from] ConnectError),
    /// The authority cannot be reached or cannot answer now.
    #[error("the certificate authority is not available: {}", .0.message())]
    Unavailable(Status),
    /// The authority refuses the request as it stands.
    #[error("the certificate authority refuses ({:?}): {}", .0.code(), .0.message())]
    Refused(Status),
    /// The authority's answer has not a leaf and roots.
    #[error("the certificate authority answered with {0} certificates, not a leaf and roots at least")]
    ShortChain(usize),
}

impl CaError {
    /// Whether the same request may succeed later with nothing changed here.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::ShortChain(_) => true,
            // The token is a file that is rotated; the pod may not be known to the authority yet. Whoever
            // asks again does so with backoff.
            Self::Local(error) => matches!(error, ConnectError::Read { .. } | ConnectError::Transport { .. }),
            Self::Refused(status) => matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated),
        }
    }
}

/// A client, cheap to clone; its clones share one connection, made when first needed.
#[derive(Clone, Debug)]
pub struct CaClient {
    client: IstioCertificateServiceClient<Channel>,
    credentials: Credentials,
}

impl CaClient {
    /// A client of the authority at `server`. Must be called within a tokio runtime.
    pub fn new(server: Server, credentials: Credentials) -> Self {
        Self { client: IstioCertificateServiceClient::new(connect_lazily(server)), credentials }
    }

    /// Asks for a certificate of `identity` for the key of `csr` (PKCS#10 as PEM). The caller checks that the
    /// certificate is of that key and identity.
    pub async fn create_certificate(
        &self,
        csr: String,
        identity: &SpiffeId,
        validity: Duration,
    ) -> Result<CertificateChain, CaError> {
        let name = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let request = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(validity.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), name)]) }),
        };
        chain(self.forward(request).await?)
    }

    /// Sends a request as it is, with the credentials of this client: for a node agent that relays.
    pub async fn forward(
        &self,
        request: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, CaError> {
        let mut request = Request::new(request);
        request.set_timeout(CALL_TIMEOUT);
        self.credentials.apply(request.metadata_mut()).await?;
        let response = self.client.clone().create_certificate(request).await.map_err(blame)?;
        Ok(response.into_inner())
    }
}

/// The identity a request names; `None`: it names none.
pub fn impersonated_identity(request: &IstioCertificateRequest) -> Option<&str> {
    match &request.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?.kind {
        Some(Kind::StringValue(identity)) => Some(identity),
        _ => None,
    }
}

fn blame(status: Status) -> CaError {
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted => CaError::Unavailable(status),
        _ => CaError::Refused(status),
    }
}

fn chain(response: IstioCertificateResponse) -> Result<CertificateChain, CaError> {
    let mut chain = response.cert_chain;
    let length = chain.len();
    match (chain.pop(), length) {
        (Some(roots), 2..) => {
            let leaf = chain.remove(0);
            Ok(CertificateChain { leaf, intermediates: chain, roots })
        }
        _ => Err(CaError::ShortChain(length)),
    }
}
