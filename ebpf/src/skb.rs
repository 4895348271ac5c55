//! Reading packets and their sockets from a tc program.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::{
        bpf_get_socket_cookie, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_skb_load_bytes_relative, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use ebpf_common::{
    Address, ForgedMark, MARK_APPLICATION, MARK_CAPTURED, MARK_MASK, MARK_PROXY,
    packet::{self, Bytes, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Parsed, Segment, Source, Unparsed},
};

use crate::maps::FORGED_MARKS;

/// The packet goes on to the next program, and on its way.
pub const PASS: i32 = -1;
/// The packet is dropped.
pub const DROP: i32 = 2;

/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = u64::MAX;
/// Headers of at most this many bytes are made contiguous when they are not.
const HEADERS_AT_MOST: u32 = 512;

// States of `enum tcp_state` in the kernel's tcp_states.h.
const TCP_TIME_WAIT: u32 = 6;
/// Of UDP sockets: those that are not connected.
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
const SOCK_RAW: u32 = 3;

/// A packet read from its network header on, so that it does not matter whether the device has a link-layer header.
struct FromNetworkHeader<'a>(&'a TcContext);

impl Source for FromNetworkHeader<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        let mut bytes = Bytes([0_u8; N]);
        // SAFETY: the helper writes exactly N bytes, or fails; it checks the offset itself.
        let result = unsafe {
            bpf_skb_load_bytes_relative(
                self.0.as_ptr(),
                offset,
                bytes.0.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET as u32,
            )
        };
        (result == 0).then_some(bytes)
    }
}

/// `N` bytes at `offset` from the network header; `None` if they are not there, or not in contiguous memory.
#[inline(always)]
pub fn read<const N: usize>(ctx: &TcContext, offset: u32) -> Option<[u8; N]> {
    FromNetworkHeader(ctx).read::<N>(offset).map(|bytes| bytes.0)
}

/// Parses the packet. The helper above reads contiguous memory only, so a packet that seems truncated gets its headers pulled
/// together once and is looked at again.
#[inline(always)]
pub fn parse(ctx: &TcContext) -> Parsed {
    let mut segment = MaybeUninit::uninit();
    let mut outcome = parse_into(ctx.skb.skb, &mut segment);
    if outcome == TRUNCATED {
        let length = ctx.len().min(HEADERS_AT_MOST);
        if ctx.skb.pull_data(length).is_ok() {
            outcome = parse_into(ctx.skb.skb, &mut segment);
        }
    }
    match outcome {
        // SAFETY: written in exactly this case.
        TCP => Parsed::Tcp(unsafe { segment.assume_init() }),
        // SAFETY: written in this case too.
        DNS => Parsed::Dns(unsafe { segment.assume_init() }),
        OTHER => Parsed::Other,
        FRAGMENT => Parsed::MaybeTcp(Unparsed::Fragment),
        MALFORMED => Parsed::MaybeTcp(Unparsed::Malformed),
        EXTENSION => Parsed::MaybeTcp(Unparsed::Extension),
        _ => Parsed::MaybeTcp(Unparsed::Truncated),
    }
}

// `Parsed` as a register can hold it: a function of the kernel's returns no more than that.
const TCP: u64 = 0;
const OTHER: u64 = 1;
const TRUNCATED: u64 = 2;
const FRAGMENT: u64 = 3;
const MALFORMED: u64 = 4;
const EXTENSION: u64 = 5;
const DNS: u64 = 6;

/// A function of its own, since a program and its stack of 512 bytes cannot hold the parser twice.
#[inline(never)]
fn parse_into(skb: *mut __sk_buff, segment: &mut MaybeUninit<Segment>) -> u64 {
    let ctx = TcContext::new(skb);
    let ethertype = u16::from_be(ctx.skb.protocol() as u16);
    match packet::parse(&FromNetworkHeader(&ctx), ethertype) {
        Parsed::Tcp(parsed) => {
            segment.write(parsed);
            TCP
        }
        Parsed::Dns(parsed) => {
            segment.write(parsed);
            DNS
        }
        Parsed::Other => OTHER,
        Parsed::MaybeTcp(Unparsed::Truncated) => TRUNCATED,
        Parsed::MaybeTcp(Unparsed::Fragment) => FRAGMENT,
        Parsed::MaybeTcp(Unparsed::Malformed) => MALFORMED,
        Parsed::MaybeTcp(Unparsed::Extension) => EXTENSION,
    }
}

/// Offset of the source, which the destination follows, in an IPv4 header (RFC 791 3.1).
pub const V4_SOURCE: u32 = 12;
const V4_DESTINATION: u32 = 16;
/// Offsets of the source and the destination in an IPv6 header (RFC 8200 section 3).
pub const V6_SOURCE: u32 = 8;
const V6_DESTINATION: u32 = 24;

/// One of a packet's two.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who sent it.
    Source,
    /// Whom it is for.
    Destination,
}

/// The address of an end of a packet of which nothing is known but its IP header, and that only if it is not in a VLAN tag.
#[inline(always)]
pub fn address_of(ctx: &TcContext, end: End) -> Option<Address> {
    let is_source = end == End::Source;
    match u16::from_be(ctx.skb.protocol() as u16) {
        ETHERTYPE_IPV4 => {
            let octets = read::<4>(ctx, if is_source { V4_SOURCE } else { V4_DESTINATION })?;
            Some(Address::from_v4(u32::from_ne_bytes(octets)))
        }
        ETHERTYPE_IPV6 => {
            let octets = read::<16>(ctx, if is_source { V6_SOURCE } else { V6_DESTINATION })?;
            Some(Address::from_octets(octets))
        }
        _ => None,
    }
}

/// Whether an IPv6 packet claims to come from the address it is for, or from `::1`. Of IPv4 the kernel drops such packets by itself
/// when they come from outside (martian sources); IPv6 has no such check.
///
/// Not inlined: the stacks of its callers have no room for more beside the parser's.
#[inline(never)]
pub fn claims_own_source(ctx: &TcContext) -> bool {
    if u16::from_be(ctx.skb.protocol() as u16) != ETHERTYPE_IPV6 {
        return false;
    }
    let packet = FromNetworkHeader(ctx);
    match (packet.read::<16>(V6_SOURCE), packet.read::<16>(V6_DESTINATION)) {
        (Some(source), Some(destination)) => {
            let source = Address::from_octets(source.0);
            source == Address::from_octets(destination.0) || source.is_loopback()
        }
        // The stack drops what ends within its header.
        _ => false,
    }
}

/// Whether a mark says what only we say, so that an application has set it by itself.
#[inline(always)]
pub fn is_ours(mark: u32) -> bool {
    let ours = mark & MARK_MASK;
    ours == MARK_PROXY || ours == MARK_APPLICATION || ours == MARK_CAPTURED
}

/// Remembers who sent a packet with such a mark, for the agent to tell. Not inlined, for the sake of its caller's stack.
#[inline(never)]
pub fn remember_mark(segment: &Segment, mark: u32) -> u32 {
    if FORGED_MARKS.get_ptr(&segment.source).is_some() {
        return 0;
    }
    let forged =
        ForgedMark { destination: segment.destination, mark, port: segment.destination_port, reserved: 0 };
    // An LRU map makes room; what is lost is a line in the log.
    let _ = FORGED_MARKS.insert(&segment.source, &forged, 0);
    1
}

/// The cookie of the socket that sends the packet, 0 if it has none.
#[inline(always)]
pub fn socket_cookie(ctx: &TcContext) -> u64 {
    // SAFETY: the context is the one the kernel gave; the helper accepts packets without a socket.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Whether the packet belongs to no application's socket: it has none, or only what is left of one, or one of the kernel's own.
///
/// What stands there depends on the kernel. Resets and the acknowledgements of TIME_WAIT come from a raw socket of the kernel for
/// IPv4 and from none for IPv6; from 6.13 on from the socket in TIME_WAIT itself, or the listener. The answer of a SYN cookie has none.
#[inline(always)]
pub fn is_ownerless(ctx: &TcContext) -> bool {
    // SAFETY: `sk` is read through the context, which the verifier turns into a checked pointer or null.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return true;
    }
    // SAFETY: not null.
    let state = unsafe { (*sk).state };
    if state == TCP_TIME_WAIT || state == TCP_LISTEN {
        return true;
    }
    // SAFETY: not null; the helper returns null for sockets that are not full.
    let full = unsafe { bpf_sk_fullsock(sk) };
    // SAFETY: checked for null first.
    !full.is_null() && unsafe { (*full).type_ } == SOCK_RAW
}

/// Calls `lookup` with the flow of `segment`, but to `port`, in the form the kernel's lookups take: ports in network byte order.
#[inline(always)]
fn with_tuple<T>(
    segment: &Segment,
    port: u16,
    lookup: impl Fn(*mut bpf_sock_tuple, u32) -> *mut T,
) -> *mut T {
    let (sport, dport) = (segment.source_port.to_be(), port.to_be());
    if segment.is_v4 {
        let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: segment.source.v4_word(),
            daddr: segment.destination.v4_word(),
            sport,
            dport,
        };
        lookup((&raw mut tuple).cast(), size_of_val(&tuple) as u32)
    } else {
        let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: segment.source.words(),
            daddr: segment.destination.words(),
            sport,
            dport,
        };
        lookup((&raw mut tuple).cast(), size_of_val(&tuple) as u32)
    }
}

/// State of the socket of this namespace that would receive `segment`, 0 if there is none.
#[inline(never)]
fn receiver_state(ctx: &TcContext, segment: &Segment) -> u32 {
    let sk = with_tuple(segment, segment.destination_port, |tuple, size| {
        // SAFETY: the tuple is initialised for `size` bytes; the reference is released below.
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, size, CURRENT_NETNS, 0) }
    });
    if sk.is_null() {
        return 0;
    }
    // SAFETY: not null.
    let state = unsafe { (*sk).state };
    // SAFETY: not null, and not used afterwards.
    unsafe { bpf_sk_release(sk.cast()) };
    state
}

/// Whether a socket of this namespace that is no listener would receive `segment`.
#[inline(always)]
pub fn has_receiver(ctx: &TcContext, segment: &Segment) -> bool {
    let state = receiver_state(ctx, segment);
    state != 0 && state != TCP_LISTEN
}

/// Whether `segment` would be received by either end of a connection of ztunnel to the application. What is theirs comes over `lo`.
#[inline(never)]
pub fn meets_application_leg(ctx: &TcContext, segment: &Segment) -> bool {
    let sk = with_tuple(segment, segment.destination_port, |tuple, size| {
        // SAFETY: the tuple is initialised for `size` bytes; the reference is released below.
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, size, CURRENT_NETNS, 0) }
    });
    if sk.is_null() {
        return false;
    }
    // SAFETY: not null; the helper returns null for sockets that are not full.
    let full = unsafe { bpf_sk_fullsock(sk) };
    // SAFETY: checked for null first; the reference is still held.
    let meets = !full.is_null()
        && unsafe { (*full).state != TCP_LISTEN && (*full).mark & MARK_MASK == MARK_APPLICATION };
    // SAFETY: not null, and not used afterwards.
    unsafe { bpf_sk_release(sk.cast()) };
    meets
}

/// Whether any socket of this namespace, a listener too, would receive `segment`.
#[inline(always)]
pub fn has_any_receiver(ctx: &TcContext, segment: &Segment) -> bool {
    receiver_state(ctx, segment) != 0
}

/// Whether what would receive `segment` is the remains of a closed connection.
#[inline(always)]
pub fn meets_time_wait(ctx: &TcContext, segment: &Segment) -> bool {
    receiver_state(ctx, segment) == TCP_TIME_WAIT
}

/// What came of handing a packet to a listener.
pub enum Assigned {
    Yes,
    NoListener,
    Refused,
}

/// Gives the packet to the listener of this namespace on `port`, whatever its destination.
#[inline(never)]
pub fn assign_to_port(ctx: &TcContext, segment: &Segment, port: u16) -> Assigned {
    let listener = with_tuple(segment, port, |tuple, size| {
        // SAFETY: the tuple is initialised for `size` bytes; the reference is released below.
        unsafe { bpf_sk_lookup_tcp(ctx.as_ptr(), tuple, size, CURRENT_NETNS, 0) }
    });
    if listener.is_null() {
        return Assigned::NoListener;
    }
    // An established socket on that very port would take a packet that is not its own.
    // SAFETY: not null.
    let result = if unsafe { (*listener).state } == TCP_LISTEN {
        // SAFETY: a referenced socket of this namespace; the packet takes a reference of its own.
        unsafe { bpf_sk_assign(ctx.as_ptr(), listener.cast(), 0) }
    } else {
        -1
    };
    // SAFETY: not null, and not used afterwards.
    unsafe { bpf_sk_release(listener.cast()) };
    if result == 0 { Assigned::Yes } else { Assigned::Refused }
}

/// Gives the datagram to the UDP socket of this namespace on `port`, whatever its destination.
#[inline(never)]
pub fn assign_to_datagrams(ctx: &TcContext, datagram: &Segment, port: u16) -> Assigned {
    let socket = with_tuple(datagram, port, |tuple, size| {
        // SAFETY: the tuple is initialised for `size` bytes; the reference is released below.
        unsafe { bpf_sk_lookup_udp(ctx.as_ptr(), tuple, size, CURRENT_NETNS, 0) }
    });
    if socket.is_null() {
        return Assigned::NoListener;
    }
    // SAFETY: not null.
    let result = if unsafe { (*socket).state } == TCP_CLOSE {
        // SAFETY: a socket of this namespace; the packet takes a reference of its own where one is needed.
        unsafe { bpf_sk_assign(ctx.as_ptr(), socket.cast(), 0) }
    } else {
        -1
    };
    // SAFETY: not null, and not used afterwards.
    unsafe { bpf_sk_release(socket.cast()) };
    if result == 0 { Assigned::Yes } else { Assigned::Refused }
}
