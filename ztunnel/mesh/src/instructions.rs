//! What the decisions for connections cost. `cargo xtask bench --instructions` counts the instructions of what each test measures.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::authorize::{Attempt, authorize};
use crate::fixtures::{Numbers, endpoint_of, service, service_name, workload};
use crate::identity::SpiffeId;
use crate::policy::{Action, Authorization, Clause, Match, PolicyScope, Rule, StringMatch};
use crate::route::{Route, route};
use crate::service::Scope;
use crate::state::State;
use crate::workload::Workload;

/// What is done in a test: so much that what a hash map's random keys change does not show.
const TIMES: usize = 1000;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// Only what happens within is counted.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn client() -> Workload {
    workload("client", &["10.0.0.1"])
}

/// A hundred services of ten endpoints each; those with `preference` choose by it.
fn mesh(preference: &[Scope]) -> State {
    let mut state = State::new();
    state.upsert_workload(client());
    for number in 0..100_u8 {
        let name = format!("web{number}");
        let mut one = service("shop", &name, &[&format!("10.9.0.{number}")], &[(80, 8080)]);
        one.load_balancing.routing_preference = preference.to_vec();
        state.upsert_service(one);
        for place in 0..10_u8 {
            let pod = workload(&format!("{name}-{place}"), &[&format!("10.1.{number}.{place}")]);
            state.upsert_workload(endpoint_of(pod, &service_name("shop", &name), &[(80, 8080)]));
        }
    }
    state
}

fn destinations(address: impl Fn(usize, usize) -> [u8; 4], port: u16) -> Vec<(SocketAddr, u64)> {
    let mut numbers = Numbers::from_seed(11);
    let destination = |_| {
        let ip = Ipv4Addr::from(address(numbers.below(100), numbers.below(10)));
        (SocketAddr::new(IpAddr::V4(ip), port), numbers.next())
    };
    (0..TIMES).map(destination).collect()
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).unwrap()
}

/// How many of them lead to a workload of the mesh.
fn lead_to_workloads(state: &State, destinations: &[(SocketAddr, u64)]) -> usize {
    let client = client();
    let to = |(destination, random): &&(SocketAddr, u64)| {
        matches!(route(state, &client, black_box(*destination), *random), Route::Hbone(_))
    };
    destinations.iter().filter(to).count()
}

#[test]
fn a_thousand_routes_to_services() {
    let (state, destinations) = (mesh(&[]), destinations(|service, _| [10, 9, 0, byte(service)], 80));
    assert_eq!(measured(|| lead_to_workloads(&state, &destinations)), TIMES);
}

#[test]
fn a_thousand_routes_to_services_that_prefer_near_endpoints() {
    let state = mesh(&[Scope::Zone, Scope::Node]);
    let destinations = destinations(|service, _| [10, 9, 0, byte(service)], 80);
    assert_eq!(measured(|| lead_to_workloads(&state, &destinations)), TIMES);
}

#[test]
fn a_thousand_routes_to_pods() {
    let (state, to) = (mesh(&[]), destinations(|service, pod| [10, 1, byte(service), byte(pod)], 8080));
    assert_eq!(measured(|| lead_to_workloads(&state, &to)), TIMES);
}

/// A policy about one caller.
fn policy(name: &str, action: Action, caller: &str) -> Authorization {
    let principals = vec![StringMatch::Exact(caller.to_owned())];
    Authorization {
        name: name.parse().unwrap(),
        scope: PolicyScope::Namespace,
        action,
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![Match { principals, ..Match::default() }] }],
        }],
        dry_run: false,
    }
}

#[test]
fn a_thousand_checks_of_ten_policies() {
    let mut state = mesh(&[]);
    for number in 0..9 {
        let other = format!("cluster.local/ns/shop/sa/other{number}");
        state.upsert_policy(policy(&format!("shop/deny-{number}"), Action::Deny, &other));
    }
    state.upsert_policy(policy("shop/allow", Action::Allow, "cluster.local/ns/shop/sa/client"));
    let attempt = Attempt {
        source: Some(CLIENT.parse().unwrap()),
        source_ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
        workload: crate::fixtures::uid("web1-1"),
        destination: SocketAddr::from(([10, 1, 1, 1], 8080)),
    };
    let attempts = vec![attempt; TIMES];
    let allowed = |attempts: Vec<Attempt>| {
        attempts.into_iter().filter_map(|attempt| authorize(&state, attempt).decision.ok()).count()
    };
    assert_eq!(measured(|| allowed(attempts)), TIMES);
}

#[test]
fn a_thousand_identities_are_read() {
    let read = || (0..TIMES).filter(|_| black_box(CLIENT).parse::<SpiffeId>().is_ok()).count();
    assert_eq!(measured(read), TIMES);
}
