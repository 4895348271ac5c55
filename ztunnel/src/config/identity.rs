//! Certificates, and the handshakes they are shown in.

use std::path::PathBuf;
use std::time::Duration;

use tunnel::tls::KeyExchange;

use super::units::{bounded, duration};

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Identity {
    /// File with lists of revoked certificates (CRLs) in PEM or DER, one or several; it is followed when it changes.
    /// Default: none are. A file that cannot be used stops the start.
    #[arg(long, env = "CRL_PATH", value_name = "FILE")]
    pub(crate) crl: Option<PathBuf>,
    /// `pqc`: agree on no key exchange, with other proxies or an https control plane, but X25519MLKEM768, which withstands quantum
    /// computers; peers without it are refused. Default: prefer it.
    #[arg(long, env = "COMPLIANCE_POLICY", default_value = "", value_parser = compliance_policy)]
    pub(crate) compliance_policy: KeyExchange,
    /// Accepted for Istio's sake; true stops the start, because TLS 1.2 is not spoken.
    #[arg(long, env = "TLS12_ENABLED", default_value = "false", action = clap::ArgAction::Set, value_parser = no_tls12)]
    tls12_enabled: bool,
    /// How long certificates are asked to be valid, such as 24h; 1m to 30days. The CA may give less; half of that later
    /// they are renewed.
    #[arg(long, env = "SECRET_TTL", default_value = "24h", value_parser = certificate_validity)]
    pub(crate) certificate_validity: Duration,
}

fn compliance_policy(text: &str) -> Result<KeyExchange, String> {
    match text {
        "" => Ok(KeyExchange::HybridPreferred),
        "pqc" => Ok(KeyExchange::HybridOnly),
        _ => Err("expected `pqc` or nothing; other policies are not supported".to_owned()),
    }
}

/// In TLS 1.2 certificates cross the network in the clear, and no key exchange of it withstands a quantum computer. Every
/// HBONE peer speaks 1.3.
fn no_tls12(text: &str) -> Result<bool, String> {
    match text {
        "false" | "" => Ok(false),
        "true" => Err("TLS 1.2 is not supported: peers speak TLS 1.3".to_owned()),
        _ => Err("expected false".to_owned()),
    }
}

fn certificate_validity(text: &str) -> Result<Duration, String> {
    bounded(duration(text)?, Duration::from_secs(60), Duration::from_secs(30 * 86_400))
}
