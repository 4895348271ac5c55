//! How the keys of TLS connections are agreed on, to control planes and between proxies alike.

use rustls::crypto::{SupportedKxGroup, aws_lc_rs::kx_group};

/// Which key exchanges are agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyExchange {
    /// The hybrid of X25519 and ML-KEM-768 before others, so that what is recorded today stays secret when a quantum
    /// computer exists; peers without it take X25519 or P-256.
    #[default]
    HybridPreferred,
    /// The hybrid alone. Peers without it are refused.
    HybridOnly,
}

impl KeyExchange {
    /// The groups, the preferred one first.
    pub fn groups(self) -> Vec<&'static dyn SupportedKxGroup> {
        match self {
            Self::HybridPreferred => vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            Self::HybridOnly => vec![kx_group::X25519MLKEM768],
        }
    }
}
