//! `IstioCertificateService` (Istio contract 2.4): who may have which certificate, and the audit of each answer.

use std::sync::Arc;
use std::time::SystemTime;

use api::ca::{IMPERSONATED_IDENTITY, impersonated_identity};
use api::proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use api::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh::SpiffeId;
use tonic::{Code, Request, Response, Status as GrpcStatus};

use super::{Authority, SignError};
use crate::connections::Peer;
use crate::nodes::{Nodes, Standing};
use crate::status::{Refusal, Status};

/// A request has at most this many bytes: twice a PKCS#10's limit.
const REQUEST_LIMIT: usize = 32 << 10;

/// The gRPC service that signs for nodes.
pub(crate) fn service(
    authority: Arc<Authority>,
    nodes: Arc<Nodes>,
    status: Status,
) -> IstioCertificateServiceServer<CertificateService> {
    let service = CertificateService { authority, nodes, status };
    IstioCertificateServiceServer::new(service).max_decoding_message_size(REQUEST_LIMIT)
}

pub(crate) struct CertificateService {
    authority: Arc<Authority>,
    nodes: Arc<Nodes>,
    status: Status,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, GrpcStatus> {
        let peer = request.extensions().get::<Peer>().map(Peer::address);
        let node = self.nodes.of(request.metadata(), request.extensions()).await;
        let asked = impersonated_identity(request.get_ref()).map(str::to_owned);
        let known = node.clone().map_err(|status| (stranger(&status), status));
        let outcome = match known.and_then(|node| self.permit(&node, request.get_ref())) {
            Ok(identity) => self.sign(identity, request.into_inner()).await,
            Err(refused) => Err(refused),
        };
        let node = node.unwrap_or_else(|_| "unknown".to_owned());
        let identity = asked.unwrap_or_default();
        match outcome {
            Ok((response, serial)) => {
                tracing::info!(target: "audit", node, identity, serial, "certificate issued");
                self.status.certificate_issued();
                Ok(Response::new(response))
            }
            Err((refusal, status)) => {
                let (why, reason) = (refusal.label(), status.message());
                tracing::warn!(target: "audit", node, identity, ?peer, code = ?status.code(), why, reason, "certificate refused");
                self.status.certificate_refused(refusal);
                Err(status)
            }
        }
    }
}

impl CertificateService {
    /// The identity asked for, if the node may have certificates of it.
    fn permit(
        &self,
        node: &str,
        request: &IstioCertificateRequest,
    ) -> Result<SpiffeId, (Refusal, GrpcStatus)> {
        let malformed = |message: String| (Refusal::Request, GrpcStatus::invalid_argument(message));
        let asked = impersonated_identity(request).ok_or_else(|| {
            malformed(format!("the metadata `{IMPERSONATED_IDENTITY}` must name the identity"))
        })?;
        let identity: SpiffeId =
            asked.parse().map_err(|error: mesh::identity::InvalidSpiffeId| malformed(error.to_string()))?;
        match self.nodes.standing(node, &identity) {
            Standing::RunsThere => Ok(identity),
            Standing::DoesNot => {
                let message = format!("no pod of the mesh with the identity {identity} runs on node {node}");
                Err((Refusal::OtherNode, GrpcStatus::permission_denied(message)))
            }
            Standing::Unknown => {
                let status = GrpcStatus::unavailable("no manifests have been read yet");
                Err((Refusal::NotNow, status))
            }
        }
    }

    /// The certificate and its serial number. Signing waits for the disk, which must hold up no other call.
    async fn sign(
        &self,
        identity: SpiffeId,
        request: IstioCertificateRequest,
    ) -> Result<(IstioCertificateResponse, String), (Refusal, GrpcStatus)> {
        let authority = Arc::clone(&self.authority);
        let sign =
            move || authority.sign(&request.csr, &identity, request.validity_duration, SystemTime::now());
        let signed = tokio::task::spawn_blocking(sign).await.map_err(|error| {
            (Refusal::Authority, GrpcStatus::internal(format!("signing failed: {error}")))
        })?;
        let signed = signed.map_err(|error| {
            let (refusal, code) = blame(&error);
            (refusal, GrpcStatus::new(code, error.to_string()))
        })?;
        let cert_chain = vec![signed.leaf_pem, signed.roots_pem];
        Ok((IstioCertificateResponse { cert_chain }, signed.serial))
    }
}

/// Why a caller is not taken for a node.
fn stranger(status: &GrpcStatus) -> Refusal {
    match status.code() {
        Code::Unauthenticated => Refusal::Token,
        Code::ResourceExhausted => Refusal::Overload,
        _ => Refusal::NotNow,
    }
}

/// Whose fault it is, for the count and in gRPC's words.
fn blame(error: &SignError) -> (Refusal, Code) {
    match error {
        SignError::Request(_) | SignError::Validity(_) => (Refusal::Request, Code::InvalidArgument),
        SignError::TrustDomain { .. } => (Refusal::TrustDomain, Code::PermissionDenied),
        SignError::RootExpired => (Refusal::Authority, Code::FailedPrecondition),
        SignError::Signing(_) | SignError::Random(_) | SignError::Ledger(_) => {
            (Refusal::Authority, Code::Internal)
        }
    }
}
