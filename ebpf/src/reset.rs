//! Answering a packet that opens a connection with a reset, out of the packet itself.
//!
//! Exchanging the ends changes neither the checksum of the IP header nor TCP's, so that only sequence, acknowledgement and flags have
//! to be accounted for. The options of the SYN stay; receivers of a reset do not mind them.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_redirect, bpf_skb_load_bytes},
    programs::TcContext,
};
use ebpf_common::packet::Segment;

use crate::skb::DROP;

const ETHERNET: usize = 14;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// RST and ACK (RFC 9293 3.5.2: a reset in answer to a segment without ACK).
const RST_ACK: u8 = 0x14;

/// Turns the packet into its answer and sends it back to where it came from; what cannot be turned is dropped.
#[inline(always)]
pub fn answer(ctx: &TcContext, segment: &Segment) -> i32 {
    if turn(ctx, segment.is_v4).is_none() {
        return DROP;
    }
    // SAFETY: a read of the context, which the verifier checks.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: no pointers are involved; a failure is TC_ACT_SHOT, so the packet is dropped.
    unsafe { bpf_redirect(interface, 0) as i32 }
}

#[inline(always)]
fn turn(ctx: &TcContext, is_v4: bool) -> Option<()> {
    let link = link_header(ctx, is_v4)?;
    if link == ETHERNET {
        let [destination, source] = load::<[[u8; 6]; 2]>(ctx, 0)?;
        store(ctx, 0, &[source, destination])?;
    }
    let tcp = if is_v4 {
        let [source, destination] = load::<[[u8; 4]; 2]>(ctx, link + 12)?;
        store(ctx, link + 12, &[destination, source])?;
        link + usize::from(load::<u8>(ctx, link)? & 0x0f) * 4
    } else {
        if load::<u8>(ctx, link + 6)? != TCP {
            return None;
        }
        let [source, destination] = load::<[[u8; 16]; 2]>(ctx, link + 8)?;
        store(ctx, link + 8, &[destination, source])?;
        link + 40
    };
    let [source, destination] = load::<[u16; 2]>(ctx, tcp)?;
    store(ctx, tcp, &[destination, source])?;
    let [sequence, acknowledgement] = load::<[u32; 2]>(ctx, tcp + 4)?;
    // A SYN counts for one.
    let expected = u32::from_be(sequence).wrapping_add(1).to_be();
    let [offset, flags] = load::<[u8; 2]>(ctx, tcp + 12)?;
    store(ctx, tcp + 4, &[0_u32, expected])?;
    store(ctx, tcp + 12, &[offset, RST_ACK])?;
    let word = |flags: u8| u64::from(u16::from_ne_bytes([offset, flags]));
    let checksum = tcp + 16;
    ctx.l4_csum_replace(checksum, sequence.into(), 0, 4).ok()?;
    ctx.l4_csum_replace(checksum, acknowledgement.into(), expected.into(), 4).ok()?;
    ctx.l4_csum_replace(checksum, word(flags), word(RST_ACK), 2).ok()
}

/// Length of what precedes the IP header: that of Ethernet, or nothing on devices such as `tun`, which do not pad packets.
#[inline(always)]
fn link_header(ctx: &TcContext, is_v4: bool) -> Option<usize> {
    let [first] = load::<[u8; 1]>(ctx, 0)?;
    let total = if is_v4 {
        u32::from(u16::from_be(load::<u16>(ctx, 2)?))
    } else {
        40 + u32::from(u16::from_be(load::<u16>(ctx, 4)?))
    };
    let is_bare = first >> 4 == if is_v4 { 4 } else { 6 } && total == ctx.len();
    Some(if is_bare { 0 } else { ETHERNET })
}

#[inline(always)]
fn load<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes exactly the value's bytes, or fails; it checks the offset itself.
    let result = unsafe {
        bpf_skb_load_bytes(ctx.as_ptr(), offset as u32, value.as_mut_ptr().cast(), size_of::<T>() as u32)
    };
    // SAFETY: written; every type it is called for is plain numbers.
    (result == 0).then(|| unsafe { value.assume_init() })
}

#[inline(always)]
fn store<T>(ctx: &TcContext, offset: usize, value: &T) -> Option<()> {
    ctx.store(offset, value, 0).ok()
}
