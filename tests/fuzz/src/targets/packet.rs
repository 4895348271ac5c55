//! The packet parser of the kernel programs, which is the same code there.

use ebpf_common::packet::{Bytes, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Parsed, Source, parse};

struct Packet<'a>(&'a [u8]);

impl Source for Packet<'_> {
    fn read<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        let start = usize::try_from(offset).ok()?;
        self.0.get(start..start.checked_add(N)?)?.try_into().ok().map(Bytes)
    }
}

/// The first two bytes are the ethertype. What is a segment has its ports and flags where a second, slower search finds a TCP header, and
/// a packet that says of itself that it is whole TCP over IPv4 never passes as something else.
pub fn run(input: &[u8]) {
    let Some((ethertype, packet)) = input.split_first_chunk::<2>() else { return };
    let ethertype = u16::from_be_bytes(*ethertype);
    let parsed = parse(&Packet(packet), ethertype);
    if let Parsed::Tcp(segment) = &parsed {
        let ports = [segment.source_port.to_be_bytes(), segment.destination_port.to_be_bytes()].concat();
        assert!(packet.windows(4).any(|window| window == ports), "ports from outside the packet");
        assert!(packet.len() >= 40, "a segment out of {} bytes", packet.len());
        assert!(!(segment.flags.opens() && segment.flags.answers()));
        assert!(ethertype != ETHERTYPE_IPV4 || (segment.is_v4 && !segment.is_tagged));
        assert!(ethertype != ETHERTYPE_IPV6 || !(segment.is_v4 || segment.is_tagged));
    }
    // To the receiver's kernel the protocol field alone decides.
    let says_tcp = match ethertype {
        ETHERTYPE_IPV4 => packet.get(9) == Some(&6),
        ETHERTYPE_IPV6 => packet.get(6) == Some(&6),
        _ => false,
    };
    assert!(!(says_tcp && matches!(parsed, Parsed::Other)), "TCP would pass");
}

/// IPv4 and IPv6, with and without what may stand before TCP.
pub fn seeds() -> Vec<Vec<u8>> {
    let tcp = [0xc3, 0x50, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    let v4 = [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    let mut v6 = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
    v6.extend([[0xfd; 16], [0xfc; 16]].concat());
    let before_tcp = |next: u8, extension: &[u8]| {
        let mut bytes = v6.clone();
        bytes[5] += u8::try_from(extension.len()).unwrap_or_default();
        bytes[6] = next;
        [&[0x86, 0xdd][..], &*bytes, extension, &tcp].concat()
    };
    vec![
        [&[0x08, 0x00][..], &v4[..], &tcp].concat(),
        [&[0x81, 0x00, 0, 5, 0x08, 0x00][..], &v4[..], &tcp].concat(),
        before_tcp(6, &[]),
        before_tcp(0, &[6, 0, 1, 4, 0, 0, 0, 0]),
        before_tcp(44, &[6, 0, 0, 0, 0, 0, 0, 9]),
        before_tcp(44, &[60, 0, 0, 1, 0, 0, 0, 9]),
        before_tcp(43, &[6, 0, 4, 0, 0, 0, 0, 0]),
    ]
}
