//! The families of DNS (contract 1.10).

use api::dns::Question;
use mesh::service::Hostname;
use mesh::{Namespace, Workload};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{End, Value};
use super::metrics::ReasonLabel;
use crate::dns::Transport;

/// What was asked, how and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DnsLabels {
    request_query_type: &'static str,
    request_protocol: &'static str,
    source_workload: Value,
    source_workload_namespace: Value,
}

impl DnsLabels {
    /// Uncommon types are one, or a pod could make any number of series.
    pub(crate) fn new(
        question: Option<&Question>,
        transport: Transport,
        namespace: &Namespace,
        workload: Option<&Workload>,
    ) -> Self {
        Self {
            request_query_type: question.and_then(|question| question.kind.name()).unwrap_or("other"),
            request_protocol: match transport {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
            },
            source_workload: workload.map(|workload| Value::of(&workload.workload_name)).unwrap_or_default(),
            source_workload_namespace: Value::of(namespace.as_str()),
        }
    }
}

/// Who needed the address of a workload or waypoint of which the mesh knows but the name, and which.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OnDemandLabels {
    source_workload: Value,
    source_canonical_service: Value,
    source_canonical_revision: Value,
    source_workload_namespace: Value,
    source_principal: Value,
    source_app: Value,
    source_version: Value,
    source_cluster: Value,
    hostname: Value,
}

impl OnDemandLabels {
    /// Names are the control plane's, not the client's, and so no more than there are resources.
    pub(crate) fn new(source: Option<&Workload>, name: &Hostname) -> Self {
        let source = End::of(source, source.map(Workload::identity).as_ref());
        Self {
            source_app: source.service.clone(),
            source_version: source.revision.clone(),
            source_workload: source.workload,
            source_canonical_service: source.service,
            source_canonical_revision: source.revision,
            source_workload_namespace: source.namespace,
            source_principal: source.principal,
            source_cluster: source.cluster,
            hostname: Value::of(name.as_str()),
        }
    }
}

/// Makes the histograms of durations: 0.5 ms to 5 s.
#[derive(Clone, Debug)]
pub(crate) struct Durations;

impl MetricConstructor<Histogram> for Durations {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0])
    }
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct DnsMetrics {
    pub(crate) requests: Family<DnsLabels, Counter>,
    pub(crate) upstream_requests: Family<DnsLabels, Counter>,
    pub(crate) upstream_failures: Family<DnsLabels, Counter>,
    pub(crate) upstream_duration: Family<DnsLabels, Histogram, Durations>,
    /// Questions of our own, for connections.
    pub(crate) on_demand: Family<OnDemandLabels, Counter>,
    /// Messages that were no queries, and queries that were neither answered nor forwarded.
    pub(crate) unusable: Family<ReasonLabel, Counter>,
}

impl Default for DnsMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_duration: Family::new_with_constructor(Durations),
            on_demand: Family::default(),
            unusable: Family::default(),
        }
    }
}

impl DnsMetrics {
    pub(super) fn register(&self, istio: &mut Registry) {
        istio.register("dns_requests", "DNS queries received", self.requests.clone());
        istio.register(
            "dns_upstream_requests",
            "DNS queries forwarded to a server of the pod",
            self.upstream_requests.clone(),
        );
        istio.register(
            "dns_upstream_failures",
            "Forwarded DNS queries that no server answered",
            self.upstream_failures.clone(),
        );
        istio.register(
            "on_demand_dns",
            "Connections that needed the address of a name of the mesh's",
            self.on_demand.clone(),
        );
        istio.register_with_unit(
            "dns_upstream_request_duration",
            "From forwarding a DNS query to its answer, or to giving up",
            Unit::Seconds,
            self.upstream_duration.clone(),
        );
    }

    pub(super) fn register_own(&self, own: &mut Registry) {
        own.register(
            "dns_unanswered",
            "DNS messages that could not be read, and queries refused for lack of room or configuration",
            self.unusable.clone(),
        );
    }
}
