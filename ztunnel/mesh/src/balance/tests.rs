//! Ranks as a table, weights against a plain count.

use super::*;
use crate::fixtures::{Numbers, ip, workload};
use crate::workload::{Locality, Network};

/// A member in `network/region/zone/node`.
fn located(name: &str, place: &str) -> Workload {
    let mut parts = place.split('/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let network = Network::from(next());
    let locality = Locality { region: next(), zone: next(), subzone: String::new() };
    Workload { network, locality, node: next(), ..workload(name, &["10.0.0.1"]) }
}

fn balancing(mode: Mode, routing_preference: &[Scope]) -> LoadBalancing {
    LoadBalancing { routing_preference: routing_preference.to_vec(), mode, allow_unhealthy: false }
}

fn endpoints(members: Vec<Workload>) -> Endpoints {
    let mut endpoints = Endpoints::default();
    members.into_iter().for_each(|member| endpoints.upsert(Arc::new(member)));
    endpoints
}

/// How often each member is chosen in `draws`, by name.
fn shares(endpoints: &Endpoints, balancing: &LoadBalancing, draws: usize) -> Vec<(String, usize)> {
    let client = located("client", "n/r/z/east");
    let mut numbers = Numbers::from_seed(7);
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..draws {
        if let Some(chosen) = endpoints.choose(balancing, &client, |_| true, numbers.next()) {
            *counts.entry(chosen.name.clone()).or_insert(0) += 1;
        }
    }
    counts.into_iter().collect()
}

fn chosen(endpoints: &Endpoints, balancing: &LoadBalancing) -> Vec<String> {
    shares(endpoints, balancing, 200).into_iter().map(|(name, _)| name).collect()
}

/// What is said, mode, preference, and the rank of an endpoint in each place for a client in n/r/z/east.
type RankCase<'a> = (&'a str, Mode, &'a [Scope], &'a [(&'a str, Option<usize>)]);

#[test]
fn ranks_order_endpoints_by_the_longest_matching_prefix() {
    use Scope::{Network as Net, Node, Region, Zone};
    let cases: &[RankCase] = &[
        (
            "without a preference all are equal",
            Mode::Failover,
            &[],
            &[("n/r/z/east", Some(0)), ("m/s/y/west", Some(0))],
        ),
        (
            "a prefix stops at the first scope that differs",
            Mode::Failover,
            &[Region, Zone, Node],
            &[
                ("n/r/z/east", Some(3)),
                ("n/r/z/west", Some(2)),
                ("n/r/y/east", Some(1)),
                ("n/s/z/east", Some(0)),
            ],
        ),
        (
            "the own network outranks the rest, which is ordered all the same",
            Mode::Failover,
            &[Net, Region, Zone],
            &[
                ("n/r/z/x", Some(5)),
                ("n/r/y/x", Some(4)),
                ("n/s/z/x", Some(3)),
                ("m/r/z/x", Some(2)),
                ("m/s/z/x", Some(0)),
            ],
        ),
        (
            "a strict preference admits full matches alone",
            Mode::Strict,
            &[Region, Node],
            &[("n/r/z/east", Some(0)), ("n/r/z/west", None), ("n/s/z/east", None)],
        ),
    ];
    let client = located("client", "n/r/z/east");
    for (sentence, mode, preference, places) in cases {
        for (place, expected) in *places {
            let found = rank(&balancing(*mode, preference), &client, &located("endpoint", place));
            assert_eq!(found, *expected, "{sentence}: {place}");
        }
    }
}

#[test]
fn failover_keeps_to_the_best_rank_there_is() {
    let near = endpoints(vec![located("near", "n/r/z/east"), located("far", "n/r/z/west")]);
    let prefer_node = balancing(Mode::Failover, &[Scope::Node]);
    assert_eq!(chosen(&near, &prefer_node), ["near"]);
    let far = endpoints(vec![located("far", "n/r/z/west"), located("farther", "n/r/y/west")]);
    assert_eq!(chosen(&far, &prefer_node), ["far", "farther"]);
}

#[test]
fn strict_chooses_nobody_rather_than_a_lower_rank() {
    let far = endpoints(vec![located("far", "n/r/z/west")]);
    assert!(chosen(&far, &balancing(Mode::Strict, &[Scope::Node])).is_empty());
}

#[test]
fn unready_endpoints_are_chosen_for_services_that_publish_them_alone() {
    let mut sick = located("sick", "n/r/z/east");
    sick.health = Health::Unhealthy;
    let members = endpoints(vec![sick, located("well", "n/r/z/west")]);
    for preference in [&[][..], &[Scope::Node]] {
        let mut balancing = balancing(Mode::Failover, preference);
        assert_eq!(chosen(&members, &balancing), ["well"]);
        balancing.allow_unhealthy = true;
        let expected: &[&str] = if preference.is_empty() { &["sick", "well"] } else { &["sick"] };
        assert_eq!(chosen(&members, &balancing), expected);
    }
}

#[test]
fn shares_are_proportional_to_capacity_and_none_is_none() {
    let member = |name, capacity| Workload { capacity, ..located(name, "n/r/z/east") };
    let members = endpoints(vec![member("one", 1), member("three", 3), member("none", 0)]);
    for preference in [&[][..], &[Scope::Node]] {
        let shares = shares(&members, &balancing(Mode::Failover, preference), 40_000);
        let [(one, ones), (three, threes)] = &shares[..] else { panic!("{shares:?}") };
        assert_eq!((one.as_str(), three.as_str()), ("one", "three"));
        assert!((9_500..10_500).contains(ones) && (29_500..30_500).contains(threes), "{shares:?}");
    }
}

#[test]
fn ineligible_endpoints_leave_their_share_to_the_others_in_proportion() {
    let member = |name, capacity| Workload { capacity, ..located(name, "n/r/z/east") };
    let members = endpoints(vec![member("out", 96), member("one", 1), member("three", 3)]);
    let client = located("client", "n/r/z/east");
    let mut numbers = Numbers::from_seed(3);
    let mut ones = 0;
    for _ in 0..40_000 {
        let chosen = members.choose(&LoadBalancing::default(), &client, |w| w.name != "out", numbers.next());
        match chosen.unwrap().name.as_str() {
            "one" => ones += 1,
            "three" => {}
            other => panic!("chose {other}"),
        }
    }
    assert!((9_500..10_500).contains(&ones), "{ones}");
    assert!(members.choose(&LoadBalancing::default(), &client, |_| false, 5).is_none());
}

#[test]
fn an_empty_set_chooses_nobody() {
    assert!(chosen(&Endpoints::default(), &LoadBalancing::default()).is_empty());
}

#[test]
fn weights_are_those_of_a_plain_list_after_any_changes() {
    for seed in 1..=100 {
        let mut numbers = Numbers::from_seed(seed);
        let (mut weights, mut plain) = (Weights::default(), Vec::<u64>::new());
        for _ in 0..120 {
            let weight = numbers.next() % 5;
            match numbers.below(3) {
                0 if !plain.is_empty() => {
                    weights.pop();
                    plain.pop();
                }
                1 if !plain.is_empty() => {
                    let position = numbers.below(plain.len());
                    weights.set(position, weight);
                    plain[position] = weight;
                }
                _ => {
                    weights.push(weight);
                    plain.push(weight);
                }
            }
            let expected: Vec<usize> = plain
                .iter()
                .enumerate()
                .flat_map(|(position, weight)| (0..*weight).map(move |_| position))
                .collect();
            assert_eq!(weights.total(), plain.iter().sum::<u64>(), "seed {seed}");
            let found: Vec<usize> =
                (0..weights.total()).map(|point| weights.position_of(point).unwrap()).collect();
            assert_eq!(found, expected, "seed {seed}");
        }
    }
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
