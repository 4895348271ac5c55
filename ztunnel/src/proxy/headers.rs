//! The headers of a CONNECT request and its answer (contract 2.1): who is behind it, for telemetry and for
//! people. Nothing in them is trusted, and nothing but the trace is read.

use std::net::SocketAddr;

use http::HeaderValue;
use mesh::workload::WorkloadType;
use mesh::{ServiceName, Workload};
use tunnel::hbone::{ConnectHeaders, forwarded};

use crate::telemetry::TraceParent;

/// The headers of a request made for `client`, a connection of `source`.
pub(crate) fn request(
    source: &Workload,
    client: SocketAddr,
    service: Option<&ServiceName>,
    trace: &TraceParent,
) -> ConnectHeaders {
    ConnectHeaders {
        baggage: baggage(source),
        forwarded: Some(forwarded(client, service.map(|service| service.hostname.as_str()))),
        traceparent: HeaderValue::from_str(&trace.to_string()).ok(),
        forwarded_network: None,
    }
}

/// The trace of a request, or a new one.
pub(crate) fn trace(headers: &ConnectHeaders) -> TraceParent {
    let sent = headers.traceparent.as_ref().and_then(|value| value.to_str().ok());
    sent.and_then(|text| text.parse().ok()).unwrap_or_else(TraceParent::random)
}

/// What a workload tells of itself. Names that no header can carry leave it out: it is only telemetry.
pub(crate) fn baggage(workload: &Workload) -> Option<HeaderValue> {
    let controller = match workload.workload_type {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Pod => "k8s.pod.name",
        WorkloadType::Job => "k8s.job.name",
    };
    let members = [
        ("k8s.cluster.name", workload.cluster_id.as_str()),
        ("k8s.namespace.name", workload.namespace.as_str()),
        (controller, workload.workload_name.as_str()),
        ("service.name", workload.canonical_name.as_str()),
        ("service.version", workload.canonical_revision.as_str()),
        ("cloud.region", workload.locality.region.as_str()),
        ("cloud.availability_zone", workload.locality.zone.as_str()),
    ];
    let stated = members.iter().filter(|(_, value)| !value.is_empty());
    let text = stated.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    HeaderValue::from_str(&text).ok()
}
