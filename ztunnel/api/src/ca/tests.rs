//! The client against an authority over a unix socket.

use std::sync::Mutex;

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Response;

use super::*;
use crate::proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};

/// Answers each request with the next of its answers.
struct Authority(Mutex<Vec<Result<Vec<&'static str>, Status>>>);

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(impersonated_identity(&request), Some("spiffe://cluster.local/ns/shop/sa/web"));
        assert_eq!((request.csr.as_str(), request.validity_duration), ("csr", 86_400));
        let chain = self.0.lock().unwrap().remove(0)?;
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: chain.into_iter().map(str::to_owned).collect(),
        }))
    }
}

async fn ask(client: &CaClient) -> Result<CertificateChain, CaError> {
    let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    client.create_certificate("csr".to_owned(), &identity, Duration::from_secs(86_400)).await
}

#[tokio::test]
async fn a_chain_is_a_leaf_then_intermediates_then_roots_and_failures_say_whose_they_are() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("ca.sock");
    let client = CaClient::new(Server::Unix(socket.clone()), Credentials::default());
    let away = ask(&client).await.unwrap_err();
    assert!(matches!(away, CaError::Unavailable(_)) && away.is_retryable(), "{away}");

    let answers = Mutex::new(vec![
        Ok(vec!["leaf", "roots"]),
        Ok(vec!["leaf", "a", "b", "roots"]),
        Ok(vec!["leaf"]),
        Err(Status::permission_denied("spiffe://... does not run on node east")),
        Err(Status::invalid_argument("no request")),
    ]);
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let service = IstioCertificateServiceServer::new(Authority(answers));
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    let _server = tokio::spawn(server);

    let chain = |intermediates: &[&str]| CertificateChain {
        leaf: "leaf".to_owned(),
        intermediates: intermediates.iter().map(ToString::to_string).collect(),
        roots: "roots".to_owned(),
    };
    assert_eq!(ask(&client).await.unwrap(), chain(&[]), "the same client connects by itself");
    assert_eq!(ask(&client).await.unwrap(), chain(&["a", "b"]));
    assert!(matches!(ask(&client).await, Err(CaError::ShortChain(1))));
    let denied = ask(&client).await.unwrap_err();
    assert!(denied.to_string().contains("does not run on node east"), "{denied}");
    assert!(denied.is_retryable(), "the authority may come to know the pod");
    assert!(!ask(&client).await.unwrap_err().is_retryable());
}

#[test]
fn a_request_without_an_identity_names_none() {
    let mut request = IstioCertificateRequest::default();
    assert_eq!(impersonated_identity(&request), None);
    let number = Value { kind: Some(Kind::NumberValue(1.0)) };
    let fields = BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), number)]);
    request.metadata = Some(Struct { fields });
    assert_eq!(impersonated_identity(&request), None);
}
