//! What all handshakes of a process agree on.

use std::fmt;
use std::sync::Arc;

use api::key_exchange::KeyExchange;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

use super::revocation::Revocations;

/// Versions, suites and key exchanges that are accepted, and certificates that are not. Cheap to clone.
///
/// TLS 1.3 alone, with the AES-GCM suites that every Istio peer has (contract 1.4).
#[derive(Clone)]
pub struct TlsPolicy {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) revocations: Revocations,
}

impl TlsPolicy {
    /// See the parts.
    pub fn new(key_exchange: KeyExchange, revocations: Revocations) -> Self {
        let provider = CryptoProvider {
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            ],
            kx_groups: key_exchange.groups(),
            ..aws_lc_rs::default_provider()
        };
        Self { provider: Arc::new(provider), revocations }
    }
}

/// The hybrid preferred, and no lists of revoked certificates.
impl Default for TlsPolicy {
    fn default() -> Self {
        Self::new(KeyExchange::default(), Revocations::none())
    }
}

impl fmt::Debug for TlsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<_> = self.provider.kx_groups.iter().map(|group| group.name()).collect();
        f.debug_struct("TlsPolicy").field("groups", &groups).finish_non_exhaustive()
    }
}
