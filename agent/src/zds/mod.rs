//! The agent's side of ZDS (Istio contract 2.5): which pods ztunnel serves, with their namespaces and listeners.
//!
//! One ztunnel is active, the one that connected last; older ones are draining. Pods are added to the active one,
//! and taken from all. A new session gets the whole snapshot first, then what changes. `hub` knows the sessions and what
//! each has acknowledged, `session` speaks with one, `server` accepts them, `admission` says who may be one and exempts it from
//! capture, `process` holds its process.
//!
//! **Keys in keeping.** Keys stay in the memory of the process that uses them; so a ztunnel that is killed would need new certificates
//! before its successor carries anything to another node, and while the CA is away there are none. Therefore ztunnel leaves a sealed
//! memfd of its certificates and keys here, and the agent hands it to the next ztunnel it admits, before any pod. To the agent it is
//! a descriptor like the listeners': it neither reads nor maps it, and no file system has a name for it. Nobody gains by that:
//! who gets the descriptor is admitted to every pod's namespace and may ask the CA for the same identities, and who could take it
//! out of the agent (root, with SYS_PTRACE) could read ztunnel's memory as well. It lasts as long as this process and is
//! replaced whenever ztunnel's certificates change.

pub(crate) mod admission;
pub(crate) mod hub;
mod process;
pub(crate) mod server;
pub(crate) mod session;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use api::zds::{Add, Listener, PodInfo};

use crate::enroll::pod::{PodSpec, PodUid};
use crate::listeners::Listeners;
use crate::netns::Netns;
use crate::resolv_conf::ResolvConf;

/// What ztunnel is told of a pod. Compared by identity: a changed pod is a new announcement.
#[derive(Debug)]
pub(crate) struct Announcement {
    /// The pod.
    pub(crate) pod: PodSpec,
    /// Its namespace.
    pub(crate) netns: Arc<Netns>,
    /// The agent's listeners in it; none when ztunnel is to make its own.
    pub(crate) listeners: Option<Arc<Listeners>>,
    /// How it resolves names, as far as that could be read.
    pub(crate) resolv_conf: Option<Arc<ResolvConf>>,
}

/// What a ztunnel understands beyond Istio's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Takes {
    /// The agent's listeners.
    pub(crate) listeners: bool,
    /// Those for DNS among them, and how pods resolve names.
    pub(crate) dns: bool,
}

impl Announcement {
    /// The message; to one that takes nothing it is what Istio's ztunnel knows, to the byte.
    fn message(&self, takes: Takes) -> Add {
        let listeners = self.listeners.as_ref().filter(|_| takes.listeners);
        Add {
            uid: self.pod.uid.to_string(),
            info: PodInfo {
                name: self.pod.name.clone(),
                namespace: self.pod.namespace.clone(),
                service_account: self.pod.service_account.clone(),
            },
            listeners: listeners
                .into_iter()
                .flat_map(|listeners| listeners.all(takes.dns).map(|(kind, _)| kind))
                .collect(),
            addresses: if takes.listeners { self.pod.addresses.clone() } else { Vec::new() },
            resolver: self.resolver(takes).is_some(),
        }
    }

    /// The descriptors that travel with it: the namespace, and for a ztunnel that takes them the listeners and the pod's `resolv.conf`.
    fn fds(&self, takes: Takes) -> Vec<BorrowedFd<'_>> {
        let listeners = self.listeners.as_ref().filter(|_| takes.listeners);
        let listeners =
            listeners.into_iter().flat_map(|listeners| listeners.all(takes.dns).map(|(_, fd)| fd));
        let resolver = self.resolver(takes).map(|resolv_conf| resolv_conf.as_fd());
        std::iter::once(self.netns.as_fd()).chain(listeners).chain(resolver).collect()
    }

    fn resolver(&self, takes: Takes) -> Option<&ResolvConf> {
        self.resolv_conf.as_deref().filter(|_| takes.dns)
    }
}

/// A pod that a ztunnel held when the agent came back: what keeps its accept queues alive.
#[derive(Debug)]
pub(crate) struct Held {
    /// The pod.
    pub(crate) uid: PodUid,
    /// Its namespace.
    pub(crate) netns: OwnedFd,
    /// Its listeners.
    pub(crate) listeners: Vec<(Listener, OwnedFd)>,
}
