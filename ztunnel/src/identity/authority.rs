//! Certificates from the mesh's CA: a fresh key for each request, kept in this process (contract 1.4 and 2.4).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::ca::{CaClient, CertificateChain};
use api::causes::Causes;
use futures::future::{BoxFuture, FutureExt as _};
use mesh::SpiffeId;
use tunnel::tls::{CertificateRequest, TlsPolicy, WorkloadCertificate};

use super::manager::{Issued, Source};

/// The mesh's CA, and what handshakes with its certificates agree on.
pub(crate) struct Authority {
    pub(crate) client: CaClient,
    pub(crate) policy: TlsPolicy,
    /// What is asked for; the CA may give less (contract 1.4).
    pub(crate) validity: Duration,
}

impl Source for Authority {
    type Certificate = WorkloadCertificate;

    fn fetch<'a>(&'a self, id: &'a SpiffeId) -> BoxFuture<'a, Result<Issued<WorkloadCertificate>, String>> {
        async move {
            let request = CertificateRequest::new(id).map_err(|error| error.to_string())?;
            let csr = request.csr_pem().to_owned();
            let chain = self
                .client
                .create_certificate(csr, id, self.validity)
                .await
                .map_err(|error| Causes(&error).to_string())?;
            let CertificateChain { leaf, intermediates, roots } = chain;
            let elements: Vec<String> = std::iter::once(leaf).chain(intermediates).chain([roots]).collect();
            let certificate = request
                .complete(&elements, &self.policy)
                .map_err(|error| format!("the CA's answer: {error}"))?;
            let remaining = certificate.not_after().duration_since(SystemTime::now());
            match remaining {
                Ok(remaining) => Ok(Issued { certificate: Arc::new(certificate), remaining }),
                Err(_) => {
                    Err("the CA's certificate has expired already: one of the clocks is wrong".to_owned())
                }
            }
        }
        .boxed()
    }
}
