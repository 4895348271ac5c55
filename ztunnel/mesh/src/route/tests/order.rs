//! Which step comes first where several apply.

use super::*;

fn passing(service: Service) -> Service {
    let mut passing = service;
    passing.load_balancing.mode = Mode::Passthrough;
    passing
}

#[test]
fn a_passthrough_service_goes_to_the_address_that_was_asked_for() {
    let state = mesh(vec![web()], vec![passing(web_service())]);
    assert_eq!(goes(&state, "10.9.0.1:443"), "passes to 10.9.0.1:443");
}

#[test]
fn a_passthrough_service_at_the_address_of_a_workload_of_the_mesh_does_not_make_it_plaintext() {
    let mut service = passing(web_service());
    service.vips = vec![address("10.0.0.2")];
    let state = mesh(vec![web()], vec![service]);
    assert_eq!(goes(&state, "10.0.0.2:443"), "hbone to web at 10.0.0.2:443 by web");
    let tried = [uid("web")];
    let again = Choice { tried: &tried, ..Default::default() };
    let to = "10.0.0.2:443".parse().unwrap();
    let refused = show(route(&state, &client(), to, again));
    assert!(refused.ends_with("has no healthy endpoint"), "there is no other: {refused}");
}

#[test]
fn a_waypoint_comes_before_all_that_would_be_done_without_it() {
    let (pod, own) = way();
    let through = "through way at 10.0.1.1:15008 to 10.9.0.1:80 for web";
    let waypoint = || Some(by_name("infra", "way"));
    let remote = far(web(), Some(by_address("203.0.113.1")));
    let mut outside = web();
    outside.tunnel_protocol = TunnelProtocol::None;
    let plain = || Service { waypoint: waypoint(), ..web_service() };
    let cases = [
        ("passing through", vec![web()], passing(plain())),
        ("a missing port", vec![web()], Service { ports: [].into(), ..plain() }),
        ("no endpoint", vec![], plain()),
        ("an endpoint on another network", vec![remote], plain()),
        ("an endpoint outside the mesh", vec![outside], plain()),
        ("the client as endpoint", vec![endpoint_of(client(), &plain().name, &[(80, 8080)])], plain()),
    ];
    for (sentence, mut workloads, service) in cases {
        workloads.push(pod.clone());
        let state = mesh(workloads, vec![service, own.clone()]);
        assert_eq!(goes(&state, "10.9.0.1:80"), through, "{sentence}");
    }
}

#[test]
fn a_workloads_waypoint_counts_where_the_address_is_the_workloads_and_only_there() {
    let (pod, own) = way();
    let waypoint = || Some(Box::new(by_name("infra", "way")));
    let behind = Workload { waypoint: waypoint(), ..web() };
    let mut both = web_service();
    both.vips.push(address("10.0.0.2"));
    let ranged = Service { cidr_vips: vec![range("10.0.0.0/16")], ..web_service() };
    let through = "through way at 10.0.1.1:15008 to 10.0.0.2:80 for a workload";
    let cases = [
        ("a service's address too", both.clone(), "hbone to web at 10.0.0.2:8080 by web"),
        ("a passing service's address too", passing(both), "hbone to web at 10.0.0.2:80 by web"),
        ("in a service's range", ranged, through),
        ("the workload's alone", web_service(), through),
    ];
    for (sentence, service, expected) in cases {
        let state = mesh(vec![behind.clone(), pod.clone()], vec![service, own.clone()]);
        assert_eq!(goes(&state, "10.0.0.2:80"), expected, "{sentence}");
    }
}

#[test]
fn a_hidden_service_leaves_its_address_to_the_next_that_has_it() {
    let hidden =
        Service { visibility: Visibility::Namespace, ..service("a", "a", &["10.0.0.2"], &[(80, 80)]) };
    let ranged = Service { cidr_vips: vec![range("10.0.0.0/16")], ..web_service() };
    let state = mesh(vec![web()], vec![hidden.clone(), ranged.clone()]);
    assert_eq!(goes(&state, "10.0.0.2:80"), "hbone to web at 10.0.0.2:80", "a workload");
    let moved = Workload { addresses: vec![ip("10.7.0.1")], ..web() };
    let state = mesh(vec![moved], vec![hidden.clone(), ranged]);
    assert_eq!(goes(&state, "10.0.0.2:80"), "hbone to web at 10.7.0.1:8080 by web", "a range");
    assert_eq!(goes(&mesh(vec![], vec![hidden]), "10.0.0.2:80"), "passes to 10.0.0.2:80", "nobody");
}

#[test]
fn the_proxys_own_ports_are_refused_before_a_range_is_asked() {
    let ranged = Service { cidr_vips: vec![range("10.0.0.0/8")], ..web_service() };
    let mut state = mesh(vec![web()], vec![ranged]);
    state.remove_workload(&uid("client"));
    assert_eq!(goes(&state, "10.0.0.1:15008"), "refused: port 15008 is the proxy's own");
}
