//! Numbers that are looked up when somebody asks, instead of being kept.

use std::fmt;

use daemon::logging::LogHandle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tunnel::hbone::Pool;

/// What is looked up.
pub(crate) struct Collected {
    /// The tunnels to other nodes.
    pub(crate) tunnels: Pool,
    /// The log, which drops lines rather than stall a connection.
    pub(crate) logging: LogHandle,
}

impl Collected {
    /// Makes it known to `registry`.
    pub(crate) fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(self));
    }
}

impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collected").finish_non_exhaustive()
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let pool = self.tunnels.stats();
        for (name, help, value) in [
            ("culvert_tunnels", "Tunnels to other nodes, being dialled included", pool.tunnels),
            ("culvert_tunnel_streams", "Connections on them", pool.streams),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let dropped = ConstCounter::new(self.logging.dropped_lines());
        let descriptor = encoder.encode_descriptor(
            "culvert_log_lines_dropped",
            "Log lines that were dropped",
            None,
            dropped.metric_type(),
        )?;
        dropped.encode(descriptor)
    }
}
