//! The header of the PROXY protocol, version 2, by which an application is told of its client (contract 1.3).
//!
//! Format: "The PROXY protocol", HAProxy, section 2.2. The types of the extensions are Istio's, out of the range 0xE0
//! and below that the protocol leaves to others.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::{BufMut as _, Bytes, BytesMut};
use mesh::SpiffeId;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of another one (PROXY).
const VERSION_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// An extension: the SPIFFE id that the client has proved.
const IDENTITY: u8 = 0xd0;
/// An extension: the host name of the service that the client called.
const HOST: u8 = 0xd1;

/// What an application is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader<'a> {
    /// The client.
    pub source: SocketAddr,
    /// What it asked for.
    pub destination: SocketAddr,
    /// Who it has proved to be; left out if nobody.
    pub identity: Option<&'a SpiffeId>,
    /// The host name that it asked for, where that is what it did.
    pub host: Option<&'a str>,
}

/// Names that are too long for the header's 16 bits of length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client's names have {0} bytes, too many for a PROXY header")]
pub struct TooLong(pub usize);

impl ProxyHeader<'_> {
    /// The header's bytes. Where the two addresses are of different families, the IPv4 one is in IPv6 form.
    pub fn encode(&self) -> Result<Bytes, TooLong> {
        let identity = self.identity.map(ToString::to_string);
        let mut rest = BytesMut::new();
        let family = match (self.source.ip().to_canonical(), self.destination.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                rest.put_slice(&source.octets());
                rest.put_slice(&destination.octets());
                TCP_OVER_IPV4
            }
            (source, destination) => {
                rest.put_slice(&in_ipv6_form(source).octets());
                rest.put_slice(&in_ipv6_form(destination).octets());
                TCP_OVER_IPV6
            }
        };
        rest.put_u16(self.source.port());
        rest.put_u16(self.destination.port());
        for (kind, value) in [(IDENTITY, identity.as_deref()), (HOST, self.host)] {
            let Some(value) = value else { continue };
            rest.put_u8(kind);
            rest.put_u16(length(value.len())?);
            rest.put_slice(value.as_bytes());
        }
        let mut header = BytesMut::with_capacity(SIGNATURE.len() + 4 + rest.len());
        header.put_slice(SIGNATURE);
        header.put_u8(VERSION_COMMAND);
        header.put_u8(family);
        header.put_u16(length(rest.len())?);
        header.put_slice(&rest);
        Ok(header.freeze())
    }
}

fn length(bytes: usize) -> Result<u16, TooLong> {
    u16::try_from(bytes).map_err(|_| TooLong(bytes))
}

fn in_ipv6_form(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header as hexadecimal digits, in groups of what belongs together.
    fn encoded(source: &str, destination: &str, identity: Option<&str>, host: Option<&str>) -> Vec<u8> {
        let identity: Option<SpiffeId> = identity.map(|text| text.parse().unwrap());
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        ProxyHeader { source, destination, identity: identity.as_ref(), host }.encode().unwrap().to_vec()
    }

    fn bytes(groups: &[&[u8]]) -> Vec<u8> {
        groups.concat()
    }

    const HEAD: &[u8] = &[0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21];
    const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

    #[test]
    fn addresses_ports_identity_and_host_stand_where_the_protocol_says() {
        let v4 = [10, 0, 0, 1, 10, 9, 0, 1];
        let ports = [0x9c, 0x40, 0x00, 0x50];
        let (source, destination) = ("10.0.0.1:40000", "10.9.0.1:80");
        assert_eq!(encoded(source, destination, None, None), bytes(&[HEAD, &[0x11, 0, 12], &v4, &ports]));
        assert_eq!(
            encoded(source, destination, Some(ID), None),
            bytes(&[HEAD, &[0x11, 0, 12 + 3 + 37], &v4, &ports, &[0xd0, 0, 37], ID.as_bytes()]),
        );
        assert_eq!(
            encoded(source, destination, Some(ID), Some("web.shop")),
            bytes(&[
                HEAD,
                &[0x11, 0, 12 + 3 + 37 + 3 + 8],
                &v4,
                &ports,
                &[0xd0, 0, 37],
                ID.as_bytes(),
                &[0xd1, 0, 8],
                b"web.shop",
            ]),
        );
    }

    #[test]
    fn ipv6_addresses_have_16_bytes_and_of_two_families_both_do() {
        let v6 = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        let ports = [0, 1, 0, 2];
        let head = bytes(&[HEAD, &[0x21, 0, 36]]);
        for (source, destination, first, second) in [
            ("[fd00::1]:1", "[fd00::2]:2", v6(1), v6(2)),
            ("10.0.0.1:1", "[fd00::2]:2", mapped, v6(2)),
            ("[fd00::1]:1", "10.0.0.1:2", v6(1), mapped),
        ] {
            assert_eq!(encoded(source, destination, None, None), bytes(&[&head, &first, &second, &ports]));
        }
        let both_mapped = encoded("[::ffff:10.0.0.1]:1", "10.0.0.2:2", None, None);
        assert_eq!(both_mapped, bytes(&[HEAD, &[0x11, 0, 12], &[10, 0, 0, 1, 10, 0, 0, 2], &ports]));
    }

    #[test]
    fn names_that_do_not_fit_are_an_error() {
        let (source, destination) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let long = |length| {
            let host = "x".repeat(length);
            let header = ProxyHeader { source, destination, identity: None, host: Some(&host) };
            header.encode().map(|bytes| bytes.len())
        };
        assert_eq!(long(65_535 - 15), Ok(65_535 + 16));
        assert_eq!(long(65_535 - 14), Err(TooLong(65_536)));
        assert_eq!(long(65_536), Err(TooLong(65_536)));
    }
}
