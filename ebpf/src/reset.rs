//! Refusing a connection at once: the packet that opens it becomes the reset that answers it (RFC 9293 3.10.7.1).
//!
//! Two cases need this. A client from outside whose connection has the ends of one of ztunnel's would never be answered
//! ([`send_back`]). And what is captured may have nobody to accept it ([`turn_into_reset`], on `lo`): the kernel resets what no socket
//! receives by itself, but for IPv4 not in the name of an address that is not its own. It finds no route from one
//! (`ip_route_output_key`) unless a transparent socket asks, and here is no socket. What is turned on `lo` is then received
//! like any packet there: routed by its mark to the host itself, and under a strict `rp_filter` valid because `src_valid_mark` has its
//! source looked up with that mark too.
//!
//! Exchanging the ends changes neither the checksum of the IP header nor TCP's, so that only sequence, acknowledgement and flags have
//! to be accounted for, and the options. These must not be read: a SYN from a port whose former connection is in TIME_WAIT echoes a
//! timestamp of that one, and its sender ignores a reset that echoes the same (RFC 7323 4.3; Linux `tcp_rcv_synsent_state_process`). So
//! their list ends where it begins. A header without them would make them payload, which the kernel's own resets do not have.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_redirect, bpf_skb_load_bytes},
    programs::TcContext,
};
use ebpf_common::packet::Segment;

use crate::skb::DROP;

/// Length of an Ethernet header, which every packet on `lo` has.
pub const ETHERNET: usize = 14;
/// Length of an IPv6 header (RFC 8200 3).
const V6_HEADER: usize = 40;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// Where options begin, behind the five words of the header (RFC 9293 3.1).
const OPTIONS: usize = 20;
/// Four ends of the list of options (RFC 9293 3.2).
const END_OF_OPTIONS: u32 = 0;
/// RST and ACK (RFC 9293 3.5.2: a reset in answer to a segment without ACK).
const RST_ACK: u8 = 0x14;

/// Sends the packet back as a reset to where it came from; what cannot be turned is dropped.
#[inline(always)]
pub fn send_back(ctx: &TcContext, segment: &Segment) -> i32 {
    let Some(link) = link_header(ctx, segment.is_v4) else { return DROP };
    if turn_into_reset(ctx, segment.is_v4, link as u32) == 0 {
        return DROP;
    }
    // SAFETY: a read of the context, which the verifier checks.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: no pointers are involved; a failure is TC_ACT_SHOT, so the packet is dropped.
    unsafe { bpf_redirect(interface, 0) as i32 }
}

/// Makes the reset of a packet whose IP header is at `link`; 1, or 0 if it could not be done, and then the packet must not go on.
/// Nobody opens connections behind IPv6 extension headers.
///
/// Not inlined: the stacks of its callers have no room for more beside the parser's.
#[inline(never)]
pub fn turn_into_reset(ctx: &TcContext, is_v4: bool, link: u32) -> u32 {
    u32::from(turn(ctx, is_v4, link as usize).is_some())
}

#[inline(always)]
fn turn(ctx: &TcContext, is_v4: bool, link: usize) -> Option<()> {
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
        link + V6_HEADER
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
    ctx.l4_csum_replace(checksum, word(flags), word(RST_ACK), 2).ok()?;
    if usize::from(offset >> 4) * 4 > OPTIONS {
        let first = load::<u32>(ctx, tcp + OPTIONS)?;
        store(ctx, tcp + OPTIONS, &END_OF_OPTIONS)?;
        ctx.l4_csum_replace(checksum, first.into(), END_OF_OPTIONS.into(), 4).ok()?;
    }
    Some(())
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
