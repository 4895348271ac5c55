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

#[test]
fn a_gateways_pod_that_has_failed_leaves_its_place_to_others_and_without_any_to_endpoints_of_the_own_network()
{
    let (first, own) = gate();
    let second = endpoint_of(workload("gate-2", &["203.0.113.2"]), &own.name, &[(15008, 15008)]);
    // The way through a gateway is encrypted, whatever its far end speaks.
    let away = Workload { tunnel_protocol: TunnelProtocol::None, ..away(Some(by_name("infra", "gate"))) };
    let ways = |near: Option<Workload>, tried: &[WorkloadUid]| {
        let pods = [away.clone(), first.clone(), far(second.clone(), None)];
        let state = mesh(pods.into_iter().chain(near).collect(), vec![stated_service(), own.clone()]);
        let mut numbers = Numbers::from_seed(9);
        let choice = |random| Choice { random, tried, encrypted: true, ..Choice::default() };
        let to = "10.9.0.1:80".parse().unwrap();
        let all = (0..64).map(|_| show(route(&state, &client(), to, choice(numbers.next()))));
        all.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    let other = THROUGH.replace("gate", "gate-2").replace(".1:", ".2:");
    let here = "hbone to web at 10.0.0.2:8080 by web";
    assert_eq!(ways(None, &[]), [THROUGH, &other]);
    assert_eq!(ways(None, &[uid("gate")]), [&*other]);
    let none = ways(None, &[uid("gate"), uid("gate-2")]);
    assert!(none[0].ends_with("gate.infra.svc.cluster.local, which has no healthy endpoint"), "{none:?}");
    assert_eq!(ways(Some(web()), &[uid("gate"), uid("gate-2")]), [here]);
    assert_eq!(ways(Some(web()), &[uid("away")]), [here], "the far end itself has failed");
    let plain = Workload { tunnel_protocol: TunnelProtocol::None, ..web() };
    assert_eq!(ways(Some(plain), &[uid("gate")]), [&*other], "and never plaintext after it");
}

#[test]
fn a_gateway_that_keeps_failing_is_passed_over_for_endpoints_of_the_own_network() {
    use crate::ejection::{Ejections, Fault};
    use std::time::Duration;
    let (pod, own) = gate();
    for gateway in [gate_address(), by_name("infra", "gate")] {
        let state = mesh(vec![away(Some(gateway)), web(), pod.clone()], vec![stated_service(), own.clone()]);
        let mut ejections = Ejections::default();
        (0..3).for_each(|_| _ = ejections.failed(&uid("gate"), 15008, Fault::Other, None, Duration::ZERO));
        let mut numbers = Numbers::from_seed(2);
        for _ in 0..64 {
            let ejections = Some((&ejections, Duration::ZERO));
            let choice = Choice { random: numbers.next(), ejections, ..Choice::default() };
            let to = "10.9.0.1:80".parse().unwrap();
            let way = show(route(&state, &client(), to, choice));
            assert_eq!(way, "hbone to web at 10.0.0.2:8080 by web");
        }
    }
}

#[test]
fn a_gateway_may_be_known_by_a_workloads_name_whose_address_is_asked_for() {
    let name = ServiceName { namespace: "infra".into(), hostname: "gate.example.com".into() };
    let gateway = GatewayAddress { destination: GatewayDestination::Hostname(name), hbone_port: 15443 };
    let pod = Workload { hostname: Some("gate.example.com".into()), ..workload("gate", &[]) };
    let state = mesh(vec![away(Some(gateway)), far(pod, None)], vec![stated_service()]);
    assert_eq!(
        goes(&state, "10.9.0.1:80"),
        "through gate at gate.example.com:15443 to web.shop.svc.cluster.local:80, away"
    );
}
