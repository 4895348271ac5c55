//! Every choice against a plain reading of the contract: all endpoints looked at, ranked and counted.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::fixtures::{Numbers, ip, workload};
use crate::service::Mode;
use crate::service::Scope::{self, Cluster, Network as Net, Node, Region, Subzone, Zone};
use crate::workload::{Locality, Network};

/// A workload in `network/region/zone/subzone/node/cluster`; what is not stated is empty.
fn located(name: &str, place: &str) -> Workload {
    let mut parts = place.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let network = Network::from(next());
    let locality = Locality { region: next(), zone: next(), subzone: next() };
    Workload { network, locality, node: next(), cluster_id: next(), ..workload(name, &["10.0.0.1"]) }
}

const HERE: &str = "n/r/z/s/east/c";

fn client() -> Workload {
    located("client", HERE)
}

fn balancing(mode: Mode, routing_preference: &[Scope]) -> LoadBalancing {
    LoadBalancing { routing_preference: routing_preference.to_vec(), mode, allow_unhealthy: false }
}

fn endpoints(balancing: &LoadBalancing, members: impl IntoIterator<Item = Workload>) -> Endpoints {
    let mut endpoints = Endpoints::new(balancing.clone());
    members.into_iter().for_each(|member| endpoints.upsert(Arc::new(member)));
    endpoints
}

/// How often each member is chosen when `random` takes `draws` values spread evenly over its range.
fn shares(
    endpoints: &Endpoints,
    draws: u64,
    mut eligible: impl FnMut(&Workload) -> bool,
) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for draw in 0..draws {
        let random = draw * (u64::MAX / draws) + u64::MAX / draws / 2;
        if let Some(chosen) = endpoints.choose(&client(), &mut eligible, random) {
            *counts.entry(chosen.name.clone()).or_insert(0) += 1;
        }
    }
    counts
}

fn chosen(endpoints: &Endpoints) -> Vec<String> {
    shares(endpoints, 600, |_| true).into_keys().collect()
}

/// The contract's words: how well an endpoint suits a client, higher being better; `None` where it will not do.
fn rank(balancing: &LoadBalancing, client: &Workload, endpoint: &Workload) -> Option<usize> {
    let shares = |scope: &Scope| match scope {
        Region => client.locality.region == endpoint.locality.region,
        Zone => client.locality.zone == endpoint.locality.zone,
        Subzone => client.locality.subzone == endpoint.locality.subzone,
        Node => client.node == endpoint.node,
        Cluster => client.cluster_id == endpoint.cluster_id,
        Net => client.network == endpoint.network,
    };
    let preference = &balancing.routing_preference[..];
    let matching = |scopes: &[Scope]| scopes.iter().take_while(|scope| shares(scope)).count();
    match balancing.mode {
        Mode::Strict => (matching(preference) == preference.len()).then_some(0),
        Mode::Passthrough => Some(0),
        Mode::Failover => Some(match preference {
            [Net, rest @ ..] => matching(rest) + if shares(&Net) { preference.len() } else { 0 },
            _ => matching(preference),
        }),
    }
}

/// Whom the contract lets be chosen, with their weights.
fn by_the_contract(
    balancing: &LoadBalancing,
    members: &[Workload],
    eligible: impl Fn(&Workload) -> bool,
) -> BTreeMap<String, u64> {
    let fit = |member: &&Workload| {
        let ready = balancing.allow_unhealthy || member.health == Health::Healthy;
        ready && member.capacity > 0 && eligible(member)
    };
    let client = client();
    let ranked =
        members.iter().filter(fit).filter_map(|member| Some((rank(balancing, &client, member)?, member)));
    let best = ranked.clone().map(|(rank, _)| rank).max();
    ranked
        .filter(|(rank, _)| Some(*rank) == best)
        .map(|(_, member)| (member.name.clone(), u64::from(member.capacity)))
        .collect()
}

/// What is said, mode, preference, where endpoints are, and who of them is chosen for a client at [`HERE`].
type Case<'a> = (&'a str, Mode, &'a [Scope], &'a [&'a str], &'a [&'a str]);

#[test]
fn the_preference_says_which_endpoints_a_client_is_led_to() {
    use Mode::{Failover, Passthrough, Strict};
    let cases: &[Case] = &[
        ("without a preference all are equal", Failover, &[], &[HERE, "m/o"], &[HERE, "m/o"]),
        ("nor is there any to be strict about", Strict, &[], &[HERE, "m/o"], &[HERE, "m/o"]),
        ("passthrough knows no preference", Passthrough, &[Zone], &["n/r/z", "n/r/y"], &["n/r/z", "n/r/y"]),
        ("the same zone before others", Failover, &[Region, Zone], &["n/r/z", "n/r/y", "n/o/z"], &["n/r/z"]),
        ("then the same region", Failover, &[Region, Zone], &["n/r/y", "n/o/z"], &["n/r/y"]),
        ("then any", Failover, &[Region, Zone], &["n/o/z", "n/o/y"], &["n/o/z", "n/o/y"]),
        (
            "a prefix stops at the first scope that differs",
            Failover,
            &[Region, Zone, Node],
            &["n/r/y/s/east", "n/r/z/s/west"],
            &["n/r/z/s/west"],
        ),
        ("the same subzone", Failover, &[Region, Zone, Subzone], &["n/r/z/s", "n/r/z/t"], &["n/r/z/s"]),
        (
            "the same cluster",
            Failover,
            &[Cluster],
            &["n/r/z/s/east/d", "m/o/y/t/west/c"],
            &["m/o/y/t/west/c"],
        ),
        ("the same node and no other", Strict, &[Node], &["m/o/y/t/east", "n/r/z/s/west"], &["m/o/y/t/east"]),
        ("rather nobody than another node", Strict, &[Node], &["n/r/z/s/west"], &[]),
        ("strict demands every scope", Strict, &[Region, Node], &["n/r/z/s/west", "n/o/z/s/east"], &[]),
        ("the network alone", Failover, &[Net], &["n/o", "m/r"], &["n/o"]),
        ("else other networks", Failover, &[Net], &["m/r", "l/r"], &["m/r", "l/r"]),
        (
            "the network outranks what comes after it",
            Failover,
            &[Net, Region, Zone],
            &["n/o/y", "m/r/z"],
            &["n/o/y"],
        ),
        (
            "which still orders its endpoints",
            Failover,
            &[Net, Region, Zone],
            &["n/o/y", "n/r/y", "m/r/z"],
            &["n/r/y"],
        ),
        (
            "and those of other networks",
            Failover,
            &[Net, Region, Zone],
            &["m/o/z", "m/r/y", "l/r/z"],
            &["l/r/z"],
        ),
        ("strictly, no other network counts", Strict, &[Net, Region], &["m/r", "n/o"], &[]),
        (
            "a network that is not first is a scope as any",
            Failover,
            &[Region, Net],
            &["m/r", "n/o"],
            &["m/r"],
        ),
        (
            "a scope twice says nothing new",
            Failover,
            &[Zone, Zone, Node],
            &["n/r/z/s/east", "n/r/z/s/west"],
            &["n/r/z/s/east"],
        ),
    ];
    for (sentence, mode, preference, places, expected) in cases {
        let balancing = balancing(*mode, preference);
        let members: Vec<Workload> = places.iter().map(|place| located(place, place)).collect();
        let expected: BTreeSet<String> = expected.iter().map(|&place| place.to_owned()).collect();
        assert_eq!(chosen(&endpoints(&balancing, members)), Vec::from_iter(expected), "{sentence}");
    }
}

#[test]
fn unready_endpoints_are_chosen_for_services_that_publish_them_alone() {
    for (preference, with_unready) in [(&[][..], &["sick", "well"][..]), (&[Node], &["sick"])] {
        let mut balancing = balancing(Mode::Failover, preference);
        let sick = Workload { health: Health::Unhealthy, ..located("sick", HERE) };
        let mut members = endpoints(&balancing, [sick, located("well", "n/r/z/s/west")]);
        assert_eq!(chosen(&members), ["well"]);
        balancing.allow_unhealthy = true;
        members.set_balancing(&balancing);
        assert_eq!(chosen(&members), with_unready);
    }
}

#[test]
fn shares_are_proportional_to_capacity_and_no_capacity_is_no_share() {
    let member = |name, capacity| Workload { capacity, ..located(name, HERE) };
    for preference in [&[][..], &[Zone, Node]] {
        let balancing = balancing(Mode::Failover, preference);
        let members = endpoints(&balancing, [member("one", 1), member("three", 3), member("none", 0)]);
        let expected = [("one".to_owned(), 1000), ("three".to_owned(), 3000)].into();
        assert_eq!(shares(&members, 4000, |_| true), expected);
    }
}

#[test]
fn endpoints_that_are_not_eligible_leave_their_share_to_the_others_in_proportion() {
    // Few that are not eligible, and more than draws in vain are made.
    for out in [2, 100] {
        let member = |name: &str, capacity| Workload { capacity, ..located(name, HERE) };
        let names: Vec<String> = (0..out).map(|number| format!("out-{number}")).collect();
        let mut members = vec![member("one", 1)];
        members.extend(names.iter().map(|name| member(name, 2)));
        members.push(member("three", 3));
        let members = endpoints(&LoadBalancing::default(), members);
        let shares = shares(&members, 20_000, |member| !member.name.starts_with("out"));
        let [one, three] = ["one", "three"].map(|name| shares[name]);
        assert_eq!(one + three, 20_000);
        assert!((4700..5300).contains(&one), "{one} of 20000 with {out} out");
        assert!(members.choose(&client(), |_| false, 5).is_none());
    }
}

#[test]
fn where_a_rank_has_nobody_eligible_the_next_one_is_drawn_from() {
    let balancing = balancing(Mode::Failover, &[Region, Zone]);
    let members =
        endpoints(&balancing, [located("near", "n/r/z"), located("far", "n/r/y"), located("farther", "n/o")]);
    let without = |names: &'static [&str]| move |member: &Workload| !names.contains(&member.name.as_str());
    let kept = |names| shares(&members, 100, without(names)).into_keys().collect::<Vec<_>>();
    assert_eq!(kept(&["near"]), ["far"]);
    assert_eq!(kept(&["near", "far"]), ["farther"]);
    assert!(kept(&["near", "far", "farther"]).is_empty());
}

/// A random endpoint in one of few places.
fn random_member(numbers: &mut Numbers) -> Workload {
    let mut pick = |of: &[&'static str]| of[numbers.below(of.len())];
    let place = [
        pick(&["n", "m"]),
        pick(&["r", "o"]),
        pick(&["z", "y"]),
        pick(&["s", "t"]),
        pick(&["east", "west"]),
        pick(&["c", "d"]),
    ];
    let mut member = located(pick(&["a", "b", "c", "d", "e", "f", "g", "h"]), &place.join("/"));
    member.capacity = u32::try_from(numbers.below(4)).unwrap();
    if numbers.below(4) == 0 {
        member.health = Health::Unhealthy;
    }
    member
}

fn random_balancing(numbers: &mut Numbers) -> LoadBalancing {
    let scopes = [Region, Zone, Subzone, Node, Cluster, Net];
    let mut preference: Vec<Scope> = (0..numbers.below(5)).map(|_| scopes[numbers.below(6)]).collect();
    if numbers.below(3) == 0 {
        preference.insert(0, Net);
    }
    let mode = [Mode::Failover, Mode::Failover, Mode::Strict][numbers.below(3)];
    LoadBalancing { routing_preference: preference, mode, allow_unhealthy: numbers.below(3) == 0 }
}

#[test]
fn after_any_changes_the_choice_is_that_of_a_plain_reading_of_the_contract() {
    for seed in 1..=60 {
        let mut numbers = Numbers::from_seed(seed);
        let (mut balancing, mut plain) =
            (random_balancing(&mut numbers), BTreeMap::<WorkloadUid, Workload>::new());
        let mut members = Endpoints::new(balancing.clone());
        for step in 0..40 {
            let member = random_member(&mut numbers);
            match numbers.below(8) {
                0 | 1 => {
                    members.remove(&member.uid);
                    plain.remove(&member.uid);
                }
                2 => {
                    balancing = random_balancing(&mut numbers);
                    members.set_balancing(&balancing);
                }
                _ => {
                    members.upsert(Arc::new(member.clone()));
                    plain.insert(member.uid.clone(), member);
                }
            }
            let out = ["a", "b", "none"][numbers.below(3)];
            let eligible = |member: &Workload| member.name != out;
            let expected = by_the_contract(&balancing, &Vec::from_iter(plain.values().cloned()), eligible);
            let total: u64 = expected.values().sum();
            let found = shares(&members, 12 * total.max(1), eligible);
            let names = |shares: &BTreeMap<String, u64>| shares.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&found), names(&expected), "seed {seed}, step {step}: {balancing:?}");
            if !plain.values().any(|member| member.name == out) {
                let exact = expected.iter().map(|(name, weight)| (name.clone(), 12 * weight)).collect();
                assert_eq!(found, exact, "seed {seed}, step {step}: {balancing:?}");
            }
            assert_eq!(members.iter().len(), plain.len());
        }
    }
}

/// Ten thousand endpoints over two networks, ten zones and a thousand nodes.
fn ten_thousand(balancing: &LoadBalancing) -> Endpoints {
    endpoints(
        balancing,
        (0..10_000).map(|number| {
            let place = format!("{}/r/z{}/s/node{}/c", ["n", "m"][number % 2], number % 10, number % 1000);
            located(&format!("w{number}"), &place)
        }),
    )
}

#[test]
fn of_ten_thousand_endpoints_a_choice_looks_at_one_and_at_few_when_many_are_not_eligible() {
    let client = located("client", "n/r/z4/s/node4/c");
    let preferences: [&[Scope]; 4] = [&[], &[Node], &[Region, Zone, Subzone, Node], &[Net, Region, Zone]];
    for preference in preferences {
        let members = ten_thousand(&balancing(Mode::Failover, preference));
        // What a choice knows of an endpoint it is told by this question.
        let look = |random, eligible: &dyn Fn(&Workload) -> bool| {
            let looks = Cell::new(0);
            let question = |member: &Workload| {
                looks.set(looks.get() + 1);
                eligible(member)
            };
            let chosen = members.choose(&client, question, random);
            (looks.get(), chosen.is_some())
        };
        let mut numbers = Numbers::from_seed(11);
        let (mut alone, mut with_half) = (0, 0);
        for _ in 0..1000 {
            let random = numbers.next();
            alone += look(random, &|_| true).0;
            let half = |member: &Workload| member.name.ends_with(['0', '2', '4', '6', '8']);
            with_half += look(random, &half).0;
        }
        assert_eq!(alone, 1000, "{preference:?}");
        assert!(with_half < 8 * 1000, "{with_half} for {preference:?}");
        // The client's node has ten; they are asked about, and then others are found soon.
        let (looks, found) = look(3, &|member| member.node != "node4");
        assert!(found && looks < 300, "{looks} for {preference:?}");
    }
}

#[test]
fn an_empty_set_chooses_nobody() {
    assert!(chosen(&Endpoints::default()).is_empty());
}

#[test]
fn an_address_is_the_very_one_asked_for_else_of_its_family_else_any() {
    let endpoint = workload("web", &["10.0.0.1", "10.0.0.2", "fd00::1"]);
    let single = workload("web", &["10.0.0.1"]);
    let cases = [
        ("its own", &endpoint, "10.0.0.2", Some("10.0.0.2")),
        ("of its family", &endpoint, "10.9.0.1", Some("10.0.0.1")),
        ("of its other family", &endpoint, "fd00::99", Some("fd00::1")),
        ("of a family it has not", &single, "fd00::99", Some("10.0.0.1")),
        ("none", &workload("web", &[]), "10.0.0.1", None),
    ];
    for (sentence, endpoint, requested, expected) in cases {
        assert_eq!(address_for(endpoint, ip(requested)), expected.map(ip), "{sentence}");
    }
}
