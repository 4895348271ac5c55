//! The process's metric families. Names are Istio's (contract 1.10); `culvert_` marks those it has none for.

use std::sync::Arc;

use mesh::policy::Action;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::dns::DnsMetrics;
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

/// What a policy in dry run would have done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DryRunLabel {
    action: &'static str,
    matched: &'static str,
}

impl DryRunLabel {
    pub(crate) fn new(action: Action, matched: bool) -> Self {
        let action = match action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        Self { action, matched: if matched { "true" } else { "false" } }
    }
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

/// Seconds that a step with somebody else took, successful or not.
#[derive(Clone, Debug)]
pub(crate) struct Took(pub(crate) Histogram);

impl Default for Took {
    fn default() -> Self {
        Self(Histogram::new([
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        ]))
    }
}

/// See [`Metrics`].
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Whether traffic is told apart by region and zone of its ends, too.
    pub(crate) localities: bool,
    /// From a request for a certificate to its end.
    pub(crate) certificate_time: Took,
    /// From an accepted connection to a verified client: what waits for a processor shows here first.
    pub(crate) handshake_time: Took,
    /// The pods' DNS.
    pub(crate) dns: DnsMetrics,
}

/// All families; cheap to clone, as clones share the numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// What is not of every connection, behind one pointer: each connection's record holds all of the others.
    pub(crate) shared: Arc<Shared>,
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
    /// Policies in dry run that connections were judged by.
    pub(crate) dry_runs: Family<DryRunLabel, Counter>,
    /// Connections refused or cut for a revoked certificate.
    pub(crate) crl_rejections: Family<ReporterLabel, Counter>,
    /// How readings of the lists of revoked certificates ended.
    pub(crate) crl_reloads: Family<ResultLabel, Counter>,
    /// Endpoints of services that gave way to another one, by why they were not reached.
    pub(crate) endpoint_retries: Family<ReasonLabel, Counter>,
    /// Endpoints that were ejected.
    pub(crate) endpoint_ejections: Counter,
    /// Accept loops that had to pause, by the kernel's error.
    pub(crate) accept_pauses: Family<ReasonLabel, Counter>,
    pub(crate) certificate_requests: Family<ResultLabel, Counter>,
    pub(crate) certificates_held: Gauge,
    pub(crate) rejected_resources: Counter,
    pub(crate) unreadable_addresses: Gauge,
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
        istio.register(
            "crl_policy_rejections",
            "Connections refused or cut because a certificate of the other end is revoked",
            self.crl_rejections.clone(),
        );
        // Istio's cannot hold all connections to later lists; here each keeps the chain that it was let in with.
        let untracked: Family<ReporterLabel, Counter> = Family::default();
        for reporter in [Reporter::Source, Reporter::Destination] {
            let _none = untracked.get_or_create(&ReporterLabel { reporter });
        }
        istio.register(
            "crl_untracked_connections",
            "Connections that a later list of revoked certificates would not end: there are none",
            untracked,
        );
        istio.register("xds_message", "Pushes received", self.xds_messages.clone());
        istio.register("xds_message_bytes", "Bytes of pushes received", self.xds_bytes.clone());
        istio.register(
            "xds_connection_terminations",
            "Streams, or attempts, that ended",
            self.xds_terminations.clone(),
        );
        self.shared.dns.register(istio);
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
            "policy_dry_runs",
            "Connections judged by a policy in dry run, which the log names, by its action and whether it matched",
            self.dry_runs.clone(),
        );
        own.register(
            "crl_reloads",
            "Times that the lists of revoked certificates were read after a change; after an error the last good ones stay",
            self.crl_reloads.clone(),
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
        self.shared.dns.register_own(own);
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
            "certificate_request_seconds",
            "How long requests for certificates took, whatever came of them",
            self.shared.certificate_time.0.clone(),
        );
        own.register(
            "handshake_seconds",
            "How long the TLS handshakes of clients took that came to an end, good or bad",
            self.shared.handshake_time.0.clone(),
        );
        own.register(
            "rejected_resources",
            "Resources of the control plane that could not be used",
            self.rejected_resources.clone(),
        );
        own.register(
            "unreadable_addresses",
            "Workloads and services that connections are refused to because what states them cannot be read",
            self.unreadable_addresses.clone(),
        );
        own.register(
            "policy_cut_lag_seconds",
            "From word of a change of policy, or of whom it applies to, to the reset of a connection that it ends",
            self.cut_lag.0.clone(),
        );
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mesh::Workload;
    use mesh::workload::Locality;

    use super::super::labels::{Localities, Parties, Security};
    use super::*;
    use crate::proxy::tests::workload;

    /// A pod of the workload `<name>-workload`.
    pub(in crate::telemetry) fn pod(name: &str) -> Workload {
        Workload {
            canonical_name: format!("{name}-app"),
            workload_name: format!("{name}-workload"),
            cluster_id: format!("{name}-cluster"),
            locality: Locality { region: "r1".to_owned(), zone: String::new(), subzone: String::new() },
            ..workload(name, "10.1.0.5")
        }
    }

    /// The labels of a connection between two pods that are known.
    fn known() -> Traffic {
        let (web, db) = (pod("web"), pod("db"));
        let (web_id, db_id) = (web.identity(), db.identity());
        let service = "shop/db.shop.svc.cluster.local".parse().unwrap();
        let parties = Parties {
            source: Some(&web),
            source_identity: Some(&web_id),
            destination: Some(&db),
            destination_identity: Some(&db_id),
            service: Some(&service),
        };
        let labels = Traffic::new(Reporter::Source, parties, Security::Verified);
        Traffic { localities: Localities::of(Some(&web), None), ..labels }
    }

    fn unknown() -> Traffic {
        let nobody = Parties {
            source: None,
            source_identity: None,
            destination: None,
            destination_identity: None,
            service: None,
        };
        Traffic::new(Reporter::Destination, nobody, Security::Unknown)
    }

    fn exposed(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    /// Contract 1.10 and l7-semantics 3: the labels of traffic, in order, with what they say of two known pods and of two strangers.
    const TRAFFIC: [(&str, &str, &str); 23] = [
        ("reporter", "source", "destination"),
        ("source_workload", "web-workload", "unknown"),
        ("source_canonical_service", "web-app", "unknown"),
        ("source_canonical_revision", "v1", "unknown"),
        ("source_workload_namespace", "shop", "unknown"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/web", "unknown"),
        ("source_app", "web-app", "unknown"),
        ("source_version", "v1", "unknown"),
        ("source_cluster", "web-cluster", "unknown"),
        ("destination_service", "db.shop.svc.cluster.local", "unknown"),
        ("destination_service_namespace", "shop", "unknown"),
        ("destination_service_name", "db", "unknown"),
        ("destination_workload", "db-workload", "unknown"),
        ("destination_canonical_service", "db-app", "unknown"),
        ("destination_canonical_revision", "v1", "unknown"),
        ("destination_workload_namespace", "shop", "unknown"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/db", "unknown"),
        ("destination_app", "db-app", "unknown"),
        ("destination_version", "v1", "unknown"),
        ("destination_cluster", "db-cluster", "unknown"),
        ("request_protocol", "tcp", "tcp"),
        ("response_flags", "-", "-"),
        ("connection_security_policy", "mutual_tls", "unknown"),
    ];

    #[test]
    fn the_traffic_metrics_have_istios_names_and_labels_in_its_order() {
        let metrics = Metrics::default();
        for labels in [known(), unknown()] {
            for family in [
                &metrics.opened,
                &metrics.closed,
                &metrics.failed,
                &metrics.received_bytes,
                &metrics.sent_bytes,
            ] {
                family.get_or_create(&labels).inc();
            }
        }
        let text = exposed(&metrics);
        let pair = |name: &str, value: &str| format!("{name}=\"{value}\"");
        let of_known = TRAFFIC.map(|(name, value, _)| pair(name, value)).join(",");
        let localities = [("source_region", "r1"), ("source_zone", "unknown")];
        let localities = localities
            .into_iter()
            .chain([("destination_region", "unknown"), ("destination_zone", "unknown")]);
        let localities: Vec<String> = localities.map(|(name, value)| pair(name, value)).collect();
        let of_unknown = TRAFFIC.map(|(name, _, value)| pair(name, value)).join(",");
        for name in [
            "tcp_connections_opened_total",
            "tcp_connections_closed_total",
            "tcp_connections_failed_total",
            "tcp_received_bytes_total",
            "tcp_sent_bytes_total",
        ] {
            for labels in [format!("{of_known},{}", localities.join(",")), of_unknown.clone()] {
                let line = format!("istio_{name}{{{labels}}} 1\n");
                assert!(text.contains(&line), "{line}is not in\n{text}");
            }
        }
    }

    #[test]
    fn every_other_metric_has_its_name_and_labels() {
        let metrics = Metrics::default();
        metrics.sockets_open.get_or_create(&ReporterLabel { reporter: Reporter::Source }).inc();
        metrics.build.get_or_create(&BuildLabel { component: "ztunnel", tag: "1" }).set(1);
        let url = UrlLabel { url: "type" };
        metrics.xds_messages.get_or_create(&url).inc();
        metrics.xds_bytes.get_or_create(&url).inc();
        let reason = ReasonLabel { reason: "why" };
        for family in [
            &metrics.xds_terminations,
            &metrics.early_refusals,
            &metrics.endpoint_retries,
            &metrics.accept_pauses,
        ] {
            family.get_or_create(&reason).inc();
        }
        metrics.tls_failures.get_or_create(&TlsLabel { reporter: Reporter::Source, reason: "why" }).inc();
        metrics.certificate_requests.get_or_create(&ResultLabel { result: "ok" }).inc();
        let text = exposed(&metrics);
        // Istio's first, then ours.
        for sample in [
            "istio_tcp_sockets_open{reporter=\"source\"} 1",
            "istio_crl_untracked_connections_total{reporter=\"source\"} 0",
            "istio_crl_untracked_connections_total{reporter=\"destination\"} 0",
            "istio_build{component=\"ztunnel\",tag=\"1\"} 1",
            "istio_xds_message_total{url=\"type\"} 1",
            "istio_xds_message_bytes_total{url=\"type\"} 1",
            "istio_xds_connection_terminations_total{reason=\"why\"} 1",
            "workload_manager_active_proxy_count 0",
            "workload_manager_pending_proxy_count 0",
            "workload_manager_proxies_started_total 0",
            "workload_manager_proxies_stopped_total 0",
            "culvert_early_refusals_total{reason=\"why\"} 1",
            "culvert_tls_failures_total{reporter=\"source\",reason=\"why\"} 1",
            "culvert_endpoint_retries_total{reason=\"why\"} 1",
            "culvert_endpoint_ejections_total 0",
            "culvert_accept_pauses_total{reason=\"why\"} 1",
            "culvert_certificate_requests_total{result=\"ok\"} 1",
            "culvert_certificates_held 0",
            "culvert_certificate_request_seconds_count 0",
            "culvert_handshake_seconds_count 0",
            "culvert_rejected_resources_total 0",
            "culvert_policy_cut_lag_seconds_count 0",
        ] {
            assert!(text.contains(&format!("{sample}\n")), "{sample} is not in\n{text}");
        }
    }
}
