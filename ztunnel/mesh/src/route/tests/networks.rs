//! Step 6: other networks.

use super::*;

/// The gateway of the network `far`: a pod there, known by the address 203.0.113.1, and the service it belongs to.
fn gate() -> (Workload, Service) {
    let own = service("infra", "gate", &[], &[(15008, 15008)]);
    let pod = endpoint_of(workload("gate", &["203.0.113.1"]), &own.name, &[(15008, 15008)]);
    (far(pod, None), own)
}

fn gate_address() -> GatewayAddress {
    let at = NetworkAddress { network: Network::from("far"), ip: ip("203.0.113.1") };
    GatewayAddress { destination: GatewayDestination::Address(at), hbone_port: 15008 }
}

/// `web` on the network `far`, with the gateway.
fn away(gateway: Option<GatewayAddress>) -> Workload {
    let away = Workload { uid: uid("away"), name: "away".to_owned(), ..web() };
    far(away, gateway)
}

fn stated_service() -> Service {
    let subject_alt_names = vec!["spiffe://cluster.local/ns/shop/sa/web".to_owned()];
    Service { subject_alt_names, ..web_service() }
}

const THROUGH: &str = "through gate at 203.0.113.1:15008 to web.shop.svc.cluster.local:80, away";

#[test]
fn an_endpoint_of_another_network_is_reached_through_that_networks_gateway_by_the_services_name() {
    let (pod, own) = gate();
    for gateway in [gate_address(), by_name("infra", "gate")] {
        let state = mesh(vec![away(Some(gateway)), pod.clone()], vec![stated_service(), own.clone()]);
        assert_eq!(goes(&state, "10.9.0.1:80"), THROUGH);
        let Route::Gateway { hop, inner, .. } = to(&state, "10.9.0.1:80", 1) else { panic!("no gateway") };
        assert_eq!(identities(&hop.expected_identities()), ["spiffe://cluster.local/ns/shop/sa/gate"]);
        assert_eq!(identities(&inner), ["spiffe://cluster.local/ns/shop/sa/web"], "the service's alone");
    }
}

#[test]
fn an_endpoint_of_another_network_needs_no_address_there() {
    let (pod, own) = gate();
    let addressless = Workload { addresses: vec![], ..away(Some(gate_address())) };
    let state = mesh(vec![addressless, pod], vec![stated_service(), own]);
    assert_eq!(goes(&state, "10.9.0.1:80"), THROUGH);
}

#[test]
fn endpoints_of_all_networks_share_what_comes_and_those_out_of_reach_get_nothing() {
    let (pod, own) = gate();
    let services = || vec![stated_service(), own.clone()];
    let state = mesh(vec![away(Some(gate_address())), web(), pod.clone()], services());
    let here = "hbone to web at 10.0.0.2:8080 by web";
    assert_eq!(all_ways(&state, "10.9.0.1:80"), [here, THROUGH]);
    let mut numbers = Numbers::from_seed(1);
    for _ in 0..64 {
        let to = "10.9.0.1:80".parse().unwrap();
        assert_eq!(show(route(&state, &client(), to, Reach::OwnNetwork, numbers.next())), here);
    }
    let state = mesh(vec![away(None), web(), pod], services());
    assert_eq!(all_ways(&state, "10.9.0.1:80"), [here]);
}

#[test]
fn what_no_gateway_leads_to_is_refused() {
    let (pod, own) = gate();
    let web = "service shop/web.shop.svc.cluster.local";
    let gateway = "is reached through the network gateway";
    let silent = web_service();
    let cases = [
        (
            "there is none",
            vec![away(None)],
            stated_service(),
            format!("{web} has endpoints on other networks only, and no gateway leads there"),
        ),
        (
            "nobody knows it",
            vec![away(Some(gate_address()))],
            stated_service(),
            format!("{web} {gateway} far/203.0.113.1, which is not known"),
        ),
        (
            "of a later version",
            vec![away(Some(unknown()))],
            stated_service(),
            format!(
                "{web} {gateway} (of a form that is not known), which is stated in a form that is not known"
            ),
        ),
        (
            "its pod is not ready",
            vec![away(Some(by_name("infra", "gate"))), Workload { health: Health::Unhealthy, ..pod.clone() }],
            stated_service(),
            format!("{web} {gateway} infra/gate.infra.svc.cluster.local, which has no healthy endpoint"),
        ),
        (
            "who is behind it cannot be proved",
            vec![away(Some(gate_address())), pod],
            silent,
            format!("{web} has endpoints on other networks and states no identity for them to prove"),
        ),
    ];
    for (sentence, workloads, service, expected) in cases {
        let state = mesh(workloads, vec![service, own.clone()]);
        assert_eq!(goes(&state, "10.9.0.1:80"), format!("refused: {expected}"), "{sentence}");
    }
    let state = mesh(vec![away(Some(gate_address()))], vec![stated_service()]);
    let to = "10.9.0.1:80".parse().unwrap();
    let refused = show(route(&state, &client(), to, Reach::OwnNetwork, 1));
    assert!(
        refused.ends_with("has endpoints on other networks only, and no gateway leads there"),
        "{refused}"
    );
}

#[test]
fn a_services_waypoint_may_be_on_another_network_and_a_workloads_not() {
    let (gate_pod, gate_service) = gate();
    let (pod, mut own) = way();
    own.subject_alt_names = vec!["spiffe://cluster.local/ns/infra/sa/way".to_owned()];
    let waypoint = by_name("infra", "way");
    let state = mesh(
        vec![
            Workload { waypoint: Some(Box::new(waypoint.clone())), ..web() },
            far(pod, Some(gate_address())),
            gate_pod,
        ],
        vec![Service { waypoint: Some(waypoint), ..stated_service() }, own, gate_service],
    );
    let by_service = "through gate at 203.0.113.1:15008 to web.shop.svc.cluster.local:80, way";
    assert_eq!(goes(&state, "10.9.0.1:80"), by_service);
    let Route::Gateway { inner, .. } = to(&state, "10.9.0.1:80", 1) else { panic!("no gateway") };
    assert_eq!(identities(&inner), ["spiffe://cluster.local/ns/infra/sa/way"], "the far end is the waypoint");
    let refused = goes(&state, "10.0.0.2:80");
    assert!(
        refused.starts_with("refused: workload") && refused.ends_with("is on another network"),
        "{refused}"
    );
}
