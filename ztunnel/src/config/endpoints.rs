//! Where people, probes and scrapers reach this process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Endpoints {
    /// Admin endpoint, read only: configuration dump, log level. Loopback only, unless you know why not.
    /// Default: 127.0.0.1, and the port of --admin-port.
    #[arg(long, env = "ADMIN_ADDR")]
    admin_address: Option<SocketAddr>,
    /// The port of the admin endpoint where --admin-address does not say it; Istio's proxyAdminPort.
    #[arg(long, env = "ADMIN_PORT", default_value_t = 15000)]
    admin_port: u16,
    /// Admin endpoint that also changes things, such as the log level: a unix socket, made with mode 0600.
    /// Default: ztunnel-admin.sock beside the node agent's ZDS socket.
    #[arg(long, env = "ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
    /// Metrics endpoint. Default: all addresses, and the port of --stats-port.
    #[arg(long, env = "STATS_ADDR")]
    stats_address: Option<SocketAddr>,
    /// The port of the metrics endpoint where --stats-address does not say it; Istio's statsPort.
    #[arg(long, env = "STATS_PORT", default_value_t = 15020)]
    stats_port: u16,
    /// Readiness endpoint. Default: all addresses, port 15021.
    #[arg(long, env = "READINESS_ADDR")]
    readiness_address: Option<SocketAddr>,
    /// Whether there is IPv6. Without, nothing of this process listens on IPv6 addresses, neither here nor in pods whose
    /// listeners it makes itself.
    #[arg(long, env = "IPV6_ENABLED", default_value_t = true, action = clap::ArgAction::Set)]
    pub(super) ipv6_enabled: bool,
}

impl Endpoints {
    /// What shows.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin_address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, self.admin_port).into())
    }

    /// What changes things too.
    pub(super) fn admin_socket(&self, beside: &Path) -> PathBuf {
        self.admin_socket.clone().unwrap_or_else(|| beside.with_file_name("ztunnel-admin.sock"))
    }

    /// Metrics.
    pub(crate) fn stats(&self) -> SocketAddr {
        self.stats_address.unwrap_or_else(|| (self.all(), self.stats_port).into())
    }

    /// Readiness.
    pub(crate) fn readiness(&self) -> SocketAddr {
        self.readiness_address.unwrap_or_else(|| (self.all(), 15021).into())
    }

    /// All addresses: of both families, where this process's namespace has both.
    fn all(&self) -> IpAddr {
        let any = Ipv6Addr::UNSPECIFIED;
        let has_ipv6 = self.ipv6_enabled && std::net::UdpSocket::bind((any, 0)).is_ok();
        if has_ipv6 { any.into() } else { Ipv4Addr::UNSPECIFIED.into() }
    }
}
