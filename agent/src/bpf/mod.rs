//! The kernel programs from the agent's side: loading, adoption of what an earlier agent left, attaching pods, and typed access to
//! the maps.
//!
//! Everything that makes capture work is in the kernel and pinned below `<bpffs>/culvert/v<layout>/`, so it outlives the agent:
//! `maps/NAME`, `node/NAME` (the links for probes) and `pods/UID/net-INODE/HOOK` (a pod's links). This module holds nothing it could
//! not find again: what stands is asked from the kernel, and every change is written so that repeating it does no harm. `former`
//! takes over from an agent of another layout.
//!
//! Invariants:
//! - `lo` is attached before the devices and detached after them, so that a captured packet always finds its listener.
//! - What is replaced is replaced atomically; there is no moment without a program between two agents or two modes.
//! - Calls block for some milliseconds at most (the kernel's verifier when loading); they are for a blocking context, and methods take
//!   `&mut self`, so one caller at a time changes the kernel.

mod device;
mod directory;
mod error;
mod fill;
mod filter;
mod former;
mod kubelet;
mod left;
mod link;
mod log;
mod namespaces;
mod node;
mod object;
mod pin;
mod pod;
mod pod_counters;
mod pre_mesh;
mod sys;
mod tracepoint;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use aya::Ebpf;
use aya::maps::MapError as AyaMapError;
use ebpf_common::{Address, Counter, ForgedMark, ProbeTarget};

pub(crate) use error::{AttachError, LinkError, MapError};
pub(crate) use fill::Fill;
pub(crate) use kubelet::NoticeError;
pub(crate) use left::LeftAlone;
pub(crate) use log::LogReader;
pub(crate) use node::{LoadOptions, Redirection, remove_pins};
pub(crate) use pod::{Changes, PodLinks, PodMode, pinned, stands, take_down};
pub(crate) use pod_counters::Counted;
pub(crate) use pre_mesh::{Connection, cgroups_of_sockets, connections};

use crate::forged::Forged;
use link::LoadedProgram;
use object::Maps;

/// Id of a cgroup (v2): the inode of its directory, never used again while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CgroupId(pub(crate) u64);

/// The kernel's name of a socket (`SO_COOKIE`), never used again while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SocketCookie(pub(crate) u64);

/// A pod as this module knows it: its uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodKey(String);

impl PodKey {
    /// The key of the pod with this uid.
    pub(crate) fn new(uid: impl Into<String>) -> Self {
        Self(uid.into())
    }

    /// The uid.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How outbound programs get onto devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutboundHook {
    /// TCX links (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// What hands new connections from outside to the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InboundHook {
    /// A link in the pod's namespace, asked once a connection (Linux 5.17).
    SkLookup,
    /// A program on the ingress of the pod's devices.
    TcIngress,
}

/// The programs and maps of this node in the kernel. Dropping it changes nothing there.
pub(crate) struct Programs {
    ebpf: Ebpf,
    maps: Maps,
    loaded: Vec<LoadedProgram>,
    outbound: OutboundHook,
    inbound: InboundHook,
    /// `<bpffs>/culvert/v<layout>`.
    root: PathBuf,
    /// The roots of other layouts, until they are dropped.
    former: Vec<PathBuf>,
    log: Option<LogReader>,
    /// What this agent has set; see [`Programs::drop_unclaimed`].
    targets: BTreeMap<PodKey, BTreeSet<(IpAddr, u16)>>,
    listeners: BTreeMap<IpAddr, PodKey>,
    /// Whose addresses these are, as long as anything of it is attached.
    addresses: BTreeMap<IpAddr, PodKey>,
}

impl Programs {
    /// How outbound programs get onto devices here.
    pub(crate) fn outbound_hook(&self) -> OutboundHook {
        self.outbound
    }

    /// What hands new connections from outside to the listener here.
    pub(crate) fn inbound_hook(&self) -> InboundHook {
        self.inbound
    }

    /// The reader of the programs' log, once, if the log was asked for.
    pub(crate) fn take_log(&mut self) -> Option<LogReader> {
        self.log.take()
    }

    /// Lets everything pass that sockets made in this cgroup send. For ztunnel's and the agent's own.
    pub(crate) fn exempt_cgroup(&mut self, id: CgroupId) -> Result<(), MapError> {
        self.maps.exempt_cgroups.insert(id.0, 1, 0).map_err(in_map("EXEMPT_CGROUPS"))
    }

    /// Takes that back. For a cgroup in which no ztunnel is left.
    pub(crate) fn unexempt_cgroup(&mut self, id: CgroupId) -> Result<(), MapError> {
        absent_is_fine(self.maps.exempt_cgroups.remove(&id.0)).map_err(in_map("EXEMPT_CGROUPS"))
    }

    /// The cgroups whose sockets' traffic passes: those of ztunnels, past ones too, and of agents.
    pub(crate) fn exempt_cgroups(&self) -> Result<BTreeSet<CgroupId>, MapError> {
        let ids = self.maps.exempt_cgroups.keys();
        ids.map(|id| id.map(CgroupId).map_err(in_map("EXEMPT_CGROUPS"))).collect()
    }

    /// Lets kubelet reach these ports (those the spec declares for probes and hooks) of a pod past the mesh, and no other ones of it.
    pub(crate) fn set_probe_targets(
        &mut self,
        pod: &PodKey,
        addresses: &[IpAddr],
        ports: &[u16],
    ) -> Result<(), MapError> {
        let failed = in_map("PROBE_TARGETS");
        let wanted: BTreeSet<(IpAddr, u16)> =
            addresses.iter().flat_map(|address| ports.iter().map(|port| (*address, *port))).collect();
        for (address, port) in &wanted {
            let target = ProbeTarget::new(Address::from(*address), *port);
            self.maps.probe_targets.insert(target, 1, 0).map_err(failed)?;
        }
        let before = self.targets.insert(pod.clone(), wanted).unwrap_or_default();
        let others: BTreeSet<&(IpAddr, u16)> = self.targets.values().flatten().collect();
        for (address, port) in before.iter().filter(|target| !others.contains(target)) {
            let target = ProbeTarget::new(Address::from(*address), *port);
            absent_is_fine(self.maps.probe_targets.remove(&target)).map_err(failed)?;
        }
        Ok(())
    }

    /// Hands new connections from outside to `address` to this listener, which must be of the namespace that has the address: the
    /// kernel does not check that. The entry goes when the last descriptor of the listener is closed.
    pub(crate) fn set_listener(
        &mut self,
        pod: &PodKey,
        address: IpAddr,
        listener: BorrowedFd<'_>,
    ) -> Result<(), MapError> {
        let key = Address::from(address);
        self.maps.listeners.insert(key, listener.as_raw_fd(), 0).map_err(in_map("LISTENERS"))?;
        self.listeners.insert(address, pod.clone());
        self.name_address(pod, address)
    }

    /// Names `address` as a pod's of this node, to which ztunnel's connections to applications lead. Before the pod's programs are
    /// attached or replaced: those of a former layout did not ask.
    pub(crate) fn name_address(&mut self, pod: &PodKey, address: IpAddr) -> Result<(), MapError> {
        self.maps.pod_addresses.insert(Address::from(address), 1, 0).map_err(in_map("POD_ADDRESSES"))?;
        let before = self.addresses.insert(address, pod.clone());
        if let Err(error) = self.begin_counts(address, pod_counters::is_anew(before.as_ref(), pod)) {
            tracing::warn!(%address, %pod, %error, "what is done with the packets of this address is not counted for its pod");
        }
        Ok(())
    }

    /// Names the listener on 15001 of the namespace that has `address`, for connections that reuse the ends of one in TIME_WAIT at
    /// ztunnel; all others find it by its port. Without it such a connection is reset by the kernel.
    pub(crate) fn set_outbound_listener(
        &mut self,
        pod: &PodKey,
        address: IpAddr,
        listener: BorrowedFd<'_>,
    ) -> Result<(), MapError> {
        let key = Address::from(address);
        self.maps
            .outbound_listeners
            .insert(key, listener.as_raw_fd(), 0)
            .map_err(in_map("OUTBOUND_LISTENERS"))?;
        self.listeners.insert(address, pod.clone());
        Ok(())
    }

    /// Names the listener for DNS over TCP of the namespace that has `address`, as [`Programs::set_outbound_listener`] does; `None`: its
    /// DNS is not captured.
    pub(crate) fn set_dns_listener(
        &mut self,
        pod: &PodKey,
        address: IpAddr,
        listener: Option<BorrowedFd<'_>>,
    ) -> Result<(), MapError> {
        let (key, failed) = (Address::from(address), in_map("DNS_LISTENERS"));
        match listener {
            Some(listener) => {
                self.maps.dns_listeners.insert(key, listener.as_raw_fd(), 0).map_err(failed)?;
                self.listeners.insert(address, pod.clone());
                Ok(())
            }
            None => absent_is_fine(self.maps.dns_listeners.remove(&key)).map_err(failed),
        }
    }

    /// Forgets the listeners for `address`; connections to it are then refused while its pod is attached. Those of another pod, which
    /// got the address meanwhile, stay.
    pub(crate) fn remove_listener(&mut self, pod: &PodKey, address: IpAddr) -> Result<(), MapError> {
        if self.listeners.get(&address).is_some_and(|owner| owner != pod) {
            return Ok(());
        }
        self.listeners.remove(&address);
        let key = Address::from(address);
        absent_is_fine(self.maps.listeners.remove(&key)).map_err(in_map("LISTENERS"))?;
        absent_is_fine(self.maps.outbound_listeners.remove(&key)).map_err(in_map("OUTBOUND_LISTENERS"))?;
        absent_is_fine(self.maps.dns_listeners.remove(&key)).map_err(in_map("DNS_LISTENERS"))
    }

    /// The pod's addresses are its own no more: nothing of it is attached.
    pub(crate) fn forget_addresses(&mut self, pod: &PodKey) -> Result<(), MapError> {
        let own = self.addresses.iter().filter(|(_, owner)| *owner == pod);
        for address in own.map(|(address, _)| *address).collect::<Vec<_>>() {
            self.addresses.remove(&address);
            absent_is_fine(self.maps.pod_addresses.remove(&Address::from(address)))
                .map_err(in_map("POD_ADDRESSES"))?;
            self.end_counts(Address::from(address))?;
        }
        Ok(())
    }

    /// Who sent packets with marks of ours since the last time, one for each sender.
    pub(crate) fn take_forged(&mut self) -> Result<Vec<Forged>, MapError> {
        let failed = in_map("FORGED_MARKS");
        let all: Vec<_> = self.maps.forged_marks.iter().collect::<Result<_, _>>().map_err(failed)?;
        for (sender, _) in &all {
            absent_is_fine(self.maps.forged_marks.remove(sender)).map_err(failed)?;
        }
        let forged = |(sender, forged): (Address, ForgedMark)| Forged {
            source: IpAddr::from(sender).to_canonical(),
            destination: (IpAddr::from(forged.destination).to_canonical(), forged.port).into(),
            mark: forged.mark,
        };
        Ok(all.into_iter().map(forged).collect())
    }

    /// Lets these sockets, open before their pod joined, go on as they were.
    pub(crate) fn mark_pre_mesh(&mut self, cookies: &[SocketCookie]) -> Result<(), MapError> {
        cookies
            .iter()
            .try_for_each(|cookie| self.maps.pre_mesh.insert(cookie.0, 1, 0).map_err(in_map("PRE_MESH")))
    }

    /// Forgets sockets that are closed, or cuts off ones that are not.
    pub(crate) fn forget_pre_mesh(&mut self, cookies: &[SocketCookie]) -> Result<(), MapError> {
        cookies.iter().try_for_each(|cookie| {
            absent_is_fine(self.maps.pre_mesh.remove(&cookie.0)).map_err(in_map("PRE_MESH"))?;
            absent_is_fine(self.maps.outside.remove(&cookie.0)).map_err(in_map("OUTSIDE"))
        })
    }

    /// Those of these sockets that the programs have learnt while their pod was joining or leaving; not what answered a probe.
    pub(crate) fn learnt(&self, cookies: &[SocketCookie]) -> Result<Vec<SocketCookie>, MapError> {
        let mut learnt = Vec::new();
        for cookie in cookies {
            match self.maps.outside.get(&cookie.0, 0) {
                Ok(reason) if reason != Counter::ExemptProbeReply as u32 => learnt.push(*cookie),
                Ok(_) | Err(AyaMapError::KeyNotFound) => {}
                Err(error) => return Err(in_map("OUTSIDE")(error)),
            }
        }
        Ok(learnt)
    }

    /// Takes sockets that were learnt among the ones that are let go on, from where they are listed and cut; they pass throughout.
    /// Returns those that the programs have forgotten in this very moment: what they opened then is captured.
    pub(crate) fn account_for_learnt(
        &mut self,
        learnt: &[SocketCookie],
    ) -> Result<Vec<SocketCookie>, MapError> {
        let mut forgotten = Vec::new();
        for cookie in learnt {
            self.maps.pre_mesh.insert(cookie.0, 1, 0).map_err(in_map("PRE_MESH"))?;
            match self.maps.outside.remove(&cookie.0) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => {
                    absent_is_fine(self.maps.pre_mesh.remove(&cookie.0)).map_err(in_map("PRE_MESH"))?;
                    forgotten.push(*cookie);
                }
                Err(error) => return Err(in_map("OUTSIDE")(error)),
            }
        }
        Ok(forgotten)
    }

    /// Those of `cookies` whose sockets run past the mesh, for whatever reason.
    pub(crate) fn passing(
        &self,
        cookies: impl Iterator<Item = SocketCookie>,
    ) -> Result<BTreeSet<SocketCookie>, MapError> {
        let is_there = |found: Result<(), AyaMapError>, map| match found {
            Ok(()) => Ok(true),
            Err(AyaMapError::KeyNotFound) => Ok(false),
            Err(error) => Err(in_map(map)(error)),
        };
        let mut passing = BTreeSet::new();
        for cookie in cookies {
            let pre_mesh = self.maps.pre_mesh.get(&cookie.0, 0).map(drop);
            let outside = self.maps.outside.get(&cookie.0, 0).map(drop);
            if is_there(pre_mesh, "PRE_MESH")? || is_there(outside, "OUTSIDE")? {
                passing.insert(cookie);
            }
        }
        Ok(passing)
    }

    /// The sockets that are let go on as they were, of all pods.
    pub(crate) fn pre_mesh(&self) -> Result<BTreeSet<SocketCookie>, MapError> {
        self.maps.pre_mesh.keys().map(|key| key.map(SocketCookie).map_err(in_map("PRE_MESH"))).collect()
    }

    /// Removes the probe targets of an earlier agent that are not among `wanted`, those of all pods of the node.
    pub(crate) fn keep_probe_targets(&mut self, wanted: &BTreeSet<(IpAddr, u16)>) -> Result<(), MapError> {
        let failed = in_map("PROBE_TARGETS");
        let standing: Vec<ProbeTarget> =
            self.maps.probe_targets.keys().collect::<Result<_, _>>().map_err(failed)?;
        for target in standing {
            let name = (target.address.into(), target.port);
            if !wanted.contains(&name) && !self.targets.values().any(|targets| targets.contains(&name)) {
                absent_is_fine(self.maps.probe_targets.remove(&target)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Removes listeners of an earlier agent that this one has not set again. To be called once, when all pods of
    /// the node are known; until then what was adopted keeps working.
    pub(crate) fn drop_unclaimed(&mut self) -> Result<(), MapError> {
        for (map, name) in [
            (&mut self.maps.listeners, "LISTENERS"),
            (&mut self.maps.outbound_listeners, "OUTBOUND_LISTENERS"),
            (&mut self.maps.dns_listeners, "DNS_LISTENERS"),
        ] {
            let failed = in_map(name);
            let standing: Vec<Address> = map.keys().collect::<Result<_, _>>().map_err(failed)?;
            for address in
                standing.into_iter().filter(|address| !self.listeners.contains_key(&(*address).into()))
            {
                absent_is_fine(map.remove(&address)).map_err(failed)?;
            }
        }
        let failed = in_map("POD_ADDRESSES");
        let standing: Vec<Address> =
            self.maps.pod_addresses.keys().collect::<Result<_, _>>().map_err(failed)?;
        for address in standing {
            if !self.addresses.contains_key(&address.into()) {
                absent_is_fine(self.maps.pod_addresses.remove(&address)).map_err(failed)?;
                self.end_counts(address)?;
            }
        }
        Ok(())
    }

    /// All counters, summed over the CPUs. They go on counting over restarts of the agent.
    pub(crate) fn counters(&self) -> Result<Vec<(Counter, u64)>, MapError> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let slots = self.maps.counters.get(&(*counter as u32), 0).map_err(in_map("COUNTERS"))?;
                Ok((*counter, slots.iter().sum()))
            })
            .collect()
    }
}

fn in_map(map: &'static str) -> impl Fn(AyaMapError) -> MapError + Copy {
    move |source| MapError { map, source }
}

/// Removal of what is not there has reached its aim.
fn absent_is_fine(result: Result<(), AyaMapError>) -> Result<(), AyaMapError> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

fn is_absent(error: &AyaMapError) -> bool {
    match error {
        AyaMapError::KeyNotFound => true,
        AyaMapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}
