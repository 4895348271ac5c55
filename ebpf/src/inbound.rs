//! Inbound: new connections from outside go to the pod's inbound listener.
//!
//! `sk_lookup_inbound` is asked once for each new connection and costs established ones nothing. `tc_ingress` decides the same for
//! each packet where the former cannot be had (before Linux 5.17). Both find the listener by the pod's address, in a
//! map of all pods of the node, since `sk_lookup` programs cannot tell which namespace they run for.

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action::{SK_DROP, SK_PASS},
    macros::{classifier, sk_lookup},
    programs::{SkLookupContext, TcContext},
};
use ebpf_common::{
    Counter, Flow, LOOPBACK_INDEX, PORT_DOMAIN, PORT_HBONE, PORTS_LEG,
    packet::{Parsed, Segment},
};

use crate::{
    context,
    count::{count_of, count_unread, decide},
    egress::unparsed,
    loopback::has_sk_lookup,
    maps::{DNS_LISTENERS, LISTENERS, OUTBOUND_LISTENERS, PROBES, REOPENED},
    reset,
    skb::{self, DROP, PASS},
};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;

/// Whether both ends are the pod's.
#[inline(always)]
fn is_own(flow: &Flow) -> bool {
    flow.pod == flow.peer || flow.peer.is_loopback() || flow.pod.is_loopback()
}

/// Why a connection is not for the inbound listener.
#[inline(always)]
fn passes(flow: &Flow) -> Option<Counter> {
    if flow.pod_port == PORT_HBONE {
        Some(Counter::PassedHbone)
    } else if PROBES.get_ptr(flow).is_some() {
        Some(Counter::ExemptProbe)
    } else {
        None
    }
}

/// Chooses the socket of a new connection.
#[sk_lookup]
pub fn sk_lookup_inbound(ctx: SkLookupContext) -> u32 {
    // SAFETY: reads of the context, which the verifier checks.
    let (protocol, interface) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).ingress_ifindex) };
    if protocol != IPPROTO_TCP {
        return SK_PASS;
    }
    let flow = flow(&ctx);
    // Over `lo` come ztunnel's connections to the application and the pod's own.
    if interface == LOOPBACK_INDEX {
        return reopen(&ctx, &flow);
    }
    if is_own(&flow) {
        count_of(&flow.pod, Counter::PassedSelf);
        return SK_PASS;
    }
    if let Some(counter) = passes(&flow) {
        count_of(&flow.pod, counter);
        return SK_PASS;
    }
    if LISTENERS.redirect_sk_lookup(&ctx, flow.pod, 0).is_ok() {
        count_of(&flow.pod, Counter::CapturedInbound);
        SK_PASS
    } else {
        count_of(&flow.pod, Counter::DroppedNoInboundListener);
        SK_DROP
    }
}

/// What is of use beside `tc_ingress`, which hands packets to the listener by itself, but for those that meet the remains of an earlier
/// connection: see the module `loopback`. Whatever comes here is decided in the same way, and was counted there.
#[sk_lookup]
pub fn sk_lookup_reopen(ctx: SkLookupContext) -> u32 {
    // SAFETY: reads of the context, which the verifier checks.
    let (protocol, interface) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).ingress_ifindex) };
    if protocol != IPPROTO_TCP {
        return SK_PASS;
    }
    let flow = flow(&ctx);
    if interface == LOOPBACK_INDEX {
        return reopen(&ctx, &flow);
    }
    if is_own(&flow) || passes(&flow).is_some() || LISTENERS.redirect_sk_lookup(&ctx, flow.pod, 0).is_ok() {
        SK_PASS
    } else {
        SK_DROP
    }
}

/// Gives a captured connection that `tc_lo` left to us its listener; its near end is the destination here. Failing, it is refused: the
/// kernel would look on, and an application of the pod that listens on the destination's port on any address would get what was not
/// for it.
#[inline(always)]
fn reopen(ctx: &SkLookupContext, flow: &Flow) -> u32 {
    let captured =
        Flow { pod: flow.peer, peer: flow.pod, pod_port: flow.peer_port, peer_port: flow.pod_port };
    if REOPENED.get_ptr(&captured).is_some() {
        let _ = REOPENED.remove(&captured);
        // Only a pod whose DNS is captured has a listener for it.
        let is_dns = captured.peer_port == PORT_DOMAIN
            && DNS_LISTENERS.redirect_sk_lookup(ctx, captured.pod, 0).is_ok();
        if !is_dns && OUTBOUND_LISTENERS.redirect_sk_lookup(ctx, captured.pod, 0).is_err() {
            return SK_DROP;
        }
    }
    SK_PASS
}

#[inline(always)]
fn flow(ctx: &SkLookupContext) -> Flow {
    let lookup = ctx.lookup;
    // SAFETY: reads of the context, which the verifier checks, each of a whole field.
    unsafe {
        let is_v4 = (*lookup).family == AF_INET;
        Flow {
            pod: context::address(is_v4, &raw const (*lookup).local_ip4, &raw const (*lookup).local_ip6),
            peer: context::address(is_v4, &raw const (*lookup).remote_ip4, &raw const (*lookup).remote_ip6),
            // The local port is in host byte order already.
            pod_port: (*lookup).local_port as u16,
            peer_port: u16::from_be((*lookup).remote_port),
        }
    }
}

/// Longest packet that opens a connection and has no payload: Ethernet, and the longest IP and TCP headers there are without extensions.
const LONGEST_SYN: u32 = 14 + 60 + 60;

/// A client's new connection that has the ends of one which ztunnel has to the application would never be answered: the kernel takes it
/// for that one's. It is reset, so that the client tries another port. (Clients of the mesh come by HBONE; others seldom use the ports of
/// `PORTS_LEG`.)
///
/// Not inlined: the stacks of its callers have no room for more beside the parser's.
#[inline(never)]
fn refuse_taken_ends(ctx: &TcContext, segment: &Segment) -> i32 {
    let (first, last) = PORTS_LEG;
    // Looked for only where it may be: the kernel's lookup asks `sk_lookup_inbound`, which counts what it decides.
    let may_meet = segment.flags.opens() && segment.source_port >= first && segment.source_port <= last;
    if !may_meet || !skb::meets_application_leg(ctx, segment) {
        return PASS;
    }
    decide(ctx, segment, &segment.destination, Counter::DroppedEndsTaken);
    reset::send_back(ctx, segment)
}

/// Drops what comes from outside in the pod's own name, which `sk_lookup_inbound` would take for the pod's connection to itself: the
/// interface it is told is the device of the address, also when the packet came over `lo`. Costs IPv4 two comparisons, short packets
/// another look.
#[classifier]
pub fn tc_ingress_guard(ctx: TcContext) -> i32 {
    if skb::claims_own_source(&ctx) {
        count_unread(&ctx, skb::End::Destination, Counter::DroppedOwnSource);
        return DROP;
    }
    if ctx.len() <= LONGEST_SYN
        && let Parsed::Tcp(segment) = skb::parse(&ctx)
    {
        return refuse_taken_ends(&ctx, &segment);
    }
    PASS
}

/// Hands packets that open a connection, and those that nobody here receives, to the inbound listener.
#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    let segment = match skb::parse(&ctx) {
        Parsed::Tcp(segment) => segment,
        Parsed::Other | Parsed::Dns(_) => return PASS,
        Parsed::MaybeTcp(reason) => {
            count_unread(&ctx, skb::End::Destination, unparsed(reason));
            return DROP;
        }
    };
    // SAFETY: a read of the context, which the verifier checks.
    if segment.is_tagged || unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        // It comes by again on the VLAN's own device; without one the stack drops it.
        return PASS;
    }
    if segment.destination_port == PORT_HBONE {
        return PASS;
    }
    if !segment.flags.opens() && skb::has_receiver(&ctx, &segment) {
        return PASS;
    }
    let verdict = refuse_taken_ends(&ctx, &segment);
    if verdict != PASS {
        return verdict;
    }
    let counter = open(&ctx, &segment);
    decide(&ctx, &segment, &segment.destination, counter);
    let dropped = [Counter::DroppedNoInboundListener as u32, Counter::DroppedOwnSource as u32];
    if dropped.contains(&(counter as u32)) { DROP } else { PASS }
}

#[inline(always)]
fn open(ctx: &TcContext, segment: &Segment) -> Counter {
    let flow = Flow {
        pod: segment.destination,
        peer: segment.source,
        pod_port: segment.destination_port,
        peer_port: segment.source_port,
    };
    // The pod's connections to itself go over `lo`, where this program is not.
    if is_own(&flow) {
        return Counter::DroppedOwnSource;
    }
    if let Some(counter) = passes(&flow) {
        return counter;
    }
    if has_sk_lookup() && segment.flags.opens() && skb::meets_time_wait(ctx, segment) {
        return Counter::CapturedInbound;
    }
    // The helper that chooses the socket has the same number and arguments for both kinds of program; only the context differs. Here
    // the kernel also checks that the listener is of this namespace.
    let as_lookup = SkLookupContext::new(ctx.as_ptr().cast());
    if LISTENERS.redirect_sk_lookup(&as_lookup, flow.pod, 0).is_ok() {
        Counter::CapturedInbound
    } else {
        Counter::DroppedNoInboundListener
    }
}
