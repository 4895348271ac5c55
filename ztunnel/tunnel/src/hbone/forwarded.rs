//! The `forwarded` header (RFC 7239) in the form that HBONE gives it: the client's address, and the service that it called. It is not
//! verified: what is read of it is for telemetry.

use std::net::SocketAddr;

use http::HeaderValue;

use super::message::is_host_name;

/// `for="ip:port"[;host=name]` (Istio contract 2.1). A name that is no host name is left out.
pub fn forwarded(client: SocketAddr, host: Option<&str>) -> HeaderValue {
    let text = match host.filter(|host| is_host_name(host)) {
        Some(host) => format!("for=\"{client}\";host={host}"),
        None => format!("for=\"{client}\""),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("for=unknown"))
}

/// The service that the client says it called, without a port: `host` of the first element, which is the client's own proxy's. `None`
/// also where it is no host name, or the header no `forwarded` header up to there.
pub fn forwarded_host(header: &HeaderValue) -> Option<&str> {
    let mut rest = header.to_str().ok()?;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after)?;
        if name.trim_matches([' ', '\t']).eq_ignore_ascii_case("host") {
            let host = value.split_once(':').map_or(value, |(host, _)| host);
            return Some(host).filter(|host| is_host_name(host));
        }
        // Only a semicolon leads to more of the same element.
        rest = after.trim_start_matches([' ', '\t']).strip_prefix(';')?;
    }
}

/// A token or a quoted string at the beginning (RFC 7239 4), and what comes after it. A string with escapes is none of ours: neither
/// addresses nor host names need any.
fn value(text: &str) -> Option<(&str, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (value, after) = quoted.split_once('"')?;
        return (!value.contains('\\')).then_some((value, after));
    }
    let end = text.find([';', ',', ' ', '\t', '"']).unwrap_or(text.len());
    Some(text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_names_the_client_and_the_service() {
        let client = "10.0.0.1:1234".parse().unwrap();
        assert_eq!(forwarded(client, None), "for=\"10.0.0.1:1234\"");
        assert_eq!(forwarded(client, Some("a.b.svc")), "for=\"10.0.0.1:1234\";host=a.b.svc");
        assert_eq!(forwarded(client, Some("a;proto=x")), "for=\"10.0.0.1:1234\"");
        let client = "[fd00::1]:1".parse().unwrap();
        assert_eq!(forwarded(client, None), "for=\"[fd00::1]:1\"");
    }

    #[test]
    fn the_service_is_read_in_every_form_the_rfc_gives_it_and_no_other() {
        for (case, header, expected) in [
            ("as we write it", "for=\"10.0.0.1:1234\";host=a.b.svc", Some("a.b.svc")),
            ("an IPv6 client", "for=\"[fd00::1]:1\";host=a", Some("a")),
            ("no service", "for=\"10.0.0.1:1234\"", None),
            ("any case, any place", "Host=a;For=unknown", Some("a")),
            ("quoted, with a port", "for=x;host=\"a.b:80\";proto=http", Some("a.b")),
            ("spaces between", "for=x ; host=a", Some("a")),
            ("the first element's", "for=x;host=a, for=y;host=b", Some("a")),
            ("another proxy's alone", "for=x, for=y;host=b", None),
            ("a text within a string", "for=\";host=b;\"", None),
            ("no host name", "host=\"a b\"", None),
            ("nothing", "", None),
            ("a string without end", "for=\"x;host=a", None),
            ("an escape", "for=\"a\\\"b\";host=a", None),
            ("an empty name", "host=", None),
        ] {
            assert_eq!(forwarded_host(&HeaderValue::from_str(header).unwrap()), expected, "{case}: {header}");
        }
    }
}
