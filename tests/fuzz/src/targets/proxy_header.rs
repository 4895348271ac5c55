//! The PROXY header, of which a peer has a say in the host name that it called.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tunnel::proxy_protocol::ProxyHeader;

/// Signature, version, command, family and length of the rest.
const HEAD: usize = 16;

/// Reads the header as an application does that knows the protocol: the name comes out of it as it went in, and nothing else does,
/// whatever bytes it has; and what is too long for a length is no header.
pub fn run(input: &[u8]) {
    let Some((shape, rest)) = input.split_first() else { return };
    let Ok(host) = std::str::from_utf8(rest) else { return };
    let (source, destination) = (address(shape & 1 != 0), address(shape & 2 != 0));
    let is_named = shape & 4 != 0;
    let header = ProxyHeader { source, destination, identity: None, host: is_named.then_some(host) };
    let Ok(bytes) = header.encode() else {
        assert!(is_named && host.len() > usize::from(u16::MAX) - 64, "{} bytes", host.len());
        return;
    };
    assert_eq!(bytes[..13], *b"\r\n\r\n\0\r\nQUIT\n\x21");
    let addresses = if source.is_ipv4() && destination.is_ipv4() { 12 } else { 36 };
    assert_eq!(bytes[13], if addresses == 12 { 0x11 } else { 0x21 });
    assert_eq!(usize::from(u16::from_be_bytes([bytes[14], bytes[15]])), bytes.len() - HEAD);
    let extensions = &bytes[HEAD + addresses..];
    if is_named {
        assert_eq!(extensions[0], 0xd1);
        assert_eq!(usize::from(u16::from_be_bytes([extensions[1], extensions[2]])), host.len());
        assert_eq!(extensions[3..], *host.as_bytes());
    } else {
        assert!(extensions.is_empty());
    }
}

fn address(is_v6: bool) -> SocketAddr {
    let ip = if is_v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::from([10, 0, 0, 1]) };
    SocketAddr::new(ip, 15008)
}

/// With a name and without, by each pair of families.
pub fn seeds() -> Vec<Vec<u8>> {
    (0..8).map(|shape| [&[shape][..], b"web.shop.svc.cluster.local"].concat()).collect()
}
