//! Certificate requests of ztunnel, passed on to the certificate authority with the node's token (Istio contract 2.4).
//! The agent neither sees keys nor decides: the authority signs for this node only identities of pods that run on it.

use api::ca::{CaClient, CaError, impersonated_identity};
use api::proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use api::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::{Request, Response, Status};
use tracing::{debug, warn};

use crate::telemetry::Telemetry;

/// The relay.
#[derive(Debug)]
pub(crate) struct CaRelay {
    authority: CaClient,
    telemetry: Telemetry,
}

impl CaRelay {
    /// A relay to `authority`.
    pub(crate) fn new(authority: CaClient, telemetry: Telemetry) -> Self {
        Self { authority, telemetry }
    }

    /// As a gRPC service.
    pub(super) fn into_service(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaRelay {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        let identity = impersonated_identity(&request).unwrap_or("(none)").to_owned();
        match self.authority.forward(request).await {
            Ok(response) => {
                self.telemetry.certificate("issued");
                debug!(identity, "certificate relayed");
                Ok(Response::new(response))
            }
            Err(error) => {
                let (outcome, status) = blame(&error);
                self.telemetry.certificate(outcome);
                warn!(identity, %error, "no certificate");
                Err(status)
            }
        }
    }
}

/// What is counted, and what ztunnel is told: the authority's own words where it spoke.
fn blame(error: &CaError) -> (&'static str, Status) {
    match error {
        CaError::Refused(status) => ("refused", Status::new(status.code(), status.message())),
        CaError::Unavailable(_) | CaError::Local(_) | CaError::ShortChain(_) => {
            ("unavailable", Status::unavailable(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_code_and_words_and_an_absence_is_unavailable() {
        let refusal = CaError::Refused(Status::permission_denied("not a pod of this node"));
        let (outcome, status) = blame(&refusal);
        assert_eq!((outcome, status.code()), ("refused", tonic::Code::PermissionDenied));
        assert_eq!(status.message(), "not a pod of this node");
        let (outcome, status) = blame(&CaError::Unavailable(Status::internal("down")));
        assert_eq!((outcome, status.code()), ("unavailable", tonic::Code::Unavailable));
    }
}
