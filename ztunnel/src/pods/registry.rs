//! Which pods are served, found by their uid (the agent's name for them) and by namespace and name (the mesh's).
//!
//! Starting and stopping is the proxy's business (`proxy::serve`); here stands what is served now.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use api::zds::Listener;
use mesh::{Namespace, Workload};
use nix::sys::stat::fstat;
use tunnel::socket::Redirection;

use super::pod::Pod;
use super::spec::{Listeners, PodSpec, PodUid};

/// A pod that is served, with what the agent may ask back.
pub(crate) struct Serving {
    /// The pod.
    pub(crate) pod: Arc<Pod>,
    /// The listeners the agent handed over; none when we made them.
    pub(crate) listeners: Vec<(Listener, OwnedFd)>,
}

/// How far two descriptions are of the same pod with the same sockets and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Likeness {
    /// Nothing need be done.
    Same,
    /// Its listeners for DNS are others, or it has none where it had, or the reverse.
    ButForDns,
    /// It is to be served anew.
    Another,
}

impl Serving {
    /// How far `spec` tells of what is served.
    pub(crate) fn likeness(&self, spec: &PodSpec) -> Likeness {
        let handed = match &spec.listeners {
            Listeners::Handed(handed) => &handed[..],
            Listeners::Ours => &[],
        };
        let by_programs = self.pod.netns.redirection() == Redirection::Programs;
        let same_pod = matches!(spec.listeners, Listeners::Handed(_)) == by_programs
            && self.pod.netns.inode() == spec.netns.inode()
            && self.pod.is_stated_at(&spec.addresses);
        if !same_pod || !are_same(&self.listeners, handed, |kind| !kind.is_dns()) {
            Likeness::Another
        } else if are_same(&self.listeners, handed, Listener::is_dns) {
            Likeness::Same
        } else {
            Likeness::ButForDns
        }
    }
}

/// Whether two lists have the same sockets of some kinds, in the same order.
fn are_same(
    ours: &[(Listener, OwnedFd)],
    theirs: &[(Listener, OwnedFd)],
    of: impl Fn(Listener) -> bool + Copy,
) -> bool {
    let ours: Vec<_> = ours.iter().filter(|(kind, _)| of(*kind)).collect();
    let theirs: Vec<_> = theirs.iter().filter(|(kind, _)| of(*kind)).collect();
    let mut pairs = ours.iter().zip(&theirs);
    ours.len() == theirs.len() && pairs.all(|(one, other)| one.0 == other.0 && is_same_file(&one.1, &other.1))
}

/// Sockets are files of a pseudo file system; the inode tells them apart.
fn is_same_file(one: impl AsFd, other: impl AsFd) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

#[derive(Default)]
struct Inner {
    by_uid: HashMap<PodUid, Arc<Serving>>,
    /// More than one while a pod takes the place of another of its name.
    by_name: HashMap<(Namespace, String), Vec<Arc<Pod>>>,
    /// No longer served, with connections that may still live.
    leaving: Vec<Arc<Pod>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Pods(RwLock<Inner>);

impl Pods {
    /// Enters a pod. Returns the one it replaces.
    pub(crate) fn insert(&self, serving: Serving) -> Option<Arc<Serving>> {
        let pod = serving.pod.clone();
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let old = inner.by_uid.insert(pod.uid.clone(), Arc::new(serving));
        if let Some(old) = &old {
            inner.leave(&old.pod);
        }
        inner.by_name.entry((pod.namespace.clone(), pod.name.clone())).or_default().push(pod);
        old
    }

    /// Replaces what is held of a pod that goes on being served.
    pub(crate) fn hold(&self, serving: Serving) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = inner.by_uid.get_mut(&serving.pod.uid) {
            *place = Arc::new(serving);
        }
    }

    /// Takes a pod out.
    pub(crate) fn remove(&self, uid: &PodUid) -> Option<Arc<Serving>> {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let old = inner.by_uid.remove(uid)?;
        inner.leave(&old.pod);
        Some(old)
    }

    /// The last connection of a pod that is no longer served has ended.
    pub(crate) fn left(&self, pod: &Arc<Pod>) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        inner.leaving.retain(|other| !Arc::ptr_eq(other, pod));
    }

    /// All that are served or may still have connections.
    pub(crate) fn with_connections(&self) -> Vec<Arc<Pod>> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        inner.by_uid.values().map(|serving| &serving.pod).chain(&inner.leaving).cloned().collect()
    }

    /// The pod of this uid.
    pub(crate) fn get(&self, uid: &PodUid) -> Option<Arc<Serving>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_uid.get(uid).cloned()
    }

    /// The pod here that is `workload` and has the address `ip`.
    pub(crate) fn of_workload(&self, workload: &Workload, ip: IpAddr) -> Option<Arc<Pod>> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let pods = inner.by_name.get(&(workload.namespace.clone(), workload.name.clone()))?;
        let matches =
            |pod: &&Arc<Pod>| pod.service_account == workload.service_account && pod.has_address(ip);
        pods.iter().rev().find(matches).cloned()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Serving>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).by_uid.values().cloned().collect()
    }
}

impl Inner {
    fn leave(&mut self, pod: &Arc<Pod>) {
        self.leaving.push(pod.clone());
        let key = (pod.namespace.clone(), pod.name.clone());
        if let Some(pods) = self.by_name.get_mut(&key) {
            pods.retain(|other| !Arc::ptr_eq(other, pod));
            if pods.is_empty() {
                self.by_name.remove(&key);
            }
        }
    }
}
