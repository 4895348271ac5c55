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
        let (pool, budget) = (self.tunnels.stats(), self.tunnels.budget().stats());
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for (name, help, value) in [
            ("culvert_tunnels", "Tunnels to other nodes, being dialled included", count(pool.tunnels)),
            ("culvert_tunnel_streams", "Connections on them", count(pool.streams)),
            (
                "culvert_buffer_granted_bytes",
                "Bytes that tunnels may hold received and unread",
                bytes(budget.granted),
            ),
            ("culvert_buffer_budget_bytes", "Bytes that may be granted in all", bytes(budget.total)),
            (
                "culvert_buffer_squeezed_tunnels",
                "Tunnels with small windows for lack of it",
                count(budget.squeezed),
            ),
        ] {
            let gauge = ConstGauge::new(value);
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
