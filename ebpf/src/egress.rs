//! Egress of a pod's devices: the applications' TCP is turned to `lo`, where `tc_lo` hands it to the listener; and, in the programs
//! whose names end in `_dns`, their DNS queries over UDP. Sockets of UDP that stay outside of the mesh there are none: each query is
//! one of its own.
//!
//! What leaves instead, in the order it is asked:
//! 1. packets that are neither TCP nor, where that is captured, DNS queries;
//! 2. those of ztunnel's and the agent's sockets, by cgroup;
//! 3. those of sockets that stay outside of the mesh, by cookie: open before the pod joined (`PRE_MESH`), or learnt (`OUTSIDE`); but
//!    not what opens another connection, with which such a socket is one like any other;
//! 4. the answer to a connection that kubelet opened to a probe target, whose socket is learnt by it;
//! 5. while the pod is leaving, the first packet of a new connection, whose socket is learnt by it;
//! 6. what the kernel says for no application: a reset, acknowledgement or SYN-cookie answer without payload, unless ztunnel's end of
//!    a captured connection is there to receive it. (What is for ztunnel's end of a connection to the application never comes here.)
//!
//! A segment that no socket owns any more (its application was killed, or the other end timed out) is none of these and goes to
//! `lo`, where the kernel resets it: bytes of a captured connection never leave in the clear.
//!
//! While a pod is joining nothing is captured yet, and whatever sends is learnt, so that no connection falls between the listing of those
//! that are to live on and the capture of new ones. What lives when the agent accounts for it is moved to `PRE_MESH` then, to be listed
//! and cut; what has ended by then is nobody's, and its place is the next one's (`OUTSIDE`).
//!
//! There is a program for each mode of the pod and each kind of device instead of a map that tells them apart: the kernel
//! offers tc programs no key for a namespace before 6.12, and swapping the program under a link is atomic.
//!
//! What the checks cost: a 1-byte ping-pong of a captured connection, 14 rounds of 20,000 on Linux 6.18 with two busy virtual CPUs,
//! mean time of this program by `kernel.bpf_stats_enabled` (medians of the rounds; IPv4 / IPv6), with the checks compiled in or out:
//!
//! | | a packet |
//! |---|---|
//! | as it is | 380 / 420 ns |
//! | without the two lookups by cookie (3) | 310 / 330 ns |
//! | without the lookup by cgroup (2) | 335 / 355 ns |
//! | without both | 262 / 269 ns |
//! | ztunnel's own packets, as it is | 283 ns |
//!
//! So a captured packet pays about 120 ns (IPv6 150) for not trusting marks. The median round trip was 16.9 us with and 16.7 us
//! without the checks, which is within its scatter.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_INGRESS,
    helpers::{bpf_redirect, bpf_skb_cgroup_id, bpf_skb_change_head, bpf_skb_store_bytes},
    macros::classifier,
    programs::TcContext,
};
use ebpf_common::{
    Counter, Flow, LOOPBACK_INDEX, MARK_CAPTURED, MARK_MASK,
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Parsed, Segment, Unparsed},
};

use crate::{
    count::{count, count_of, count_unread, decide},
    maps::{EXEMPT_CGROUPS, OUTSIDE, PRE_MESH, PROBES},
    skb::{self, DROP, PASS},
};

/// Length of an Ethernet header.
const ETHERNET: u32 = 14;

/// A pod in the mesh, device with Ethernet headers.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    egress::<false, false, false>(&ctx)
}

/// The same, DNS included.
#[classifier]
pub fn tc_egress_dns(ctx: TcContext) -> i32 {
    egress::<false, false, true>(&ctx)
}

/// A pod that is about to be captured, any device: everything passes, and its sockets are learnt.
#[classifier]
pub fn tc_egress_join(ctx: TcContext) -> i32 {
    let parsed = skb::parse(&ctx);
    if matches!(parsed, Parsed::Other | Parsed::Dns(_)) {
        count(Counter::PassedNotTcp);
        return PASS;
    }
    // SAFETY: the context is the one the kernel gave; the helper returns 0 for packets without a full socket.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    if EXEMPT_CGROUPS.get_ptr(&cgroup).is_some() {
        count(Counter::ExemptProxy);
        return PASS;
    }
    // A cookie of the kernel's own sockets would let pass what they send for others, for ever.
    let cookie = if skb::is_ownerless(&ctx) { 0 } else { skb::socket_cookie(&ctx) };
    if !is_for_the_agent(cookie) {
        learn(cookie, Counter::PassedPreMesh);
    }
    count_sender(&ctx, &parsed, Counter::PassedPreMesh);
    PASS
}

/// A pod in the mesh, device without link-layer headers.
#[classifier]
pub fn tc_egress_bare(ctx: TcContext) -> i32 {
    egress::<true, false, false>(&ctx)
}

/// The same, DNS included.
#[classifier]
pub fn tc_egress_bare_dns(ctx: TcContext) -> i32 {
    egress::<true, false, true>(&ctx)
}

/// A pod that is leaving, device with Ethernet headers.
#[classifier]
pub fn tc_egress_drain(ctx: TcContext) -> i32 {
    egress::<false, true, false>(&ctx)
}

/// A pod that is leaving, device without link-layer headers.
#[classifier]
pub fn tc_egress_bare_drain(ctx: TcContext) -> i32 {
    egress::<true, true, false>(&ctx)
}

/// Whether the socket is where the agent finds it, to list and to cut it. One that answered a probe is not, but while its pod is joining
/// it is one like any other.
#[inline(always)]
fn is_for_the_agent(cookie: u64) -> bool {
    // SAFETY: a valid pointer; an entry that is another's by now has that one's socket learnt, which is known by its next segment.
    let reason = OUTSIDE.get_ptr(&cookie).map(|reason| unsafe { *reason });
    reason.is_some_and(|reason| reason != Counter::ExemptProbeReply as u32)
        || PRE_MESH.get_ptr(&cookie).is_some()
}

#[inline(always)]
fn egress<const BARE: bool, const DRAINING: bool, const CAPTURES_DNS: bool>(ctx: &TcContext) -> i32 {
    let parsed = skb::parse(ctx);
    if matches!(parsed, Parsed::Other) || !CAPTURES_DNS && matches!(parsed, Parsed::Dns(_)) {
        count(Counter::PassedNotTcp);
        return PASS;
    }
    // SAFETY: the context is the one the kernel gave; the helper returns 0 for packets without a full socket.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    if EXEMPT_CGROUPS.get_ptr(&cgroup).is_some() {
        count(Counter::ExemptProxy);
        return PASS;
    }
    if let Parsed::Dns(query) = &parsed {
        return capture_dns::<BARE>(ctx, query);
    }
    let cookie = skb::socket_cookie(ctx);
    let is_new = matches!(&parsed, Parsed::Tcp(segment) if segment.flags.opens());
    if let Some(counter) = outside(cookie, is_new) {
        count_sender(ctx, &parsed, counter);
        return PASS;
    }
    let segment = match &parsed {
        Parsed::Tcp(segment) => segment,
        Parsed::MaybeTcp(reason) => {
            count_sender(ctx, &parsed, unparsed(*reason));
            return DROP;
        }
        Parsed::Other | Parsed::Dns(_) => return PASS,
    };
    if let Some(counter) = stays_outside::<DRAINING>(ctx, segment, cookie) {
        decide(ctx, segment, &segment.source, counter);
        return PASS;
    }
    capture::<BARE>(ctx, segment)
}

/// The counter a packet that may not be parsed is dropped under.
#[inline(always)]
pub fn unparsed(reason: Unparsed) -> Counter {
    match reason {
        Unparsed::Fragment => Counter::DroppedFragment,
        Unparsed::Truncated => Counter::DroppedTruncated,
        Unparsed::Malformed => Counter::DroppedMalformed,
        Unparsed::Extension => Counter::DroppedExtension,
    }
}

/// Whether a segment whose socket is not known yet stays outside of the mesh: 4 to 6 of the module's list.
#[inline(always)]
fn stays_outside<const DRAINING: bool>(ctx: &TcContext, segment: &Segment, cookie: u64) -> Option<Counter> {
    if segment.flags.answers() {
        let flow = Flow {
            pod: segment.source,
            peer: segment.destination,
            pod_port: segment.source_port,
            peer_port: segment.destination_port,
        };
        if PROBES.get_ptr(&flow).is_some() {
            return Some(learn(cookie, Counter::ExemptProbeReply));
        }
    }
    if DRAINING && cookie != 0 && (segment.flags.opens() || segment.flags.answers()) {
        return Some(learn(cookie, Counter::PassedDraining));
    }
    if segment.is_empty
        && segment.flags.may_be_control()
        && skb::is_ownerless(ctx)
        && (!skb::has_receiver(ctx, segment) || skb::meets_application_leg(ctx, segment))
    {
        return Some(Counter::PassedControlReply);
    }
    None
}

/// Leaves a socket alone from now on. The child of a half-open connection has its cookie too.
#[inline(always)]
fn learn(cookie: u64, counter: Counter) -> Counter {
    if cookie != 0 {
        // An LRU map makes room; if it fails nevertheless, the socket's next segment is captured and reset.
        let _ = OUTSIDE.insert(&cookie, &(counter as u32), 0);
    }
    counter
}

/// Counts for the pod that sends the packet, whatever could be read of it.
#[inline(always)]
fn count_sender(ctx: &TcContext, parsed: &Parsed, counter: Counter) {
    match parsed {
        Parsed::Tcp(segment) => count_of(&segment.source, counter),
        _ => count_unread(ctx, skb::End::Source, counter),
    }
}

/// Why the socket stays outside of the mesh, if it does.
#[inline(always)]
fn outside(cookie: u64, is_new: bool) -> Option<Counter> {
    match is_outside(cookie, u32::from(is_new)) {
        0 => None,
        DRAINING_SOCKET => Some(Counter::PassedDraining),
        PRE_MESH_SOCKET => Some(Counter::PassedPreMesh),
        _ => Some(Counter::ExemptProbeReply),
    }
}

// What `is_outside` returns, as a register can hold it.
const PRE_MESH_SOCKET: u32 = 1;
const DRAINING_SOCKET: u32 = 2;
const PROBED_SOCKET: u32 = 3;

/// Whether the socket stays outside of the mesh, and why; or 0. A socket can be connected anew (`connect` to `AF_UNSPEC`,
/// or after a failure); what it opens then (`is_new`) is not the connection it was let go on for, and it is forgotten. While its pod
/// is leaving it is learnt anew, as what it is then.
///
/// The agent enters a socket in `PRE_MESH` before it takes it out of `OUTSIDE`. Asked in this order, one of them has it at any moment.
///
/// Not inlined: the stack of its caller has no room left beside the log's.
#[inline(never)]
fn is_outside(cookie: u64, is_new: u32) -> u32 {
    if is_new != 0 {
        if OUTSIDE.get_ptr(&cookie).is_some() {
            let _ = OUTSIDE.remove(&cookie);
        }
        if PRE_MESH.get_ptr(&cookie).is_some() {
            let _ = PRE_MESH.remove(&cookie);
        }
        return 0;
    }
    if let Some(reason) = OUTSIDE.get_ptr(&cookie) {
        // SAFETY: a valid pointer; that the entry may be another's by now changes a counter only.
        let reason = unsafe { *reason };
        return if reason == Counter::PassedDraining as u32 {
            DRAINING_SOCKET
        } else if reason == Counter::PassedPreMesh as u32 {
            PRE_MESH_SOCKET
        } else {
            PROBED_SOCKET
        };
    }
    if PRE_MESH.get_ptr(&cookie).is_some() { PRE_MESH_SOCKET } else { 0 }
}

#[inline(always)]
fn capture<const BARE: bool>(ctx: &TcContext, segment: &Segment) -> i32 {
    // SAFETY: reads of the context, which the verifier checks.
    let (mark, tagged) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).vlan_present != 0) };
    if tagged || segment.is_tagged {
        decide(ctx, segment, &segment.source, Counter::DroppedTagged);
        return DROP;
    }
    if skb::is_ours(mark) {
        skb::remember_mark(segment, mark);
        decide(ctx, segment, &segment.source, Counter::CapturedForgedMark);
    } else {
        decide(ctx, segment, &segment.source, Counter::CapturedOutbound);
    }
    turn::<BARE>(ctx, segment, mark)
}

/// What is behind a VLAN tag was not seen on the VLAN's own device, and is left alone as any UDP.
#[inline(always)]
fn capture_dns<const BARE: bool>(ctx: &TcContext, query: &Segment) -> i32 {
    // SAFETY: reads of the context, which the verifier checks.
    let (mark, tagged) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).vlan_present != 0) };
    if tagged || query.is_tagged {
        count(Counter::PassedNotTcp);
        return PASS;
    }
    decide(ctx, query, &query.source, Counter::CapturedDns);
    turn::<BARE>(ctx, query, mark)
}

/// Turns a packet to `lo`, which routes it by our mark.
#[inline(always)]
fn turn<const BARE: bool>(ctx: &TcContext, segment: &Segment, mark: u32) -> i32 {
    ctx.set_mark((mark & !MARK_MASK) | MARK_CAPTURED);
    if BARE && !add_ethernet_header(ctx, segment.is_v4) {
        decide(ctx, segment, &segment.source, Counter::DroppedRedirect);
        return DROP;
    }
    // SAFETY: no pointers are involved; a failure is TC_ACT_SHOT, so the packet is dropped.
    unsafe { bpf_redirect(LOOPBACK_INDEX, u64::from(BPF_F_INGRESS)) as i32 }
}

/// `lo` expects the header that devices such as `tun` do not have. Any destination will do but `lo`'s own, which is zero: `tc_lo` knows
/// by it what was turned there.
#[inline(always)]
fn add_ethernet_header(ctx: &TcContext, is_v4: bool) -> bool {
    let ethertype = if is_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let [high, low] = ethertype.to_be_bytes();
    let header = [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, high, low];
    // SAFETY: the helpers check lengths; no pointer into the packet is held across them.
    unsafe {
        bpf_skb_change_head(ctx.skb.skb, ETHERNET, 0) == 0
            && bpf_skb_store_bytes(ctx.as_ptr().cast(), 0, header.as_ptr().cast(), ETHERNET, 0) == 0
    }
}
