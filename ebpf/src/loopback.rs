//! Ingress of a pod's `lo`: what `tc_egress` turned there goes to the outbound listener.
//!
//! Packets with our mark come to `lo` on two ways, told apart by their type. Those that `tc_egress` turned there carry the
//! Ethernet address of another host. Those sent over `lo` do not; they are ztunnel's answers to applications (sockets inherit the mark
//! of the packet that opened them), resets (`fwmark_reflect`), and whatever a pod that sets the mark by itself sends. The kernel's own
//! lookup serves answers and resets best: it knows sockets bound to a device, which the helper would not find from here.

use aya_ebpf::{helpers::bpf_skb_change_type, macros::classifier, programs::TcContext};
use ebpf_common::{Counter, MARK_CAPTURED, MARK_MASK, PORT_OUTBOUND, packet::Parsed};

use crate::{
    count::{count, decide},
    egress::unparsed,
    skb::{self, Assigned, DROP, PASS},
};

/// `PACKET_HOST`: the packet is for this host.
const PACKET_HOST: u32 = 0;

/// Hands captured packets to the listener on 15001 of this namespace.
#[classifier]
pub fn tc_lo(ctx: TcContext) -> i32 {
    // SAFETY: reads of the context, which the verifier checks.
    let (mark, kind) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).pkt_type) };
    if mark & MARK_MASK != MARK_CAPTURED {
        return PASS;
    }
    let turned = kind != PACKET_HOST;
    if turned {
        // The kernel would drop what is for another host.
        // SAFETY: the helper checks the type.
        unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
    }
    let segment = match skb::parse(&ctx) {
        Parsed::Tcp(segment) => segment,
        Parsed::Other => return PASS,
        Parsed::MaybeTcp(reason) => {
            count(unparsed(reason));
            return DROP;
        }
    };
    // The kernel finds an established connection by itself. What was turned here and has no receiver goes to the listener even if it
    // opens nothing: it may complete a SYN cookie, else it is reset.
    if !segment.flags.opens() && (!turned || skb::has_receiver(&ctx, &segment)) {
        return PASS;
    }
    let counter = match skb::assign_to_port(&ctx, &segment, PORT_OUTBOUND) {
        Assigned::Yes => return PASS,
        Assigned::NoListener => Counter::DroppedNoOutboundListener,
        Assigned::Refused => Counter::DroppedAssign,
    };
    decide(&ctx, &segment, counter);
    DROP
}
