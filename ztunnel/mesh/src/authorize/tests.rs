//! Each case is a sentence about who is let to the application `web` at 10.0.0.2:8080 by which policies.

mod matches;

use super::*;
use crate::fixtures::{ip, uid, workload};
use crate::policy::{PolicyScope, RejectedPolicy};

fn policy(name: &str, action: Action, matches: Vec<Match>) -> Authorization {
    policy_of_rules(name, action, vec![Rule { clauses: vec![Clause { matches }] }])
}

fn policy_of_rules(name: &str, action: Action, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name: name.parse().unwrap(),
        scope: PolicyScope::Namespace,
        action,
        rules,
        dry_run: false,
    }
}

fn allow(one: Match) -> Authorization {
    policy("shop/allow", Action::Allow, vec![one])
}

fn deny(one: Match) -> Authorization {
    policy("shop/deny", Action::Deny, vec![one])
}

fn strict() -> Authorization {
    policy(
        "shop/strict",
        Action::Deny,
        vec![Match { not_principals: vec![StringMatch::Presence], ..Match::default() }],
    )
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.to_owned())]
}

fn prefix(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Prefix(text.to_owned())]
}

fn suffix(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Suffix(text.to_owned())]
}

fn nets(text: &str) -> Vec<IpNet> {
    vec![text.parse().unwrap()]
}

fn account(namespace: &str, service_account: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch { namespace: namespace.into(), service_account: service_account.into() }]
}

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

fn attempt(source: Option<&str>) -> Attempt {
    Attempt {
        source: source.map(|source| source.parse().unwrap()),
        source_ip: ip("10.0.0.1"),
        workload: uid("web"),
        destination: "10.0.0.2:8080".parse().unwrap(),
    }
}

fn state_with(policies: Vec<Authorization>) -> State {
    let mut state = State::new();
    state.upsert_workload(workload("web", &["10.0.0.2", "fd00::2"]));
    for policy in policies {
        state.upsert_policy(policy);
    }
    state
}

/// Who is let in, by the name of the policy that refuses.
fn outcome(policies: Vec<Authorization>, source: Option<&str>) -> Result<(), (Option<String>, Reason)> {
    outcome_in(&state_with(policies), attempt(source))
}

fn outcome_in(state: &State, attempt: Attempt) -> Result<(), (Option<String>, Reason)> {
    match authorize(state, attempt).decision {
        Ok(_) => Ok(()),
        Err(refusal) => Err((refusal.policy.map(|name| name.to_string()), refusal.reason)),
    }
}

fn refused<T>(by: &str, reason: Reason) -> Result<T, (Option<String>, Reason)> {
    Err((Some(by.to_owned()), reason))
}

#[test]
fn without_policies_all_pass() {
    assert_eq!(outcome(vec![], Some(CLIENT)), Ok(()));
    assert_eq!(outcome(vec![], None), Ok(()));
}

#[test]
fn strict_refuses_who_has_no_identity_and_nobody_else() {
    assert_eq!(outcome(vec![strict()], None), refused("shop/strict", Reason::Denied));
    assert_eq!(outcome(vec![strict()], Some(CLIENT)), Ok(()));
}

#[test]
fn strict_with_an_exempted_port_takes_plaintext_there_alone() {
    // AND of two clauses: the client has no identity, and the port is not the exempted one.
    let clause = |one| Clause { matches: vec![one] };
    let rule = Rule {
        clauses: vec![
            clause(Match { not_principals: vec![StringMatch::Presence], ..Match::default() }),
            clause(Match { not_destination_ports: vec![9090], ..Match::default() }),
        ],
    };
    let state = state_with(vec![policy_of_rules("shop/strict", Action::Deny, vec![rule])]);
    assert_eq!(outcome_in(&state, attempt(None)), refused("shop/strict", Reason::Denied));
    let exempted = Attempt { destination: "10.0.0.2:9090".parse().unwrap(), ..attempt(None) };
    assert_eq!(outcome_in(&state, exempted), Ok(()));
}

#[test]
fn a_deny_that_matches_wins_over_an_allow_that_matches() {
    let same = || Match { principals: exact("cluster.local/ns/shop/sa/client"), ..Match::default() };
    assert_eq!(
        outcome(vec![allow(same()), deny(same())], Some(CLIENT)),
        refused("shop/deny", Reason::Denied)
    );
}

#[test]
fn with_an_allow_in_force_only_what_it_matches_passes() {
    let one = || Match { principals: exact("cluster.local/ns/shop/sa/client"), ..Match::default() };
    assert_eq!(outcome(vec![allow(one())], Some(CLIENT)), Ok(()));
    let other = Some("spiffe://cluster.local/ns/shop/sa/intruder");
    assert_eq!(outcome(vec![allow(one())], other), refused("shop/allow", Reason::NotAllowed));
    assert_eq!(outcome(vec![allow(one())], None), refused("shop/allow", Reason::NotAllowed));
}

#[test]
fn one_allow_of_several_suffices_and_the_first_is_named_when_none_matches() {
    let by_namespace = |name, namespace: &str| {
        policy(name, Action::Allow, vec![Match { namespaces: exact(namespace), ..Match::default() }])
    };
    let both = || vec![by_namespace("shop/a", "elsewhere"), by_namespace("shop/b", "shop")];
    assert_eq!(outcome(both(), Some(CLIENT)), Ok(()));
    let stranger = Some("spiffe://cluster.local/ns/nowhere/sa/x");
    assert_eq!(outcome(both(), stranger), refused("shop/a", Reason::NotAllowed));
}

#[test]
fn a_match_of_nothing_beside_one_that_holds_is_passed_over() {
    let port = Match { destination_ports: vec![8080], ..Match::default() };
    for matches in [vec![Match::default(), port.clone()], vec![port, Match::default()]] {
        let both = policy("shop/deny", Action::Deny, matches);
        assert_eq!(outcome(vec![both], None), refused("shop/deny", Reason::Denied));
    }
}

#[test]
fn rules_are_an_or_of_ands_of_ors() {
    let yes = || Match { destination_ports: vec![8080], ..Match::default() };
    let no = || Match { destination_ports: vec![1], ..Match::default() };
    let clause = |matches| Clause { matches };
    let rule = |clauses| Rule { clauses };
    let cases = [
        ("no rule never matches", vec![], false),
        ("a rule without clauses matches", vec![rule(vec![])], true),
        ("an empty clause matches", vec![rule(vec![clause(vec![])])], true),
        ("any match of a clause suffices", vec![rule(vec![clause(vec![no(), yes()])])], true),
        ("every clause must match", vec![rule(vec![clause(vec![yes()]), clause(vec![no()])])], false),
        ("all clauses match", vec![rule(vec![clause(vec![yes()]), clause(vec![yes()])])], true),
        ("any rule suffices", vec![rule(vec![clause(vec![no()])]), rule(vec![clause(vec![yes()])])], true),
        ("no rule matches", vec![rule(vec![clause(vec![no()])]), rule(vec![clause(vec![no()])])], false),
    ];
    for (sentence, rules, expected) in cases {
        let denied = outcome(vec![policy_of_rules("shop/deny", Action::Deny, rules)], None).is_err();
        assert_eq!(denied, expected, "{sentence}");
    }
}

#[test]
fn an_allow_without_rules_refuses_everything() {
    let nothing = policy_of_rules("shop/nothing", Action::Allow, vec![]);
    assert_eq!(outcome(vec![nothing], Some(CLIENT)), refused("shop/nothing", Reason::NotAllowed));
}

#[test]
fn a_policy_applies_by_its_scope() {
    let everyone = |name, scope| Authorization {
        scope,
        ..policy_of_rules(name, Action::Deny, vec![Rule { clauses: vec![] }])
    };
    let cases = [
        ("of the mesh", everyone("istio-system/p", PolicyScope::Global), true),
        ("of its namespace", everyone("shop/p", PolicyScope::Namespace), true),
        ("of another namespace", everyone("other/p", PolicyScope::Namespace), false),
        ("by selection that does not name it", everyone("shop/p", PolicyScope::WorkloadSelector), false),
    ];
    for (sentence, policy, expected) in cases {
        assert_eq!(outcome(vec![policy], Some(CLIENT)).is_err(), expected, "{sentence}");
    }
    let mut state = state_with(vec![everyone("shop/p", PolicyScope::WorkloadSelector)]);
    let mut web = workload("web", &["10.0.0.2"]);
    web.authorization_policies = vec!["shop/p".parse().unwrap()];
    state.upsert_workload(web);
    assert_eq!(outcome_in(&state, attempt(Some(CLIENT))), refused("shop/p", Reason::Denied));
}

#[test]
fn a_policy_that_is_named_applies_whatever_namespace_it_is_of_and_once_only() {
    let tried = |name: &str, scope| Authorization {
        scope,
        dry_run: true,
        ..policy_of_rules(name, Action::Deny, vec![])
    };
    let mut state = state_with(vec![
        tried("root/all", PolicyScope::Global),
        tried("shop/wide", PolicyScope::Namespace),
        tried("shop/chosen", PolicyScope::WorkloadSelector),
        tried("bank/wide", PolicyScope::Namespace),
    ]);
    let mut web = workload("web", &["10.0.0.2"]);
    web.authorization_policies =
        ["root/all", "shop/wide", "shop/chosen", "bank/wide"].map(|name| name.parse().unwrap()).to_vec();
    state.upsert_workload(web);
    let verdict = authorize(&state, attempt(None));
    let names: Vec<_> = verdict.dry_run.iter().map(|run| run.policy.to_string()).collect();
    assert_eq!(names, ["root/all", "shop/wide", "shop/chosen", "bank/wide"]);
}

#[test]
fn policies_of_all_scopes_are_judged_together() {
    let everyone = |name: &str, action, scope| Authorization {
        scope,
        ..policy_of_rules(name, action, vec![Rule { clauses: vec![] }])
    };
    let nobody = |name: &str, scope| Authorization { scope, ..policy_of_rules(name, Action::Allow, vec![]) };
    let (global, chosen) = (PolicyScope::Global, PolicyScope::WorkloadSelector);
    let cases = [
        (
            "an allow of the mesh lets in whom one of the namespace does not",
            vec![everyone("root/allow", Action::Allow, global), nobody("shop/none", PolicyScope::Namespace)],
            Ok(()),
        ),
        (
            "a deny that selects it refuses whom one of the mesh allows",
            vec![
                everyone("root/allow", Action::Allow, global),
                everyone("shop/chosen", Action::Deny, chosen),
            ],
            refused("shop/chosen", Reason::Denied),
        ),
        (
            "a deny of the mesh refuses whom one that selects it allows",
            vec![everyone("root/deny", Action::Deny, global), everyone("shop/chosen", Action::Allow, chosen)],
            refused("root/deny", Reason::Denied),
        ),
        (
            "an allow that selects it makes an end of passing without one",
            vec![nobody("shop/chosen", chosen)],
            refused("shop/chosen", Reason::NotAllowed),
        ),
        (
            "an allow in dry run makes none",
            vec![Authorization { dry_run: true, ..nobody("shop/chosen", chosen) }],
            Ok(()),
        ),
        (
            "a deny in dry run refuses nobody",
            vec![Authorization { dry_run: true, ..everyone("shop/chosen", Action::Deny, chosen) }],
            Ok(()),
        ),
        (
            "an allow in dry run lets nobody in",
            vec![
                Authorization { dry_run: true, ..everyone("shop/chosen", Action::Allow, chosen) },
                nobody("shop/none", PolicyScope::Namespace),
            ],
            refused("shop/none", Reason::NotAllowed),
        ),
    ];
    for (sentence, policies, expected) in cases {
        let mut state = state_with(policies);
        let mut web = workload("web", &["10.0.0.2"]);
        if state.policy(&"shop/chosen".parse().unwrap()).is_some() {
            web.authorization_policies = vec!["shop/chosen".parse().unwrap()];
        }
        state.upsert_workload(web);
        assert_eq!(outcome_in(&state, attempt(Some(CLIENT))), expected, "{sentence}");
    }
}

#[test]
fn a_policy_name_that_is_not_known_refuses_with_that_name() {
    let mut state = State::new();
    let mut web = workload("web", &["10.0.0.2"]);
    web.authorization_policies = vec!["shop/not-yet".parse().unwrap()];
    state.upsert_workload(web);
    let refusal = refused("shop/not-yet", Reason::UnknownPolicy);
    assert_eq!(outcome_in(&state, attempt(Some(CLIENT))), refusal);
    state.upsert_policy(Authorization {
        scope: PolicyScope::WorkloadSelector,
        ..policy_of_rules("shop/not-yet", Action::Deny, vec![])
    });
    assert_eq!(outcome_in(&state, attempt(Some(CLIENT))), Ok(()), "known by now");
}

#[test]
fn a_policy_that_cannot_be_read_refuses_what_it_applies_to() {
    let rejected = |name: &str, scope, dry_run| RejectedPolicy {
        name: name.parse().unwrap(),
        scope,
        dry_run,
        reason: "no range".to_owned(),
    };
    let cases = [
        ("of the mesh", rejected("istio-system/bad", PolicyScope::Global, false), true),
        ("of its namespace", rejected("shop/bad", PolicyScope::Namespace, false), true),
        ("of another namespace", rejected("other/bad", PolicyScope::Namespace, false), false),
        ("by selection of others", rejected("shop/bad", PolicyScope::WorkloadSelector, false), false),
        ("only tried", rejected("shop/bad", PolicyScope::Namespace, true), false),
    ];
    for (sentence, policy, expected) in cases {
        let name = policy.name.to_string();
        let mut state = state_with(vec![]);
        state.reject_policy(policy);
        let outcome = outcome_in(&state, attempt(Some(CLIENT)));
        if expected {
            assert_eq!(outcome, refused(&name, Reason::UnreadablePolicy("no range".into())), "{sentence}");
        } else {
            assert_eq!(outcome, Ok(()), "{sentence}");
        }
    }
}

#[test]
fn a_readable_policy_takes_the_place_of_the_unreadable_one_and_back() {
    let mut state = state_with(vec![]);
    let name: PolicyName = "shop/p".parse().unwrap();
    let bad = RejectedPolicy {
        name: name.clone(),
        scope: PolicyScope::Namespace,
        dry_run: false,
        reason: String::new(),
    };
    state.reject_policy(bad.clone());
    assert!(outcome_in(&state, attempt(None)).is_err());
    state.upsert_policy(policy_of_rules("shop/p", Action::Deny, vec![]));
    assert_eq!(outcome_in(&state, attempt(None)), Ok(()));
    state.reject_policy(bad);
    assert!(outcome_in(&state, attempt(None)).is_err());
    state.remove_policy(&name);
    assert_eq!(outcome_in(&state, attempt(None)), Ok(()));
}

#[test]
fn a_deny_that_matches_is_named_before_a_policy_that_is_not_known() {
    let mut state = state_with(vec![strict()]);
    let mut web = workload("web", &["10.0.0.2"]);
    web.authorization_policies = vec!["shop/not-yet".parse().unwrap()];
    state.upsert_workload(web);
    state.reject_policy(RejectedPolicy {
        name: "a/first".parse().unwrap(),
        scope: PolicyScope::Global,
        dry_run: false,
        reason: String::new(),
    });
    assert_eq!(outcome_in(&state, attempt(None)), refused("shop/strict", Reason::Denied));
}

#[test]
fn a_dry_run_decides_nothing_and_is_reported() {
    let tried = |mut policy: Authorization| {
        policy.dry_run = true;
        policy
    };
    let everyone = |name, action| policy_of_rules(name, action, vec![Rule { clauses: vec![] }]);
    let nobody = |name, action| policy_of_rules(name, action, vec![]);
    let policies =
        vec![tried(everyone("shop/deny-all", Action::Deny)), tried(nobody("shop/allow-none", Action::Allow))];
    let verdict = authorize(&state_with(policies), attempt(None));
    assert!(verdict.decision.is_ok());
    let report = |name: &str, action, matched| DryRun { policy: name.parse().unwrap(), action, matched };
    assert_eq!(
        verdict.dry_run,
        [report("shop/allow-none", Action::Allow, false), report("shop/deny-all", Action::Deny, true),]
    );
}

#[test]
fn what_is_not_the_workloads_to_give_is_refused_whatever_the_policies() {
    let state = state_with(vec![]);
    let to =
        |destination: &str| Attempt { destination: destination.parse().unwrap(), ..attempt(Some(CLIENT)) };
    let cases = [
        ("its own address", to("10.0.0.2:8080"), Ok(())),
        ("its other address", to("[fd00::2]:8080"), Ok(())),
        ("its address in IPv6 form", to("[::ffff:10.0.0.2]:8080"), Ok(())),
        ("another's address", to("10.0.0.3:8080"), Err(Reason::ForeignAddress)),
        ("the loopback", to("127.0.0.1:8080"), Err(Reason::ForeignAddress)),
        ("the proxy's outbound port", to("10.0.0.2:15001"), Err(Reason::ProxyPort)),
        ("the proxy's plaintext port", to("10.0.0.2:15006"), Err(Reason::ProxyPort)),
        ("the proxy's HBONE port", to("10.0.0.2:15008"), Err(Reason::ProxyPort)),
        ("the proxy's DNS port", to("10.0.0.2:15053"), Err(Reason::ProxyPort)),
        (
            "a workload that is not known",
            Attempt { workload: uid("gone"), ..attempt(Some(CLIENT)) },
            Err(Reason::UnknownWorkload),
        ),
    ];
    for (sentence, attempt, expected) in cases {
        assert_eq!(outcome_in(&state, attempt).map_err(|(_, reason)| reason), expected, "{sentence}");
    }
}

#[test]
fn a_workload_that_cannot_be_read_is_not_let_to_and_the_refusal_says_what_is_wrong_with_it() {
    let mut state = state_with(vec![]);
    state.reject_address(RejectedAddress {
        resource: uid("web").to_string(),
        pod: None,
        addresses: vec![],
        ranges: vec![],
        reason: "nonsense".to_owned(),
    });
    let refusal = authorize(&state, attempt(Some(CLIENT))).decision.unwrap_err();
    assert_eq!(refusal.to_string(), "the workload cannot be read (nonsense)");
    state.upsert_workload(workload("web", &["10.0.0.2"]));
    assert_eq!(outcome_in(&state, attempt(Some(CLIENT))), Ok(()));
}

#[test]
fn addresses_in_ipv6_form_are_judged_as_the_ipv4_addresses_they_are() {
    let state = state_with(vec![deny(Match { source_ips: nets("10.0.0.0/8"), ..Match::default() })]);
    let mapped = Attempt { source_ip: ip("::ffff:10.0.0.1"), ..attempt(Some(CLIENT)) };
    assert_eq!(outcome_in(&state, mapped), refused("shop/deny", Reason::Denied));
}

#[test]
fn a_permit_says_what_was_checked_and_can_be_checked_anew() {
    let mut state = state_with(vec![]);
    let permit = authorize(&state, attempt(Some(CLIENT))).decision.unwrap();
    assert_eq!(permit.source().unwrap().to_string(), CLIENT);
    assert_eq!(permit.destination(), "10.0.0.2:8080".parse().unwrap());
    assert_eq!(permit.port(), 8080);
    assert_eq!(*permit.attempt(), attempt(Some(CLIENT)));
    state.upsert_policy(deny(Match { namespaces: exact("shop"), ..Match::default() }));
    assert!(authorize(&state, permit.attempt().clone()).decision.is_err());
}

#[test]
fn an_application_that_is_told_of_its_clients_is_entered_on_its_own_port_and_nobody_tells_it_lies() {
    use ApplicationTunnel::{Proxy, Unknown};
    let proxy = |port| Ok(Entry::Proxy { port });
    let cases = [
        ("it is not told", None, Some(CLIENT), Ok(Entry::Plain)),
        ("told on a port of its own", Some(Proxy { port: Some(15088) }), Some(CLIENT), proxy(15088)),
        ("told where it is asked for", Some(Proxy { port: None }), Some(CLIENT), proxy(8080)),
        ("without an identity, past its own port", Some(Proxy { port: Some(15088) }), None, Ok(Entry::Plain)),
        ("without an identity, where all are told of", Some(Proxy { port: None }), None, proxy(8080)),
        (
            "without an identity, on its own port",
            Some(Proxy { port: Some(8080) }),
            None,
            Err(Reason::TunnelPort),
        ),
        ("on its own port, in person", Some(Proxy { port: Some(8080) }), Some(CLIENT), proxy(8080)),
        ("by a protocol of a later version", Some(Unknown), Some(CLIENT), Err(Reason::UnknownTunnel)),
        ("by such a one, without an identity", Some(Unknown), None, Err(Reason::UnknownTunnel)),
    ];
    for (sentence, application_tunnel, source, expected) in cases {
        let mut state = State::new();
        state.upsert_workload(crate::workload::Workload {
            application_tunnel,
            ..workload("web", &["10.0.0.2", "fd00::2"])
        });
        let decided = authorize(&state, attempt(source)).decision;
        assert_eq!(
            decided.map(|permit| permit.entry()).map_err(|refusal| refusal.reason),
            expected,
            "{sentence}"
        );
    }
}
