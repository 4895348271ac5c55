//! Counting decisions and telling of them.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use ebpf_common::{Counter, packet::Segment};

use crate::maps::COUNTERS;

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

/// Counts a decision on a segment and, when the agent asked for it at load, logs it.
///
/// The level is a constant in read-only data: with logging off the verifier removes the code, so it costs nothing.
#[inline(always)]
pub fn decide(ctx: &impl EbpfContext, segment: &Segment, counter: Counter) {
    count(counter);
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
