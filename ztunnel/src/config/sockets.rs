//! Sockets in pods.

use std::num::NonZeroU32;
use std::time::Duration;

use tunnel::socket::{Keepalive, OriginalSource, Rules, SocketMark, TcpOptions, ToldAt};

use super::units::{bounded, duration};

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Sockets {
    /// Whether TCP keepalives are sent.
    #[arg(long, env = "KEEPALIVE_ENABLED", default_value_t = true, action = clap::ArgAction::Set)]
    keepalive_enabled: bool,
    /// Silence before the first keepalive probe; 1s to 9h, whole seconds.
    #[arg(long, env = "KEEPALIVE_TIME", default_value = "180s", value_parser = keepalive)]
    keepalive_time: Duration,
    /// Between keepalive probes; 1s to 9h, whole seconds.
    #[arg(long, env = "KEEPALIVE_INTERVAL", default_value = "180s", value_parser = keepalive)]
    keepalive_interval: Duration,
    /// Keepalive probes without an answer until a connection is dead; 1 to 127.
    #[arg(long, env = "KEEPALIVE_RETRIES", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=127))]
    keepalive_retries: u32,
    /// Whether bytes that stay unacknowledged for as long as keepalives would take to find a peer dead end a connection
    /// (TCP_USER_TIMEOUT). Otherwise the kernel's retransmissions do, after 15 min or so.
    #[arg(long, env = "USER_TIMEOUT_ENABLED", default_value_t = false, action = clap::ArgAction::Set)]
    user_timeout_enabled: bool,
    /// Of pods whose listeners this process makes itself, as under Istio's agent: the mark of all its sockets there, by which the
    /// rules in the pod tell them from the pod's own. Under Culvert's agent the marks are the kernel programs'.
    #[arg(long, env = "PACKET_MARK", default_value_t = 0x539, value_parser = clap::value_parser!(u32).range(1..))]
    packet_mark: u32,
    /// Of the same pods: whether applications see their clients' own addresses: true, false, or auto, which is true where the
    /// kernel allows it.
    #[arg(long, env = "ENABLE_ORIG_SRC", default_value = "auto", value_parser = original_source)]
    original_source: OriginalSource,
    /// Of the same pods: whether a successor's listeners may stand beside this process's (SO_REUSEPORT).
    #[arg(long, env = "INPOD_PORT_REUSE", default_value_t = true, action = clap::ArgAction::Set)]
    port_reuse: bool,
    /// Of the same pods: whether their DNS is listened for, on port 15053, and answered where their rules lead it there.
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", default_value = "true", action = clap::ArgAction::Set, value_parser = either_case)]
    dns_capture: bool,
    /// Applications that are told of their clients by the PROXY protocol are dialled on their pod's loopback, where
    /// nobody else can tell them anything; with `false` at the pod's address.
    #[arg(long, env = "LOCALHOST_APP_TUNNEL", default_value_t = true, action = clap::ArgAction::Set)]
    localhost_app_tunnel: bool,
}

impl Sockets {
    /// Sockets in pods whose listeners this process makes.
    pub(super) fn rules(&self, ipv6: bool) -> Rules {
        // The flag's own bound.
        let mark = NonZeroU32::new(self.packet_mark).map_or(SocketMark::NETWORK, SocketMark::of_rules);
        Rules {
            mark,
            original_source: self.original_source,
            port_reuse: self.port_reuse,
            ipv6,
            dns: self.dns_capture,
        }
    }

    /// Where applications are dialled that are told of their clients.
    pub(crate) fn told_at(&self) -> ToldAt {
        match self.localhost_app_tunnel {
            true => ToldAt::Loopback,
            false => ToldAt::PodAddress,
        }
    }

    /// Options of each.
    pub(crate) fn options(&self, connect_timeout: Duration) -> TcpOptions {
        let keepalive = Keepalive {
            time: self.keepalive_time,
            interval: self.keepalive_interval,
            probes: self.keepalive_retries,
        };
        TcpOptions {
            user_timeout: self.user_timeout_enabled.then(|| keepalive.until_dead()),
            keepalive: self.keepalive_enabled.then_some(keepalive),
            connect_timeout,
        }
    }
}

/// As Istio's proxies read it.
fn either_case(text: &str) -> Result<bool, String> {
    text.to_ascii_lowercase().parse().map_err(|_| "expected true or false".to_owned())
}

/// The kernel takes 32767 s at most (tcp(7)), in whole seconds.
fn keepalive(text: &str) -> Result<Duration, String> {
    let value = duration(text)?;
    if value.subsec_millis() != 0 {
        return Err("must be whole seconds".to_owned());
    }
    bounded(value, Duration::from_secs(1), Duration::from_secs(9 * 3600))
}

fn original_source(text: &str) -> Result<OriginalSource, String> {
    match text {
        "true" => Ok(OriginalSource::Required),
        "auto" => Ok(OriginalSource::Preferred),
        "false" => Ok(OriginalSource::Off),
        _ => Err("expected true, false or auto".to_owned()),
    }
}
