//! The maps, all of them shared by every pod of the node and pinned by the agent.
//!
//! Sizes are part of the layout: a change of one needs a new `ebpf_common::LAYOUT_VERSION`. Memory is taken as entries come
//! (`BPF_F_NO_PREALLOC`), except in the LRU maps, `KUBELET_CGROUPS` and the counters, which the kernel always allocates whole (about 2 MiB together).

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, SockHash},
};
use ebpf_common::{Address, CgroupPath, Counter, Flow, ForgedMark, PodCounts, ProbeTarget};

/// Cgroup ids of ztunnel, past ones included, and of the agent, whose cgroup the sockets inherit that are accepted from the listeners
/// it made. Ids are never used twice, so old ones are harmless; the agent removes those that no socket has any more. Written by it.
#[map]
pub static EXEMPT_CGROUPS: HashMap<u64, u8> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Where kubelet's cgroup is or will be. Written by the agent.
#[map]
pub static KUBELET_PATH: Array<CgroupPath> = Array::with_max_entries(1, 0);

/// Cgroup ids of kubelet. Written by `kubelet_cgroup_made` and, as it may find it made, by the agent, which also removes old ones. Allocated whole:
/// before Linux 6.1 a program at a tracepoint may not have the kernel allocate.
#[map]
pub static KUBELET_CGROUPS: HashMap<u64, u8> = HashMap::with_max_entries(64, 0);

/// What kubelet may probe past the mesh. Written by the agent from the pods' specs.
#[map]
pub static PROBE_TARGETS: HashMap<ProbeTarget, u8> = HashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);

/// Cookies of kubelet's sockets between `connect` and the choice of their port.
#[map]
pub static PROBE_SOCKETS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(2048, 0);

/// Kubelet's open connections to probe targets, with the cookie of its socket. An entry leaves when its socket closes, before the
/// port can be anybody else's.
#[map]
pub static PROBES: LruHashMap<Flow, u64> = LruHashMap::with_max_entries(4096, 0);

/// Cookies of sockets that were open before their pod joined. Written by the agent alone, which removes each when its socket has closed;
/// entries must not be evicted, hence no LRU.
#[map]
pub static PRE_MESH: HashMap<u64, u8> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Cookies of sockets that the programs themselves learnt to leave alone, with the counter of the reason: those that answered a
/// probe, and those that sent while their pod was joining or opened a connection while it was leaving. Cookies are never used twice, so
/// stale entries exempt nobody; one that is evicted while in use gets its connection reset. All but the first kind the agent moves to
/// `PRE_MESH` once the pod has joined.
#[map]
pub static OUTSIDE: LruHashMap<u64, u32> = LruHashMap::with_max_entries(16384, 0);

/// The inbound listener of each pod by each of its addresses. Written by the agent.
#[map]
pub static LISTENERS: SockHash<Address> = SockHash::with_max_entries(4096, 0);

/// The outbound listener of each pod by each of its addresses, for `REOPENED`. Written by the agent.
#[map]
pub static OUTBOUND_LISTENERS: SockHash<Address> = SockHash::with_max_entries(4096, 0);

/// The listener for DNS over TCP of each pod whose DNS is captured, by each of its addresses; as the former. Written by the agent.
#[map]
pub static DNS_LISTENERS: SockHash<Address> = SockHash::with_max_entries(4096, 0);

/// Captured connections whose first packet meets the remains of an earlier one, from `tc_lo` to `sk_lookup_inbound`, which runs next.
#[map]
pub static REOPENED: LruHashMap<Flow, u8> = LruHashMap::with_max_entries(1024, 0);

/// The addresses of the pods of this node. Written by the agent.
#[map]
pub static POD_ADDRESSES: HashMap<Address, u8> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Who, by its address, lately sent a packet with a mark of ours that is none of ours. Emptied by the agent, which tells of it.
#[map]
pub static FORGED_MARKS: LruHashMap<Address, ForgedMark> = LruHashMap::with_max_entries(1024, 0);

/// Decisions by reason; the slot is the number of the `Counter`.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Decisions by reason for each address of `POD_ADDRESSES`. The agent makes and removes the entries, and the programs only add to them: an
/// address that a pod invents takes no room, and is counted in `COUNTERS` alone.
#[map]
pub static POD_COUNTERS: PerCpuHashMap<Address, PodCounts> =
    PerCpuHashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
