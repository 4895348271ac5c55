//! Refusals before anything is known of the parties: addresses go to the log, a reason to a counter, and the
//! traffic metrics stay clean (contract 1.10).

use std::net::SocketAddr;

use super::failure::Failure;
use super::node::Node;
use crate::pods::Pod;
use crate::telemetry::ReasonLabel;

/// Tells of a connection that was refused early. The caller resets it.
pub(crate) fn refuse_early(
    node: &Node,
    pod: &Pod,
    source: SocketAddr,
    destination: SocketAddr,
    failure: &Failure,
) {
    let meaning = failure.meaning();
    node.metrics.early_refusals.get_or_create(&ReasonLabel { reason: meaning.flag }).inc();
    tracing::warn!(
        target: "access",
        {
            src.addr = %source,
            dst.addr = %destination,
            path = "refused",
            response_flags = meaning.flag,
            error = %failure,
            pod = %pod.name,
            namespace = %pod.namespace,
        },
        "connection refused"
    );
}
