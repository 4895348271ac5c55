//! What a CONNECT request says.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// Where a CONNECT asks to be taken: `ip:port`, `[v6]:port` or `hostname:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address.
    Address(SocketAddr),
    /// A service's or workload's host name.
    Name {
        /// The name, in lower case.
        host: String,
        /// The port; not 0.
        port: u16,
    },
}

/// A text that is no authority with a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("authority `{0}` is not of the form host:port")]
pub struct InvalidAuthority(pub String);

impl FromStr for Authority {
    type Err = InvalidAuthority;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| InvalidAuthority(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Authority> {
    let (host, port) = text.rsplit_once(':')?;
    // `parse` alone would take `+80`.
    let port: u16 = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??;
    if port == 0 {
        return None;
    }
    if let Some(bracketed) = host.strip_prefix('[') {
        let address: Ipv6Addr = bracketed.strip_suffix(']')?.parse().ok()?;
        return Some(Authority::Address(SocketAddr::new(address.to_canonical(), port)));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Some(Authority::Address(SocketAddr::new(address.into(), port)));
    }
    is_host_name(host).then(|| Authority::Name { host: host.to_ascii_lowercase(), port })
}

/// Letters, digits, `-`, `.` and `_`; 255 octets at most (RFC 1035 2.3.4).
pub(super) fn is_host_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && text.len() <= 255 && text.bytes().all(letter)
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The headers that HBONE carries. Each may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// Who the client is, for telemetry (W3C baggage).
    pub baggage: Option<HeaderValue>,
    /// The client's address and the service it called; see [`forwarded`](super::forwarded()).
    pub forwarded: Option<HeaderValue>,
    /// W3C trace context.
    pub traceparent: Option<HeaderValue>,
    /// The client's network, on a tunnel that comes from another one.
    pub forwarded_network: Option<HeaderValue>,
}

impl ConnectHeaders {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        Self {
            baggage: headers.get(BAGGAGE).cloned(),
            forwarded: headers.get(http::header::FORWARDED).cloned(),
            traceparent: headers.get(TRACEPARENT).cloned(),
            forwarded_network: headers.get(FORWARDED_NETWORK).cloned(),
        }
    }

    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        for (name, value) in [
            (BAGGAGE, &self.baggage),
            (http::header::FORWARDED, &self.forwarded),
            (TRACEPARENT, &self.traceparent),
            (FORWARDED_NETWORK, &self.forwarded_network),
        ] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_read_and_written_alike() {
        for (text, expected) in [
            ("10.0.0.1:80", Authority::Address("10.0.0.1:80".parse().unwrap())),
            ("[fd00::1]:8080", Authority::Address("[fd00::1]:8080".parse().unwrap())),
            (
                "echo.demo.svc.cluster.local:80",
                Authority::Name { host: "echo.demo.svc.cluster.local".to_owned(), port: 80 },
            ),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn forms_of_the_same_place_are_the_same() {
        assert_eq!("Echo.Demo:1".parse::<Authority>(), "echo.demo:1".parse());
        assert_eq!("[::ffff:10.0.0.1]:80".parse::<Authority>(), "10.0.0.1:80".parse());
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        let long = format!("{}:80", "a".repeat(256));
        for text in [
            "",
            ":",
            ":80",
            "host",
            "host:",
            "host:0",
            "host:+80",
            "host:65536",
            "fd00::1:80",
            "[fd00::1]",
            "[fd00::1:80",
            "[host]:80",
            "user@host:80",
            "ho st:80",
            "host/path:80",
            "höst:80",
            &long,
        ] {
            assert!(text.parse::<Authority>().is_err(), "{text}");
        }
    }
}
