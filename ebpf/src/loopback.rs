//! Ingress of a pod's `lo`: what `tc_egress` turned there goes to the outbound listener.
//!
//! A pod can set the same mark on its packets; they are then captured on this way instead of the other.

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
    // SAFETY: a read of the context, which the verifier checks.
    if unsafe { (*ctx.skb.skb).mark } & MARK_MASK != MARK_CAPTURED {
        return PASS;
    }
    // Its destination address is not lo's, so it counts as another host's and would be dropped.
    // SAFETY: the helper checks the type.
    unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
    let segment = match skb::parse(&ctx) {
        Parsed::Tcp(segment) => segment,
        Parsed::Other => return PASS,
        Parsed::MaybeTcp(reason) => {
            count(unparsed(reason));
            return DROP;
        }
    };
    // The kernel finds an established connection by itself, and the application's end of one (this is the way of ztunnel's answers
    // too). What has no receiver goes to the listener even if it opens nothing: it may complete a SYN cookie, else it is reset.
    if !segment.flags.opens() && skb::has_receiver(&ctx, &segment) {
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
