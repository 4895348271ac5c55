//! What the gateway of a network does: a connection from another network ends its outer tunnel here, and what it carries
//! goes on as it is to the HBONE port of an endpoint, or of a waypoint, behind the gateway. The inner tunnel is between
//! the client and that one: neither identity nor plaintext of it is the gateway's to see.
//!
//! The gateway's own policies judge who may come through, by the port of the service that is asked for.

use std::net::{IpAddr, SocketAddr};

use mesh::SpiffeId;
use mesh::accept::{Accepted, Asked, Onward, accept};
use mesh::ejection::Fault;
use tunnel::socket::DialError;

use super::arrival::{Arrived, Visitor, admit, describe};
use super::failure::{Blame, Failure};
use super::held::Held;
use super::node::Node;
use super::tries::{Target, Tries, fault_of_dial};
use crate::pods::{Own, Pod};
use crate::telemetry::{Path, Record};

/// A request that has reached a pod.
pub(super) struct Request<'a> {
    /// The node.
    pub(super) node: &'a Node,
    /// The pod.
    pub(super) pod: &'a Pod,
    /// What is known of it.
    pub(super) own: &'a Own,
    /// Who the client has proved to be.
    pub(super) client: &'a SpiffeId,
    /// The other end of the tunnel.
    pub(super) peer: SocketAddr,
    /// The pod's address that it came to.
    pub(super) local: IpAddr,
    /// What it asks for.
    pub(super) asked: Asked,
}

impl Request<'_> {
    /// Where it leads, after those of `tries` were tried in vain.
    pub(super) fn decide(&self, tries: &Tries) -> Result<Accepted, Failure> {
        let Self { node, own, client, local, asked, .. } = self;
        let accepted = node.outliers.decide(tries, |choice| {
            node.mesh.read(|state| accept(state, &own.workload, *local, asked, &client.namespace, choice))
        });
        accepted.map_err(Failure::Misdirected)
    }

    /// Passes the connection on, to `first` or whoever else is behind the gateway.
    pub(super) async fn pass_on(&self, first: Onward, record: &mut Record) -> Result<Arrived, Failure> {
        let Self { node, pod, own, client, peer, local, asked } = self;
        let port = match asked {
            Asked::Address(address) => address.port(),
            Asked::Name(_, port) => *port,
        };
        let destination = SocketAddr::new(*local, port);
        let visitor = Visitor {
            identity: Some((*client).clone()),
            address: *peer,
            destination,
            asked: (destination, None),
            protocol: "HBONE",
        };
        describe(node, own, &visitor, record);
        record.path = Path::OtherNetwork;
        record.ends.service = Some(first.service.name.clone());
        let (mut live, _permit) = admit(node, pod, own, &visitor, record)?;
        let application = tokio::select! {
            dialled = self.reach(first, record) => dialled?,
            why = live.cut() => return Err(why),
        };
        Ok(Arrived { application, live, workload: own.workload.clone() })
    }

    /// Dials one after the other.
    async fn reach(&self, first: Onward, record: &mut Record) -> Result<Held, Failure> {
        let Self { node, pod, local, .. } = self;
        let mut tries = Tries::new();
        let mut onward = first;
        loop {
            let target = Target::onward(&onward);
            record.destination_address = onward.hbone;
            let error = match node.dialer.network(&pod.netns, Some(*local), onward.hbone).await {
                Ok(stream) => {
                    node.outliers.succeeded(&target);
                    return Ok(Held::new(stream));
                }
                Err(error) => error,
            };
            let fault = match &error {
                DialError::Failed { error, .. } => fault_of_dial(error),
                DialError::Timeout { .. } => Fault::Other,
            };
            let failure = Failure::Dial(error);
            if failure.meaning().blame != Blame::Destination {
                return Err(failure);
            }
            let first = tries.failed(&target, fault);
            if first {
                node.outliers.failed(&target, fault, &node.mesh, &node.metrics);
            }
            if let Some(other) = self.other(&tries).filter(|_| tries.may_try_another()) {
                if first {
                    record.try_again(&target.workload.name, &target.place, &failure);
                }
                onward = other;
                continue;
            }
            let Some(pause) = tries.try_again_after() else { return Err(failure) };
            tokio::time::sleep(pause).await;
            match self.other(&tries) {
                Some(other) => onward = other,
                None => return Err(failure),
            }
        }
    }

    /// Whom else the connection may be passed on to.
    fn other(&self, tries: &Tries) -> Option<Onward> {
        match self.decide(tries) {
            Ok(Accepted::Onward(other)) => Some(other),
            Ok(Accepted::Application { .. }) | Err(_) => None,
        }
    }
}
