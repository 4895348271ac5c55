//! Counting decisions and telling of them.

use aya_ebpf::{EbpfContext, programs::TcContext};
use aya_log_ebpf::debug;
use ebpf_common::{Address, Counter, packet::Segment};

use crate::{
    maps::{COUNTERS, POD_COUNTERS},
    skb::{self, End},
};

/// Target of the log records, by which `RUST_LOG` selects them.
const TARGET: &str = "culvert::bpf";

/// Adds one to `counter` on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is into this CPU's slot, and programs of the kinds here are not interrupted by one another on a CPU
        // except in softirq context, where the loss of an increment is all that can happen.
        unsafe { *slot += 1 };
    }
}

/// The same, for the pod with this address as well.
#[inline(always)]
pub fn count_of(pod: &Address, counter: Counter) {
    count(counter);
    if counter.is_of_pods() {
        add_to_pod(pod, counter as u32);
    }
}

/// The same of a packet that could not be read whole.
#[inline(always)]
pub fn count_unread(ctx: &TcContext, end: End, counter: Counter) {
    count(counter);
    add_to_end(ctx, u32::from(end == End::Source), counter as u32);
}

/// Not inlined, as the next.
#[inline(never)]
fn add_to_end(ctx: &TcContext, is_source: u32, slot: u32) -> u32 {
    let end = if is_source != 0 { End::Source } else { End::Destination };
    let Some(pod) = skb::address_of(ctx, end) else { return 0 };
    add_to_pod(&pod, slot)
}

/// Not inlined, for the sake of its callers' stacks. Returns whether it is a pod's address.
#[inline(never)]
fn add_to_pod(pod: &Address, slot: u32) -> u32 {
    let Some(counts) = POD_COUNTERS.get_ptr_mut(pod) else { return 0 };
    // SAFETY: the pointer is to this CPU's counts; as above.
    match unsafe { (*counts).get_mut(slot as usize) } {
        Some(count) => *count += 1,
        None => return 0,
    }
    1
}

/// Counts a decision on a segment of this pod and, when the agent asked for it at load, logs it.
///
/// The level is a constant in read-only data: with logging off the verifier removes the code, so it costs nothing.
#[inline(always)]
pub fn decide(ctx: &impl EbpfContext, segment: &Segment, pod: &Address, counter: Counter) {
    count_of(pod, counter);
    report(ctx, segment, counter as u32);
}

/// Not inlined, so that the log's code and stack exist once in a program.
#[inline(never)]
fn report<C: EbpfContext>(ctx: &C, segment: &Segment, counter: u32) {
    debug!(
        ctx,
        target: TARGET,
        "{} {:i} {} {:i} {}",
        counter,
        segment.source.octets(),
        segment.source_port,
        segment.destination.octets(),
        segment.destination_port
    );
}
