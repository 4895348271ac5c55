//! Requests at 10.0.0.2, the address of the pod `web` (10.0.0.2, fd00::2), an endpoint of the service `web`.

use super::*;
use crate::fixtures::{Numbers, address, endpoint_of, ip, range, service, service_name, uid, workload};
use crate::gateway::{GatewayDestination, WeightedWaypoint};
use crate::service::Visibility;
use crate::workload::{Health, Network};

fn web() -> Workload {
    endpoint_of(workload("web", &["10.0.0.2", "fd00::2"]), &service_name("shop", "web"), &[(80, 8080)])
}

fn by_name(namespace: &str, name: &str) -> GatewayAddress {
    let destination = GatewayDestination::Hostname(service_name(namespace, name));
    GatewayAddress { destination, hbone_port: 15008 }
}

fn by_address(at: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Address(address(at)), hbone_port: 15008 }
}

fn mesh(workloads: Vec<Workload>, services: Vec<Service>) -> State {
    let mut state = State::new();
    workloads.into_iter().for_each(|workload| state.upsert_workload(workload));
    services.into_iter().for_each(|service| state.upsert_service(service));
    state
}

fn asked(text: &str) -> Asked {
    match text.parse() {
        Ok(address) => Asked::Address(address),
        Err(_) => {
            let (host, port) = text.rsplit_once(':').unwrap();
            Asked::Name(host.into(), port.parse().unwrap())
        }
    }
}

fn show(decided: Result<Accepted, Misdirected>) -> String {
    match decided {
        Ok(Accepted::Application { at, service }) => {
            format!(
                "{at}{}",
                service.map_or(String::new(), |service| format!(" by {}", service.name.namespace))
            )
        }
        Ok(Accepted::Onward(to)) => format!("on to {} at {}", to.workload.name, to.hbone),
        Err(why) => format!("refused: {why}"),
    }
}

/// What becomes of a request at the first address of the pod `own`, by a client of `shop`.
fn at(state: &State, own: &str, asks: &str) -> String {
    let own = state.workload(&uid(own)).unwrap();
    show(accept(state, own, own.addresses[0], &asked(asks), &"shop".into(), 1))
}

#[test]
fn an_address_is_the_pods_own_or_refused_and_a_name_is_a_services_whose_port_it_takes() {
    let mut state = mesh(
        vec![web()],
        vec![
            service("shop", "web", &["10.9.0.1"], &[(80, 1), (81, 8181), (82, 0)]),
            service("shop", "other", &[], &[(80, 9090)]),
        ],
    );
    let name = "shop/web.shop.svc.cluster.local";
    let cases = [
        ("the pod's address", "10.0.0.2:1234", "10.0.0.2:1234".to_owned()),
        ("in IPv6 form", "[::ffff:10.0.0.2]:1234", "10.0.0.2:1234".to_owned()),
        (
            "its other address",
            "[fd00::2]:80",
            "refused: [fd00::2]:80 was asked for at 10.0.0.2, and is not behind it".to_owned(),
        ),
        (
            "a virtual address of its own service",
            "10.9.0.1:80",
            "refused: 10.9.0.1:80 was asked for at 10.0.0.2, and is not behind it".to_owned(),
        ),
        ("the endpoint's port", "web.shop.svc.cluster.local:80", "10.0.0.2:8080 by shop".to_owned()),
        ("upper case", "Web.Shop.svc.cluster.local:80", "10.0.0.2:8080 by shop".to_owned()),
        ("the service's target", "web.shop.svc.cluster.local:81", "10.0.0.2:8181 by shop".to_owned()),
        (
            "a named port that the endpoint has not",
            "web.shop.svc.cluster.local:82",
            format!("refused: service {name} has no port 82 here"),
        ),
        (
            "no port of the service's",
            "web.shop.svc.cluster.local:83",
            format!("refused: service {name} has no port 83 here"),
        ),
        (
            "a service it is no endpoint of",
            "other.shop.svc.cluster.local:80",
            "10.0.0.2:9090 by shop".to_owned(),
        ),
        (
            "nobody's name",
            "nobody.shop.svc.cluster.local:80",
            "refused: no service is known by the name nobody.shop.svc.cluster.local".to_owned(),
        ),
    ];
    for (sentence, asks, expected) in &cases {
        assert_eq!(at(&state, "web", asks), *expected, "{sentence}");
    }
    // An application with a port for all of them judges for itself.
    let proxied = |port| Workload { application_tunnel: Some(ApplicationTunnel::Proxy { port }), ..web() };
    state.upsert_workload(proxied(Some(15088)));
    for (asks, expected) in [
        ("192.0.2.1:7", "10.0.0.2:7"),
        ("web.shop.svc.cluster.local:80", "10.0.0.2:8080 by shop"),
        ("web.shop.svc.cluster.local:83", "10.0.0.2:83 by shop"),
    ] {
        assert_eq!(at(&state, "web", asks), expected, "{asks}");
    }
    state.upsert_workload(proxied(None));
    assert_eq!(at(&state, "web", "192.0.2.1:7"), "10.0.0.2:7");
    assert_eq!(at(&state, "web", cases[8].1), cases[8].2);
}

#[test]
fn of_services_with_one_name_the_pods_own_namespace_counts_then_a_canonical_one() {
    let stated = |namespace: &str, canonical, visibility| {
        let mut stated = service(namespace, "x", &[], &[(80, 80)]);
        stated.name.hostname = "x.example.com".into();
        Service { canonical, visibility, ..stated }
    };
    let public = Visibility::Public;
    for (sentence, services, expected) in [
        ("its own", vec![stated("a", true, public), stated("shop", false, public)], "10.0.0.2:80 by shop"),
        ("a canonical one", vec![stated("a", false, public), stated("b", true, public)], "10.0.0.2:80 by b"),
        ("the first by name", vec![stated("b", true, public), stated("a", true, public)], "10.0.0.2:80 by a"),
        (
            "none that is hidden",
            vec![stated("a", true, Visibility::Namespace), stated("b", false, public)],
            "10.0.0.2:80 by b",
        ),
        (
            "nobody's",
            vec![stated("a", true, Visibility::Namespace)],
            "refused: no service is known by the name x.example.com",
        ),
    ] {
        assert_eq!(at(&mesh(vec![web()], services), "web", "x.example.com:80"), expected, "{sentence}");
    }
}

#[test]
fn a_waypoint_takes_what_is_asked_of_anything_behind_it_and_nothing_else() {
    let way = service("infra", "way", &["10.9.1.1"], &[(15008, 15008)]);
    let pod = || endpoint_of(workload("way", &["10.0.1.1"]), &service_name("infra", "way"), &[]);
    let behind = |waypoint: Option<GatewayAddress>| Service {
        waypoint,
        cidr_vips: vec![range("10.99.0.0/16")],
        visibility: Visibility::Namespace,
        ..service("far", "web", &["10.9.0.1"], &[(80, 80)])
    };
    let mut named = by_name("infra", "none");
    named.destination = GatewayDestination::Hostname(ServiceName {
        namespace: "infra".into(),
        hostname: "way.example.com".into(),
    });
    for waypoint in [by_name("infra", "way"), by_address("10.9.1.1"), by_address("10.0.1.1"), named] {
        let weighted = Service {
            weighted_waypoints: vec![WeightedWaypoint { destination: waypoint.clone(), weight: 1 }],
            ..service("shop", "weighted", &["10.9.0.7"], &[])
        };
        let workload = Workload { waypoint: Some(Box::new(waypoint.clone())), ..web() };
        let pod = Workload { hostname: Some("way.example.com".into()), ..pod() };
        let state = mesh(vec![pod, workload], vec![way.clone(), behind(Some(waypoint.clone())), weighted]);
        for asks in ["10.9.0.1:80", "10.99.3.4:80", "10.0.0.2:80", "[fd00::2]:80", "10.9.0.7:80"] {
            assert_eq!(at(&state, "way", asks), "10.0.1.1:80", "{asks} through {waypoint}");
            assert!(at(&state, "web", asks).starts_with("refused") || asks == "10.0.0.2:80", "{asks}");
        }
        for asks in ["10.9.0.2:80", "10.0.0.3:80", "10.9.1.1:80"] {
            assert!(at(&state, "way", asks).starts_with("refused"), "{asks} through {waypoint}");
        }
    }
    let other = by_name("infra", "other");
    let elsewhere = Workload { waypoint: Some(Box::new(other.clone())), ..web() };
    let state = mesh(vec![pod(), elsewhere], vec![way, behind(Some(other))]);
    for asks in ["10.9.0.1:80", "10.99.3.4:80", "10.0.0.2:80"] {
        assert!(at(&state, "way", asks).starts_with("refused"), "{asks} is another waypoint's");
    }
}

const NAME: &str = "web.shop.svc.cluster.local:80";

/// The gateway `gate` (10.0.9.9), `web` behind it, and its service.
fn gated(change: impl FnOnce(&mut Workload, &mut Workload, &mut Service)) -> State {
    let mut gate = workload("gate", &["10.0.9.9"]);
    let mut behind = Workload { network_gateway: Some(Box::new(by_address("10.0.9.9"))), ..web() };
    let mut asked = service("shop", "web", &["10.9.0.1"], &[(80, 8080)]);
    change(&mut gate, &mut behind, &mut asked);
    mesh(vec![gate, behind], vec![asked])
}

#[test]
fn a_networks_gateway_passes_on_what_is_asked_for_by_name_to_an_endpoint_behind_it() {
    let on = "on to web at 10.0.0.2:15008";
    let none = "refused: service shop/web.shop.svc.cluster.local has no healthy endpoint behind this gateway";
    let own = "10.0.9.9:8080 by shop";
    type Change = fn(&mut Workload, &mut Workload, &mut Service);
    let cases: [(&str, Change, &str); 10] = [
        ("an endpoint", |_, _, _| {}, on),
        (
            "by the gateway's service",
            |gate, web, _| {
                *gate = endpoint_of(gate.clone(), &service_name("infra", "gate"), &[]);
                web.network_gateway = Some(Box::new(by_name("infra", "gate")));
            },
            on,
        ),
        ("an endpoint that is not ready", |_, web, _| web.health = Health::Unhealthy, none),
        ("an endpoint that speaks no HBONE", |_, web, _| web.tunnel_protocol = TunnelProtocol::None, none),
        (
            "an endpoint without the port",
            |_, web, service| {
                web.services = endpoint_of(web.clone(), &service.name, &[]).services;
                service.ports = [(80, 0)].into();
            },
            none,
        ),
        (
            "the gateway of another endpoint",
            |_, web, _| {
                web.network_gateway = Some(Box::new(by_address("10.0.9.8")));
            },
            own,
        ),
        ("an endpoint of another network", |_, web, _| web.network = Network::from("far"), own),
        ("an endpoint without a gateway", |_, web, _| web.network_gateway = None, own),
        (
            "an application of its own that takes it",
            |gate, _, _| {
                gate.application_tunnel = Some(ApplicationTunnel::Proxy { port: None });
            },
            own,
        ),
        (
            "a service whose endpoint it is itself",
            |gate, _, service| {
                *gate = endpoint_of(gate.clone(), &service.name, &[(80, 7)]);
            },
            "10.0.9.9:7 by shop",
        ),
    ];
    for (sentence, change, expected) in cases {
        assert_eq!(at(&gated(change), "gate", NAME), expected, "{sentence}");
    }
    let refused = at(&gated(|_, _, _| {}), "gate", "10.9.0.1:80");
    assert!(refused.starts_with("refused: 10.9.0.1:80 was asked for"), "by name alone: {refused}");
}

#[test]
fn a_hidden_service_is_not_passed_on_to_for_clients_that_do_not_see_it() {
    let state = gated(|gate, _, service| {
        gate.namespace = "shop".into();
        service.visibility = Visibility::Namespace;
    });
    let gate = state.workload(&uid("gate")).unwrap();
    let by = |client: &str| show(accept(&state, gate, ip("10.0.9.9"), &asked(NAME), &client.into(), 1));
    assert_eq!(by("shop"), "on to web at 10.0.0.2:15008");
    assert_eq!(by("bank"), "10.0.9.9:8080 by shop");
}

#[test]
fn a_gateway_lets_nobody_past_a_services_waypoint() {
    let through = |waypoint: GatewayAddress, gateway: Option<GatewayAddress>| {
        let mut state = gated(|_, _, service| service.waypoint = Some(waypoint));
        let way = service("infra", "way", &["10.9.1.1"], &[(15008, 2000)]);
        let pod = endpoint_of(workload("way", &["10.0.1.1"]), &way.name, &[]);
        state.upsert_workload(Workload { network_gateway: gateway.map(Box::new), ..pod });
        state.upsert_service(way);
        at(&state, "gate", NAME)
    };
    let gate = || Some(by_address("10.0.9.9"));
    assert_eq!(through(by_name("infra", "way"), gate()), "on to way at 10.0.1.1:2000");
    assert_eq!(through(by_address("10.9.1.1"), gate()), "on to way at 10.0.1.1:2000");
    assert_eq!(through(by_address("10.0.1.1"), gate()), "on to way at 10.0.1.1:15008");
    for waypoint in [by_name("infra", "way"), by_name("infra", "nobody")] {
        assert!(!through(waypoint, None).starts_with("on to"), "neither past it nor to one elsewhere");
    }
}

#[test]
fn a_gateway_tries_every_endpoint_once() {
    let mut state = gated(|_, _, _| {});
    let another = endpoint_of(workload("web-2", &["10.0.0.3"]), &service_name("shop", "web"), &[(80, 1)]);
    state.upsert_workload(Workload { network_gateway: Some(Box::new(by_address("10.0.9.9"))), ..another });
    let gate = state.workload(&uid("gate")).unwrap();
    let mut numbers = Numbers::from_seed(3);
    let mut chosen = |tried: &[_]| {
        let choice = |random| Choice { random, tried, ..Choice::default() };
        let draws = (0..64).map(|_| choice(numbers.next()));
        let all =
            draws.map(|draw| show(accept(&state, gate, ip("10.0.9.9"), &asked(NAME), &"shop".into(), draw)));
        all.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    let (first, second) = ("on to web at 10.0.0.2:15008", "on to web-2 at 10.0.0.3:15008");
    assert_eq!(chosen(&[]), [first, second]);
    assert_eq!(chosen(&[uid("web")]), [second]);
    assert!(chosen(&[uid("web"), uid("web-2")])[0].ends_with("has no healthy endpoint behind this gateway"));
}
