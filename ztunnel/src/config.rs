//! Configuration, read once at start from flags and Istio's environment names; the rest of the process
//! sees only these types. A value out of its bounds stops the start with the flag's name.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use api::channel::{Credentials, Server, ServerAddress};
use daemon::logging::Format;
use mesh::{Network, TrustDomain};
use serde_json::{Value, json};
use tunnel::socket::ToldAt;
use tunnel::tls::KeyExchange;

/// The node proxy: captures the TCP traffic of the node's mesh pods and gives it mutual TLS, identity
/// and policy.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "ztunnel", version)]
pub(crate) struct Config {
    /// Where configuration comes from (delta xDS): unix:///PATH or https://HOST:PORT.
    #[arg(long, env = "XDS_ADDRESS", default_value = "unix:///run/culvert/xds.sock")]
    pub(crate) xds_address: ServerAddress,
    /// Where certificates are signed; the same forms. Default: the xDS address.
    #[arg(long, env = "CA_ADDRESS")]
    pub(crate) ca_address: Option<ServerAddress>,
    /// PEM roots to verify an https xDS address and CA with.
    #[arg(long, env = "XDS_ROOT_CA")]
    pub(crate) root_ca: Option<PathBuf>,
    /// File with the bearer token for https addresses, read anew for each connection and request.
    #[arg(long, env = "AUTH_TOKEN")]
    pub(crate) token: Option<PathBuf>,
    /// The name that the certificate of an https xDS address must be for. Default: the address's host.
    #[arg(long, env = "ALT_XDS_HOSTNAME")]
    pub(crate) xds_name: Option<String>,
    /// The name that the certificate of an https CA must be for. Default: the address's host.
    #[arg(long, env = "ALT_CA_HOSTNAME")]
    pub(crate) ca_name: Option<String>,
    /// The node agent's ZDS socket.
    #[arg(long, env = "INPOD_UDS", default_value = "/run/culvert/zds.sock")]
    pub(crate) inpod_uds: PathBuf,
    /// The name of the node this runs on.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// The cluster the node belongs to.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub(crate) cluster_id: String,
    /// The network the node belongs to; addresses are unique within one.
    #[arg(long, env = "NETWORK", default_value = "", value_parser = network)]
    pub(crate) network: Network,
    /// The trust domain of this mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local", value_parser = trust_domain)]
    pub(crate) trust_domain: TrustDomain,
    /// File with lists of revoked certificates (CRLs) in PEM or DER, one or several; it is followed when it changes.
    /// Default: none are. A file that cannot be used stops the start.
    #[arg(long, env = "CRL_PATH")]
    pub(crate) crl: Option<PathBuf>,
    /// `pqc`: agree on no key exchange, with other proxies or an https control plane, but X25519MLKEM768, which withstands quantum computers; peers
    /// without it are refused. Default: prefer it.
    #[arg(long, env = "COMPLIANCE_POLICY", default_value = "", value_parser = compliance_policy)]
    pub(crate) compliance_policy: KeyExchange,
    /// Accepted for Istio's sake; true stops the start, because TLS 1.2 is not spoken.
    #[arg(long, env = "TLS12_ENABLED", default_value = "false", action = clap::ArgAction::Set, value_parser = no_tls12)]
    tls12_enabled: bool,
    /// How long certificates are asked to be valid, such as 24h; 1m to 30days. The CA may give less; half of that later
    /// they are renewed.
    #[arg(long, env = "SECRET_TTL", default_value = "24h", value_parser = certificate_validity)]
    pub(crate) certificate_validity: Duration,
    /// The domain of the cluster: Services are found by DNS below `svc.` of it.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = cluster_domain)]
    pub(crate) cluster_domain: String,
    /// Admin endpoint, read only: configuration dump, log level. Loopback only, unless you know why not.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub(crate) admin_address: SocketAddr,
    /// Admin endpoint that also changes things, such as the log level: a unix socket, made with mode 0600.
    /// Default: ztunnel-admin.sock beside the node agent's ZDS socket.
    #[arg(long, env = "ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
    /// Metrics endpoint.
    #[arg(long, env = "STATS_ADDR", default_value = "0.0.0.0:15020")]
    pub(crate) stats_address: SocketAddr,
    /// Readiness endpoint.
    #[arg(long, env = "READINESS_ADDR", default_value = "0.0.0.0:15021")]
    pub(crate) readiness_address: SocketAddr,
    /// Have the traffic metrics say the region and zone of both ends as well: four labels more, and as many series as there are pairs.
    #[arg(long, env = "LOCALITY_METRICS", default_value_t = false)]
    pub(crate) locality_metrics: bool,
    /// Log filter, such as `info` or `ztunnel=debug,access=info`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub(crate) log: String,
    /// Form of the log lines: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: Format,
    /// How long live connections may go on after SIGTERM, such as 25s; 0s to 1h. Then they are reset.
    /// Keep it below the pod's grace period, or the kernel cuts them without a word.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", default_value = "25s", value_parser = drain_deadline)]
    pub(crate) drain_deadline: Duration,
    /// Connections held at once for one pod, both directions together, tunnelled streams counted singly; 1 to
    /// 1,000,000. What is beyond is reset. Independent of it, no pod takes more than is left free for the others.
    #[arg(long, env = "MAX_CONNECTIONS_PER_POD", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_connections_per_pod: u32,
    /// Threads that carry connections: their number, or such as 50% of the cores; 0 for one a core. At least one, 1024 at most.
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", default_value = "0")]
    worker_threads: WorkerThreads,
    /// Memory that peers may fill with what nobody reads, over all tunnels, such as 512MiB; 0MiB to 1024GiB. One pod gets half of it at
    /// most. Beyond it tunnels go on with 64 KiB for each connection: slower over long distances.
    #[arg(long, env = "BUFFER_BUDGET", default_value = "512MiB", value_parser = buffer_budget)]
    pub(crate) buffer_budget: u64,
    /// A connection on which no byte moves either way for so long is ended, such as 24h; 1s to 30days.
    /// Shorter than an application's longest silence cuts connections that it still wants.
    #[arg(long, env = "IDLE_TIMEOUT", default_value = "24h", value_parser = idle_timeout)]
    pub(crate) idle_timeout: Duration,
    /// Dials of another process or node, the TLS handshake and the answer to a CONNECT each end after so long;
    /// 100ms to 5m. Shorter fails calls that a lost SYN delays (a retransmission takes 1 s, the next 2 s).
    #[arg(long, env = "CONNECT_TIMEOUT", default_value = "10s", value_parser = stage_timeout)]
    pub(crate) stage_timeout: Duration,
    /// Applications that are told of their clients by the PROXY protocol are dialled on their pod's loopback, where
    /// nobody else can tell them anything; with `false` at the pod's address.
    #[arg(long, env = "LOCALHOST_APP_TUNNEL", default_value_t = true, action = clap::ArgAction::Set)]
    localhost_app_tunnel: bool,
}

impl Config {
    /// The settings, for people: places of secrets, no secrets. In the letters of Istio's dump.
    pub(crate) fn listed(&self) -> Value {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let seconds = |duration: Duration| format!("{duration:?}");
        json!({
            "xdsAddress": self.xds_address.to_string(),
            "caAddress": self.ca_address.as_ref().map(ToString::to_string),
            "rootCa": path(&self.root_ca),
            "authToken": path(&self.token),
            "altXdsHostname": self.xds_name,
            "altCaHostname": self.ca_name,
            "inpodUds": self.inpod_uds.display().to_string(),
            "localNode": self.node_name,
            "clusterId": self.cluster_id,
            "network": self.network.to_string(),
            "trustDomain": self.trust_domain.to_string(),
            "adminAddr": self.admin_address.to_string(),
            "adminSocket": self.admin_socket().display().to_string(),
            "statsAddr": self.stats_address.to_string(),
            "readinessAddr": self.readiness_address.to_string(),
            "localityMetrics": self.locality_metrics,
            "logFormat": format!("{:?}", self.log_format),
            "selfTerminationDeadline": seconds(self.drain_deadline),
            "maxConnectionsPerPod": self.max_connections_per_pod,
            "numWorkerThreads": self.worker_threads(),
            "bufferBudget": self.buffer_budget,
            "idleTimeout": seconds(self.idle_timeout),
            "connectTimeout": seconds(self.stage_timeout),
        })
    }
}

/// How many threads carry connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerThreads {
    /// So many; of 0, one a core.
    Number(u16),
    /// Of the cores.
    Percent(u16),
}

impl WorkerThreads {
    const MOST: u16 = 1024;

    fn count(self, cores: usize) -> usize {
        let wanted = match self {
            Self::Number(0) => cores,
            Self::Number(number) => usize::from(number),
            Self::Percent(percent) => cores * usize::from(percent) / 100,
        };
        wanted.clamp(1, usize::from(Self::MOST))
    }
}

impl FromStr for WorkerThreads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, most, threads): (_, _, fn(u16) -> Self) = match text.strip_suffix('%') {
            Some(digits) => (digits, 100, Self::Percent),
            None => (text, Self::MOST, Self::Number),
        };
        let number = digits.parse().ok().filter(|number| *number <= most);
        number.map(threads).ok_or_else(|| format!("expected 0 to {}, or 0% to 100%", Self::MOST))
    }
}

/// An https address without the roots to verify it with.
#[derive(Debug, thiserror::Error)]
#[error("{0} needs --root-ca: PEM roots to verify it with")]
pub(crate) struct MissingRoots(ServerAddress);

impl Config {
    /// The admin endpoint that changes things.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.admin_socket.clone().unwrap_or_else(|| self.inpod_uds.with_file_name("ztunnel-admin.sock"))
    }

    /// Where applications are dialled that are told of their clients.
    pub(crate) fn told_at(&self) -> ToldAt {
        match self.localhost_app_tunnel {
            true => ToldAt::Loopback,
            false => ToldAt::PodAddress,
        }
    }

    /// Threads that carry connections.
    pub(crate) fn worker_threads(&self) -> usize {
        self.worker_threads.count(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Where configuration comes from.
    pub(crate) fn xds_server(&self) -> Result<Server, MissingRoots> {
        self.server(&self.xds_address, self.xds_name.as_deref())
    }

    /// Where certificates are signed.
    pub(crate) fn ca_server(&self) -> Result<Server, MissingRoots> {
        match &self.ca_address {
            Some(address) => self.server(address, self.ca_name.as_deref()),
            None => self.server(&self.xds_address, self.ca_name.as_deref().or(self.xds_name.as_deref())),
        }
    }

    fn server(&self, address: &ServerAddress, name: Option<&str>) -> Result<Server, MissingRoots> {
        let authority = match address {
            ServerAddress::Unix(path) => return Ok(Server::Unix(path.clone())),
            ServerAddress::Https(authority) => authority.clone(),
        };
        let roots = self.root_ca.clone().ok_or_else(|| MissingRoots(address.clone()))?;
        let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
        let name = name.unwrap_or(host).trim_matches(['[', ']']).to_owned();
        let key_exchange = self.compliance_policy;
        Ok(Server::Tls { authority, name, roots: roots.into(), key_exchange })
    }

    /// What is said of this node with every call to the control plane.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials { token: self.token.clone(), cluster_id: Some(self.cluster_id.clone()) }
    }
}

/// How long a connection waits for its own pod's workload, and then for its certificate. Istio's value (contract
/// 1.2 step 2): it covers the moments between a pod's first packet and the control plane's push.
pub(crate) const START_WAIT: Duration = Duration::from_secs(5);

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
    bounded(text, Duration::from_secs(60), Duration::from_secs(30 * 86_400))
}

fn cluster_domain(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    match !text.is_empty() && text.bytes().all(allowed) {
        true => Ok(text),
        false => Err("a domain is made of letters, digits, '.' and '-'".to_owned()),
    }
}

pub(crate) fn drain_deadline(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::ZERO, Duration::from_secs(3600))
}

fn idle_timeout(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(1), Duration::from_secs(30 * 86_400))
}

fn stage_timeout(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_millis(100), Duration::from_secs(300))
}

/// A number of bytes with one of the units `KiB`, `MiB` and `GiB`.
fn buffer_budget(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| "expected a number with a unit, such as 512MiB".to_owned())?;
    let shift = match unit {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(format!("unit `{unit}` is none of KiB, MiB, GiB")),
    };
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes <= 1 << 40);
    bytes.ok_or_else(|| "must be 1024GiB at most".to_owned())
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
        assert_eq!(config.ca_server().unwrap(), Server::Unix("/tmp/x".into()));
        let config =
            parse(&["--ca-address", "https://istiod.istio-system.svc:15012", "--root-ca", "/root.pem"])
                .unwrap();
        let expected = Server::Tls {
            authority: "istiod.istio-system.svc:15012".to_owned(),
            name: "istiod.istio-system.svc".to_owned(),
            roots: PathBuf::from("/root.pem").into(),
            key_exchange: KeyExchange::HybridPreferred,
        };
        assert_eq!(config.ca_server().unwrap(), expected);
        assert_eq!(config.xds_server().unwrap(), Server::Unix("/run/culvert/xds.sock".into()));
    }

    #[test]
    fn connections_get_a_thread_a_core_unless_told_otherwise_and_one_at_least() {
        for (flags, threads) in [
            (&[][..], 8),
            (&["--worker-threads", "0"], 8),
            (&["--worker-threads", "3"], 3),
            (&["--worker-threads", "50%"], 4),
            (&["--worker-threads", "1%"], 1),
        ] {
            assert_eq!(parse(flags).unwrap().worker_threads.count(8), threads, "{flags:?}");
        }
        for wrong in ["-1", "101%", "1025", "half", "%", ""] {
            assert!(parse(&["--worker-threads", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn applications_are_told_of_their_clients_on_the_loopback_unless_told_otherwise() {
        assert_eq!(parse(&[]).unwrap().told_at(), ToldAt::Loopback);
        assert_eq!(parse(&["--localhost-app-tunnel", "false"]).unwrap().told_at(), ToldAt::PodAddress);
        assert!(parse(&["--localhost-app-tunnel", "maybe"]).is_err());
    }

    #[test]
    fn the_admin_socket_stands_beside_the_agents_unless_told_otherwise() {
        assert_eq!(parse(&[]).unwrap().admin_socket(), PathBuf::from("/run/culvert/ztunnel-admin.sock"));
        let istios = parse(&["--inpod-uds", "/var/run/ztunnel/ztunnel.sock"]).unwrap();
        assert_eq!(istios.admin_socket(), PathBuf::from("/var/run/ztunnel/ztunnel-admin.sock"));
        let told = parse(&["--admin-socket", "/tmp/a.sock"]).unwrap();
        assert_eq!(told.admin_socket(), PathBuf::from("/tmp/a.sock"));
    }

    #[test]
    fn tls_is_not_spoken_without_roots_and_verified_against_the_name_stated() {
        let flags =
            ["--xds-address", "https://[::1]:15012", "--xds-name", "culvert-control.culvert-system.svc"];
        assert!(parse(&flags).unwrap().xds_server().is_err());
        let config = parse(&[&flags[..], &["--root-ca", "/root.pem"]].concat()).unwrap();
        let Server::Tls { name, .. } = config.xds_server().unwrap() else { panic!("not TLS") };
        assert_eq!(name, "culvert-control.culvert-system.svc");
    }

    #[test]
    fn values_out_of_bounds_are_refused_with_the_flags_name() {
        for (flag, value) in [
            ("--xds-address", "http://plain:80"),
            ("--xds-address", "unix://relative"),
            ("--xds-address", "https://no-port"),
            ("--trust-domain", ""),
            ("--trust-domain", "Upper"),
            ("--compliance-policy", "fips-140-2"),
            ("--tls12-enabled", "true"),
            ("--certificate-validity", "59s"),
            ("--drain-deadline", "2h"),
            ("--drain-deadline", "5"),
            ("--idle-timeout", "0s"),
            ("--stage-timeout", "99ms"),
            ("--stage-timeout", "18446744073709551615h"),
            ("--max-connections-per-pod", "0"),
            ("--buffer-budget", "512"),
            ("--buffer-budget", "1025GiB"),
            ("--log-format", "xml"),
        ] {
            let error = parse(&[flag, value]).expect_err(&format!("{flag} {value}"));
            assert!(error.to_string().contains(flag), "{error}");
        }
    }

    #[test]
    fn the_hybrid_key_exchange_is_preferred_unless_it_is_demanded() {
        for (flags, expected) in [
            (&[][..], KeyExchange::HybridPreferred),
            (&["--compliance-policy", ""], KeyExchange::HybridPreferred),
            (&["--compliance-policy", "pqc", "--tls12-enabled", "false"], KeyExchange::HybridOnly),
        ] {
            assert_eq!(parse(flags).unwrap().compliance_policy, expected, "{flags:?}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, bytes) in [("0MiB", 0), ("64KiB", 64 << 10), ("512MiB", 512 << 20), ("1024GiB", 1 << 40)] {
            assert_eq!(buffer_budget(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse(&[]).unwrap().buffer_budget, tunnel::hbone::Budget::DEFAULT);
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("3s", 3000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("30days", 2_592_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }
}
