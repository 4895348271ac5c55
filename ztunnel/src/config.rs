//! Configuration, read once at start from flags and Istio's environment names; the rest of the process
//! sees only these types. A value out of its bounds stops the start with the flag's name.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use mesh::{Network, TrustDomain};

/// The node proxy: captures the TCP traffic of the node's mesh pods and gives it mutual TLS, identity
/// and policy.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "ztunnel", version)]
pub struct Config {
    /// Where configuration comes from (delta xDS): unix:///PATH or https://HOST:PORT.
    #[arg(long, env = "XDS_ADDRESS", default_value = "unix:///run/culvert/xds.sock")]
    pub xds_address: Upstream,
    /// Where certificates are signed; the same forms. Default: the xDS address.
    #[arg(long, env = "CA_ADDRESS")]
    pub ca_address: Option<Upstream>,
    /// PEM roots to verify an https xDS address and CA with.
    #[arg(long, env = "XDS_ROOT_CA")]
    pub root_ca: Option<PathBuf>,
    /// File with the bearer token for https addresses, read anew for each connection and request.
    #[arg(long, env = "AUTH_TOKEN")]
    pub token: Option<PathBuf>,
    /// The node agent's ZDS socket.
    #[arg(long, env = "INPOD_UDS", default_value = "/run/culvert/zds.sock")]
    pub inpod_uds: PathBuf,
    /// The name of the node this runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// The cluster the node belongs to.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The network the node belongs to; addresses are unique within one.
    #[arg(long, env = "NETWORK", default_value = "", value_parser = network)]
    pub network: Network,
    /// The trust domain of this mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: TrustDomain,
    /// Admin endpoint: configuration dump, log level. Loopback only, unless you know why not.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
    /// Metrics endpoint.
    #[arg(long, env = "STATS_ADDR", default_value = "0.0.0.0:15020")]
    pub stats_address: SocketAddr,
    /// Readiness endpoint.
    #[arg(long, env = "READINESS_ADDR", default_value = "0.0.0.0:15021")]
    pub readiness_address: SocketAddr,
    /// Log filter, such as `info` or `ztunnel=debug,access=info`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
    /// Form of the log lines: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub log_format: String,
    /// How long live connections may go on after SIGTERM, such as 25s; 0s to 1h. Then they are reset.
    /// Keep it below the pod's grace period, or the kernel cuts them without a word.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", default_value = "25s", value_parser = drain_deadline)]
    pub drain_deadline: Duration,
    /// Connections held at once for one pod, both directions together, tunnelled streams counted singly; 1 to
    /// 1,000,000. What is beyond is reset. Independent of it, no pod takes more than is left free for the others.
    #[arg(long, env = "MAX_CONNECTIONS_PER_POD", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections_per_pod: u32,
    /// A connection on which no byte moves either way for so long is ended, such as 24h; 1s to 30days.
    /// Shorter than an application's longest silence cuts connections that it still wants.
    #[arg(long, env = "IDLE_TIMEOUT", default_value = "24h", value_parser = idle_timeout)]
    pub idle_timeout: Duration,
    /// Dials of another process or node, the TLS handshake and the answer to a CONNECT each end after so long;
    /// 100ms to 5m. Shorter fails calls that a lost SYN delays (a retransmission takes 1 s, the next 2 s).
    #[arg(long, env = "CONNECT_TIMEOUT", default_value = "10s", value_parser = stage_timeout)]
    pub stage_timeout: Duration,
}

impl Config {
    /// Where certificates are signed.
    pub fn ca(&self) -> &Upstream {
        self.ca_address.as_ref().unwrap_or(&self.xds_address)
    }
}

/// How long a connection waits for its own pod's workload, and then for its certificate. Istio's value (contract
/// 1.2 step 2): it covers the moments between a pod's first packet and the control plane's push.
pub(crate) const START_WAIT: Duration = Duration::from_secs(5);

/// A server of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// A unix socket: the node's agent. Its directory's permissions are the authentication.
    Unix(PathBuf),
    /// TLS: `host:port`.
    Tls(http::uri::Authority),
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err("a unix socket needs an absolute path: unix:///PATH".to_owned()),
            };
        }
        let Some(authority) = text.strip_prefix("https://") else {
            return Err("expected unix:///PATH or https://HOST:PORT; plaintext is not spoken".to_owned());
        };
        let authority: http::uri::Authority = authority.parse().map_err(|error| format!("{error}"))?;
        match authority.port_u16() {
            Some(_) => Ok(Self::Tls(authority)),
            None => Err("the port is missing: https://HOST:PORT".to_owned()),
        }
    }
}

fn network(text: &str) -> Result<Network, String> {
    Ok(Network::from(text))
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    match !text.is_empty() && text.bytes().all(allowed) {
        true => Ok(TrustDomain::from(text)),
        false => Err("a trust domain is made of a-z, 0-9, '.', '-' and '_' (SPIFFE-ID 2.1)".to_owned()),
    }
}

fn drain_deadline(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::ZERO, Duration::from_secs(3600))
}

fn idle_timeout(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(1), Duration::from_secs(30 * 86_400))
}

fn stage_timeout(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_millis(100), Duration::from_secs(300))
}

fn bounded(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let value = duration(text)?;
    match (least..=most).contains(&value) {
        true => Ok(value),
        false => Err(format!("must be between {least:?} and {most:?}")),
    }
}

/// A number with one of the units `ms`, `s`, `m`, `h` and `days`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "expected a number with a unit, such as 10s".to_owned())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "days" => 86_400_000,
        _ => return Err(format!("unit `{unit}` is none of ms, s, m, h, days")),
    };
    let total = number.checked_mul(millis).ok_or("too long")?;
    Ok(Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn parse(flags: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from(["ztunnel", "--node-name", "east"].iter().chain(flags))
    }

    #[test]
    fn the_ca_is_where_configuration_comes_from_unless_told_otherwise() {
        let config = parse(&["--xds-address", "unix:///tmp/x"]).unwrap();
        assert_eq!(config.ca(), &Upstream::Unix("/tmp/x".into()));
        let config = parse(&["--ca-address", "https://istiod.istio-system.svc:15012"]).unwrap();
        assert_eq!(config.ca(), &Upstream::Tls("istiod.istio-system.svc:15012".parse().unwrap()));
        assert_eq!(config.xds_address, Upstream::Unix("/run/culvert/xds.sock".into()));
    }

    #[test]
    fn values_out_of_bounds_are_refused_with_the_flags_name() {
        for (flag, value) in [
            ("--xds-address", "http://plain:80"),
            ("--xds-address", "unix://relative"),
            ("--xds-address", "https://no-port"),
            ("--trust-domain", ""),
            ("--trust-domain", "Upper"),
            ("--drain-deadline", "2h"),
            ("--drain-deadline", "5"),
            ("--idle-timeout", "0s"),
            ("--stage-timeout", "99ms"),
            ("--stage-timeout", "18446744073709551615h"),
            ("--max-connections-per-pod", "0"),
            ("--log-format", "xml"),
        ] {
            let error = parse(&[flag, value]).expect_err(&format!("{flag} {value}"));
            assert!(error.to_string().contains(flag), "{error}");
        }
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, millis) in [("0s", 0), ("250ms", 250), ("3s", 3000), ("2m", 120_000), ("1h", 3_600_000), ("30days", 2_592_000_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }
}
