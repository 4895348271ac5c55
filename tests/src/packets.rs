//! Packets that no socket of TCP would send, each of them plaintext for whoever puts it together: by raw sockets from inside a pod.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use crate::world::{MARKER, ports};

/// Next header and protocol number of TCP (IANA).
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
/// Assigned to nothing.
const UNASSIGNED: u8 = 200;
/// Flags of TCP (RFC 9293 3.1).
const SYN: u8 = 0x02;
const PUSH_ACK: u8 = 0x18;

/// A packet and what is to become of it: the reason it is counted under.
pub(crate) struct Trick {
    /// What it is.
    pub(crate) name: &'static str,
    /// From the IP header on.
    pub(crate) packet: Vec<u8>,
    /// The value of the metric's label `reason`.
    pub(crate) reason: &'static str,
}

/// The tricks of the family of `from` and `to`.
pub(crate) fn tricks(from: IpAddr, to: IpAddr) -> Vec<Trick> {
    let trick = |(name, packet, reason)| Trick { name, packet, reason };
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4(from.octets(), to.octets()).into_iter().map(trick).collect(),
        (IpAddr::V6(from), IpAddr::V6(to)) => v6(from.octets(), to.octets()).into_iter().map(trick).collect(),
        _ => Vec::new(),
    }
}

/// Sends a packet as it is.
pub(crate) fn send(packet: &[u8], to: IpAddr) -> std::io::Result<()> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    sendto(raw.as_raw_fd(), packet, &SockaddrStorage::from(SocketAddr::new(to, 0)), MsgFlags::empty())?;
    Ok(())
}

/// A segment with the marker as its payload.
fn tcp(flags: u8, words: u8) -> Vec<u8> {
    let mut segment = 4446_u16.to_be_bytes().to_vec();
    segment.extend(ports::ECHO.to_be_bytes());
    // The checksum matters to nobody who looks for plaintext.
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(MARKER.as_bytes());
    segment
}

type Case = (&'static str, Vec<u8>, &'static str);

fn v4(from: [u8; 4], to: [u8; 4]) -> Vec<Case> {
    /// More fragments (RFC 791 3.1).
    const MORE: u16 = 0x2000;
    let packet = |options: &[u8], fragment: u16, upper: &[u8]| {
        let words = 5 + u8::try_from(options.len() / 4).unwrap_or(0);
        let total = u16::try_from(usize::from(words) * 4 + upper.len()).unwrap_or(0).to_be_bytes();
        let [high, low] = fragment.to_be_bytes();
        let mut packet = vec![0x40 | words, 0, total[0], total[1], 0x12, 0x34, high, low, 64, TCP, 0, 0];
        packet.extend(from);
        packet.extend(to);
        packet.extend(options);
        packet.extend(upper);
        packet
    };
    let (syn, data) = (tcp(SYN, 5), tcp(PUSH_ACK, 5));
    // Four times no operation, and a record route with room for one address (RFC 791 3.1).
    let (nothing, route) = ([1; 4], [7, 7, 4, 0, 0, 0, 0, 0]);
    vec![
        ("a tiny first fragment", packet(&[], MORE, &data[..8]), "fragment"),
        ("a first fragment with the whole header", packet(&[], MORE, &data), "fragment"),
        ("a fragment that overlaps the header", packet(&[], 1, &data[8..]), "fragment"),
        ("a last fragment", packet(&[], 100, MARKER.as_bytes()), "fragment"),
        ("a fragment behind options", packet(&route, MORE, &data), "fragment"),
        ("half a header", packet(&[], 0, &data[..12]), "truncated"),
        ("a header shorter than it can be", packet(&[], 0, &tcp(PUSH_ACK, 4)), "malformed"),
        ("an opening behind options", packet(&nothing, 0, &syn), "outbound"),
        ("data of no connection behind options", packet(&route, 0, &data), "outbound"),
        ("data of no connection", packet(&[], 0, &data), "outbound"),
    ]
}

fn v6(from: [u8; 16], to: [u8; 16]) -> Vec<Case> {
    let packet = |next: u8, rest: &[u8]| {
        let length = u16::try_from(rest.len()).unwrap_or(0).to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
        packet.extend(from);
        packet.extend(to);
        packet.extend(rest);
        packet
    };
    // 8 bytes: next header, no further words, and padding (RFC 8200 4.2).
    let behind = |next: u8, rest: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0], rest].concat();
    // Offset and more-flag as RFC 8200 4.5 has them.
    let piece = |next: u8, field: u16, rest: &[u8]| {
        let [high, low] = field.to_be_bytes();
        [&[next, 0, high, low, 1, 2, 3, 4], rest].concat()
    };
    let (syn, data) = (tcp(SYN, 5), tcp(PUSH_ACK, 5));
    let options = DESTINATION_OPTIONS;
    let chain = (0..7).fold(data.clone(), |rest, at| behind(if at == 0 { TCP } else { options }, &rest));
    vec![
        ("a tiny first fragment", packet(FRAGMENT, &piece(TCP, 1, &data[..8])), "fragment"),
        ("a first fragment with the whole header", packet(FRAGMENT, &piece(TCP, 1, &data)), "fragment"),
        ("a last fragment", packet(FRAGMENT, &piece(TCP, 0x320, MARKER.as_bytes())), "fragment"),
        (
            "a fragment whose header comes with another",
            packet(FRAGMENT, &piece(options, 1, &behind(TCP, &data))),
            "fragment",
        ),
        (
            "a fragment of a fragment",
            packet(FRAGMENT, &piece(FRAGMENT, 1, &piece(TCP, 0, &data))),
            "fragment",
        ),
        ("half a header", packet(TCP, &data[..12]), "truncated"),
        ("a header shorter than it can be", packet(TCP, &tcp(PUSH_ACK, 4)), "malformed"),
        ("a mobility header", packet(MOBILITY, &behind(TCP, &data)), "extension_header"),
        ("a header nobody knows", packet(UNASSIGNED, &behind(TCP, &data)), "extension_header"),
        (
            "a header nobody knows behind one that is known",
            packet(options, &behind(UNASSIGNED, &behind(TCP, &data))),
            "extension_header",
        ),
        ("a fragment of a header nobody knows", packet(FRAGMENT, &piece(UNASSIGNED, 1, &data)), "fragment"),
        ("too many headers", packet(options, &chain), "extension_header"),
        ("an opening behind options for every hop", packet(HOP_BY_HOP, &behind(TCP, &syn)), "outbound"),
        ("data of no connection behind a routing header", packet(ROUTING, &behind(TCP, &data)), "outbound"),
        ("data of no connection in a single fragment", packet(FRAGMENT, &piece(TCP, 0, &data)), "outbound"),
    ]
}
