//! Connections between pods of this node, and of a pod with itself: no wire, so neither TLS nor HTTP/2 between the
//! two ends, but identity, policy, caps, records and re-checks on both sides as between nodes.
//!
//! The source's identity is its pod's, known by the listener the connection came in on; that is what a tunnel's
//! certificate would prove to the other side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use mesh::authorize::Attempt;
use tokio::net::TcpStream;

use super::admission::Admitted;
use super::arrival::{Arrived, Visitor, arrive};
use super::failure::Failure;
use super::live::Live;
use super::node::Node;
use super::relay::relay;
use crate::pods::Pod;
use crate::telemetry::{Path, Record, Reporter};

/// A connection that has arrived at an application of this node.
pub(crate) struct Local {
    arrived: Arrived,
    /// The destination's record.
    record: Box<Record>,
    /// The destination's place for it.
    _admitted: Admitted,
}

/// Takes a connection of `client`, whose own record is `outbound`, to `application` in `pod`.
pub(crate) async fn open(
    node: &Node,
    pod: Arc<Pod>,
    client: SocketAddr,
    application: SocketAddr,
    outbound: &Record,
) -> Result<Local, Failure> {
    let record = Record::new(&node.metrics, Reporter::Destination, client, application, outbound.trace);
    let mut record = Box::new(record);
    record.path = Path::SameNode;
    record.counts_with(outbound);
    record.ends.source = outbound.ends.source.clone();
    record.ends.service = outbound.ends.service.clone();
    let identity = outbound.ends.source_identity.clone();
    let asked = (application, None);
    let visitor = Visitor { identity, address: client, destination: application, asked, protocol: "TCP" };
    let arrived = match pod.share.admit() {
        Some(admitted) => arrive(node, &pod, visitor, &mut record).await.map(|arrived| (arrived, admitted)),
        None => Err(Failure::Overload),
    };
    match arrived {
        Ok((arrived, admitted)) => {
            record.established();
            Ok(Local { arrived, record, _admitted: admitted })
        }
        Err(failure) => {
            record.finish(Some(&failure));
            Err(failure)
        }
    }
}

impl Local {
    /// Relays to the end and writes both sides' lines. Either side may cut it.
    pub(crate) async fn carry(
        mut self: Box<Self>,
        client: TcpStream,
        mut outbound: Box<Record>,
        mut live: Live<Attempt>,
        idle: Duration,
    ) {
        let Arrived { application, live: mut inbound_live, .. } = self.arrived;
        let cut = async {
            match select(std::pin::pin!(live.cut()), std::pin::pin!(inbound_live.cut())).await {
                Either::Left((why, _)) | Either::Right((why, _)) => why,
            }
        };
        let records = &mut [&mut *outbound, &mut *self.record];
        let result = relay(client, application.into_stream(), records, idle, cut).await;
        self.record.finish(result.as_ref().err());
        outbound.finish(result.as_ref().err());
    }
}
