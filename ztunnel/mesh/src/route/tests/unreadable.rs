//! What the control plane states and this version cannot read.

use super::*;

/// A resource that states these addresses and ranges and means nothing.
fn rejected(resource: &str, addresses: &[&str], ranges: &[&str]) -> RejectedAddress {
    RejectedAddress {
        resource: resource.to_owned(),
        pod: None,
        addresses: addresses.iter().map(|at| address(at)).collect(),
        ranges: ranges.iter().map(|text| range(text)).collect(),
        reason: "nonsense".to_owned(),
    }
}

fn with(mut state: State, one: RejectedAddress) -> State {
    state.reject_address(one);
    state
}

fn refused(resource: &str) -> String {
    format!("refused: {resource} of the control plane has this address and cannot be read: nonsense")
}

const POD: &str = "Kubernetes//Pod/shop/broken";
const SERVICE: &str = "shop/broken.shop.svc.cluster.local";

#[test]
fn what_cannot_be_read_is_refused_and_never_passes() {
    let state = with(mesh(vec![web()], vec![web_service()]), rejected(POD, &["10.0.0.7", "fd00::7"], &[]));
    assert_eq!(goes(&state, "10.0.0.7:80"), refused(POD));
    assert_eq!(goes(&state, "[fd00::7]:80"), refused(POD));
    assert_eq!(goes(&state, "[::ffff:10.0.0.7]:80"), refused(POD), "an IPv4 address in IPv6 form");
    assert_eq!(goes(&state, "10.0.0.8:80"), "passes to 10.0.0.8:80", "its neighbour");
    assert_eq!(goes(&state, "10.9.0.1:80"), "hbone to web at 10.0.0.2:8080 by web", "another service");
    let state = with(mesh(vec![], vec![]), rejected(SERVICE, &[], &["10.9.0.0/16", "fd09::/64"]));
    assert_eq!(goes(&state, "10.9.3.4:80"), refused(SERVICE));
    assert_eq!(goes(&state, "[fd09::3]:80"), refused(SERVICE));
    assert_eq!(goes(&state, "10.8.3.4:80"), "passes to 10.8.3.4:80");
}

#[test]
fn it_comes_before_what_can_be_read_but_for_a_service_of_the_clients_own_namespace() {
    let foreign = || service("bank", "web", &["10.9.0.1"], &[(80, 8080)]);
    let ranged =
        |service: Service| Service { vips: vec![], cidr_vips: vec![range("10.9.0.0/24")], ..service };
    let bank = || endpoint_of(workload("web", &["10.0.0.2"]), &foreign().name, &[(80, 8080)]);
    let by_own = "hbone to web at 10.0.0.2:8080 by web";
    let cases = [
        ("a service of the own namespace", mesh(vec![web()], vec![web_service()]), by_own.to_owned()),
        ("a service of another", mesh(vec![bank()], vec![foreign()]), refused(SERVICE)),
        ("a range of the own namespace", mesh(vec![web()], vec![ranged(web_service())]), refused(SERVICE)),
        ("a workload", mesh(vec![workload("x", &["10.9.0.1"])], vec![]), refused(SERVICE)),
    ];
    for (sentence, state, expected) in cases {
        let state = with(state, rejected(SERVICE, &["10.9.0.1"], &[]));
        assert_eq!(goes(&state, "10.9.0.1:80"), expected, "{sentence}");
    }
    let cases = [
        ("a service's own address", mesh(vec![web()], vec![web_service()]), by_own.to_owned()),
        (
            "a workload's",
            mesh(vec![workload("x", &["10.9.0.1"])], vec![]),
            "hbone to x at 10.9.0.1:80".to_owned(),
        ),
        ("a range of the own namespace", mesh(vec![web()], vec![ranged(web_service())]), by_own.to_owned()),
        ("a range of another", mesh(vec![bank()], vec![ranged(foreign())]), refused(SERVICE)),
    ];
    for (sentence, state, expected) in cases {
        let state = with(state, rejected(SERVICE, &[], &["10.9.0.0/16"]));
        assert_eq!(goes(&state, "10.9.0.1:80"), expected, "{sentence}");
    }
}

#[test]
fn a_passing_service_does_not_pass_to_what_cannot_be_read() {
    let mut passing = web_service();
    passing.load_balancing.mode = Mode::Passthrough;
    let state = with(mesh(vec![], vec![passing]), rejected(POD, &["10.9.0.1"], &[]));
    assert_eq!(goes(&state, "10.9.0.1:443"), refused(POD));
}

#[test]
fn a_waypoint_that_cannot_be_read_is_not_passed_by() {
    for (waypoint, addresses) in [(by_name("infra", "way"), &[][..]), (by_address("10.9.1.1"), &["10.9.1.1"])]
    {
        let behind = Service { waypoint: Some(waypoint.clone()), ..web_service() };
        let (pod, _) = way();
        let name = service_name("infra", "way").to_string();
        let state = with(mesh(vec![web(), pod], vec![behind]), rejected(&name, addresses, &[]));
        let expected = format!(
            "refused: service {} is reached through the waypoint {waypoint}, which is stated by a resource that cannot be read",
            web_service().name
        );
        assert_eq!(goes(&state, "10.9.0.1:80"), expected);
    }
}
