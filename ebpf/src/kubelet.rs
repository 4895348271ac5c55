//! Knowing kubelet's cgroup from the moment it exists.
//!
//! A restart of kubelet's service removes its cgroup and makes another, with another id, and the first probe may follow within a
//! millisecond. The agent learns of it by an event, some milliseconds later or not at all while it is away; the kernel tells
//! this program before `mkdir` returns, so no process was in the cgroup yet.

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_probe_read_kernel_str_bytes, macros::tracepoint,
    programs::TracePointContext,
};
use ebpf_common::CgroupPath;

use crate::maps::{KUBELET_CGROUPS, KUBELET_PATH};

/// Places of the fields in the record of `cgroup:cgroup_mkdir` (the kernel's include/trace/events/cgroup.h). The agent compares them with
/// the running kernel's before it attaches the program.
mod field {
    pub(super) const ROOT: usize = 8;
    pub(super) const ID: usize = 16;
    pub(super) const PATH: usize = 24;
}

/// The number of the hierarchy of version 2 (cgroups(7)); in another, somebody else may have made the same path.
const VERSION_2: i32 = 0;

/// A cgroup is made.
#[tracepoint]
pub fn kubelet_cgroup_made(ctx: TracePointContext) -> u32 {
    // What cannot be read is nobody's: the agent looks, too.
    let _ = made(&ctx);
    0
}

#[inline(always)]
fn made(ctx: &TracePointContext) -> Result<(), i32> {
    // SAFETY: fields of the record, whose places the agent has verified.
    let (root, id, place) = unsafe {
        (ctx.read_at::<i32>(field::ROOT)?, ctx.read_at::<u64>(field::ID)?, ctx.read_at::<u32>(field::PATH)?)
    };
    let Some(wanted) = KUBELET_PATH.get(0) else { return Ok(()) };
    if root != VERSION_2 {
        return Ok(());
    }
    let mut path = CgroupPath::NONE;
    // The place of a string is its offset in the record, in the lower half of the word.
    let place = (place & 0xffff) as usize;
    // SAFETY: a pointer into the record; the helper checks what it reads.
    unsafe { bpf_probe_read_kernel_str_bytes(ctx.as_ptr().cast::<u8>().add(place), path.as_mut_bytes())? };
    // Not `==`, of which the compiler makes a call that the kernel does not have.
    for (word, expected) in path.words().iter().zip(wanted.words()) {
        if word != expected {
            return Ok(());
        }
    }
    KUBELET_CGROUPS.insert(&id, &1, 0)
}
