//! What the kernel programs agree on with the agent: map layouts, counters, and the packet parser; and with ztunnel: marks and ports.
//!
//! The parser lives here, not in `ebpf/`, so that the very code the kernel runs is tested in user space.
//!
//! Invariants: every type that crosses the border is `#[repr(C)]` without implicit padding (checked at compile time below each
//! type), and [`LAYOUT_VERSION`] changes whenever one of them, or the kind or size of a map, does. The agent pins maps under a path
//! that carries this number, so two versions can stand side by side during an upgrade.

#![cfg_attr(not(test), no_std)]
#![warn(missing_docs)]

mod address;
mod cgroup_path;
mod counter;
mod layout;
pub mod packet;

pub use address::Address;
pub use cgroup_path::CgroupPath;
pub use counter::{Counter, Decision, PodCounts};
pub use layout::{Flow, ForgedMark, ProbeTarget};

/// Version of all layouts and map definitions together; part of the path the agent pins them under.
pub const LAYOUT_VERSION: u32 = 4;

/// Mark of packets that were turned round into `lo`; routed to table 100. Values and mask are Istio's.
pub const MARK_CAPTURED: u32 = 0x111;
/// Mark of ztunnel's sockets to the network. It routes nothing here; Istio's ztunnel relies on it.
pub const MARK_PROXY: u32 = 0x539;
/// Mark of ztunnel's connections to applications, and of the applications' ends of them; routed to table 100 too.
pub const MARK_APPLICATION: u32 = 0x53a;
/// Bits of the mark that are ours; the others belong to the CNI.
pub const MARK_MASK: u32 = 0xfff;

/// In-pod listener for connections the pod's applications open.
pub const PORT_OUTBOUND: u16 = 15001;
/// First and last of the ports from which ztunnel dials applications in its clients' names.
pub const PORTS_LEG: (u16, u16) = (20_000, 32_767);
/// In-pod listener for DNS, over TCP and UDP.
pub const PORT_DNS: u16 = 15053;
/// The port of DNS servers.
pub const PORT_DOMAIN: u16 = 53;
/// In-pod listener for HBONE; dialled directly, never redirected.
pub const PORT_HBONE: u16 = 15008;
/// Interface index of `lo`; the same in every network namespace (`LOOPBACK_IFINDEX` of the kernel).
pub const LOOPBACK_INDEX: u32 = 1;
