//! Connections to a pod from outside the mesh (listener 15006). They prove no identity: policy decides
//! whether that suffices, and STRICT is a policy that refuses whoever has none.

use mesh::ports;
use tunnel::socket::Accepted;

use super::arrival::{Visitor, arrive};
use super::failure::Failure;
use super::held::Held;
use super::node::Node;
use super::refusal::refuse_early;
use super::relay::relay;
use crate::pods::Pod;
use crate::telemetry::{Path, Record, Reporter, TraceParent};

/// Serves one connection to its end.
pub(crate) async fn serve(node: &Node, pod: &Pod, accepted: Accepted) {
    let Accepted { stream, peer, local } = accepted;
    let destination = pod.netns.original_destination(&stream, local);
    let client = Held::new(stream);
    let admitted = match admit(pod, destination) {
        Ok(admitted) => admitted,
        Err(failure) => return refuse_early(node, pod, peer, destination, &failure),
    };
    let mut record =
        Record::new(&node.metrics, Reporter::Destination, peer, destination, TraceParent::random());
    record.path = Path::Passthrough;
    let asked = (destination, None);
    let visitor = Visitor { identity: None, address: peer, destination, asked, protocol: "TCP" };
    let result = carry(node, pod, client, &mut record, visitor).await;
    record.finish(result.as_ref().err());
    drop(admitted);
}

fn admit(pod: &Pod, destination: std::net::SocketAddr) -> Result<super::admission::Admitted, Failure> {
    if ports::is_proxy_port(destination.port()) {
        return Err(Failure::OwnPort(destination.port()));
    }
    pod.share.admit().ok_or(Failure::Overload)
}

async fn carry(
    node: &Node,
    pod: &Pod,
    client: Held,
    record: &mut Record,
    visitor: Visitor,
) -> Result<(), Failure> {
    // Where the agent does not state the pod's addresses, they are known with its workload.
    pod.own().await?;
    if !pod.has_address(visitor.destination.ip()) {
        return Err(Failure::ForeignAddress(visitor.destination.ip()));
    }
    let mut arrived = arrive(node, pod, visitor, record).await?;
    record.established();
    let (client, application) = (client.into_stream(), arrived.application.into_stream());
    relay(client, application, &mut [record], node.limits.idle, arrived.live.cut()).await
}
