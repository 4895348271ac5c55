//! What the agent counts. Packets are counted by the kernel programs and read when asked; states are read from the board.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::warn;

use api::xds_client::XdsStatus;
use daemon::visitors::Refusals;

use crate::bpf::Counted;
use crate::enroll::pod::PodUid;
use crate::enroll::steps::State;
use crate::kernel::Kernel;
use crate::status::Board;
use crate::zds::hub::Hub;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// The counters that the agent itself advances.
#[derive(Clone, Debug, Default)]
pub(crate) struct Telemetry {
    enrolment_failures: Family<Reason, Counter>,
    certificates: Family<Outcome, Counter>,
    ztunnel_refusals: Family<Reason, Counter>,
    ztunnel_takeovers: Counter,
    /// Who was not let in to the unix sockets.
    pub(crate) visitors: Refusals,
}

impl Telemetry {
    /// Makes the counters known under the prefix `culvert`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "enrolment_failures",
            "Steps of enrolment or leaving that failed and are tried again, by reason",
            self.enrolment_failures.clone(),
        );
        registry.register(
            "certificate_requests",
            "Certificate requests of ztunnel relayed to control, by outcome (issued, refused, unavailable)",
            self.certificates.clone(),
        );
        registry.register(
            "ztunnel_refusals",
            "Connections to the ZDS socket that were refused, by reason",
            self.ztunnel_refusals.clone(),
        );
        registry.register(
            "ztunnel_takeovers",
            "Ztunnels that took the place of another process which was still connected",
            self.ztunnel_takeovers.clone(),
        );
        self.visitors.register(registry);
    }

    /// A step failed.
    pub(crate) fn enrolment_failed(&self, reason: &str) {
        self.enrolment_failures.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    /// A certificate request was answered.
    pub(crate) fn certificate(&self, outcome: &'static str) {
        self.certificates.get_or_create(&Outcome { outcome }).inc();
    }

    /// A connection to the ZDS socket was refused.
    pub(crate) fn ztunnel_refused(&self, reason: &'static str) {
        self.ztunnel_refusals.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    /// A ztunnel took the place of another process.
    pub(crate) fn ztunnel_took_over(&self) {
        self.ztunnel_takeovers.inc();
    }

    /// How many were.
    #[cfg(test)]
    pub(crate) fn ztunnels_refused(&self, reason: &'static str) -> u64 {
        self.ztunnel_refusals.get_or_create(&Reason { reason: reason.to_owned() }).get()
    }
}

/// What is read when somebody asks.
#[derive(Debug)]
pub(crate) struct Observed {
    /// The packets.
    pub(crate) kernel: Kernel,
    /// The pods.
    pub(crate) board: Arc<Board>,
    /// The ztunnels.
    pub(crate) hub: Arc<Hub>,
    /// The stream to control.
    pub(crate) control: watch::Receiver<XdsStatus>,
}

impl Observed {
    fn encode_fills(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let fills = match self.kernel.fills() {
            Ok(fills) => fills,
            Err(error) => {
                warn!(%error, "the fill of the kernel's maps cannot be read");
                return Ok(());
            }
        };
        let help = "Entries of the kernel programs' maps that nothing is evicted from";
        let mut entries = encoder.encode_descriptor("bpf_map_entries", help, None, MetricType::Gauge)?;
        for fill in &fills {
            let count = i64::try_from(fill.entries).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(entries.encode_family(&[("map", fill.map)])?)?;
        }
        let help = "Entries those maps can hold; what finds no place is refused";
        let mut capacities = encoder.encode_descriptor("bpf_map_capacity", help, None, MetricType::Gauge)?;
        for fill in &fills {
            let count = i64::try_from(fill.capacity).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(capacities.encode_family(&[("map", fill.map)])?)?;
        }
        Ok(())
    }
}

impl Observed {
    fn encode_packets(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self.kernel.counters() {
            Ok(counters) => {
                let help = "Packets, and for inbound connections their first, by what the kernel programs did and why";
                let mut packets =
                    encoder.encode_descriptor("bpf_packets", help, None, MetricType::Counter)?;
                for (counter, count) in counters {
                    let labels = [("decision", counter.decision().label()), ("reason", counter.reason())];
                    ConstCounter::new(count).encode(packets.encode_family(&labels)?)?;
                }
            }
            Err(error) => warn!(%error, "the packet counters cannot be read"),
        }
        match self.kernel.pod_counters() {
            Ok(counted) => self.encode_pod_packets(encoder, &counted),
            Err(error) => {
                warn!(%error, "the packet counters of the pods cannot be read");
                Ok(())
            }
        }
    }

    /// There are no more series than pods of this node times reasons, and a pod's go with it.
    fn encode_pod_packets(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        counted: &BTreeMap<PodUid, Counted>,
    ) -> Result<(), std::fmt::Error> {
        let help = "The same for each pod by the addresses in the packets, since the agent's start, without what goes its usual way on a connection";
        let mut packets = encoder.encode_descriptor("bpf_pod_packets", help, None, MetricType::Counter)?;
        for (uid, pod) in self.board.all() {
            for (counter, count) in counted.get(&uid).into_iter().flatten() {
                let labels = [
                    ("namespace", pod.namespace.as_str()),
                    ("pod", pod.name.as_str()),
                    ("decision", counter.decision().label()),
                    ("reason", counter.reason()),
                ];
                ConstCounter::new(*count).encode(packets.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.encode_fills(&mut encoder)?;
        self.encode_packets(&mut encoder)?;
        let mut pods =
            encoder.encode_descriptor("pods", "Pods of this node, by state", None, MetricType::Gauge)?;
        for state in State::ALL {
            let count = i64::try_from(self.board.count(state)).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(pods.encode_family(&[("state", state.as_str())])?)?;
        }
        let status = *self.control.borrow();
        let connected = i64::from(status.connected);
        gauge(&mut encoder, "control_connected", "Whether the stream to control stands: 1 or 0", connected)?;
        let terminations = ConstCounter::new(status.terminations);
        let help = "Streams to control, and attempts at one, that ended";
        terminations.encode(encoder.encode_descriptor(
            "control_terminations",
            help,
            None,
            MetricType::Counter,
        )?)?;
        let ztunnels = i64::try_from(self.hub.sessions().len()).unwrap_or(i64::MAX);
        gauge(&mut encoder, "ztunnels", "Connected ztunnels, draining ones included", ztunnels)
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> Result<(), std::fmt::Error> {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
