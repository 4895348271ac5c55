//! What the agent tells of a pod.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use api::zds::Listener;
use mesh::{Namespace, ServiceAccount};
use socket2::SockRef;
use tokio::net::TcpStream;
use tunnel::socket::{Netns, canonical};

use crate::dns::Resolver;

/// A pod's Kubernetes uid; unrelated to the uid of its workload.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PodUid(Arc<str>);

impl From<&str> for PodUid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl PodUid {
    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the listeners come from.
#[derive(Debug)]
pub(crate) enum Listeners {
    /// The agent made them and holds them too: what arrives while no ztunnel runs waits in their queues.
    Handed(Vec<(Listener, OwnedFd)>),
    /// Istio's agent leaves them to us; its rules redirect with conntrack.
    Ours,
}

/// How the original destination of a captured connection is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capture {
    /// The kernel assigned the connection to our listener: its local address is what was dialled.
    Assigned,
    /// Istio's iptables rules may have redirected it: conntrack knows, else the local address (contract 1.2, step 1).
    Redirected,
}

impl Capture {
    /// Whoever makes the listeners has its own way to bring connections to them.
    pub(crate) fn of(listeners: &Listeners) -> Self {
        match listeners {
            Listeners::Handed(_) => Self::Assigned,
            Listeners::Ours => Self::Redirected,
        }
    }

    /// What the client of `stream` dialled, given the local address of it.
    pub(crate) fn original_destination(self, stream: &TcpStream, local: SocketAddr) -> SocketAddr {
        if self == Self::Assigned {
            return local;
        }
        let socket = SockRef::from(stream);
        let known = socket.original_dst_v4().or_else(|_| socket.original_dst_v6());
        known.ok().and_then(|address| address.as_socket()).map_or(local, canonical)
    }
}

/// A pod to serve.
#[derive(Debug)]
pub(crate) struct PodSpec {
    /// Its Kubernetes uid.
    pub(crate) uid: PodUid,
    /// Its name.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: Namespace,
    /// Its service account.
    pub(crate) service_account: ServiceAccount,
    /// Its addresses; empty when the agent does not tell them, then those of its workload hold.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub(crate) netns: Netns,
    /// Where the listeners come from.
    pub(crate) listeners: Listeners,
    /// How the pod resolves names, if the agent tells it.
    pub(crate) resolver: Option<Resolver>,
}
