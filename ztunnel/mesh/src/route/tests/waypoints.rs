//! Steps 4 and 7: waypoints.

use super::*;

/// `web` and its service with these waypoints, and the waypoint `way`.
fn behind(of_service: Option<GatewayAddress>, of_workload: Option<GatewayAddress>) -> State {
    let (pod, service) = way();
    let waypoint = of_workload.map(Box::new);
    mesh(
        vec![Workload { waypoint, ..web() }, pod],
        vec![Service { waypoint: of_service, ..web_service() }, service],
    )
}

#[test]
fn a_call_goes_through_the_waypoint_of_what_was_called_with_the_address_that_was_dialled() {
    let named = || Some(by_name("infra", "way"));
    let cases = [
        ("10.9.0.1:80", named(), None, "through way at 10.0.1.1:15008 to 10.9.0.1:80 for web"),
        ("[fd09::1]:80", named(), None, "through way at [fd00::101]:15008 to [fd09::1]:80 for web"),
        // The waypoint is the judge of ports.
        ("10.9.0.1:81", named(), None, "through way at 10.0.1.1:15008 to 10.9.0.1:81 for web"),
        (
            "10.9.0.1:80",
            Some(by_address("10.9.1.1")),
            None,
            "through way at 10.0.1.1:15008 to 10.9.0.1:80 for web",
        ),
        (
            "10.9.0.1:80",
            Some(by_address("fd00::101")),
            None,
            "through way at [fd00::101]:15008 to 10.9.0.1:80 for web",
        ),
        ("10.0.0.2:80", None, named(), "through way at 10.0.1.1:15008 to 10.0.0.2:80 for a workload"),
        ("[fd00::2]:9", None, named(), "through way at [fd00::101]:15008 to [fd00::2]:9 for a workload"),
        // The other's does not count.
        ("10.9.0.1:80", None, named(), "hbone to web at 10.0.0.2:8080 by web"),
        ("10.0.0.2:80", named(), None, "hbone to web at 10.0.0.2:80"),
    ];
    for (destination, of_service, of_workload, expected) in cases {
        let sentence = format!("{destination}, service {of_service:?}, workload {of_workload:?}");
        assert_eq!(goes(&behind(of_service, of_workload), destination), expected, "{sentence}");
    }
}

#[test]
fn a_waypoint_that_cannot_be_had_refuses_what_is_behind_it() {
    let nowhere = by_name("infra", "nowhere");
    let cases = [
        (
            "of a later version",
            unknown(),
            "(of a form that is not known)",
            "is stated in a form that is not known",
        ),
        ("of a name nobody has", nowhere, "infra/nowhere.infra.svc.cluster.local", "is not known"),
        ("at an address nobody has", by_address("10.9.9.9"), "/10.9.9.9", "is not known"),
    ];
    for (sentence, waypoint, name, trouble) in cases {
        let expected =
            |called| format!("refused: {called} is reached through the waypoint {name}, which {trouble}");
        let service = behind(Some(waypoint.clone()), None);
        let of_service = expected("service shop/web.shop.svc.cluster.local");
        assert_eq!(goes(&service, "10.9.0.1:80"), of_service, "{sentence}");
        let workload = behind(None, Some(waypoint));
        let of_workload = expected("workload Kubernetes//Pod/shop/web");
        assert_eq!(goes(&workload, "10.0.0.2:80"), of_workload, "{sentence}");
    }
}

#[test]
fn a_waypoint_without_a_usable_pod_refuses_what_is_behind_it() {
    let no_endpoint = "which has no healthy endpoint";
    type Change = fn(&mut Workload);
    let cases: [(&str, Change, &str); 4] = [
        ("it has none", |pod| pod.services.clear(), no_endpoint),
        ("its only one is not ready", |pod| pod.health = Health::Unhealthy, no_endpoint),
        ("its only one has neither address nor name", |pod| pod.addresses.clear(), no_endpoint),
        (
            "its only one is elsewhere",
            |pod| pod.network = Network::from("far"),
            "which is on another network",
        ),
    ];
    for (sentence, change, expected) in cases {
        let mut state = behind(Some(by_name("infra", "way")), Some(by_name("infra", "way")));
        let (mut pod, _) = way();
        change(&mut pod);
        state.upsert_workload(pod);
        for destination in ["10.9.0.1:80", "10.0.0.2:80"] {
            let refused = goes(&state, destination);
            assert!(refused.starts_with("refused: ") && refused.ends_with(expected), "{sentence}: {refused}");
        }
    }
}

#[test]
fn of_weighted_waypoints_each_takes_its_share_and_the_single_one_none() {
    let pod = |name: &str, at: &str| workload(name, &[at]);
    let weighted = |weights: [u32; 2], single| Service {
        weighted_waypoints: ["10.0.1.2", "10.0.1.3"]
            .into_iter()
            .zip(weights)
            .map(|(at, weight)| WeightedWaypoint { destination: by_address(at), weight })
            .collect(),
        waypoint: single,
        ..web_service()
    };
    let shares = |service: Service| {
        let state = mesh(
            vec![web(), pod("a", "10.0.1.2"), pod("b", "10.0.1.3"), pod("c", "10.0.1.4")],
            vec![service],
        );
        let mut numbers = Numbers::from_seed(5);
        let mut counts = [0_u32; 3];
        for _ in 0..4000 {
            match to(&state, "10.9.0.1:80", numbers.next()) {
                Route::Waypoint { hop, .. } => {
                    counts[["a", "b", "c"].iter().position(|name| *name == hop.workload.name).unwrap()] += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        counts
    };
    let single = || Some(by_address("10.0.1.4"));
    let [a, b, c] = shares(weighted([1, 3], single()));
    assert!((900..1100).contains(&a) && a + b == 4000 && c == 0, "{a} {b} {c}");
    assert_eq!(shares(weighted([0, 3], None)), [0, 4000, 0], "a weight of 0 is no share");
    assert_eq!(shares(weighted([u32::MAX, 0], None)), [4000, 0, 0]);
    assert_eq!(shares(weighted([0, 0], single())), [0, 0, 4000], "without weights the single one");
    let state = mesh(vec![web(), pod("a", "10.0.1.2"), pod("b", "10.0.1.3")], vec![weighted([0, 0], None)]);
    let refused = goes(&state, "10.9.0.1:80");
    assert!(refused.ends_with("is reached through waypoints, none of which takes connections"), "{refused}");
}

#[test]
fn the_choice_of_a_waypoints_pod_does_not_hang_on_the_choice_of_the_waypoint() {
    let services = ["x", "y"].map(|name| service("infra", name, &[], &[(15008, 15008)]));
    let pods = (0..4_usize).map(|n| {
        let own = &services[n / 2].name;
        endpoint_of(workload(&format!("p{n}"), &[&format!("10.0.1.{n}")]), own, &[(15008, 15008)])
    });
    let mut web = web_service();
    web.weighted_waypoints =
        ["x", "y"].map(|name| WeightedWaypoint { destination: by_name("infra", name), weight: 1 }).to_vec();
    let state = mesh(pods.collect(), services.iter().cloned().chain([web]).collect());
    assert_eq!(all_ways(&state, "10.9.0.1:80").len(), 4);
}

#[test]
fn a_waypoints_pod_reaches_what_is_behind_it_and_not_itself_again() {
    for waypoint in [by_name("infra", "way"), by_address("10.9.1.1"), by_address("10.0.1.1")] {
        let state = behind(Some(waypoint.clone()), Some(waypoint));
        let (pod, _) = way();
        let from_it = |destination: &str| show(route(&state, &pod, destination.parse().unwrap(), 1));
        assert_eq!(from_it("10.9.0.1:80"), "hbone to web at 10.0.0.2:8080 by web");
        assert_eq!(from_it("10.0.0.2:80"), "hbone to web at 10.0.0.2:80");
        assert!(goes(&state, "10.0.0.2:80").starts_with("through way"), "nobody else does");
    }
}

#[test]
fn a_pod_reaches_its_own_address_without_its_waypoint() {
    let waypoint = Some(Box::new(by_name("infra", "way")));
    let state = mesh(vec![Workload { waypoint, ..client() }], vec![]);
    assert_eq!(goes(&state, "10.0.0.1:80"), "back to client at 10.0.0.1:80");
}

#[test]
fn a_waypoint_has_its_port_from_where_it_is_stated_and_must_prove_its_own_or_its_services_identity() {
    let (pod, mut own) = way();
    own.subject_alt_names = vec!["spiffe://cluster.local/ns/infra/sa/gate".to_owned()];
    own.ports = [(15008, 2000)].into();
    let pod = Workload { services: [(own.name.clone(), [].into())].into(), ..pod };
    let waypoints = [
        ("the target of its service's port", by_name("infra", "way"), 2000, 2),
        (
            "a port its service has not",
            GatewayAddress { hbone_port: 3000, ..by_name("infra", "way") },
            3000,
            2,
        ),
        ("a pod's own port", GatewayAddress { hbone_port: 4000, ..by_address("10.0.1.1") }, 4000, 1),
    ];
    let expected = ["spiffe://cluster.local/ns/shop/sa/way", "spiffe://cluster.local/ns/infra/sa/gate"];
    for (sentence, waypoint, port, proofs) in waypoints {
        let mut web = Service { waypoint: Some(waypoint), ..web_service() };
        web.subject_alt_names = vec!["spiffe://cluster.local/ns/shop/sa/web".to_owned()];
        let state = mesh(vec![pod.clone()], vec![web, own.clone()]);
        let Route::Waypoint { hop, .. } = to(&state, "10.9.0.1:80", 1) else { panic!("{sentence}") };
        assert_eq!(hop.hbone, Place::Address((ip("10.0.1.1"), port).into()), "{sentence}");
        assert_eq!(identities(&hop.expected_identities()), expected[..proofs], "{sentence}");
    }
}

#[test]
fn who_sees_a_waypoints_service_does_not_matter_to_its_clients() {
    let state = {
        let (pod, mut own) = way();
        own.visibility = Visibility::Namespace;
        let web = Service { waypoint: Some(by_address("10.9.1.1")), ..web_service() };
        mesh(vec![pod], vec![web, own])
    };
    assert_eq!(goes(&state, "10.9.0.1:80"), "through way at 10.0.1.1:15008 to 10.9.0.1:80 for web");
    assert_eq!(
        goes(&state, "10.9.1.1:15008"),
        "passes to 10.9.1.1:15008",
        "called by a client it is not known"
    );
}

#[test]
fn a_waypoints_pod_that_has_failed_leaves_its_place_to_the_others() {
    use crate::ejection::{Ejections, Fault};
    use std::time::Duration;
    let (pod, own) = way();
    let second = endpoint_of(workload("way-2", &["10.0.1.2"]), &own.name, &[(15008, 15008)]);
    let at = |name: &str, n| format!("through {name} at 10.0.1.{n}:15008 to 10.9.0.1:80 for web");
    let web = Service { waypoint: Some(by_name("infra", "way")), ..web_service() };
    let state = mesh(vec![pod, second], vec![web, own]);
    let mut ejections = Ejections::default();
    (0..3).for_each(|_| _ = ejections.failed(&uid("way"), 15008, Fault::Other, None, Duration::ZERO));
    let ways = |tried: &[WorkloadUid], ejected: bool| {
        let mut numbers = Numbers::from_seed(7);
        let ejections = ejected.then_some((&ejections, Duration::ZERO));
        let choice = |random| Choice { random, tried, ejections, encrypted: true };
        let to = "10.9.0.1:80".parse().unwrap();
        let all = (0..64).map(|_| show(route(&state, &client(), to, choice(numbers.next()))));
        all.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(ways(&[], false), [at("way", 1), at("way-2", 2)]);
    assert_eq!(ways(&[uid("way")], false), [at("way-2", 2)], "it has failed for this connection");
    assert_eq!(ways(&[], true), [at("way-2", 2)], "it keeps failing");
    assert_eq!(ways(&[uid("way-2")], true), [at("way", 1)], "no other is left");
    let none = ways(&[uid("way"), uid("way-2")], true);
    assert!(none[0].ends_with("which has no healthy endpoint"), "{none:?}");
}

#[test]
fn a_waypoint_may_be_a_workload_that_is_known_by_its_name_and_one_whose_address_is_asked_for() {
    let named = |hostname: &str| GatewayAddress {
        destination: GatewayDestination::Hostname(ServiceName {
            namespace: "any".into(),
            hostname: hostname.into(),
        }),
        hbone_port: 3000,
    };
    let pod = Workload { hostname: Some("way.example.com".into()), ..workload("way", &["10.0.1.1"]) };
    let state = |pod| {
        let web = Service { waypoint: Some(named("Way.example.com")), ..web_service() };
        mesh(vec![pod], vec![web])
    };
    assert_eq!(
        goes(&state(pod.clone()), "10.9.0.1:80"),
        "through way at 10.0.1.1:3000 to 10.9.0.1:80 for web"
    );
    let addressless = Workload { addresses: vec![], ..pod };
    assert_eq!(
        goes(&state(addressless), "10.9.0.1:80"),
        "through way at way.example.com:3000 to 10.9.0.1:80 for web"
    );
}
