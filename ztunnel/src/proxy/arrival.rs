//! The last part of every way to an application: authorization, then the dial. Connections from other nodes,
//! from pods of this one and in plaintext all go through [`arrive`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh::authorize::Attempt;
use mesh::workload::ApplicationTunnel;
use mesh::{NetworkAddress, SpiffeId, Workload, ports};

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
    let Visitor { identity, address, destination, protocol } = visitor;
    if ports::is_proxy_port(destination.port()) {
        return Err(Failure::OwnPort(destination.port()));
    }
    if let Some(tunnel) = own.workload.application_tunnel {
        // Told nothing, it would take this proxy's word for nobody's, or the client's first bytes for ours.
        return Err(Failure::ApplicationTunnel(match tunnel {
            ApplicationTunnel::Proxy { .. } => "the PROXY protocol",
            ApplicationTunnel::Unknown => "a protocol of a later version",
        }));
    }
    let attempt = Attempt {
        source: identity,
        source_ip: address.ip(),
        workload: own.workload.uid.clone(),
        destination,
    };
    let listed = Listed { source: address, original: destination, actual: destination, protocol };
    // Entered first, so that no change of policy can come between the decision and the entry.
    let claim = Some(Arc::new(attempt.clone()));
    let mut live = pod.live.enter(listed, claim, record.transferred().clone());
    let permit = node.mesh.authorize(attempt, &node.metrics).map_err(Failure::Denied)?;
    tokio::select! {
        dialled = node.dialer.application(&pod.netns, address.ip(), permit) => {
            let application = Held::new(dialled.map_err(Failure::Application)?);
            Ok(Arrived { application, live, workload: own.workload.clone() })
        }
        why = live.cut() => Err(why),
    }
}

/// Fills in who is on both ends.
fn describe(node: &Node, own: &Own, visitor: &Visitor, record: &mut Record) {
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
