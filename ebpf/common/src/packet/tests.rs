//! Tables of packets and what becomes of them.

use super::*;

struct Packet(Vec<u8>);

impl Source for Packet {
    fn read<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        let start = usize::try_from(offset).ok()?;
        self.0.get(start..start.checked_add(N)?)?.try_into().ok().map(Bytes)
    }
}

const CLIENT: [u8; 4] = [10, 77, 0, 1];
const SERVER: [u8; 4] = [10, 77, 0, 2];
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A TCP header without options, and a payload.
fn tcp(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xc3, 0x50, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    bytes.extend(payload);
    bytes
}

/// An IPv4 packet; `fragment` is the field of flags and offset.
fn v4(options: &[u8], protocol: u8, fragment: u16, upper: &[u8]) -> Packet {
    let header = 20 + options.len();
    let total = u16::try_from(header + upper.len()).unwrap().to_be_bytes();
    let [high, low] = fragment.to_be_bytes();
    let first = 0x40 | u8::try_from(header / 4).unwrap();
    let mut bytes = vec![first, 0, total[0], total[1], 0, 1, high, low, 64, protocol, 0, 0];
    bytes.extend(CLIENT);
    bytes.extend(SERVER);
    bytes.extend(options);
    bytes.extend(upper);
    Packet(bytes)
}

/// An IPv6 packet from `fd00::1` to `fd00::2`.
fn v6(next: u8, rest: &[u8]) -> Packet {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    let mut bytes = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
    for last in [1, 2] {
        bytes.push(0xfd);
        bytes.extend([0; 14]);
        bytes.push(last);
    }
    bytes.extend(rest);
    Packet(bytes)
}

/// An options or routing header of `units` times 8 bytes before `rest`.
fn options(next: u8, units: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, units - 1];
    bytes.resize(usize::from(units) * 8, 0);
    bytes.extend(rest);
    bytes
}

/// A fragment header before `rest`; `field` is offset, two reserved bits and the flag of more to come.
fn fragment(next: u8, field: u16, rest: &[u8]) -> Vec<u8> {
    let [high, low] = field.to_be_bytes();
    let mut bytes = vec![next, 0, high, low, 0, 0, 0, 9];
    bytes.extend(rest);
    bytes
}

#[track_caller]
fn segment(parsed: Parsed) -> Segment {
    match parsed {
        Parsed::Tcp(segment) => segment,
        other => panic!("not parsed as TCP: {other:?}"),
    }
}

#[test]
fn a_plain_segment_is_read_whole() {
    let found = segment(parse(&v4(&[], 6, 0x4000, &tcp(SYN, b"")), ETHERTYPE_IPV4));
    assert_eq!(found.source, Address::from_v4(u32::from_ne_bytes(CLIENT)));
    assert_eq!(found.destination, Address::from_v4(u32::from_ne_bytes(SERVER)));
    assert_eq!((found.source_port, found.destination_port), (50000, 8080));
    assert!(found.is_v4 && found.is_empty && !found.is_tagged && found.flags.opens());

    let found = segment(parse(&v6(6, &tcp(SYN | ACK, b"data")), ETHERTYPE_IPV6));
    assert_eq!(found.source.octets()[15], 1);
    assert_eq!(found.destination.octets()[15], 2);
    assert_eq!((found.source_port, found.destination_port), (50000, 8080));
    assert!(!found.is_v4 && !found.is_empty && found.flags.answers() && !found.flags.opens());
}

#[test]
fn tcp_behind_options_and_tags_is_found() {
    let syn = tcp(SYN, b"");
    let tag = |ethertype: u16, packet: Packet| {
        let mut bytes = vec![0, 5];
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(packet.0);
        Packet(bytes)
    };
    let cases: [(&str, Packet, u16); 7] = [
        ("all 40 bytes of IPv4 options", v4(&[1; 40], 6, 0, &syn), ETHERTYPE_IPV4),
        ("hop-by-hop options", v6(0, &options(6, 1, &syn)), ETHERTYPE_IPV6),
        (
            "the longest honest chain",
            v6(0, &options(60, 1, &options(43, 3, &fragment(60, 0, &options(6, 2, &syn))))),
            ETHERTYPE_IPV6,
        ),
        ("an atomic fragment", v6(44, &fragment(6, 0, &syn)), ETHERTYPE_IPV6),
        ("2048 bytes of options", v6(60, &options(6, 255, &syn)), ETHERTYPE_IPV6),
        ("a VLAN tag", tag(ETHERTYPE_IPV4, v4(&[], 6, 0, &syn)), ETHERTYPE_VLAN),
        ("two tags", tag(ETHERTYPE_VLAN, tag(ETHERTYPE_IPV6, v6(6, &syn))), ETHERTYPE_SERVICE_VLAN),
    ];
    for (name, packet, ethertype) in cases {
        let Parsed::Tcp(found) = parse(&packet, ethertype) else { panic!("{name}") };
        assert_eq!(found.destination_port, 8080, "{name}");
        assert!(found.is_empty && found.flags.opens(), "{name}");
        assert_eq!(found.is_tagged, name.contains("tag"), "{name}");
    }
}

#[test]
fn what_cannot_be_tcp_passes_even_in_pieces() {
    let (udp, icmp6, none) = (17, 58, 59);
    let cases: [(&str, Packet, u16); 12] = [
        ("UDP", v4(&[], udp, 0, &[0; 8]), ETHERTYPE_IPV4),
        ("first fragment of UDP", v4(&[], udp, 0x2000, &[0; 8]), ETHERTYPE_IPV4),
        ("last fragment of UDP", v4(&[], udp, 0x00b9, &[0; 8]), ETHERTYPE_IPV4),
        ("IP in IP", v4(&[], 4, 0, &[0; 20]), ETHERTYPE_IPV4),
        ("UDP over IPv6", v6(udp, &[0; 8]), ETHERTYPE_IPV6),
        ("first fragment of UDP over IPv6", v6(44, &fragment(udp, 1, &[0; 8])), ETHERTYPE_IPV6),
        ("last fragment of UDP over IPv6", v6(44, &fragment(udp, 0x05a8, &[0; 8])), ETHERTYPE_IPV6),
        ("MLD", v6(0, &options(icmp6, 1, &[0; 8])), ETHERTYPE_IPV6),
        ("nothing", v6(none, &[]), ETHERTYPE_IPV6),
        ("ESP", v6(50, &[0; 8]), ETHERTYPE_IPV6),
        ("ARP", Packet(vec![0; 28]), 0x0806),
        ("three tags", Packet([0, 1, 0x81, 0].repeat(4)), ETHERTYPE_VLAN),
    ];
    for (name, packet, ethertype) in cases {
        assert_eq!(parse(&packet, ethertype), Parsed::Other, "{name}");
    }
}

#[test]
fn what_may_be_tcp_and_cannot_be_read_is_told_apart_from_what_passes() {
    let syn = tcp(SYN, b"");
    let truncated = |mut packet: Packet, by: usize| {
        packet.0.truncate(packet.0.len() - by);
        packet
    };
    let patched = |mut packet: Packet, at: usize, value: u8| {
        packet.0[at] = value;
        packet
    };
    let chain = (0..8).fold(syn.clone(), |rest, n| options(if n == 0 { 6 } else { 60 }, 1, &rest));
    let cases: [(&str, Packet, u16, Unparsed); 16] = [
        ("first fragment", v4(&[], 6, 0x2000, &syn), ETHERTYPE_IPV4, Unparsed::Fragment),
        ("later fragment", v4(&[], 6, 1, &syn), ETHERTYPE_IPV4, Unparsed::Fragment),
        ("first fragment over IPv6", v6(44, &fragment(6, 1, &syn)), ETHERTYPE_IPV6, Unparsed::Fragment),
        ("later fragment over IPv6", v6(44, &fragment(6, 8, &syn)), ETHERTYPE_IPV6, Unparsed::Fragment),
        ("fragment of options", v6(44, &fragment(60, 1, &syn)), ETHERTYPE_IPV6, Unparsed::Fragment),
        ("half an IPv4 header", truncated(v4(&[], 6, 0, &[]), 10), ETHERTYPE_IPV4, Unparsed::Truncated),
        ("half a TCP header", truncated(v4(&[], 6, 0, &syn), 1), ETHERTYPE_IPV4, Unparsed::Truncated),
        ("half an IPv6 header", truncated(v6(6, &[]), 1), ETHERTYPE_IPV6, Unparsed::Truncated),
        ("half an option header", truncated(v6(0, &[6, 0]), 1), ETHERTYPE_IPV6, Unparsed::Truncated),
        ("half a tag", Packet(vec![0, 1, 8]), ETHERTYPE_VLAN, Unparsed::Truncated),
        (
            "IPv4 header of 16 bytes",
            patched(v4(&[], 6, 0, &syn), 0, 0x44),
            ETHERTYPE_IPV4,
            Unparsed::Malformed,
        ),
        ("version 6 as IPv4", patched(v4(&[], 6, 0, &syn), 0, 0x65), ETHERTYPE_IPV4, Unparsed::Malformed),
        ("version 4 as IPv6", patched(v6(6, &syn), 0, 0x40), ETHERTYPE_IPV6, Unparsed::Malformed),
        ("a mobility header", v6(135, &options(6, 1, &syn)), ETHERTYPE_IPV6, Unparsed::Extension),
        ("a header nobody has assigned", v6(200, &options(6, 1, &syn)), ETHERTYPE_IPV6, Unparsed::Extension),
        ("too many headers", v6(60, &chain), ETHERTYPE_IPV6, Unparsed::Extension),
    ];
    for (name, packet, ethertype, reason) in cases {
        assert_eq!(parse(&packet, ethertype), Parsed::MaybeTcp(reason), "{name}");
    }
    let short = v4(&[], 6, 0, &{
        let mut header = syn;
        header[12] = 0x40;
        header
    });
    assert_eq!(
        parse(&short, ETHERTYPE_IPV4),
        Parsed::MaybeTcp(Unparsed::Malformed),
        "a TCP header of 16 bytes"
    );
}

#[test]
fn a_segment_without_payload_is_recognised_behind_any_header() {
    let empty = tcp(ACK, b"");
    let full = tcp(ACK, b"x");
    let cases: [(&str, Packet, u16, bool); 6] = [
        ("IPv4", v4(&[], 6, 0, &empty), ETHERTYPE_IPV4, true),
        ("IPv4 with options", v4(&[1; 8], 6, 0, &empty), ETHERTYPE_IPV4, true),
        ("IPv4 with payload", v4(&[], 6, 0, &full), ETHERTYPE_IPV4, false),
        ("IPv6", v6(6, &empty), ETHERTYPE_IPV6, true),
        ("IPv6 with options", v6(60, &options(6, 2, &empty)), ETHERTYPE_IPV6, true),
        ("IPv6 with payload", v6(60, &options(6, 2, &full)), ETHERTYPE_IPV6, false),
    ];
    for (name, packet, ethertype, expected) in cases {
        assert_eq!(segment(parse(&packet, ethertype)).is_empty, expected, "{name}");
    }
}

#[test]
fn a_length_of_zero_is_a_big_segment_not_an_empty_one() {
    let mut packet = v4(&[], 6, 0, &tcp(ACK, b"much"));
    packet.0[2..4].fill(0);
    assert!(!segment(parse(&packet, ETHERTYPE_IPV4)).is_empty);
    let mut packet = v6(6, &tcp(ACK, b"much"));
    packet.0[4..6].fill(0);
    assert!(!segment(parse(&packet, ETHERTYPE_IPV6)).is_empty);
}

#[test]
fn a_length_that_denies_its_own_headers_is_no_empty_segment() {
    let mut packet = v4(&[], 6, 0, &tcp(ACK, b"payload"));
    packet.0[3] = 10;
    assert!(!segment(parse(&packet, ETHERTYPE_IPV4)).is_empty);
}

#[test]
fn flags_tell_opening_answering_and_control_apart() {
    for (flags, opens, answers, control) in [
        (SYN, true, false, false),
        (SYN | ACK, false, true, true),
        (ACK, false, false, true),
        (RST, false, false, true),
        (RST | ACK, false, false, true),
        // Meaningless, and refused by every receiver; it opens nothing.
        (SYN | RST, false, false, true),
        // ECE and CWR of RFC 3168 come with an opening segment.
        (SYN | 0xc0, true, false, false),
        (0, false, false, false),
    ] {
        let flags = TcpFlags(flags);
        assert_eq!(
            (flags.opens(), flags.answers(), flags.may_be_control()),
            (opens, answers, control),
            "{flags:?}"
        );
    }
}

/// A cheap generator; the point is to try many packets, not to try random ones.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn no_packet_makes_the_parser_fail() {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let ethertypes = [ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, 0x0806];
    for round in 0..200_000_usize {
        let length = usize::try_from(next(&mut state) % 120).unwrap();
        let mut bytes: Vec<u8> = (0..length).map(|_| next(&mut state).to_le_bytes()[0]).collect();
        let ethertype = ethertypes[round % ethertypes.len()];
        // Let most of them get past the first check.
        if let Some(first) = bytes.first_mut() {
            *first = if ethertype == ETHERTYPE_IPV6 { 0x60 } else { 0x45 };
        }
        if let Parsed::Tcp(segment) = parse(&Packet(bytes), ethertype) {
            assert!(length >= 40 || segment.is_tagged);
        }
    }
}

/// A datagram from port 50000 to `port` that begins as a DNS message with these flags does.
fn udp(port: u16, flags: u8) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![0xc3, 0x50, high, low, 0, 20, 0, 0, 0x12, 0x34, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0]
}

#[test]
fn a_dns_query_is_told_from_other_datagrams() {
    let query = udp(53, 0x01);
    let tagged = |packet: Packet| Packet([&[0, 7, 0x08, 0x00][..], &packet.0[..]].concat());
    for (name, packet, ethertype, is_v4, is_tagged) in [
        ("IPv4", v4(&[], 17, 0, &query), ETHERTYPE_IPV4, true, false),
        ("that may not be fragmented", v4(&[], 17, 0x4000, &query), ETHERTYPE_IPV4, true, false),
        ("with options", v4(&[1, 1, 1, 1], 17, 0, &query), ETHERTYPE_IPV4, true, false),
        ("IPv6", v6(17, &query), ETHERTYPE_IPV6, false, false),
        ("behind an extension header", v6(60, &options(17, 1, &query)), ETHERTYPE_IPV6, false, false),
        ("behind a tag", tagged(v4(&[], 17, 0, &query)), ETHERTYPE_VLAN, true, true),
    ] {
        let Parsed::Dns(found) = parse(&packet, ethertype) else { panic!("{name}") };
        assert_eq!((found.source_port, found.destination_port), (50_000, 53), "{name}");
        assert_eq!((found.is_v4, found.is_tagged), (is_v4, is_tagged), "{name}");
        if is_v4 {
            assert_eq!(found.destination, Address::from_v4(u32::from_ne_bytes(SERVER)), "{name}");
        }
    }
}

#[test]
fn what_is_no_whole_dns_query_passes_as_any_datagram() {
    for (name, packet, ethertype) in [
        ("an answer, to a client that asked from port 53", v4(&[], 17, 0, &udp(53, 0x81)), ETHERTYPE_IPV4),
        ("another port", v4(&[], 17, 0, &udp(5353, 0)), ETHERTYPE_IPV4),
        (
            "from port 53",
            v4(&[], 17, 0, &[&[0, 53, 0xc3, 0x50][..], &udp(53, 0)[4..]].concat()),
            ETHERTYPE_IPV4,
        ),
        ("the first of several fragments", v4(&[], 17, 0x2000, &udp(53, 0)), ETHERTYPE_IPV4),
        ("a later fragment", v4(&[], 17, 1, &udp(53, 0)), ETHERTYPE_IPV4),
        (
            "a fragment over IPv6",
            v6(44, &[&[17, 0, 0, 1, 0, 0, 0, 0][..], &udp(53, 0)].concat()),
            ETHERTYPE_IPV6,
        ),
        ("a datagram without content", v4(&[], 17, 0, &udp(53, 0)[..8]), ETHERTYPE_IPV4),
        ("half a header", v4(&[], 17, 0, &udp(53, 0)[..6]), ETHERTYPE_IPV4),
        ("half a header over IPv6", v6(17, &udp(53, 0)[..6]), ETHERTYPE_IPV6),
    ] {
        assert_eq!(parse(&packet, ethertype), Parsed::Other, "{name}");
    }
}
