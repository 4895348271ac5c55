//! The embedded object: its programs and maps by name, each named exactly once.

use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, SockHash};
use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::{Address, CgroupPath, Flow, ForgedMark, PodCounts, ProbeTarget};

use super::error::LoadError;
use super::link::LoadedProgram;

/// The kernel programs, built from `ebpf/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert-bpf"));

/// Maps that outlive the agent. The log's buffer is not among them: each agent reads its own programs' log.
const PINNED_MAPS: [&str; 16] = [
    "EXEMPT_CGROUPS",
    "KUBELET_PATH",
    "KUBELET_CGROUPS",
    "PROBE_TARGETS",
    "PROBE_SOCKETS",
    "PROBES",
    "PRE_MESH",
    "OUTSIDE",
    "LISTENERS",
    "OUTBOUND_LISTENERS",
    "DNS_LISTENERS",
    "REOPENED",
    "POD_ADDRESSES",
    "FORGED_MARKS",
    "COUNTERS",
    "POD_COUNTERS",
];

/// Number of the level `debug`, the only one the programs log at (aya-log's `Level`).
const DEBUG: u8 = 4;

/// Names of the programs.
pub(crate) mod program {
    pub(crate) const EGRESS: &str = "tc_egress";
    pub(crate) const EGRESS_BARE: &str = "tc_egress_bare";
    pub(crate) const EGRESS_DNS: &str = "tc_egress_dns";
    pub(crate) const EGRESS_BARE_DNS: &str = "tc_egress_bare_dns";
    pub(crate) const EGRESS_JOIN: &str = "tc_egress_join";
    pub(crate) const EGRESS_DRAIN: &str = "tc_egress_drain";
    pub(crate) const EGRESS_BARE_DRAIN: &str = "tc_egress_bare_drain";
    pub(crate) const LO: &str = "tc_lo";
    pub(crate) const LO_DNS: &str = "tc_lo_dns";
    pub(crate) const INGRESS: &str = "tc_ingress";
    pub(crate) const INGRESS_GUARD: &str = "tc_ingress_guard";
    pub(crate) const LOOKUP: &str = "sk_lookup_inbound";
    pub(crate) const REOPEN: &str = "sk_lookup_reopen";
    pub(crate) const CONNECT4: &str = "probe_connect4";
    pub(crate) const CONNECT6: &str = "probe_connect6";
    pub(crate) const SOCKOPS: &str = "probe_sockops";
    pub(crate) const KUBELET: &str = "kubelet_cgroup_made";
}

/// The maps the agent reads and writes.
pub(crate) struct Maps {
    pub(crate) exempt_cgroups: HashMap<MapData, u64, u8>,
    pub(crate) kubelet_path: Array<MapData, CgroupPath>,
    pub(crate) kubelet_cgroups: HashMap<MapData, u64, u8>,
    pub(crate) probe_targets: HashMap<MapData, ProbeTarget, u8>,
    pub(crate) probe_sockets: HashMap<MapData, u64, u8>,
    pub(crate) probes: HashMap<MapData, Flow, u64>,
    pub(crate) pre_mesh: HashMap<MapData, u64, u8>,
    pub(crate) outside: HashMap<MapData, u64, u32>,
    pub(crate) listeners: SockHash<MapData, Address>,
    pub(crate) outbound_listeners: SockHash<MapData, Address>,
    pub(crate) dns_listeners: SockHash<MapData, Address>,
    pub(crate) pod_addresses: HashMap<MapData, Address, u8>,
    pub(crate) forged_marks: HashMap<MapData, Address, ForgedMark>,
    pub(crate) counters: PerCpuArray<MapData, u64>,
    pub(crate) pod_counters: PerCpuHashMap<MapData, Address, PodCounts>,
}

/// Opens the object, taking over the maps pinned in `maps` and pinning there those that are not.
///
/// `log` decides whether the programs contain their log statements at all, `has_sk_lookup` whether they count on a program of that
/// kind being attached to pods.
pub(crate) fn open(maps: &Path, log: bool, has_sk_lookup: bool) -> Result<Ebpf, LoadError> {
    let level: u8 = if log { DEBUG } else { 0 };
    let has_sk_lookup = u8::from(has_sk_lookup);
    let mut loader = EbpfLoader::new();
    loader.override_global(aya_log::LEVEL, &level, true);
    loader.override_global("HAS_SK_LOOKUP", &has_sk_lookup, true);
    for name in PINNED_MAPS {
        loader.map_pin_path(name, maps.join(name));
    }
    Ok(loader.load(OBJECT)?)
}

impl Maps {
    /// Takes the maps out of the object.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            exempt_cgroups: take(ebpf, "EXEMPT_CGROUPS")?,
            kubelet_path: take(ebpf, "KUBELET_PATH")?,
            kubelet_cgroups: take(ebpf, "KUBELET_CGROUPS")?,
            probe_targets: take(ebpf, "PROBE_TARGETS")?,
            probe_sockets: take(ebpf, "PROBE_SOCKETS")?,
            probes: take(ebpf, "PROBES")?,
            pre_mesh: take(ebpf, "PRE_MESH")?,
            outside: take(ebpf, "OUTSIDE")?,
            listeners: take(ebpf, "LISTENERS")?,
            outbound_listeners: take(ebpf, "OUTBOUND_LISTENERS")?,
            dns_listeners: take(ebpf, "DNS_LISTENERS")?,
            pod_addresses: take(ebpf, "POD_ADDRESSES")?,
            forged_marks: take(ebpf, "FORGED_MARKS")?,
            counters: take(ebpf, "COUNTERS")?,
            pod_counters: take(ebpf, "POD_COUNTERS")?,
        })
    }
}

fn take<M: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, LoadError> {
    ebpf.take_map(name).and_then(|map| M::try_from(map).ok()).ok_or(LoadError::Missing { kind: "map", name })
}

/// Loads the program `name` into the kernel.
pub(crate) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<LoadedProgram, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing { kind: "program", name })?;
    let failed = |source: ProgramError| LoadError::Program { name, source: Box::new(source) };
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        _ => return Err(LoadError::Missing { kind: "program", name }),
    }
    .map_err(failed)?;
    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    let fd = fd.map_err(|source| failed(ProgramError::IOError(source)))?;
    let id = program.info().map_err(failed)?.id();
    Ok(LoadedProgram { name, id, fd })
}

/// The tc program `name` as clsact needs it.
pub(crate) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Option<&'a mut SchedClassifier> {
    ebpf.program_mut(name)?.try_into().ok()
}
