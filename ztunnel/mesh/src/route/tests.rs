//! Where connections of the pod `client` (10.0.0.1, fd00::1, node east) go.

use super::*;
use crate::fixtures::{Numbers, endpoint_of, ip, service, service_name, uid, workload};
use crate::workload::{Health, Network, NetworkMode};

fn client() -> Workload {
    workload("client", &["10.0.0.1", "fd00::1"])
}

fn web() -> Workload {
    endpoint_of(workload("web", &["10.0.0.2", "fd00::2"]), &service_name("shop", "web"), &[(80, 8080)])
}

fn web_service() -> Service {
    service("shop", "web", &["10.9.0.1", "fd09::1"], &[(80, 8080)])
}

fn mesh(workloads: Vec<Workload>, services: Vec<Service>) -> State {
    let mut state = State::new();
    state.upsert_workload(client());
    workloads.into_iter().for_each(|workload| state.upsert_workload(workload));
    services.into_iter().for_each(|service| state.upsert_service(service));
    state
}

/// The route in a form that a table can state.
fn goes(state: &State, destination: &str) -> String {
    show(route(state, &client(), destination.parse().unwrap(), 1))
}

fn show(route: Route) -> String {
    let upstream = |way: &str, to: Upstream| {
        let by = to.service.map_or(String::new(), |service| format!(" by {}", service.short_name));
        format!("{way} {} at {}{by}", to.workload.name, to.application)
    };
    match route {
        Route::SameWorkload(to) => upstream("back to", to),
        Route::Hbone(to) => upstream("hbone to", to),
        Route::Plaintext(to) => upstream("plaintext to", to),
        Route::Passthrough(to) => format!("passes to {to}"),
        Route::Refused(why) => format!("refused: {why}"),
    }
}

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
    let mut numbers = Numbers::from_seed(1);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        seen.insert(show(route(&state, &client(), "10.9.0.1:80".parse().unwrap(), numbers.next())));
    }
    let expected = ["hbone to a at 10.0.0.10:1010 by web", "hbone to b at 10.0.0.11:1111 by web"];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn an_address_known_as_both_is_the_services() {
    let mut both = web_service();
    both.vips.push(crate::fixtures::address("10.0.0.2"));
    let state = mesh(vec![web()], vec![both]);
    assert_eq!(goes(&state, "10.0.0.2:80"), "hbone to web at 10.0.0.2:8080 by web");
}

#[test]
fn what_needs_a_waypoint_is_refused_and_a_service_call_ignores_the_workloads() {
    let behind = Workload { has_waypoint: true, ..web() };
    let state = mesh(vec![behind], vec![web_service()]);
    let needs = "is reached through a waypoint, which is not supported";
    let of_workload = format!("refused: workload {} {needs}", uid("web"));
    assert_eq!(goes(&state, "10.0.0.2:8080"), of_workload);
    assert_eq!(goes(&state, "10.9.0.1:80"), "hbone to web at 10.0.0.2:8080 by web");
    let state = mesh(vec![web()], vec![Service { has_waypoint: true, ..web_service() }]);
    let of_service = format!("refused: service {} {needs}", service_name("shop", "web"));
    assert_eq!(goes(&state, "10.9.0.1:80"), of_service);
}

#[test]
fn endpoints_of_other_networks_are_not_chosen_and_refused_where_there_are_no_others() {
    let away = Workload { uid: uid("away"), name: "away".to_owned(), network: Network::from("far"), ..web() };
    let state = mesh(vec![away.clone(), web()], vec![web_service()]);
    let mut numbers = Numbers::from_seed(1);
    for _ in 0..64 {
        let chosen = show(route(&state, &client(), "10.9.0.1:80".parse().unwrap(), numbers.next()));
        assert_eq!(chosen, "hbone to web at 10.0.0.2:8080 by web");
    }
    let state = mesh(vec![away], vec![web_service()]);
    assert!(
        goes(&state, "10.9.0.1:80")
            .starts_with("refused: service shop/web.shop.svc.cluster.local has endpoints on other networks")
    );
}

#[test]
fn a_passthrough_service_goes_to_the_address_that_was_asked_for() {
    let mut passing = web_service();
    passing.load_balancing.mode = Mode::Passthrough;
    let state = mesh(vec![web()], vec![passing]);
    assert_eq!(goes(&state, "10.9.0.1:443"), "passes to 10.9.0.1:443");
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
        let Route::Hbone(upstream) = route(&state, &client(), destination.parse().unwrap(), 1) else {
            panic!("not over HBONE")
        };
        assert_eq!(upstream.hbone(), SocketAddr::new(ip("10.0.0.2"), 15008));
        upstream.expected_identities().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (own, other) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/other");
    assert_eq!(expected("10.9.0.1:80"), [own, other]);
    assert_eq!(expected("10.0.0.2:8080"), [own]);
}
