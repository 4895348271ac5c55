//! The record of one connection as one side sees it: filled in as facts become known, counted when it is
//! established and when it ends, and written as one access-log line at its end, whatever way it ends.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::route::Place;
use mesh::{ServiceName, SpiffeId, Workload};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;
use tunnel::copy::Transferred;
use tunnel::hbone::Authority;
use tunnel::tls::{Standing, TlsFacts};

use super::TraceParent;
use super::labels::{Localities, Parties, Reporter, Security, Traffic};
use super::metrics::{Metrics, ReasonLabel, ReporterLabel, TlsLabel};
use crate::proxy::Failure;

/// The way a connection took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Handed from pod to pod within this process.
    SameNode,
    /// Through a tunnel between nodes.
    OtherNode,
    /// Through a tunnel to a waypoint.
    Waypoint,
    /// Through the gateway of another network.
    OtherNetwork,
    /// Plain TCP, to or from something outside the mesh.
    Passthrough,
    /// Nowhere.
    Refused,
}

impl Path {
    fn as_str(self) -> &'static str {
        match self {
            Self::SameNode => "same_node",
            Self::OtherNode => "other_node",
            Self::Waypoint => "waypoint",
            Self::OtherNetwork => "other_network",
            Self::Passthrough => "passthrough",
            Self::Refused => "refused",
        }
    }
}

/// Who talks to whom; what is not known stays empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ends {
    /// The client's pod.
    pub(crate) source: Option<Arc<Workload>>,
    /// The client's identity, if verified.
    pub(crate) source_identity: Option<SpiffeId>,
    /// The server's pod.
    pub(crate) destination: Option<Arc<Workload>>,
    /// The server's identity, if verified.
    pub(crate) destination_identity: Option<SpiffeId>,
    /// The service that was called.
    pub(crate) service: Option<ServiceName>,
}

/// The counters of an established connection and what they were told so far.
struct Counting {
    received: Counter,
    sent: Counter,
    told: (u64, u64),
}

/// See the module.
pub(crate) struct Record {
    metrics: Metrics,
    reporter: Reporter,
    started: Instant,
    source_address: SocketAddr,
    /// Where the client wanted to go; on the outbound side, once routed, where it goes.
    pub(crate) destination_address: SocketAddr,
    /// The tunnel's authority, if there is one.
    pub(crate) hbone_address: Option<Authority>,
    /// The parties.
    pub(crate) ends: Ends,
    /// The way taken.
    pub(crate) path: Path,
    /// What TLS agreed on, if there is TLS.
    pub(crate) tls: Option<TlsFacts>,
    /// Whether the certificate of who is at the other end of a tunnel that was dialled is revoked meanwhile.
    pub(crate) standing: Standing,
    /// What ties both sides' lines together.
    pub(crate) trace: TraceParent,
    /// The endpoints that were tried before, and what each failed for.
    failed_tries: Vec<String>,
    transferred: Arc<Transferred>,
    counting: Option<Counting>,
    finished: bool,
}

impl Record {
    /// A connection that was just accepted.
    pub(crate) fn new(
        metrics: &Metrics,
        reporter: Reporter,
        source_address: SocketAddr,
        destination_address: SocketAddr,
        trace: TraceParent,
    ) -> Self {
        metrics.sockets_open.get_or_create(&ReporterLabel { reporter }).inc();
        Self {
            metrics: metrics.clone(),
            reporter,
            started: Instant::now(),
            source_address,
            destination_address,
            hbone_address: None,
            ends: Ends::default(),
            path: Path::Refused,
            tls: None,
            standing: Standing::for_good(),
            trace,
            failed_tries: Vec::new(),
            transferred: Arc::default(),
            counting: None,
            finished: false,
        }
    }

    /// Where the bytes are counted.
    pub(crate) fn transferred(&self) -> &Arc<Transferred> {
        &self.transferred
    }

    /// Counts the same bytes as `other`: the two sides of a connection within this process.
    pub(crate) fn counts_with(&mut self, other: &Self) {
        self.transferred = other.transferred.clone();
    }

    /// The endpoint `name` at `place` was not reached; another one is tried.
    pub(crate) fn try_again(&mut self, name: &str, place: &Place, failure: &Failure) {
        let reason = failure.meaning().flag;
        self.metrics.endpoint_retries.get_or_create(&ReasonLabel { reason }).inc();
        self.count_handshake(failure);
        self.failed_tries.push(format!("{name} at {place}: {reason}: {failure}"));
        self.hbone_address = None;
        self.ends.source_identity = None;
        self.ends.destination_identity = None;
    }

    /// Both ends are connected.
    pub(crate) fn established(&mut self) {
        let labels = self.labels();
        self.metrics.opened.get_or_create(&labels).inc();
        self.counting = Some(Counting {
            received: self.metrics.received_bytes.get_or_create(&labels).clone(),
            sent: self.metrics.sent_bytes.get_or_create(&labels).clone(),
            told: (0, 0),
        });
        tracing::debug!(
            target: "access",
            { src.addr = %self.source_address, dst.addr = %self.destination_address },
            "connection opened"
        );
    }

    /// Tells the byte counters what moved since the last time; for connections that live long.
    pub(crate) fn count_bytes(&mut self) {
        let now = (self.transferred.from_source(), self.transferred.from_destination());
        if let Some(counting) = &mut self.counting {
            counting.received.inc_by(now.0 - counting.told.0);
            counting.sent.inc_by(now.1 - counting.told.1);
            counting.told = now;
        }
    }

    /// The end, good or bad.
    pub(crate) fn finish(mut self, failure: Option<&Failure>) {
        self.end(failure);
    }

    fn end(&mut self, failure: Option<&Failure>) {
        self.finished = true;
        self.count_bytes();
        self.metrics.sockets_open.get_or_create(&ReporterLabel { reporter: self.reporter }).dec();
        let mut labels = self.labels();
        labels.response_flags = failure.map_or("-", |failure| failure.meaning().flag);
        match self.counting {
            Some(_) => self.metrics.closed.get_or_create(&labels).inc(),
            None => self.metrics.failed.get_or_create(&labels).inc(),
        };
        // The destination decides; the source's record within the same process is of the same cut.
        if let Some(since) = failure.and_then(Failure::disallowed_since)
            && self.reporter == Reporter::Destination
        {
            self.metrics.cut_lag.0.observe(since.elapsed().as_secs_f64());
        }
        failure.into_iter().for_each(|failure| self.count_handshake(failure));
        self.log(failure, labels.response_flags);
    }

    fn count_handshake(&self, failure: &Failure) {
        if let Some(reason) = failure.tls_reason() {
            let labels = TlsLabel { reporter: self.reporter, reason };
            self.metrics.tls_failures.get_or_create(&labels).inc();
        }
        if failure.is_revocation() {
            self.metrics.crl_rejections.get_or_create(&ReporterLabel { reporter: self.reporter }).inc();
        }
    }

    fn labels(&self) -> Traffic {
        let ends = &self.ends;
        let parties = Parties {
            source: ends.source.as_deref(),
            source_identity: ends.source_identity.as_ref(),
            destination: ends.destination.as_deref(),
            destination_identity: ends.destination_identity.as_ref(),
            service: ends.service.as_ref(),
        };
        let verified = ends.source_identity.is_some() && ends.destination_identity.is_some();
        let security = if verified { Security::Verified } else { Security::Unknown };
        let mut labels = Traffic::new(self.reporter, parties, security);
        if self.metrics.shared.localities {
            labels.localities = Localities::of(parties.source, parties.destination);
        }
        labels
    }

    fn log(&self, failure: Option<&Failure>, flags: &'static str) {
        let path = match failure {
            Some(failure) if failure.is_refusal() => Path::Refused,
            _ => self.path,
        };
        let Ends { source, source_identity, destination, destination_identity, service } = &self.ends;
        // As Istio's lines have it: of the pod that the line is about, so that one connection's two lines mirror each other. The
        // metrics keep to the client's direction on both sides.
        let (forth, back) = (self.transferred.from_source(), self.transferred.from_destination());
        let (direction, bytes_sent, bytes_recv) = match self.reporter {
            Reporter::Source => ("outbound", forth, back),
            Reporter::Destination => ("inbound", back, forth),
        };
        let message = if failure.is_none() { "connection complete" } else { "connection failed" };
        tracing::info!(
            target: "access",
            {
                src.addr = %self.source_address,
                src.workload = source.as_ref().map(|workload| workload.name.as_str()),
                src.namespace = source.as_ref().map(|workload| workload.namespace.as_str()),
                src.identity = source_identity.as_ref().map(display),
                src.cluster = source.as_ref().map(|workload| workload.cluster_id.as_str()),
                dst.addr = %self.destination_address,
                dst.hbone_addr = self.hbone_address.as_ref().map(display),
                dst.service = service.as_ref().map(|service| service.hostname.as_str()),
                dst.workload = destination.as_ref().map(|workload| workload.name.as_str()),
                dst.namespace = destination.as_ref().map(|workload| workload.namespace.as_str()),
                dst.identity = destination_identity.as_ref().map(display),
                dst.cluster = destination.as_ref().map(|workload| workload.cluster_id.as_str()),
                direction,
                bytes_sent,
                bytes_recv,
                duration = format!("{}ms", self.started.elapsed().as_millis()),
                error = failure.map(display),
                path = path.as_str(),
                tls.version = self.tls.as_ref().map(|tls| tls.version),
                tls.group = self.tls.as_ref().map(|tls| tls.group),
                failed_tries = (!self.failed_tries.is_empty()).then(|| self.failed_tries.join("; ")),
                policy = failure.and_then(Failure::policy).map(display),
                trace_id = self.trace.trace_id(),
                response_flags = flags,
                fault = failure.map(|failure| display(failure.meaning().blame)),
                tls.error = failure.and_then(Failure::tls_reason),
            },
            "{message}"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Some(&Failure::Abandoned));
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use tunnel::copy::Side;

    use super::super::kept::{Kept, Line};
    use super::*;

    fn line_of(act: impl FnOnce()) -> Line {
        let kept = Kept::default();
        tracing::subscriber::with_default(kept.subscriber(), act);
        let lines = kept.lines();
        let [line] = &lines[..] else { panic!("expected one line: {lines:?}") };
        line.clone()
    }

    fn record(metrics: &Metrics) -> Record {
        let (client, server) = ("10.1.0.5:40000".parse().unwrap(), "10.96.0.9:80".parse().unwrap());
        let mut record = Record::new(metrics, Reporter::Source, client, server, TraceParent::new(0xabc, 1));
        record.ends.source_identity = Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
        record
    }

    fn exposed(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_good_connection_is_one_line_with_what_tls_agreed_on() {
        let metrics = Metrics::default();
        let line = line_of(|| {
            let mut record = record(&metrics);
            record.path = Path::OtherNode;
            record.tls = Some(TlsFacts {
                version: "TLSv1.3",
                group: "X25519MLKEM768",
                cipher: "TLS13_AES_256_GCM_SHA384",
            });
            record.ends.destination_identity = Some("spiffe://cluster.local/ns/shop/sa/db".parse().unwrap());
            record.established();
            record.finish(None);
        });
        for (field, value) in [
            ("message", "connection complete"),
            ("src.addr", "10.1.0.5:40000"),
            ("src.identity", "spiffe://cluster.local/ns/shop/sa/web"),
            ("dst.identity", "spiffe://cluster.local/ns/shop/sa/db"),
            ("direction", "outbound"),
            ("bytes_recv", "0"),
            ("bytes_sent", "0"),
            ("path", "other_node"),
            ("tls.version", "TLSv1.3"),
            ("tls.group", "X25519MLKEM768"),
            ("trace_id", "00000000000000000000000000000abd"),
            ("response_flags", "-"),
        ] {
            assert_eq!(line.get(field).map(String::as_str), Some(value), "{field}");
        }
        assert!(!line.contains_key("error"), "{line:?}");
        let text = exposed(&metrics);
        for counted in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
            assert!(
                text.contains(&format!("{counted}{{reporter=\"source\",source_workload=\"unknown\"")),
                "{text}"
            );
        }
        assert!(text.contains("connection_security_policy=\"mutual_tls\"} 1"), "{text}");
        assert!(text.contains("istio_tcp_sockets_open{reporter=\"source\"} 0"), "{text}");
    }

    /// Contract 1.10.
    const ISTIOS_FIELDS: [&str; 18] = [
        "src.addr",
        "src.workload",
        "src.namespace",
        "src.identity",
        "src.cluster",
        "dst.addr",
        "dst.hbone_addr",
        "dst.service",
        "dst.workload",
        "dst.namespace",
        "dst.identity",
        "dst.cluster",
        "direction",
        "bytes_sent",
        "bytes_recv",
        "duration",
        "error",
        "message",
    ];

    #[test]
    fn the_line_of_a_connection_has_istios_fields_and_known_ones_of_ours() {
        let metrics = Metrics::default();
        let line = line_of(|| {
            let mut record = record(&metrics);
            let pod = Arc::new(super::super::metrics::tests::pod("web"));
            record.ends.source = Some(pod.clone());
            record.ends.destination = Some(pod);
            record.ends.destination_identity = Some("spiffe://cluster.local/ns/shop/sa/db".parse().unwrap());
            record.ends.service = Some("shop/db.shop.svc".parse().unwrap());
            record.hbone_address = Some("10.1.0.6:15008".parse().unwrap());
            record.established();
            record.finish(Some(&Failure::Idle));
        });
        let mut expected: Vec<&str> = ISTIOS_FIELDS.to_vec();
        expected.extend(["path", "trace_id", "response_flags", "fault"]);
        expected.sort_unstable();
        assert_eq!(line.keys().map(String::as_str).collect::<Vec<_>>(), expected);
        let milliseconds = line["duration"].strip_suffix("ms").unwrap();
        assert!(milliseconds.parse::<u64>().is_ok(), "{milliseconds}");
    }

    #[test]
    fn each_sides_line_tells_what_its_own_pod_sent_and_the_metrics_what_the_client_did() {
        for (reporter, sent, received) in [(Reporter::Source, "5", "70"), (Reporter::Destination, "70", "5")]
        {
            let metrics = Metrics::default();
            let line = line_of(|| {
                let mut record = record(&metrics);
                record.reporter = reporter;
                record.established();
                record.transferred().count(Side::Source, 5);
                record.transferred().count(Side::Destination, 70);
                record.finish(None);
            });
            assert_eq!((&*line["bytes_sent"], &*line["bytes_recv"]), (sent, received), "{reporter:?}");
            let text = exposed(&metrics);
            for (name, bytes) in
                [("istio_tcp_received_bytes_total{", " 5"), ("istio_tcp_sent_bytes_total{", " 70")]
            {
                let sample = text.lines().find(|line| line.starts_with(name)).unwrap();
                assert!(sample.ends_with(bytes), "{reporter:?}: {sample}");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_policy_and_counts_as_failed() {
        let metrics = Metrics::default();
        let line = line_of(|| {
            let mut record = record(&metrics);
            record.path = Path::SameNode;
            let policy = mesh::PolicyName { namespace: "shop".into(), name: "only-web".into() };
            let reason = mesh::authorize::Reason::NotAllowed;
            record.finish(Some(&Failure::Denied(mesh::authorize::Refusal { policy: Some(policy), reason })));
        });
        assert_eq!(line["path"], "refused");
        assert_eq!(line["policy"], "shop/only-web");
        assert!(line["error"].ends_with("shop/only-web"), "{line:?}");
        let text = exposed(&metrics);
        assert!(text.contains("response_flags=\"DENY\""), "{text}");
        assert!(!text.contains("tcp_connections_closed_total{"), "{text}");
    }

    #[test]
    fn a_connection_whose_task_was_dropped_still_gets_its_line() {
        let line = line_of(|| {
            let mut record = record(&Metrics::default());
            record.established();
        });
        assert_eq!(line["response_flags"], "ABANDONED");
    }
}
