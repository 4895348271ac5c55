//! Finding the TCP header of a packet, or saying why it cannot be found; and telling DNS queries from other datagrams.
//!
//! The answer has three shapes because capture fails closed: what is TCP is captured, what cannot be TCP passes, and what is or may
//! be TCP but cannot be parsed is dropped by the caller. Offsets are relative to the network header, so that devices with and
//! without a link-layer header are one case.
//!
//! Of UDP only a whole datagram to port 53 that begins as a DNS query does is told from the rest: what a DNS server answers to a client
//! that asked from port 53 is none, nor are fragments, which pass as they are.
//!
//! Sources: RFC 791 3.1 (IPv4), RFC 8200 4 (IPv6 and its extension headers), RFC 7045 2 (the list of them), RFC 9293 3.1 (TCP), RFC 768 (UDP), RFC 1035 4.1.1 (DNS),
//! RFC 6864 4 and RFC 5722 3 (fragments), RFC 2675 2 (payload length 0 of jumbograms, which Linux also uses for big offloaded segments).

use crate::Address;

/// `ETH_P_IP`.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// `ETH_P_IPV6`.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// The bit of the third octet of a DNS message that says it is an answer.
const DNS_ANSWER: u8 = 0x80;

/// Extension headers walked at most; an honest packet has at most one of each of the four that may precede TCP, destination
/// options twice (RFC 8200 4.1).
const MAX_EXTENSION_HEADERS: usize = 6;

/// Bytes of a packet at an address that suits words, so that fields of a header are single loads.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Bytes<const N: usize>(pub [u8; N]);

/// Where the bytes of a packet come from: a socket buffer in the kernel, a slice in tests.
pub trait Source {
    /// Reads `N` bytes at `offset` from the network header, or `None` if the packet ends before.
    fn read<const N: usize>(&self, offset: u32) -> Option<Bytes<N>>;
}

/// Flag bits of the TCP header that decisions depend on.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub struct TcpFlags(u8);

impl TcpFlags {
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// The first segment of a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }

    /// The answer to the first segment.
    #[inline(always)]
    pub const fn answers(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN | Self::ACK
    }

    /// One of the kinds a host sends on behalf of no application: a reset, an acknowledgement, or the answer of a SYN cookie.
    #[inline(always)]
    pub const fn may_be_control(self) -> bool {
        self.0 & (Self::RST | Self::ACK) != 0
    }
}

/// What capture needs to know of a TCP segment, or of a datagram, which has no flags.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub struct Segment {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, in host byte order.
    pub source_port: u16,
    /// Destination port, in host byte order.
    pub destination_port: u16,
    /// The flags.
    pub flags: TcpFlags,
    /// Whether the network header is IPv4; the addresses are then IPv4-mapped.
    pub is_v4: bool,
    /// Whether the headers say that there is no payload.
    pub is_empty: bool,
    /// Whether the segment is behind a VLAN tag.
    pub is_tagged: bool,
}

/// Why a packet that is or may be TCP could not be parsed.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub enum Unparsed {
    /// A fragment, whose TCP header is elsewhere or may be overwritten by another fragment.
    Fragment,
    /// The packet ends before its TCP header does.
    Truncated,
    /// A header contradicts itself.
    Malformed,
    /// An unknown extension header, or too many.
    Extension,
}

/// The three shapes of the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub enum Parsed {
    /// A TCP segment.
    Tcp(Segment),
    /// A datagram that is a DNS query.
    Dns(Segment),
    /// TCP, or possibly TCP, that cannot be parsed.
    MaybeTcp(Unparsed),
    /// Certainly not TCP to whoever receives it.
    Other,
}

/// Parses the packet whose ethertype (host byte order) is `ethertype`.
#[inline(always)]
pub fn parse(source: &impl Source, ethertype: u16) -> Parsed {
    let mut ethertype = ethertype;
    let mut offset = 0;
    // Two tags (802.1ad) are what Linux devices stack; more are no IP to any receiver we know of, and pass as such.
    for _ in 0..2 {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
            break;
        }
        let Some(Bytes([_, _, high, low])) = source.read::<4>(offset) else {
            return Parsed::MaybeTcp(Unparsed::Truncated);
        };
        ethertype = u16::from_be_bytes([high, low]);
        offset += 4;
    }
    let parsed = match ethertype {
        ETHERTYPE_IPV4 => parse_v4(source, offset),
        ETHERTYPE_IPV6 => parse_v6(source, offset),
        _ => return Parsed::Other,
    };
    match parsed {
        Parsed::Tcp(segment) => Parsed::Tcp(Segment { is_tagged: offset != 0, ..segment }),
        Parsed::Dns(datagram) => Parsed::Dns(Segment { is_tagged: offset != 0, ..datagram }),
        other => other,
    }
}

#[inline(always)]
fn parse_v4(source: &impl Source, start: u32) -> Parsed {
    let Some(Bytes(header)) = source.read::<20>(start) else { return Parsed::MaybeTcp(Unparsed::Truncated) };
    if header[9] != PROTOCOL_TCP {
        return if header[9] == PROTOCOL_UDP { v4_datagram(source, start, &header) } else { Parsed::Other };
    }
    let header_length = u32::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_length < 20 {
        return Parsed::MaybeTcp(Unparsed::Malformed);
    }
    // More fragments, or not the first one. A first fragment may hold a whole TCP header, but a later one can overwrite it.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Parsed::MaybeTcp(Unparsed::Fragment);
    }
    let total = u32::from(u16::from_be_bytes([header[2], header[3]]));
    let addresses = v4_addresses(&header);
    // A total length of 0 stands for an offloaded segment of more than 64 KiB.
    let upper_length = if total == 0 { None } else { Some(total.wrapping_sub(header_length)) };
    parse_tcp(source, start + header_length, addresses, upper_length)
}

#[inline(always)]
fn v4_addresses(header: &[u8; 20]) -> Addresses {
    Addresses {
        source: Address::from_v4(word(header, 12)),
        destination: Address::from_v4(word(header, 16)),
        is_v4: true,
    }
}

#[inline(always)]
fn v4_datagram(source: &impl Source, start: u32, header: &[u8; 20]) -> Parsed {
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let header_length = u32::from(header[0] & 0x0f) * 4;
    if is_fragment || header_length < 20 {
        return Parsed::Other;
    }
    parse_datagram(source, start + header_length, v4_addresses(header))
}

/// `offset` is that of the UDP header. What ends within is no query.
#[inline(always)]
fn parse_datagram(source: &impl Source, offset: u32, addresses: Addresses) -> Parsed {
    let Some(Bytes(header)) = source.read::<12>(offset) else { return Parsed::Other };
    let destination_port = u16::from_be_bytes([header[2], header[3]]);
    if destination_port != crate::PORT_DOMAIN || header[10] & DNS_ANSWER != 0 {
        return Parsed::Other;
    }
    Parsed::Dns(Segment {
        source: addresses.source,
        destination: addresses.destination,
        source_port: u16::from_be_bytes([header[0], header[1]]),
        destination_port,
        flags: TcpFlags(0),
        is_v4: addresses.is_v4,
        is_empty: false,
        is_tagged: false,
    })
}

#[inline(always)]
fn parse_v6(source: &impl Source, start: u32) -> Parsed {
    let Some(Bytes(header)) = source.read::<40>(start) else { return Parsed::MaybeTcp(Unparsed::Truncated) };
    if header[0] >> 4 != 6 {
        return Parsed::MaybeTcp(Unparsed::Malformed);
    }
    let mut next = header[6];
    let mut offset = start + 40;
    let mut found = is_known(next);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if found {
            break;
        }
        match step(source, next, offset) {
            Step::Next { header, length } => {
                next = header;
                offset += length;
                found = is_known(next);
            }
            Step::End(parsed) => return parsed,
        }
    }
    if !found {
        return Parsed::MaybeTcp(Unparsed::Extension);
    }
    let address = |at| {
        Address::from_words([
            word(&header, at),
            word(&header, at + 4),
            word(&header, at + 8),
            word(&header, at + 12),
        ])
    };
    let addresses = Addresses { source: address(8), destination: address(24), is_v4: false };
    if next == PROTOCOL_UDP {
        return parse_datagram(source, offset, addresses);
    }
    let payload = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let upper_length = if payload == 0 { None } else { Some((start + 40 + payload).wrapping_sub(offset)) };
    parse_tcp(source, offset, addresses, upper_length)
}

#[inline(always)]
const fn is_known(protocol: u8) -> bool {
    protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP
}

/// A word of a header, left in network byte order.
#[inline(always)]
const fn word<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// One step along the chain of IPv6 headers.
enum Step {
    Next { header: u8, length: u32 },
    End(Parsed),
}

#[inline(always)]
fn step(source: &impl Source, header: u8, offset: u32) -> Step {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION_OPTIONS: u8 = 60;
    match header {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => match source.read::<2>(offset) {
            Some(Bytes([next, length])) => Step::Next { header: next, length: (u32::from(length) + 1) * 8 },
            None => Step::End(Parsed::MaybeTcp(Unparsed::Truncated)),
        },
        FRAGMENT => match source.read::<4>(offset) {
            // An atomic fragment: neither offset nor more to come (RFC 6946).
            Some(Bytes([next, _, high, low])) if u16::from_be_bytes([high, low]) & 0xfff9 == 0 => {
                Step::Next { header: next, length: 8 }
            }
            // Every fragment says what the whole begins with.
            Some(Bytes([next, ..])) if next == PROTOCOL_TCP || may_precede_tcp(next) => {
                Step::End(Parsed::MaybeTcp(Unparsed::Fragment))
            }
            Some(_) => Step::End(Parsed::Other),
            None => Step::End(Parsed::MaybeTcp(Unparsed::Truncated)),
        },
        unknown if may_precede_tcp(unknown) => Step::End(Parsed::MaybeTcp(Unparsed::Extension)),
        _ => Step::End(Parsed::Other),
    }
}

/// The extension headers of RFC 7045 behind which TCP can stand in the clear, and the numbers IANA has not assigned (148 and up), any of
/// which may be one. ESP (50) and AH (51) are left out: like any tunnel they mean nothing to a receiver that does not share their state.
#[inline(always)]
const fn may_precede_tcp(header: u8) -> bool {
    matches!(header, 0 | 43 | 44 | 60 | 135 | 139 | 140 | 148..=255)
}

struct Addresses {
    source: Address,
    destination: Address,
    is_v4: bool,
}

#[inline(always)]
fn parse_tcp(source: &impl Source, offset: u32, addresses: Addresses, upper_length: Option<u32>) -> Parsed {
    let Some(Bytes(header)) = source.read::<20>(offset) else { return Parsed::MaybeTcp(Unparsed::Truncated) };
    let header_length = u32::from(header[12] >> 4) * 4;
    if header_length < 20 {
        return Parsed::MaybeTcp(Unparsed::Malformed);
    }
    Parsed::Tcp(Segment {
        source: addresses.source,
        destination: addresses.destination,
        source_port: u16::from_be_bytes([header[0], header[1]]),
        destination_port: u16::from_be_bytes([header[2], header[3]]),
        flags: TcpFlags(header[13]),
        is_v4: addresses.is_v4,
        is_empty: upper_length == Some(header_length),
        is_tagged: false,
    })
}

#[cfg(test)]
mod tests;
