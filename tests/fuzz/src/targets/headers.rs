//! Headers of a CONNECT request that are read: `traceparent`, and `forwarded`, which is written too.

use std::net::SocketAddr;

use http::HeaderValue;
use tunnel::hbone::{TraceParent, forwarded, forwarded_host};

/// What is read is a plain name or id; what is written for any client and name is read as just that name or as none.
pub fn run(input: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(input)
        && let Some(host) = forwarded_host(&value)
    {
        assert!(is_host_name(host), "{host:?} of {value:?}");
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(trace) = text.parse::<TraceParent>() {
        assert_eq!(trace.to_string().parse(), Ok(trace), "{text:?}");
    }
    let client = SocketAddr::from(([10, 0, 0, 1], 1234));
    let written = forwarded(client, Some(text));
    let expected = Some(text).filter(|text| is_host_name(text));
    assert_eq!(forwarded_host(&written), expected, "{written:?}");
}

fn is_host_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// What is sent, what RFC 7239 allows beside it, and a name.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "for=\"10.0.0.1:1234\";host=web.shop.svc.cluster.local",
        "for=\"[fd00::1]:1\"",
        "For=unknown; Host=\"a.b:80\";proto=http, for=192.0.2.1",
        "host=\"a\\\"b\"",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "web.shop.svc",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
