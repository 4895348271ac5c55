//! Finding a pod's network namespace: by the path its resource states, else by the cgroup of its processes.
//!
//! Either way the result is verified before it is used: it must not be the agent's own namespace and must
//! carry the pod's addresses. What cannot be verified is not enrolled.
//!
//! Whose processes those are is for `processes` to say.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::devices::{self, Interface};
use super::processes::Processes;
use super::{Netns, NetnsId};
use crate::enroll::pod::{PodSpec, PodUid};

/// Why a pod's namespace could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// No process of the pod runs (yet).
    #[error("no process of the pod was found by its cgroup (is the pod still starting?)")]
    NoProcess,
    /// The path stated for it cannot be opened.
    #[error("the network namespace {path} cannot be opened: {source}")]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pod is in the namespace of the agent: a host network pod, or a wrong path.
    #[error("its network namespace is the agent's own: host network pods are not enrolled")]
    AgentsOwn,
    /// The namespace lacks some of the pod's addresses.
    #[error("no device of its network namespace carries {} (is the pod still starting?)", list(.0))]
    AddressesMissing(Vec<IpAddr>),
    /// The pod has no address yet.
    #[error("the pod has no address yet")]
    NoAddress,
    /// The namespace could not be examined.
    #[error("its network namespace cannot be examined: {0}")]
    Examine(#[source] io::Error),
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// How a namespace was come by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    /// The path that control states.
    Path(PathBuf),
    /// A process of the pod.
    Process(PathBuf),
}

/// A namespace verified to be the pod's.
#[derive(Debug)]
pub(crate) struct Found {
    /// The namespace.
    pub(crate) netns: Arc<Netns>,
    /// Its devices when it was last looked at.
    pub(crate) devices: Vec<Interface>,
    origin: Origin,
}

impl Found {
    /// The addresses of its devices but those that count on the device or on the link alone.
    pub(crate) fn routable_addresses(&self) -> Vec<IpAddr> {
        let devices = self.devices.iter().filter(|device| !device.loopback);
        let is_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        devices.flat_map(|device| &device.addresses).filter(|address| !is_local(address)).copied().collect()
    }

    /// The directory in procfs of a process of the pod, if that led here; it may have ended since.
    pub(crate) fn process(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Process(path) => path.parent()?.parent(),
            Origin::Path(_) => None,
        }
    }

    /// Whether what led here still leads here: else the pod may live elsewhere now (its sandbox was made anew).
    pub(crate) fn still_leads_here(&self, pod: &PodSpec) -> bool {
        let (path, is_stated) = match &self.origin {
            Origin::Path(path) => (path, pod.netns_path.as_ref() == Some(path)),
            Origin::Process(path) => (path, pod.netns_path.is_none()),
        };
        is_stated && Netns::open(path).is_ok_and(|netns| netns.id() == self.netns.id())
    }
}

/// Opens and verifies the namespace of `pod`.
pub(crate) fn find(pod: &PodSpec, own: NetnsId, processes: &Processes) -> Result<Found, FindError> {
    if pod.addresses.is_empty() {
        return Err(FindError::NoAddress);
    }
    if let Some(path) = &pod.netns_path {
        let netns = Netns::open(path).map_err(|source| FindError::Open { path: path.clone(), source })?;
        return verify(netns, own, &pod.addresses, Origin::Path(path.clone()));
    }
    let mut last = FindError::NoProcess;
    let mut seen = HashSet::new();
    for pid in processes.of(&pod.uid) {
        // A process that ended meanwhile is no failure; the next one may live.
        let path = processes.proc_root().join(pid.to_string()).join("ns/net");
        let Ok(netns) = Netns::open(&path) else { continue };
        if !seen.insert(netns.id()) {
            continue;
        }
        match verify(netns, own, &pod.addresses, Origin::Process(path)) {
            Ok(found) => return Ok(found),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The namespace with one of these inodes, if a process is in it. Whose it is now is not said: inodes are used again.
///
/// # Errors
/// It cannot be told whether there is one, or what is in it.
pub(crate) fn pinned(
    inodes: &BTreeSet<u64>,
    own: NetnsId,
    proc_root: &Path,
) -> Result<Option<Found>, FindError> {
    if inodes.is_empty() {
        return Ok(None);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| FindError::Open { path, source }
    };
    for entry in std::fs::read_dir(proc_root).map_err(failed(proc_root))? {
        let path = entry.map_err(failed(proc_root))?.path().join("ns/net");
        // The name says the inode without opening what it names. Entries that are no processes, or none any more, have none.
        let Some(inode) = std::fs::read_link(&path).ok().and_then(|name| inode_of(&name)) else { continue };
        if !inodes.contains(&inode) {
            continue;
        }
        let netns = match Netns::open(&path) {
            // It ended meanwhile; another may be in the namespace.
            Err(error) if has_ended(&error) => continue,
            opened => opened.map_err(failed(&path))?,
        };
        if netns.id() != own {
            let devices = devices::list(&netns).map_err(FindError::Examine)?;
            return Ok(Some(Found { netns: Arc::new(netns), devices, origin: Origin::Process(path) }));
        }
    }
    Ok(None)
}

/// The inode in a name such as `net:[4026531840]`.
fn inode_of(name: &Path) -> Option<u64> {
    name.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// What procfs says of a process that is gone, or of which only the exit status is left.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Checks that `netns` is another namespace than the agent's and carries `addresses`.
fn verify(netns: Netns, own: NetnsId, addresses: &[IpAddr], origin: Origin) -> Result<Found, FindError> {
    if netns.id() == own {
        return Err(FindError::AgentsOwn);
    }
    let devices = devices::list(&netns).map_err(FindError::Examine)?;
    let missing = devices::missing(&devices, addresses);
    if !missing.is_empty() {
        return Err(FindError::AddressesMissing(missing));
    }
    Ok(Found { netns: Arc::new(netns), devices, origin })
}

/// The first of `pods` that any component of any of these cgroups names: what must not be a pod's has no benefit of the doubt.
pub(crate) fn any_pod_named(cgroups: &str, pods: &HashSet<PodUid>) -> Option<PodUid> {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut names = paths
        .flat_map(|path| path.split('/'))
        .map(|component| component.strip_suffix(".slice").unwrap_or(component).replace('_', "-"));
    names.find_map(|name| {
        let named = |uid: &&PodUid| {
            let before = name.strip_suffix(&uid.as_str().replace('_', "-"));
            before
                .and_then(|name| name.strip_suffix("pod"))
                .is_some_and(|name| name.is_empty() || name.ends_with('-'))
        };
        pods.iter().find(named).cloned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0b5e1c9a-7b39-4c6e-9f65-0a1b2c3d4e5f";
    fn processes(proc_root: &Path) -> Processes {
        Processes::new(proc_root.to_owned(), String::new())
    }

    fn pod(addresses: &[&str]) -> PodSpec {
        PodSpec {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..PodSpec::named(A)
        }
    }

    #[test]
    fn the_agents_own_namespace_is_never_a_pods() {
        let spec = PodSpec { netns_path: Some("/proc/self/ns/net".into()), ..pod(&["127.0.0.1"]) };
        let error = find(&spec, Netns::own().unwrap().id(), &processes(Path::new("/proc"))).unwrap_err();
        assert!(matches!(error, FindError::AgentsOwn), "{error}");
    }

    #[test]
    fn a_pod_without_processes_or_addresses_is_not_found() {
        let proc = tempfile::tempdir().unwrap();
        let processes = processes(proc.path());
        let own = Netns::own().unwrap().id();
        assert!(matches!(find(&pod(&["10.0.0.1"]), own, &processes), Err(FindError::NoProcess)));
        assert!(matches!(find(&pod(&[]), own, &processes), Err(FindError::NoAddress)));
    }

    #[test]
    fn a_namespace_that_cannot_be_opened_is_not_taken_for_none() {
        let proc = tempfile::tempdir().unwrap();
        let own = Netns::own().unwrap().id();
        let search = || pinned(&[42].into(), own, proc.path());
        std::fs::create_dir_all(proc.path().join("1/ns")).unwrap();
        assert!(search().unwrap().is_none(), "a process without a namespace has ended");
        std::os::unix::fs::symlink("net:[42]", proc.path().join("1/ns/net")).unwrap();
        assert!(search().unwrap().is_none(), "so has one whose namespace is gone");
        std::fs::write(proc.path().join("1/ns/net:[42]"), "no namespace").unwrap();
        assert!(matches!(search(), Err(FindError::Open { .. } | FindError::Examine(_))));
    }
}
