//! Routes to a service of three endpoints, of which some have failed.

use std::collections::BTreeSet;

use super::*;
use crate::ejection::Fault;
use crate::fixtures::{endpoint_of, service, service_name, uid, workload};
use crate::route::{Route, route};
use crate::service::{Mode, Scope};
use crate::state::State;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Endpoints a and b on the client's node, c on another, chosen in `mode` by the node.
fn mesh(mode: Mode, preference: &[Scope], plaintext: &[&str]) -> State {
    let mut state = State::new();
    let mut web = service("shop", "web", &["10.9.0.1"], &[(80, 8080)]);
    web.load_balancing.mode = mode;
    web.load_balancing.routing_preference = preference.to_vec();
    state.upsert_service(web);
    for (name, ip) in NAMES.into_iter().zip(["10.0.0.2", "10.0.0.3", "10.0.0.4"]) {
        let mut endpoint = endpoint_of(workload(name, &[ip]), &service_name("shop", "web"), &[(80, 8080)]);
        if name == "c" {
            endpoint.node = "west".to_owned();
        }
        if plaintext.contains(&name) {
            endpoint.tunnel_protocol = TunnelProtocol::None;
        }
        state.upsert_workload(endpoint);
    }
    state
}

/// Who can be chosen, over 200 values of `random`.
fn chosen(state: &State, choice: &Choice<'_>) -> String {
    let client = workload("client", &["10.0.0.1"]);
    let mut names = BTreeSet::new();
    for draw in 0..200 {
        let choice = Choice { random: draw * (u64::MAX / 200), ..*choice };
        match route(state, &client, "10.9.0.1:80".parse().unwrap(), choice) {
            Route::Hbone(upstream) | Route::Plaintext(upstream) => {
                names.insert(upstream.workload.name.clone())
            }
            Route::Refused(_) => names.insert("refused".to_owned()),
            other => panic!("{other:?}"),
        };
    }
    Vec::from_iter(names).join(" ")
}

fn ejections(names: &[&str]) -> Ejections {
    let mut ejections = Ejections::default();
    for name in names {
        for _ in 0..3 {
            ejections.failed(&uid(name), 8080, Fault::Other, None, Duration::ZERO);
        }
    }
    ejections
}

/// What is said, the mode, the preference, who is ejected, who is chosen meanwhile and who afterwards.
type Case<'a> = (&'a str, Mode, &'a [Scope], &'a [&'a str], &'a str, &'a str);

#[test]
fn ejected_endpoints_are_passed_over_for_a_while_and_never_all_of_them() {
    use Mode::{Failover, Strict};
    let node = &[Scope::Node];
    let cases: &[Case] = &[
        ("nobody is", Failover, &[], &[], "a b c", "a b c"),
        ("one is", Failover, &[], &["b"], "a c", "a b c"),
        ("two are", Failover, &[], &["a", "b"], "c", "a b c"),
        ("all are, so none is", Failover, &[], &["a", "b", "c"], "a b c", "a b c"),
        ("one of the best rank is", Failover, node, &["a"], "b", "a b"),
        ("the best rank is, so the next one serves", Failover, node, &["a", "b"], "c", "a b"),
        ("all ranks are, so the best one serves", Failover, node, &["a", "b", "c"], "a b", "a b"),
        ("all that a strict preference admits are", Strict, node, &["a", "b"], "a b", "a b"),
    ];
    for (sentence, mode, preference, ejected, during, after) in cases {
        let state = mesh(*mode, preference, &[]);
        let ejections = ejections(ejected);
        for (second, expected) in [(1, during), (10, after)] {
            let at = Duration::from_secs(second);
            let choice = Choice { ejections: Some((&ejections, at)), ..Choice::default() };
            assert_eq!(chosen(&state, &choice), *expected, "{sentence}: after {second} s");
        }
    }
}

#[test]
fn an_endpoint_that_was_tried_is_not_tried_again_and_an_ejected_one_is_better_than_none() {
    let state = mesh(Mode::Failover, &[Scope::Node], &[]);
    let ejections = ejections(&["b", "c"]);
    let tried = |names: &[&str]| names.iter().map(|name| uid(name)).collect::<Vec<_>>();
    for (names, expected) in
        [(&[][..], "a"), (&["a"], "b"), (&["a", "b"], "c"), (&["a", "b", "c"], "refused")]
    {
        let (tried, ejections) = (tried(names), Some((&ejections, Duration::ZERO)));
        let choice = Choice { tried: &tried, ejections, ..Choice::default() };
        assert_eq!(chosen(&state, &choice), expected, "after {names:?}");
    }
}

#[test]
fn after_an_encrypted_endpoint_no_plaintext_one_is_chosen() {
    let state = mesh(Mode::Failover, &[], &["b", "c"]);
    let tried = [uid("a")];
    let choice = |encrypted| Choice { tried: &tried, encrypted, ..Choice::default() };
    assert_eq!(chosen(&state, &choice(false)), "b c");
    assert_eq!(chosen(&state, &choice(true)), "refused");
}
