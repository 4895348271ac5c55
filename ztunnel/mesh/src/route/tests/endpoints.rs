//! Steps 5 and 8: endpoints of services, and what is reached directly.

use super::*;

#[test]
fn every_kind_of_destination_has_its_way() {
    let headless = service("shop", "db", &[], &[(5432, 5432)]);
    let db = endpoint_of(workload("db-0", &["10.0.0.5"]), &headless.name, &[(5432, 5432)]);
    let mut outside =
        endpoint_of(workload("outside", &["10.0.0.6"]), &service_name("shop", "ext"), &[(80, 80)]);
    outside.tunnel_protocol = TunnelProtocol::None;
    let mut on_host =
        endpoint_of(workload("on-host", &["192.168.0.1"]), &service_name("shop", "host"), &[(80, 81)]);
    on_host.tunnel_protocol = TunnelProtocol::None;
    on_host.network_mode = NetworkMode::HostNetwork;
    let own = service("shop", "own", &["10.9.0.4"], &[(80, 8080), (81, 15008)]);
    let mut me = client();
    me.services.insert(own.name.clone(), own.ports.clone());
    let state = mesh(
        vec![web(), db, outside, on_host, me],
        vec![
            web_service(),
            headless,
            service("shop", "ext", &["10.9.0.2"], &[(80, 80)]),
            service("shop", "host", &["10.9.0.3"], &[(80, 81)]),
            own,
        ],
    );
    let cases = [
        ("a virtual address", "10.9.0.1:80", "hbone to web at 10.0.0.2:8080 by web"),
        ("a virtual address in IPv6", "[fd09::1]:80", "hbone to web at [fd00::2]:8080 by web"),
        ("a virtual address in IPv6 form", "[::ffff:10.9.0.1]:80", "hbone to web at 10.0.0.2:8080 by web"),
        (
            "a port the service has not",
            "10.9.0.1:81",
            "refused: service shop/web.shop.svc.cluster.local has no port 81",
        ),
        ("a workload's address", "10.0.0.2:9000", "hbone to web at 10.0.0.2:9000"),
        ("a workload's address in IPv6", "[fd00::2]:9000", "hbone to web at [fd00::2]:9000"),
        ("an endpoint of a headless service", "10.0.0.5:5432", "hbone to db-0 at 10.0.0.5:5432"),
        ("a workload outside the mesh", "10.0.0.6:80", "plaintext to outside at 10.0.0.6:80"),
        ("a service outside the mesh", "10.9.0.2:80", "plaintext to outside at 10.0.0.6:80 by ext"),
        ("a node's address", "192.168.0.1:81", "passes to 192.168.0.1:81"),
        ("a service on a node's network", "10.9.0.3:80", "plaintext to on-host at 192.168.0.1:81 by host"),
        ("what nobody knows", "1.1.1.1:443", "passes to 1.1.1.1:443"),
        ("its own address", "10.0.0.1:8080", "back to client at 10.0.0.1:8080"),
        ("its own service", "10.9.0.4:80", "back to client at 10.0.0.1:8080 by own"),
        ("the proxy's port of its own", "10.0.0.1:15006", "refused: port 15006 is the proxy's own"),
        ("the proxy's port by its own service", "10.9.0.4:81", "refused: port 15008 is the proxy's own"),
        ("the loopback", "127.0.0.1:80", "refused: 127.0.0.1 is not an address to connect to"),
        ("nowhere", "[::]:80", "refused: :: is not an address to connect to"),
    ];
    for (sentence, destination, expected) in cases {
        assert_eq!(goes(&state, destination), expected, "{sentence}");
    }
}

#[test]
fn a_pod_that_control_does_not_know_by_address_still_does_not_reach_its_own_proxy() {
    let state = State::new();
    assert_eq!(goes(&state, "10.0.0.1:15008"), "refused: port 15008 is the proxy's own");
}

#[test]
fn a_service_without_a_usable_endpoint_is_refused_and_never_passed_through() {
    let none = "refused: service shop/web.shop.svc.cluster.local has no healthy endpoint";
    let sick = Workload { health: Health::Unhealthy, ..web() };
    let addressless = Workload { addresses: vec![], ..web() };
    let portless =
        Workload { services: endpoint_of(web(), &service_name("shop", "web"), &[]).services, ..web() };
    let mut named = web_service();
    named.ports = [(80, 0)].into();
    let cases = [
        ("it has none", mesh(vec![], vec![web_service()])),
        ("its only one is not ready", mesh(vec![sick], vec![web_service()])),
        ("its only one has no address", mesh(vec![addressless], vec![web_service()])),
        ("its only one has not the named port", mesh(vec![portless], vec![named])),
    ];
    for (sentence, state) in cases {
        assert_eq!(goes(&state, "10.9.0.1:80"), none, "{sentence}");
    }
}

#[test]
fn an_unready_endpoint_is_reached_where_the_service_publishes_it_and_by_its_address() {
    let sick = Workload { health: Health::Unhealthy, ..web() };
    let mut publishing = web_service();
    publishing.load_balancing.allow_unhealthy = true;
    let state = mesh(vec![sick], vec![publishing]);
    assert_eq!(goes(&state, "10.9.0.1:80"), "hbone to web at 10.0.0.2:8080 by web");
    assert_eq!(goes(&state, "10.0.0.2:80"), "hbone to web at 10.0.0.2:80");
}

#[test]
fn a_named_port_is_each_endpoints_own() {
    let name = service_name("shop", "web");
    let a = endpoint_of(workload("a", &["10.0.0.10"]), &name, &[(80, 1010)]);
    let b = endpoint_of(workload("b", &["10.0.0.11"]), &name, &[(80, 1111)]);
    let mut named = web_service();
    named.ports = [(80, 0)].into();
    let state = mesh(vec![a, b], vec![named]);
    let expected = ["hbone to a at 10.0.0.10:1010 by web", "hbone to b at 10.0.0.11:1111 by web"];
    assert_eq!(all_ways(&state, "10.9.0.1:80"), expected);
}

#[test]
fn an_upstream_must_prove_its_own_identity_or_one_its_service_states() {
    let mut stated = web_service();
    stated.subject_alt_names = vec![
        "spiffe://cluster.local/ns/shop/sa/other".to_owned(),
        "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        "web.example.com".to_owned(),
    ];
    let state = mesh(vec![web()], vec![stated]);
    let expected = |destination: &str| {
        let Route::Hbone(upstream) = to(&state, destination, 1) else { panic!("not over HBONE") };
        assert_eq!(upstream.hbone(), SocketAddr::new(ip("10.0.0.2"), 15008));
        identities(&upstream.expected_identities())
    };
    let (own, other) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/other");
    assert_eq!(expected("10.9.0.1:80"), [own, other]);
    assert_eq!(expected("10.0.0.2:8080"), [own]);
}

#[test]
fn a_workload_without_addresses_is_asked_for_by_its_name() {
    let named = |protocol| Workload {
        addresses: vec![],
        hostname: Some("db.example.com".into()),
        tunnel_protocol: protocol,
        ..web()
    };
    for protocol in [TunnelProtocol::None, TunnelProtocol::Hbone] {
        let state = mesh(vec![named(protocol)], vec![web_service()]);
        assert_eq!(goes(&state, "10.9.0.1:80"), "asks for db.example.com of web and port 8080");
    }
    let state = mesh(
        vec![Workload { addresses: web().addresses, ..named(TunnelProtocol::None) }],
        vec![web_service()],
    );
    assert_eq!(
        goes(&state, "10.9.0.1:80"),
        "plaintext to web at 10.0.0.2:8080 by web",
        "an address comes first"
    );
}

#[test]
fn of_a_names_addresses_one_of_the_clients_family_is_connected_to_and_none_that_is_no_destination() {
    let named = |protocol| Workload {
        addresses: vec![],
        hostname: Some("db.example.com".into()),
        tunnel_protocol: protocol,
        ..web()
    };
    let found = |protocol, addresses: &[&str], random| {
        let state = mesh(vec![named(protocol)], vec![web_service()]);
        let Route::Named(upstream) = to(&state, "10.9.0.1:80", 1) else { panic!("not by its name") };
        let addresses: Vec<_> = addresses.iter().map(|text| ip(text)).collect();
        upstream.found(&client(), &addresses, random).map_or("nowhere".to_owned(), show)
    };
    let (hbone, none) = (TunnelProtocol::Hbone, TunnelProtocol::None);
    let v4 = "plaintext to web at 192.0.2.1:8080 by web";
    for (sentence, protocol, addresses, expected) in [
        ("its only one", none, &["192.0.2.1"][..], v4),
        ("over HBONE", hbone, &["192.0.2.1"], "hbone to web at 192.0.2.1:8080 by web"),
        ("of the family that was dialled", none, &["2001:db8::1", "192.0.2.1"], v4),
        ("in IPv6 form", none, &["2001:db8::1", "::ffff:192.0.2.1"], v4),
        ("of the other family", none, &["2001:db8::1"], "plaintext to web at [2001:db8::1]:8080 by web"),
        ("none", none, &[], "nowhere"),
        ("none but the loopback and such", none, &["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1"], "nowhere"),
        ("one beside the loopback", none, &["127.0.0.1", "::ffff:127.0.0.2", "192.0.2.1"], v4),
    ] {
        for random in [0, u64::MAX / 2, u64::MAX] {
            assert_eq!(found(protocol, addresses, random), expected, "{sentence}");
        }
    }
    let both = ["192.0.2.1", "192.0.2.2"];
    assert_ne!(found(none, &both, 0), found(none, &both, u64::MAX), "each has its share");
}

#[test]
fn a_name_does_not_lead_to_the_clients_own_proxy() {
    let mut own = web_service();
    own.ports = [(80, 15008)].into();
    let named = Workload {
        addresses: vec![],
        hostname: Some("db.example.com".into()),
        services: endpoint_of(web(), &own.name, &[]).services,
        ..web()
    };
    let state = mesh(vec![named], vec![own]);
    let Route::Named(upstream) = to(&state, "10.9.0.1:80", 1) else { panic!("not by its name") };
    let way = upstream.found(&client(), &[ip("10.0.0.1")], 1).map(show);
    assert_eq!(way.as_deref(), Some("refused: port 15008 is the proxy's own"));
}
