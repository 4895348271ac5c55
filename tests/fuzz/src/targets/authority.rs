//! Where a CONNECT asks to be taken.

use tunnel::hbone::Authority;

/// What is taken is written in a form that is taken as the same place; an address goes by nothing but its number.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(authority) = text.parse::<Authority>() else { return };
    assert_eq!(authority.to_string().parse(), Ok(authority.clone()), "{text:?}");
    let port = match &authority {
        Authority::Address(address) => {
            assert_eq!(address.ip(), address.ip().to_canonical(), "{text:?}");
            address.port()
        }
        Authority::Name { host, port } => {
            assert!(host.parse::<std::net::IpAddr>().is_err(), "an address that goes by a name: {text:?}");
            *port
        }
    };
    assert_ne!(port, 0, "{text:?}");
}

/// All forms, and what is nearly one.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "10.0.0.1:80",
        "[fd00::1]:8080",
        "[::ffff:10.0.0.1]:65535",
        "echo.demo.svc.cluster.local:80",
        "user@10.0.0.1:080",
        "[fe80::1%eth0]:1",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
