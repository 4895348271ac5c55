//! The kernel programs as the rest of the agent uses them: one caller at a time, named by pod uid.
//!
//! Calls block for some milliseconds at most; they are made from blocking contexts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::zds::Listener;
use ebpf_common::CgroupPath;

use crate::bpf::{
    AttachError, CgroupId, Changes, Connection, Counted, Fill, InboundHook, LinkError, MapError, NoticeError,
    OutboundHook, PodKey, PodLinks, PodMode, Programs, SocketCookie,
};
use crate::enroll::error::EnrollError;
use crate::enroll::pod::PodUid;
use crate::forged::Forged;
use crate::listeners::Listeners;
use crate::netns::Netns;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Kernel(Arc<Mutex<Programs>>);

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kernel(..)")
    }
}

fn key(pod: &PodUid) -> PodKey {
    PodKey::new(pod.as_str())
}

impl Kernel {
    /// Takes over loaded programs.
    pub(crate) fn new(programs: Programs) -> Self {
        Self(Arc::new(Mutex::new(programs)))
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        // `Programs` asks the kernel anew on each call, so a panic within one leaves nothing to repair here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How programs are attached here, for people: such as `tcx + sk_lookup`.
    pub(crate) fn redirection(&self) -> String {
        let programs = self.programs();
        let outbound = match programs.outbound_hook() {
            OutboundHook::Tcx => "tcx",
            OutboundHook::Clsact => "clsact",
        };
        let inbound = match programs.inbound_hook() {
            InboundHook::SkLookup => "sk_lookup",
            InboundHook::TcIngress => "ingress",
        };
        format!("{outbound} + {inbound}")
    }

    /// See [`Programs::exempt_cgroup`].
    pub(crate) fn exempt_cgroup(&self, id: CgroupId) -> Result<(), MapError> {
        self.programs().exempt_cgroup(id)
    }

    /// See [`Programs::unexempt_cgroup`].
    pub(crate) fn unexempt_cgroup(&self, id: CgroupId) -> Result<(), MapError> {
        self.programs().unexempt_cgroup(id)
    }

    /// See [`Programs::exempt_cgroups`].
    pub(crate) fn exempt_cgroups(&self) -> Result<BTreeSet<CgroupId>, MapError> {
        self.programs().exempt_cgroups()
    }

    /// See [`Programs::expect_kubelet`].
    pub(crate) fn expect_kubelet(&self, path: CgroupPath) -> Result<(), NoticeError> {
        self.programs().expect_kubelet(path)
    }

    /// See [`Programs::expect_no_kubelet`].
    pub(crate) fn expect_no_kubelet(&self) -> Result<(), MapError> {
        self.programs().expect_no_kubelet()
    }

    /// See [`Programs::find_kubelet`].
    pub(crate) fn find_kubelet(
        &self,
        look: impl FnOnce() -> Option<CgroupId>,
    ) -> Result<Option<CgroupId>, MapError> {
        self.programs().find_kubelet(look)
    }

    /// What an earlier agent, or this one, has pinned.
    pub(crate) fn attached_pods(&self) -> Result<BTreeSet<PodUid>, AttachError> {
        Ok(self.programs().attached()?.iter().map(|key| PodUid::from(key.as_str())).collect())
    }

    /// What is pinned for one pod.
    pub(crate) fn links(&self, pod: &PodUid) -> Result<PodLinks, AttachError> {
        self.programs().links(&key(pod))
    }

    /// Leads `addresses` to the listeners for connections from outside and from the pod, no longer `former` ones, and opens `ports` of
    /// them to kubelet's probes.
    pub(crate) fn lead(
        &self,
        pod: &PodUid,
        (addresses, former): (&BTreeSet<IpAddr>, &BTreeSet<IpAddr>),
        ports: &BTreeSet<u16>,
        listeners: &Listeners,
    ) -> Result<(), MapError> {
        let mut programs = self.programs();
        let owner = key(pod);
        for &address in addresses {
            programs.set_listener(&owner, address, listeners.get(Listener::InboundPlaintext))?;
            programs.set_outbound_listener(&owner, address, listeners.get(Listener::Outbound))?;
            programs.set_dns_listener(&owner, address, listeners.dns().map(|dns| dns.stream()))?;
        }
        for &address in former.difference(addresses) {
            programs.remove_listener(&owner, address)?;
        }
        let addresses: Vec<_> = addresses.iter().copied().collect();
        let ports: Vec<_> = ports.iter().copied().collect();
        programs.set_probe_targets(&key(pod), &addresses, &ports)
    }

    /// The part of [`Kernel::lead`] that needs no listeners.
    pub(crate) fn open_to_probes(
        &self,
        pod: &PodUid,
        addresses: &[IpAddr],
        ports: &[u16],
    ) -> Result<(), MapError> {
        self.programs().set_probe_targets(&key(pod), addresses, ports)
    }

    /// See [`Programs::name_address`].
    pub(crate) fn name_addresses(&self, pod: &PodUid, addresses: &[IpAddr]) -> Result<(), MapError> {
        let mut programs = self.programs();
        addresses.iter().try_for_each(|address| programs.name_address(&key(pod), *address))
    }

    /// Takes back what [`Kernel::lead`] did.
    pub(crate) fn unlead(&self, pod: &PodUid, addresses: &BTreeSet<IpAddr>) -> Result<(), MapError> {
        let mut programs = self.programs();
        for &address in addresses {
            programs.remove_listener(&key(pod), address)?;
        }
        programs.set_probe_targets(&key(pod), &[], &[])
    }

    /// See [`Programs::ensure_inbound`].
    pub(crate) fn ensure_inbound(&self, pod: &PodUid, netns: &Netns) -> Result<Changes, AttachError> {
        self.programs().ensure_inbound(&key(pod), netns)
    }

    /// See [`Programs::ensure_outbound`].
    pub(crate) fn ensure_outbound(
        &self,
        pod: &PodUid,
        netns: &Netns,
        mode: PodMode,
        dns: bool,
    ) -> Result<Changes, AttachError> {
        self.programs().ensure_outbound(&key(pod), netns, mode, dns)
    }

    /// See [`Programs::captured_devices`].
    pub(crate) fn captured_devices(&self, pod: &PodUid, netns: &Netns) -> Result<BTreeSet<u32>, AttachError> {
        self.programs().captured_devices(&key(pod), netns)
    }

    /// See [`Programs::holds`].
    pub(crate) fn holds(&self, pod: &PodUid, netns: &Netns) -> Result<bool, AttachError> {
        self.programs().holds(&key(pod), netns)
    }

    /// See [`Programs::learnt`].
    pub(crate) fn learnt(&self, cookies: &[SocketCookie]) -> Result<Vec<SocketCookie>, MapError> {
        self.programs().learnt(cookies)
    }

    /// See [`Programs::account_for_learnt`] and [`Programs::accounted_for`]: `learnt` are all of the pod that are alive.
    pub(crate) fn account(
        &self,
        pod: &PodUid,
        netns: &Netns,
        learnt: &[SocketCookie],
    ) -> Result<Vec<SocketCookie>, EnrollError> {
        let mut programs = self.programs();
        let forgotten = programs.account_for_learnt(learnt)?;
        programs.accounted_for(&key(pod), netns)?;
        Ok(forgotten)
    }

    /// See [`Programs::detach_elsewhere`].
    pub(crate) fn detach_elsewhere(&self, pod: &PodUid, netns: &Netns) -> Result<(), AttachError> {
        self.programs().detach_elsewhere(&key(pod), netns)
    }

    /// See [`Programs::all_namespaces`].
    pub(crate) fn all_namespaces(&self) -> Result<Vec<(PodUid, BTreeSet<u64>)>, AttachError> {
        let all = self.programs().all_namespaces()?.into_iter();
        Ok(all.map(|(key, inodes)| (PodUid::from(key.as_str()), inodes)).collect())
    }

    /// See [`Programs::namespaces`].
    pub(crate) fn namespaces(
        &self,
        pod: &PodUid,
        netns: Option<&Netns>,
    ) -> Result<BTreeSet<u64>, AttachError> {
        self.programs().namespaces(&key(pod), netns)
    }

    /// See [`Programs::detach_outbound`].
    pub(crate) fn detach_outbound(&self, pod: &PodUid, netns: Option<&Netns>) -> Result<(), AttachError> {
        self.programs().detach_outbound(&key(pod), netns)
    }

    /// See [`Programs::detach_inbound`].
    pub(crate) fn detach_inbound(&self, pod: &PodUid, netns: Option<&Netns>) -> Result<(), AttachError> {
        self.programs().detach_inbound(&key(pod), netns)
    }

    /// Removes what is left of the pod; see [`Programs::detach_pod`].
    pub(crate) fn detach_pod(&self, pod: &PodUid, netns: Option<&Netns>) -> Result<(), EnrollError> {
        let mut programs = self.programs();
        programs.detach_pod(&key(pod), netns)?;
        Ok(programs.forget_addresses(&key(pod))?)
    }

    /// See [`Programs::mark_pre_mesh`].
    pub(crate) fn mark_pre_mesh(&self, cookies: &[SocketCookie]) -> Result<(), MapError> {
        self.programs().mark_pre_mesh(cookies)
    }

    /// See [`Programs::forget_pre_mesh`].
    pub(crate) fn forget_pre_mesh(&self, cookies: &[SocketCookie]) -> Result<(), MapError> {
        self.programs().forget_pre_mesh(cookies)
    }

    /// See [`Programs::pre_mesh`].
    pub(crate) fn pre_mesh(&self) -> Result<BTreeSet<SocketCookie>, MapError> {
        self.programs().pre_mesh()
    }

    /// See [`Programs::passing`].
    pub(crate) fn passing(&self, all: &[Connection]) -> Result<BTreeSet<SocketCookie>, MapError> {
        self.programs().passing(all.iter().map(|connection| connection.cookie))
    }

    /// See [`Programs::keep_probe_targets`].
    pub(crate) fn keep_probe_targets(&self, wanted: &BTreeSet<(IpAddr, u16)>) -> Result<(), MapError> {
        self.programs().keep_probe_targets(wanted)
    }

    /// See [`Programs::take_forged`].
    pub(crate) fn take_forged(&self) -> Result<Vec<Forged>, MapError> {
        self.programs().take_forged()
    }

    /// See [`Programs::drop_unclaimed`].
    pub(crate) fn drop_unclaimed(&self) -> Result<(), MapError> {
        self.programs().drop_unclaimed()
    }

    /// See [`Programs::fills`].
    pub(crate) fn fills(&self) -> Result<Vec<Fill>, MapError> {
        self.programs().fills()
    }

    /// See [`Programs::drop_former`].
    pub(crate) fn drop_former(&self) -> Result<(), LinkError> {
        self.programs().drop_former()
    }

    /// See [`Programs::counters`].
    pub(crate) fn counters(&self) -> Result<Vec<(ebpf_common::Counter, u64)>, MapError> {
        self.programs().counters()
    }

    /// See [`Programs::pod_counters`].
    pub(crate) fn pod_counters(&self) -> Result<BTreeMap<PodUid, Counted>, MapError> {
        let counted = self.programs().pod_counters()?;
        Ok(counted.into_iter().map(|(pod, counted)| (PodUid::from(pod.as_str()), counted)).collect())
    }
}
