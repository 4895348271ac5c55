//! Tunnels to other nodes.

use std::time::Duration;

use tunnel::hbone::{Budget, Http2, PoolConfig};

use super::units::{bounded, duration, size};

/// The answer to a CONNECT takes as long as the other side's own dial may, and the way there and back.
const REPLY_MARGIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Tunnels {
    /// Connections that one tunnel carries at once before there is another one; 1 to 1000, or fewer if the other side says so.
    #[arg(long, env = "POOL_MAX_STREAMS_PER_CONNECTION", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pool_max_streams: u32,
    /// A tunnel that carries nothing for so long is closed; 1s to 24h.
    #[arg(long, env = "POOL_UNUSED_RELEASE_TIMEOUT", default_value = "5m", value_parser = unused_release)]
    pool_unused_release: Duration,
    /// The most that a peer may send of one connection before it is read, when the tunnel carries four at most (it is halved with
    /// each doubling of them, down to 256 KiB); 64KiB to 1GiB, or the number of bytes. Larger is faster over long distances.
    #[arg(long, env = "HTTP2_STREAM_WINDOW_SIZE", default_value = "4MiB", value_parser = stream_window)]
    http2_stream_window: u32,
    /// The largest HTTP/2 frame that a peer may send; 16KiB to 16MiB less one byte, or the number of bytes.
    #[arg(long, env = "HTTP2_FRAME_SIZE", default_value = "1MiB", value_parser = frame_size)]
    http2_frame: u32,
    /// Whether the answer to a CONNECT says which workload it comes from (baggage), for the other side's telemetry.
    #[arg(long, env = "ENABLE_RESPONSE_BAGGAGE", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) response_baggage: bool,
    /// Memory that peers may fill with what nobody reads, over all tunnels, such as 512MiB; 0 to 1024GiB. One pod gets half of it at
    /// most. Beyond it tunnels go on with 64 KiB for each connection: slower over long distances.
    #[arg(long, env = "BUFFER_BUDGET", default_value = "512MiB", value_parser = buffer_budget)]
    buffer_budget: u64,
}

impl Tunnels {
    /// How HTTP/2 is spoken at either end of a tunnel.
    pub(crate) fn http2(&self) -> Http2 {
        Http2 { stream_window: self.http2_stream_window, max_frame: self.http2_frame }
    }

    /// Bounds of the tunnels that we dial.
    pub(crate) fn pool(&self, stage_timeout: Duration) -> PoolConfig {
        PoolConfig {
            streams_per_tunnel: self.pool_max_streams,
            idle_release: self.pool_unused_release,
            dial_timeout: stage_timeout,
            tls_timeout: stage_timeout,
            preface_timeout: stage_timeout,
            reply_timeout: stage_timeout + REPLY_MARGIN,
            budget: Budget::new(self.buffer_budget),
            http2: self.http2(),
            ..PoolConfig::default()
        }
    }
}

fn unused_release(text: &str) -> Result<Duration, String> {
    bounded(duration(text)?, Duration::from_secs(1), Duration::from_secs(86_400))
}

fn stream_window(text: &str) -> Result<u32, String> {
    within(text, Http2::STREAM_WINDOWS)
}

fn frame_size(text: &str) -> Result<u32, String> {
    within(text, Http2::FRAMES)
}

fn within(text: &str, bounds: std::ops::RangeInclusive<u32>) -> Result<u32, String> {
    let bytes = u32::try_from(size(text)?).unwrap_or(u32::MAX);
    bounded(bytes, *bounds.start(), *bounds.end())
}

fn buffer_budget(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    // A number alone would be bytes, as of no budget that anybody means.
    if bytes != 0 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("expected a number with a unit, such as 512MiB".to_owned());
    }
    bounded(bytes, 0, 1 << 40).map_err(|_| "must be 1024GiB at most".to_owned())
}
