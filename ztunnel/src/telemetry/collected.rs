//! Numbers that are looked up when somebody asks, instead of being kept.

use std::fmt;
use std::time::SystemTime;

use daemon::logging::LogHandle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tunnel::hbone::Pool;
use tunnel::tls::WorkloadCertificate;

use crate::identity::Identities;

/// What is looked up.
pub(crate) struct Collected {
    /// The tunnels to other nodes.
    pub(crate) tunnels: Pool,
    /// The log, which drops lines rather than stall a connection.
    pub(crate) logging: LogHandle,
    /// The certificates.
    pub(crate) identities: Identities<WorkloadCertificate>,
}

impl Collected {
    /// Makes it known to `registry`.
    pub(crate) fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(self));
    }

    fn encode_gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
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
        if let Some(seconds) = self.first_expiry() {
            let gauge = ConstGauge::new(seconds);
            let help = "Seconds until the first certificate held expires; below 0 it has";
            let name = "culvert_certificate_first_expiry_seconds";
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }

    /// Until the first of the certificates that are held expires, if there is one.
    fn first_expiry(&self) -> Option<i64> {
        let held = self.identities.snapshot();
        let ends = held.iter().filter_map(|(_, held)| Some(held.current.as_ref()?.0.not_after()));
        let first = ends.min()?;
        let seconds = match first.duration_since(SystemTime::now()) {
            Ok(left) => i64::try_from(left.as_secs()),
            Err(over) => i64::try_from(over.duration().as_secs()).map(|seconds| -seconds),
        };
        seconds.ok()
    }
}

impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collected").finish_non_exhaustive()
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_gauges(&mut encoder)?;
        let dials = self.tunnels.dials();
        for (name, help, value) in [
            ("culvert_log_lines_dropped", "Log lines that were dropped", self.logging.dropped_lines()),
            ("culvert_tunnel_dials", "Tunnels to other nodes that were established", dials.established),
            (
                "culvert_tunnel_dial_failures",
                "Tunnels to other nodes that could not be established",
                dials.failed,
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
