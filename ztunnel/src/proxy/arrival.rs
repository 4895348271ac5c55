//! The last part of every way to an application: authorization, then the dial, and what the application is told first.
//! Connections from other nodes, from pods of this one and in plaintext all go through [`arrive`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use mesh::authorize::{Attempt, Entry, Permit};
use mesh::service::Hostname;
use mesh::{NetworkAddress, SpiffeId, Workload, ports};
use tokio::time::timeout;
use tunnel::proxy_protocol::ProxyHeader;
use tunnel::socket::ApplicationDialError;

use super::failure::Failure;
use super::held::Held;
use super::live::{Listed, Live};
use super::node::Node;
use crate::pods::{Own, Pod};
use crate::telemetry::Record;

/// A connection that wants to reach an application of a pod.
pub(crate) struct Visitor {
    /// Who it has proved to be.
    pub(crate) identity: Option<SpiffeId>,
    /// Its address: the TCP peer's.
    pub(crate) address: SocketAddr,
    /// The application, as an address of the pod.
    pub(crate) destination: SocketAddr,
    /// What it asked for, for an application that is told of its clients: an address, and the host name where it asked
    /// for one.
    pub(crate) asked: (SocketAddr, Option<Hostname>),
    /// `HBONE` or `TCP`.
    pub(crate) protocol: &'static str,
}

/// A connection to the application, and its entry in the pod's list.
pub(crate) struct Arrived {
    /// To the application.
    pub(crate) application: Held,
    /// Its entry.
    pub(crate) live: Live<Attempt>,
    /// Whose application it is.
    pub(crate) workload: Arc<Workload>,
}

/// Lets `visitor` to the application, if it may.
pub(crate) async fn arrive(
    node: &Node,
    pod: &Pod,
    visitor: Visitor,
    record: &mut Record,
) -> Result<Arrived, Failure> {
    let own = pod.own().await?;
    describe(node, &own, &visitor, record);
    if ports::is_proxy_port(visitor.destination.port()) {
        return Err(Failure::OwnPort(visitor.destination.port()));
    }
    let (mut live, permit) = admit(node, pod, &own, &visitor, record)?;
    let header = header(&permit, &visitor)?;
    let (client, to) = (visitor.address.ip(), visitor.destination);
    let dial = async {
        let dialled = node.dialer.application(&pod.netns, client, permit).await;
        let mut application = Held::new(dialled.map_err(Failure::Application)?);
        if let Some(header) = header {
            // It fits into the socket's buffer, unless the identity's name is longer than any should be.
            let after = node.options.connect_timeout;
            let told = match timeout(after, application.tell(&header)).await {
                Ok(told) => told.map_err(|error| ApplicationDialError::Failed { to, error }),
                Err(_) => Err(ApplicationDialError::Timeout { to, after }),
            };
            told.map_err(Failure::Application)?;
        }
        Ok(application)
    };
    tokio::select! {
        application = dial => Ok(Arrived { application: application?, live, workload: own.workload.clone() }),
        why = live.cut() => Err(why),
    }
}

/// Asks whether the visitor may come, and enters it into the pod's list.
pub(super) fn admit(
    node: &Node,
    pod: &Pod,
    own: &Own,
    visitor: &Visitor,
    record: &Record,
) -> Result<(Live<Attempt>, Permit), Failure> {
    let Visitor { identity, address, destination, protocol, .. } = visitor;
    let attempt = Attempt {
        source: identity.clone(),
        source_ip: address.ip(),
        workload: own.workload.uid.clone(),
        destination: *destination,
    };
    let listed = Listed { source: *address, original: *destination, actual: *destination, protocol };
    // Entered first, so that no change of policy can come between the decision and the entry.
    let claim = Some(Arc::new(attempt.clone()));
    let live = pod.live.enter(listed, claim, record.transferred().clone());
    let permit = node.mesh.authorize(attempt, &node.metrics).map_err(Failure::Denied)?;
    Ok((live, permit))
}

/// What the application is told first.
fn header(permit: &Permit, visitor: &Visitor) -> Result<Option<Bytes>, Failure> {
    let Entry::Proxy { .. } = permit.entry() else { return Ok(None) };
    let (destination, host) = &visitor.asked;
    let header = ProxyHeader {
        source: visitor.address,
        destination: *destination,
        identity: visitor.identity.as_ref(),
        host: host.as_ref().map(Hostname::as_str),
    };
    header.encode().map(Some).map_err(Failure::ProxyHeader)
}

/// Fills in who is on both ends.
pub(super) fn describe(node: &Node, own: &Own, visitor: &Visitor, record: &mut Record) {
    let ends = &mut record.ends;
    ends.destination_identity = visitor.identity.as_ref().map(|_| own.workload.identity());
    ends.destination = Some(own.workload.clone());
    if ends.source.is_none() {
        ends.source = workload_at(node, own, visitor.address.ip(), visitor.identity.as_ref());
    }
    ends.source_identity = visitor.identity.clone();
}

/// The workload at `ip`, for telemetry. Where an identity was proved, only if it is the workload's: a waypoint or a
/// gateway may connect on behalf of another address.
fn workload_at(node: &Node, own: &Own, ip: IpAddr, identity: Option<&SpiffeId>) -> Option<Arc<Workload>> {
    let address = NetworkAddress { network: own.workload.network.clone(), ip };
    let found = node.mesh.read(|state| state.workload_by_address(&address).cloned())?;
    identity.is_none_or(|id| *id == found.identity()).then_some(found)
}
