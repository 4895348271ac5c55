//! Refusing a captured connection that nobody is there to accept: its first packet becomes the reset that answers it.
//!
//! The kernel resets what no socket receives by itself, but for IPv4 not in the name of an address that is not its own: it finds no
//! route from one (`ip_route_output_key`) unless a transparent socket asks, and here is no socket. What is turned round here is then
//! received like any packet on `lo`: routed by its mark to the host itself, and under a strict `rp_filter` valid because
//! `src_valid_mark` has its source looked up with that mark too.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_l4_csum_replace, bpf_skb_store_bytes},
    programs::TcContext,
};
use ebpf_common::packet::Segment;

use crate::skb;

/// Length of the Ethernet header, which every packet on `lo` has.
const ETHERNET: u32 = 14;
/// Where the next header stands in an IPv6 header, and that header's length (RFC 8200 3).
const V6_NEXT_HEADER: u32 = 6;
const V6_HEADER: u32 = 40;
const PROTOCOL_TCP: u8 = 6;
/// Where the checksum stands in a TCP header (RFC 9293 3.1).
const CHECKSUM: u32 = 16;
const RST_ACK: u8 = 0x14;

/// Makes the reset of the SYN in `ctx` of it (RFC 9293 3.10.7.1). False: it could not be done, and the packet must not go on.
#[inline(never)]
pub fn turn_into_reset(ctx: &TcContext, segment: &Segment) -> bool {
    let (addresses, tcp) = if segment.is_v4 {
        let Some(first) = skb::read::<1>(ctx, 0) else { return false };
        (skb::V4_SOURCE, u32::from(first[0] & 0xf) * 4)
    } else {
        match skb::read::<1>(ctx, V6_NEXT_HEADER) {
            Some([PROTOCOL_TCP]) => (skb::V6_SOURCE, V6_HEADER),
            // Behind extension headers; nobody opens connections with such.
            _ => return false,
        }
    };
    swap_addresses(ctx, segment.is_v4, addresses) && answer(ctx, tcp)
}

/// Checksums are sums: an exchange changes none.
#[inline(always)]
fn swap_addresses(ctx: &TcContext, is_v4: bool, at: u32) -> bool {
    if is_v4 {
        let Some([a, b, c, d, e, f, g, h]) = skb::read::<8>(ctx, at) else { return false };
        return write(ctx, at, &[e, f, g, h, a, b, c, d]);
    }
    match (skb::read::<16>(ctx, at), skb::read::<16>(ctx, at + 16)) {
        (Some(source), Some(destination)) => write(ctx, at, &destination) && write(ctx, at + 16, &source),
        _ => false,
    }
}

/// Ports exchanged, sequence number 0, acknowledgement of the SYN. Options and payload stay; a receiver looks at neither.
#[inline(always)]
fn answer(ctx: &TcContext, tcp: u32) -> bool {
    let Some(head) = skb::read::<16>(ctx, tcp) else { return false };
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, w0, w1] = head;
    let (sequence, acknowledged) = ([q0, q1, q2, q3], [a0, a1, a2, a3]);
    let next = u32::from_be_bytes(sequence).wrapping_add(1).to_be_bytes();
    let [n0, n1, n2, n3] = next;
    let answer = [d0, d1, s0, s1, 0, 0, 0, 0, n0, n1, n2, n3, offset, RST_ACK, w0, w1];
    write(ctx, tcp, &answer)
        && replace(ctx, tcp, u32::from_ne_bytes(sequence), 0, 4)
        && replace(ctx, tcp, u32::from_ne_bytes(acknowledged), u32::from_ne_bytes(next), 4)
        && replace(ctx, tcp, word(offset, flags), word(offset, RST_ACK), 2)
}

#[inline(always)]
fn word(first: u8, second: u8) -> u32 {
    u32::from(u16::from_ne_bytes([first, second]))
}

/// Takes a changed field into the checksum.
#[inline(always)]
fn replace(ctx: &TcContext, tcp: u32, from: u32, to: u32, size: u64) -> bool {
    let at = ETHERNET + tcp + CHECKSUM;
    // SAFETY: the helper checks the offset itself; the packet is not accessed by pointers here.
    let result = unsafe { bpf_l4_csum_replace(ctx.as_ptr().cast(), at, from.into(), to.into(), size) };
    result == 0
}

#[inline(always)]
fn write<const N: usize>(ctx: &TcContext, at: u32, bytes: &[u8; N]) -> bool {
    // SAFETY: the helper reads exactly N bytes and checks the offset itself.
    let result = unsafe {
        bpf_skb_store_bytes(ctx.as_ptr().cast(), ETHERNET + at, bytes.as_ptr().cast(), N as u32, 0)
    };
    result == 0
}
