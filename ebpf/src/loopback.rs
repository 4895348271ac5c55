//! Ingress of a pod's `lo`: what `tc_egress` turned there goes to the outbound listener.
//!
//! Packets with our mark come to `lo` on two ways, told apart by their type. Those that `tc_egress` turned there carry the
//! Ethernet address of another host. Those sent over `lo` do not; they are ztunnel's answers to applications (sockets inherit the mark
//! of the packet that opened them), resets (`fwmark_reflect`), and whatever a pod that sets the mark by itself sends. The kernel's own
//! lookup serves answers and resets best: it knows sockets bound to a device, which the helper would not find from here.
//!
//! A connection may have the same ends as one that ztunnel closed first and that is in TIME_WAIT there. Only the kernel can end that,
//! and it does so when it finds it by itself, not when the packet comes with a listener (since 6.10 the packet is then dropped for up to a
//! minute). So such a packet goes on as it is, and when the kernel then asks for a listener, `sk_lookup_inbound` gives it ours.

use aya_ebpf::{
    Global,
    bindings::BPF_F_INGRESS,
    helpers::{bpf_redirect, bpf_skb_change_type},
    macros::classifier,
    programs::TcContext,
};
use ebpf_common::{
    Counter, Flow, LOOPBACK_INDEX, MARK_APPLICATION, MARK_CAPTURED, MARK_MASK, MARK_PROXY, PORT_DNS,
    PORT_DOMAIN, PORT_OUTBOUND,
    packet::{Parsed, Segment},
};

use crate::{
    count::{count_unread, decide},
    egress::unparsed,
    maps::{POD_ADDRESSES, REOPENED},
    reset,
    skb::{self, Assigned, DROP, PASS},
};

/// Whether `sk_lookup_inbound` or `sk_lookup_reopen` is attached to pods here. Set by the agent at load.
#[unsafe(no_mangle)]
static HAS_SK_LOOKUP: Global<u8> = Global::new(0);

/// Whether a packet can be left to the kernel, which asks `sk_lookup_inbound` or `sk_lookup_reopen` for the listener.
#[inline(always)]
pub fn has_sk_lookup() -> bool {
    HAS_SK_LOOKUP.load() != 0
}

/// `PACKET_HOST`: the packet is for this host.
const PACKET_HOST: u32 = 0;

/// Hands captured packets to the listener on 15001 of this namespace.
#[classifier]
pub fn tc_lo(ctx: TcContext) -> i32 {
    lo::<false>(&ctx)
}

/// The same in a pod whose DNS is captured: what is for port 53 goes to the listeners on 15053.
#[classifier]
pub fn tc_lo_dns(ctx: TcContext) -> i32 {
    lo::<true>(&ctx)
}

#[inline(always)]
fn lo<const CAPTURES_DNS: bool>(ctx: &TcContext) -> i32 {
    // SAFETY: reads of the context, which the verifier checks.
    let (mark, kind) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).pkt_type) };
    if mark & MARK_MASK == MARK_PROXY {
        return one_mark(ctx, mark);
    }
    if mark & MARK_MASK == MARK_APPLICATION {
        return application_leg::<CAPTURES_DNS>(ctx, mark);
    }
    if mark & MARK_MASK != MARK_CAPTURED {
        return PASS;
    }
    let turned = kind != PACKET_HOST;
    if turned {
        // The kernel would drop what is for another host.
        // SAFETY: the helper checks the type.
        unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
    }
    let segment = match skb::parse(ctx) {
        Parsed::Tcp(segment) => segment,
        Parsed::Dns(query) => return if turned { to_datagrams(ctx, &query) } else { PASS },
        Parsed::Other => return PASS,
        Parsed::MaybeTcp(reason) => {
            count_unread(ctx, skb::End::Source, unparsed(reason));
            return DROP;
        }
    };
    // The kernel finds an established connection by itself. What was turned here and has no receiver goes to the listener even if it
    // opens nothing: it may complete a SYN cookie, else it is reset.
    if !segment.flags.opens() && (!turned || skb::has_receiver(ctx, &segment)) {
        return PASS;
    }
    if turned && segment.flags.opens() && reopens(ctx, &segment) {
        return PASS;
    }
    // A first packet that was not turned here was led here by a mark that its sender had set.
    if !turned {
        skb::remember_mark(&segment, mark);
        decide(ctx, &segment, &segment.source, Counter::CapturedForgedMark);
    }
    to_listener::<CAPTURES_DNS>(ctx, &segment)
}

/// What carries the mark that Istio's ztunnel has for all its sockets: its answers to applications, to which marks mean nothing, and
/// its connections to them. These get the mark of our ztunnel's, by which the application's answers find their way back.
///
/// A packet that opens one, or completes one by a SYN cookie, starts here anew. Our ztunnel binds such sockets to `lo`, and by that device
/// `sk_lookup_inbound` knows them; of others it is told the device that has the pod's address, as of what comes from outside, unless
/// the packet is routed again. To addresses of the loopback there is no other way than the one they came by.
#[inline(always)]
fn one_mark(ctx: &TcContext, mark: u32) -> i32 {
    ctx.set_mark((mark & !MARK_MASK) | MARK_APPLICATION);
    match skb::parse(ctx) {
        Parsed::Tcp(segment)
            if !segment.destination.is_loopback()
                && (segment.flags.opens() || !skb::has_receiver(ctx, &segment)) =>
        {
            // SAFETY: no pointers are involved; a failure is TC_ACT_SHOT, so the packet is dropped.
            unsafe { bpf_redirect(LOOPBACK_INDEX, u64::from(BPF_F_INGRESS)) as i32 }
        }
        _ => PASS,
    }
}

/// Hands a query over UDP to the listener on 15053 of this namespace. Without one it is dropped: an application of the pod that serves
/// DNS must not answer what was for another server.
#[inline(always)]
fn to_datagrams(ctx: &TcContext, query: &Segment) -> i32 {
    let counter = match skb::assign_to_datagrams(ctx, query, PORT_DNS) {
        Assigned::Yes => return PASS,
        Assigned::NoListener => Counter::DroppedNoDnsListener,
        Assigned::Refused => Counter::DroppedAssign,
    };
    decide(ctx, query, &query.source, counter);
    DROP
}

/// What carries the mark of the application leg: ztunnel's connection to an application of this pod, and what an application sends that
/// sets the mark by itself, which is routed here too. Of the latter what is for no pod of this node is captured as it would have been
/// without the mark. What is for another pod of the node cannot be told from ztunnel's by its addresses: it ends with whoever listens
/// in the sender's own namespace.
#[inline(always)]
fn application_leg<const CAPTURES_DNS: bool>(ctx: &TcContext, mark: u32) -> i32 {
    let Parsed::Tcp(segment) = skb::parse(ctx) else { return PASS };
    if !segment.flags.opens()
        || segment.destination.is_loopback()
        || POD_ADDRESSES.get_ptr(&segment.destination).is_some()
    {
        return PASS;
    }
    skb::remember_mark(&segment, mark);
    decide(ctx, &segment, &segment.source, Counter::CapturedForgedMark);
    to_listener::<CAPTURES_DNS>(ctx, &segment)
}

/// Hands a packet to the listener of this namespace on 15001, or on 15053.
#[inline(always)]
fn to_listener<const CAPTURES_DNS: bool>(ctx: &TcContext, segment: &Segment) -> i32 {
    let (port, missing) = if CAPTURES_DNS && segment.destination_port == PORT_DOMAIN {
        (PORT_DNS, Counter::DroppedNoDnsListener)
    } else {
        (PORT_OUTBOUND, Counter::DroppedNoOutboundListener)
    };
    match skb::assign_to_port(ctx, segment, port) {
        Assigned::Yes => PASS,
        Assigned::NoListener => {
            decide(ctx, segment, &segment.source, missing);
            if segment.flags.opens() {
                // An application of the pod that happens to listen on the destination's port must not receive it.
                let turned = reset::turn_into_reset(ctx, segment.is_v4, reset::ETHERNET as u32);
                return if turned != 0 { PASS } else { DROP };
            }
            // The kernel resets what nobody here receives, if it is IPv6; see `reset`.
            if skb::has_any_receiver(ctx, segment) { DROP } else { PASS }
        }
        Assigned::Refused => {
            decide(ctx, segment, &segment.source, Counter::DroppedAssign);
            DROP
        }
    }
}

/// Whether the connection is left to `sk_lookup_inbound`, told by the flow.
#[inline(always)]
fn reopens(ctx: &TcContext, segment: &Segment) -> bool {
    if !has_sk_lookup() || !skb::meets_time_wait(ctx, segment) {
        return false;
    }
    let flow = Flow {
        pod: segment.source,
        peer: segment.destination,
        pod_port: segment.source_port,
        peer_port: segment.destination_port,
    };
    REOPENED.insert(&flow, &1, 0).is_ok()
}
