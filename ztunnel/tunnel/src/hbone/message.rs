//! What a CONNECT request says.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::HeaderValue;

/// Where a CONNECT asks to be taken: `ip:port`, `[v6]:port` or `hostname:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address.
    Address(SocketAddr),
    /// A service's or workload's host name.
    Name {
        /// The name, in lower case.
        host: String,
        /// The port.
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
        todo!()
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}

/// The headers that HBONE carries. Each may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHeaders {
    /// Who the client is, for telemetry (W3C baggage).
    pub baggage: Option<HeaderValue>,
    /// The client's address and the service it called; see [`forwarded`].
    pub forwarded: Option<HeaderValue>,
    /// W3C trace context.
    pub traceparent: Option<HeaderValue>,
}

/// `for="ip:port"[;host=name]` (RFC 7239, in the form of Istio contract 2.1). A name that no header can carry
/// is left out.
pub fn forwarded(client: SocketAddr, host: Option<&str>) -> HeaderValue {
    todo!()
}

#[allow(dead_code, reason = "signatures first")]
fn unused(_: IpAddr) {}
