//! How long things may last.

use std::time::Duration;

use super::units::{bounded, duration};

/// How long a connection waits for its own pod's workload, and then for its certificate. Istio's value (contract
/// 1.2 step 2): it covers the moments between a pod's first packet and the control plane's push.
pub(crate) const START_WAIT: Duration = Duration::from_secs(5);

/// With neither of the two flags: what Istio's chart comes to.
const DRAIN: Duration = Duration::from_secs(25);

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Lifetime {
    /// How long live connections may go on after SIGTERM, such as 25s; 0s to 1h. Then they are reset.
    /// Keep it below the pod's grace period, or the kernel cuts them without a word. Default: from the grace period if that is
    /// stated, else 25s.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", value_parser = drain_deadline)]
    drain_deadline: Option<Duration>,
    /// The pod's grace period in seconds, 0 to 1000000: without --drain-deadline live connections may go on for 5 s less, or 1 s
    /// less if it is 10 at most, but for 1 s in any case and for 1 h at most.
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    grace_period_seconds: Option<u64>,
    /// A connection on which no byte moves either way for so long is ended, such as 24h; 1s to 30days.
    /// Shorter than an application's longest silence cuts connections that it still wants.
    #[arg(long, env = "IDLE_TIMEOUT", default_value = "24h", value_parser = idle_timeout)]
    pub(crate) idle_timeout: Duration,
    /// Dials of another process or node, the TLS handshake and the answer to a CONNECT each end after so long;
    /// 100ms to 5m. Shorter fails calls that a lost SYN delays (a retransmission takes 1 s, the next 2 s).
    #[arg(long, env = "CONNECT_TIMEOUT", default_value = "10s", value_parser = stage_timeout)]
    pub(crate) stage_timeout: Duration,
}

impl Lifetime {
    pub(super) fn drain_deadline(&self) -> Duration {
        self.drain_deadline.or(self.grace_period_seconds.map(within)).unwrap_or(DRAIN)
    }
}

/// What of a grace period is for live connections; the rest is for ending them (contract 1.3).
fn within(grace: u64) -> Duration {
    let reserved = if grace > 10 { 5 } else { 1 };
    Duration::from_secs(grace.saturating_sub(reserved).clamp(1, 3600))
}

/// How long live connections may go on, from its text.
pub(crate) fn drain_deadline(text: &str) -> Result<Duration, String> {
    bounded(duration(text)?, Duration::ZERO, Duration::from_secs(3600))
}

fn idle_timeout(text: &str) -> Result<Duration, String> {
    bounded(duration(text)?, Duration::from_secs(1), Duration::from_secs(30 * 86_400))
}

fn stage_timeout(text: &str) -> Result<Duration, String> {
    bounded(duration(text)?, Duration::from_millis(100), Duration::from_secs(300))
}
