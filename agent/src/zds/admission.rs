//! Which processes may be the node's ztunnel, and how long what their cgroup sends is exempt from capture.
//!
//! To be exempt is to be past the mesh, so a pod must never come to it: neither by its cgroup nor by its namespace, not even when
//! the agent learns of the pod later. An exemption lasts while a session or an admitted process of the cgroup does: a ztunnel
//! that lost its session stays exempt until it is back or dead. What was exempt before stays: earlier agents' listeners
//! are of their cgroups.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::hub::Hub;
use super::process::{Process, ProcessId};
use crate::bpf::{AttachError, CgroupId, MapError};
use crate::cgroup::{self, CgroupError};
use crate::enroll::pod::PodUid;
use crate::kernel::Kernel;
use crate::netns::find;

/// Why a process is not taken for a ztunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// It runs in a pod's cgroup.
    #[error("it runs in the cgroup of pod {0}, whose traffic is captured")]
    PodCgroup(PodUid),
    /// It runs in a pod's namespace.
    #[error("it runs in the network namespace of pod {0}, whose traffic is captured")]
    PodNetns(PodUid),
    /// It runs elsewhere than ztunnels do.
    #[error("it runs in the cgroup {cgroup}, not below {below}, where ztunnels run", below = below.display())]
    Elsewhere {
        /// Where it runs.
        cgroup: String,
        /// Where ztunnels do.
        below: PathBuf,
    },
    /// Its cgroup cannot be told or is everybody's.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// It is gone, or cannot be examined.
    #[error("it cannot be examined: {0}")]
    Process(#[from] io::Error),
    /// It ended or moved to another cgroup while it was looked at.
    #[error("it ended or moved to another cgroup meanwhile")]
    Moved,
    /// Its traffic could not be exempted.
    #[error("its traffic could not be exempted from capture: {0}")]
    Exempt(#[from] MapError),
    /// It is not known which namespaces are pods'.
    #[error("the pods that are captured could not be read: {0}")]
    Captured(#[from] AttachError),
    /// The thread that examined it panicked: a fault of the agent.
    #[error("a fault of the agent: {0}")]
    Fault(#[from] tokio::task::JoinError),
}

impl Unfit {
    /// The name under which it is counted.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::PodCgroup(_) => "pod_cgroup",
            Self::PodNetns(_) => "pod_netns",
            Self::Elsewhere { .. } => "elsewhere",
            Self::Cgroup(_) => "cgroup",
            Self::Process(_) | Self::Moved => "process",
            Self::Exempt(_) | Self::Captured(_) => "kernel",
            Self::Fault(_) => "fault",
        }
    }
}

/// What stands in the kernel.
pub(crate) trait Capture: Send + Sync + 'static {
    /// Exempts what sockets of this cgroup send; whether they were not before.
    fn exempt(&self, id: CgroupId) -> Result<bool, MapError>;
    /// Takes that back.
    fn unexempt(&self, id: CgroupId) -> Result<(), MapError>;
    /// The pods that are captured, and the inodes of their namespaces.
    fn captured(&self) -> Result<Vec<(PodUid, BTreeSet<u64>)>, AttachError>;
}

impl Capture for Kernel {
    fn exempt(&self, id: CgroupId) -> Result<bool, MapError> {
        let stood = self.exempt_cgroups()?.contains(&id);
        self.exempt_cgroup(id)?;
        Ok(!stood)
    }

    fn unexempt(&self, id: CgroupId) -> Result<(), MapError> {
        self.unexempt_cgroup(id)
    }

    fn captured(&self) -> Result<Vec<(PodUid, BTreeSet<u64>)>, AttachError> {
        self.all_namespaces()
    }
}

/// What keeps a cgroup exempt.
#[derive(Debug, Default)]
struct Exemption {
    /// Nobody had exempted it before.
    removable: bool,
    sessions: usize,
    processes: HashSet<ProcessId>,
}

/// What is known of the place where an admitted process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is below the cgroup that the operator has named for ztunnels.
    Named,
    /// None was named: it is somewhere outside of the mesh's pods.
    Anywhere,
}

/// What was admitted: a session of this process, in this cgroup.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) place: Place,
    cgroup: CgroupId,
    process: ProcessId,
    /// No other session of the process waits for its end yet.
    pub(super) is_first: bool,
}

/// Admits ztunnels and keeps their exemptions.
pub(crate) struct Admissions {
    capture: Box<dyn Capture>,
    hub: Arc<Hub>,
    exemptions: Mutex<HashMap<CgroupId, Exemption>>,
    /// The directory of the cgroup below which ztunnels run, if that was said.
    below: Option<PathBuf>,
}

impl Admissions {
    /// None yet.
    pub(crate) fn new(capture: impl Capture, hub: Arc<Hub>, below: Option<PathBuf>) -> Self {
        Self { capture: Box::new(capture), hub, exemptions: Mutex::default(), below }
    }

    fn exemptions(&self) -> MutexGuard<'_, HashMap<CgroupId, Exemption>> {
        // A panic in between leaves an exemption that lasts too long, which breaks no ztunnel.
        self.exemptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exempts the process's cgroup and counts a session of it. Blocks: it reads procfs and waits for the kernel's maps.
    pub(super) fn admit(&self, process: &Process) -> Result<Admitted, Unfit> {
        let captured = self.capture.captured()?;
        let (cgroup, id) = self.examine(process, captured)?;
        self.exempt(cgroup, id)
    }

    /// Whether the process, admitted before, still may be a ztunnel by what has been learnt of pods since. Blocks: it reads procfs.
    pub(super) fn check(&self, process: &Process) -> Result<(), Unfit> {
        self.examine(process, Vec::new()).map(|_| ())
    }

    /// `captured`: see [`Capture::captured`].
    fn examine(
        &self,
        process: &Process,
        captured: Vec<(PodUid, BTreeSet<u64>)>,
    ) -> Result<(CgroupId, ProcessId), Unfit> {
        let pid = process.pid();
        let id = process.id()?;
        let paths = cgroup::paths_of(pid)?;
        let netns = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
        let cgroup = cgroup::of_process(pid)?;
        // What was read was of the process that connected, and of one moment, or it is nothing.
        if cgroup::paths_of(pid)? != paths || process.id()? != id || !process.is_alive()? {
            return Err(Unfit::Moved);
        }
        self.fit(&paths, &netns.to_string_lossy(), captured)?;
        self.is_where_ztunnels_run(&paths)?;
        Ok((cgroup, id))
    }

    fn is_where_ztunnels_run(&self, cgroups: &str) -> Result<(), Unfit> {
        let Some(below) = &self.below else { return Ok(()) };
        let path = cgroup::version2_path(cgroups).unwrap_or_default();
        // A directory that is not there (yet) has nobody in it.
        let top = cgroup::path_of_directory(below).ok().flatten();
        if top.is_some_and(|top| cgroup::is_within(path, &top)) {
            return Ok(());
        }
        Err(Unfit::Elsewhere { cgroup: path.to_owned(), below: below.clone() })
    }

    /// Whether neither the cgroups (as `/proc/PID/cgroup` has them) nor the namespace (as `/proc/PID/ns/net`) are a known pod's.
    fn fit(&self, cgroups: &str, netns: &str, captured: Vec<(PodUid, BTreeSet<u64>)>) -> Result<(), Unfit> {
        let mut known = self.hub.known_pods();
        known.extend(captured.iter().map(|(uid, _)| uid.clone()));
        if let Some(uid) = find::any_pod_named(cgroups, &known) {
            return Err(Unfit::PodCgroup(uid));
        }
        let by_inode = |(uid, inodes): (PodUid, BTreeSet<u64>)| {
            inodes.iter().any(|inode| format!("net:[{inode}]") == netns).then_some(uid)
        };
        let pod = captured.into_iter().find_map(by_inode).or_else(|| self.hub.pod_in(netns));
        pod.map_or(Ok(()), |uid| Err(Unfit::PodNetns(uid)))
    }

    fn exempt(&self, cgroup: CgroupId, process: ProcessId) -> Result<Admitted, Unfit> {
        let mut exemptions = self.exemptions();
        let exemption = match exemptions.entry(cgroup) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let removable = self.capture.exempt(cgroup)?;
                entry.insert(Exemption { removable, ..Exemption::default() })
            }
        };
        exemption.sessions += 1;
        let is_first = exemption.processes.insert(process);
        let place = if self.below.is_some() { Place::Named } else { Place::Anywhere };
        Ok(Admitted { place, cgroup, process, is_first })
    }

    /// The session has ended; its process may come back.
    pub(super) fn session_ended(&self, admitted: &Admitted) {
        self.release(admitted.cgroup, |exemption| exemption.sessions = exemption.sessions.saturating_sub(1));
    }

    /// The process has ended, or is not taken for a ztunnel any more.
    pub(super) fn process_ended(&self, admitted: &Admitted) {
        self.release(admitted.cgroup, |exemption| {
            exemption.processes.remove(&admitted.process);
        });
    }

    fn release(&self, cgroup: CgroupId, change: impl FnOnce(&mut Exemption)) {
        let mut exemptions = self.exemptions();
        let Entry::Occupied(mut entry) = exemptions.entry(cgroup) else { return };
        change(entry.get_mut());
        if entry.get().sessions > 0 || !entry.get().processes.is_empty() {
            return;
        }
        // Until it is removed, whoever is admitted into the cgroup waits for the lock.
        if !entry.get().removable {
            entry.remove();
            return;
        }
        match self.capture.unexempt(cgroup) {
            Ok(()) => {
                entry.remove();
                info!(
                    cgroup = cgroup.0,
                    "no ztunnel is left in the cgroup: it is exempt from capture no more"
                );
            }
            // It is kept, so that the next ztunnel in the cgroup that ends takes it along.
            Err(error) => {
                warn!(cgroup = cgroup.0, %error, "a cgroup without a ztunnel stays exempt from capture");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0b5e1c9a-7b39-4c6e-9f65-0a1b2c3d4e5f";
    const CGROUP: CgroupId = CgroupId(7);

    #[derive(Clone, Default)]
    struct Fake {
        exempt: Arc<Mutex<BTreeSet<u64>>>,
    }

    impl Fake {
        fn has(&self, id: CgroupId) -> bool {
            self.exempt.lock().unwrap().contains(&id.0)
        }
    }

    impl Capture for Fake {
        fn exempt(&self, id: CgroupId) -> Result<bool, MapError> {
            Ok(self.exempt.lock().unwrap().insert(id.0))
        }

        fn unexempt(&self, id: CgroupId) -> Result<(), MapError> {
            self.exempt.lock().unwrap().remove(&id.0);
            Ok(())
        }

        fn captured(&self) -> Result<Vec<(PodUid, BTreeSet<u64>)>, AttachError> {
            Ok(Vec::new())
        }
    }

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, started: 1 }
    }

    #[test]
    fn whoever_is_in_a_known_pod_is_no_ztunnel() {
        let hub = Arc::new(Hub::new());
        hub.set_roster([PodUid::from(A)].into());
        let captured = vec![(PodUid::from("pinned"), BTreeSet::from([42]))];
        let admissions = Admissions::new(Fake::default(), hub, None);
        let underscores = A.replace('-', "_");
        let cases = [
            ("a pod of its own", "0::/kubepods/podabc/ztunnel".to_owned(), "net:[1]", "fit"),
            ("a unit", "0::/system.slice/ztunnel.service".to_owned(), "net:[1]", "fit"),
            ("a desired pod", format!("0::/kubepods/pod{A}/c"), "net:[1]", "pod_cgroup"),
            (
                "a desired pod, systemd",
                format!("0::/kubepods.slice/kubepods-pod{underscores}.slice/c"),
                "net:[1]",
                "pod_cgroup",
            ),
            ("a pod nested elsewhere", format!("0::/x/pod{A}/y/z"), "net:[1]", "pod_cgroup"),
            ("a captured pod", "0::/kubepods/podpinned".to_owned(), "net:[1]", "pod_cgroup"),
            ("a captured pod's namespace", "0::/system.slice/x".to_owned(), "net:[42]", "pod_netns"),
        ];
        for (name, cgroups, netns, expected) in cases {
            let outcome = admissions.fit(&cgroups, netns, captured.clone());
            assert_eq!(outcome.as_ref().map_or_else(Unfit::label, |()| "fit"), expected, "{name}");
        }
    }

    #[test]
    fn an_exemption_ends_with_the_last_session_and_process_of_its_cgroup() {
        let kernel = Fake::default();
        let admissions = Admissions::new(kernel.clone(), Arc::new(Hub::new()), None);
        let old = admissions.exempt(CGROUP, process(1)).unwrap();
        admissions.session_ended(&old);
        assert!(kernel.has(CGROUP), "the process lives and may come back");
        let again = admissions.exempt(CGROUP, process(1)).unwrap();
        assert!(old.is_first && !again.is_first);
        let new = admissions.exempt(CGROUP, process(2)).unwrap();
        admissions.session_ended(&again);
        admissions.process_ended(&old);
        assert!(kernel.has(CGROUP), "the successor shares the cgroup");
        admissions.process_ended(&new);
        assert!(kernel.has(CGROUP), "its connection is still open");
        admissions.session_ended(&new);
        assert!(!kernel.has(CGROUP));
    }

    #[test]
    fn what_was_exempt_before_stays_so() {
        let kernel = Fake::default();
        kernel.exempt(CGROUP).unwrap();
        let admissions = Admissions::new(kernel.clone(), Arc::new(Hub::new()), None);
        let admitted = admissions.exempt(CGROUP, process(1)).unwrap();
        admissions.session_ended(&admitted);
        admissions.process_ended(&admitted);
        assert!(kernel.has(CGROUP), "an earlier agent's listeners may be of it");
    }
}
