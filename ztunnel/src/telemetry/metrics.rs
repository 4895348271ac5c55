//! The process's metric families. Names are Istio's (contract 1.10); `culvert_` marks those it has none for.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::labels::{Reporter, Traffic};

/// Label set of `istio_tcp_sockets_open`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReporterLabel {
    pub(crate) reporter: Reporter,
}

/// A reason, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    pub(crate) reason: &'static str,
}

/// What a handshake failed for, and at which side's proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TlsLabel {
    pub(crate) reporter: Reporter,
    pub(crate) reason: &'static str,
}

/// How a request for a certificate ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResultLabel {
    pub(crate) result: &'static str,
}

/// A resource type of xDS, as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct UrlLabel {
    pub(crate) url: &'static str,
}

/// Labels of `istio_build`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct BuildLabel {
    pub(crate) component: &'static str,
    pub(crate) tag: &'static str,
}

/// Seconds from word of a change to the cut of a connection that it does not allow any more. A second is promised.
#[derive(Clone, Debug)]
pub(crate) struct CutLag(pub(crate) Histogram);

impl Default for CutLag {
    fn default() -> Self {
        Self(Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]))
    }
}

/// All families; cheap to clone, as clones share the numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) build: Family<BuildLabel, Gauge>,
    pub(crate) opened: Family<Traffic, Counter>,
    pub(crate) closed: Family<Traffic, Counter>,
    pub(crate) failed: Family<Traffic, Counter>,
    pub(crate) received_bytes: Family<Traffic, Counter>,
    pub(crate) sent_bytes: Family<Traffic, Counter>,
    pub(crate) sockets_open: Family<ReporterLabel, Gauge>,
    pub(crate) xds_messages: Family<UrlLabel, Counter>,
    pub(crate) xds_bytes: Family<UrlLabel, Counter>,
    pub(crate) xds_terminations: Family<ReasonLabel, Counter>,
    /// Refused before anything was known of them.
    pub(crate) early_refusals: Family<ReasonLabel, Counter>,
    /// Handshakes with other proxies that failed.
    pub(crate) tls_failures: Family<TlsLabel, Counter>,
    /// Endpoints of services that gave way to another one, by why they were not reached.
    pub(crate) endpoint_retries: Family<ReasonLabel, Counter>,
    /// Endpoints that were ejected.
    pub(crate) endpoint_ejections: Counter,
    /// Accept loops that had to pause, by the kernel's error.
    pub(crate) accept_pauses: Family<ReasonLabel, Counter>,
    pub(crate) certificate_requests: Family<ResultLabel, Counter>,
    pub(crate) certificates_held: Gauge,
    pub(crate) rejected_resources: Counter,
    pub(crate) cut_lag: CutLag,
    pub(crate) active_proxies: Gauge,
    pub(crate) pending_proxies: Gauge,
    pub(crate) proxies_started: Counter,
    pub(crate) proxies_stopped: Counter,
}

impl Metrics {
    /// Makes the families known to `registry`.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let istio = registry.sub_registry_with_prefix("istio");
        istio.register("build", "What is running", self.build.clone());
        istio.register("tcp_connections_opened", "Connections established", self.opened.clone());
        istio.register("tcp_connections_closed", "Established connections ended", self.closed.clone());
        istio.register(
            "tcp_connections_failed",
            "Connections that were never established",
            self.failed.clone(),
        );
        istio.register("tcp_received_bytes", "Bytes from client to server", self.received_bytes.clone());
        istio.register("tcp_sent_bytes", "Bytes from server to client", self.sent_bytes.clone());
        istio.register("tcp_sockets_open", "Connections held now", self.sockets_open.clone());
        istio.register("xds_message", "Pushes received", self.xds_messages.clone());
        istio.register("xds_message_bytes", "Bytes of pushes received", self.xds_bytes.clone());
        istio.register(
            "xds_connection_terminations",
            "Streams, or attempts, that ended",
            self.xds_terminations.clone(),
        );
        self.register_own(registry.sub_registry_with_prefix("culvert"));
        let pods = registry.sub_registry_with_prefix("workload_manager");
        pods.register("active_proxy_count", "Pods served", self.active_proxies.clone());
        pods.register(
            "pending_proxy_count",
            "Pods whose proxy could not be started yet",
            self.pending_proxies.clone(),
        );
        pods.register("proxies_started", "Pods whose proxy was started", self.proxies_started.clone());
        pods.register("proxies_stopped", "Pods whose proxy was stopped", self.proxies_stopped.clone());
    }

    fn register_own(&self, own: &mut Registry) {
        own.register(
            "early_refusals",
            "Connections refused before their parties were known",
            self.early_refusals.clone(),
        );
        own.register(
            "tls_failures",
            "Handshakes with other proxies that failed, by side (source: dialled, destination: accepted) and reason",
            self.tls_failures.clone(),
        );
        own.register(
            "endpoint_retries",
            "Connections tried at another endpoint of their service, by why the one before was not reached",
            self.endpoint_retries.clone(),
        );
        own.register(
            "endpoint_ejections",
            "Endpoints passed over for a while because connections to them kept failing",
            self.endpoint_ejections.clone(),
        );
        own.register("accept_pauses", "Pauses of accept loops after an error", self.accept_pauses.clone());
        own.register(
            "certificate_requests",
            "Requests for certificates that ended",
            self.certificate_requests.clone(),
        );
        own.register(
            "certificates_held",
            "Identities with a valid certificate",
            self.certificates_held.clone(),
        );
        own.register(
            "rejected_resources",
            "Resources of the control plane that could not be used",
            self.rejected_resources.clone(),
        );
        own.register(
            "policy_cut_lag_seconds",
            "From word of a change of policy, or of whom it applies to, to the reset of a connection that it ends",
            self.cut_lag.0.clone(),
        );
    }
}
