//! Lookups, and the indexes against a mesh built afresh after random changes.

use super::*;
use crate::fixtures::{
    Numbers, address, endpoint_of, ip, port_map, range, service, service_name, uid, workload,
};
use crate::policy::Action;
use crate::service::Scope;
use crate::workload::Network;

fn found_at(state: &State, at: &str) -> Option<WorkloadUid> {
    state.workload_by_address(&address(at)).map(|workload| workload.uid.clone())
}

#[test]
fn a_workload_is_found_by_each_of_its_addresses_until_it_moves_or_goes() {
    let mut state = State::new();
    state.upsert_workload(workload("web", &["10.0.0.2", "fd00::2"]));
    assert_eq!(found_at(&state, "10.0.0.2"), Some(uid("web")));
    assert_eq!(found_at(&state, "fd00::2"), Some(uid("web")));
    state.upsert_workload(workload("web", &["10.0.0.9", "fd00::2"]));
    assert_eq!(found_at(&state, "10.0.0.2"), None);
    assert_eq!(found_at(&state, "10.0.0.9"), Some(uid("web")));
    assert!(state.remove_workload(&uid("web")));
    assert!(!state.remove_workload(&uid("web")));
    assert_eq!(found_at(&state, "fd00::2"), None);
}

#[test]
fn an_address_means_nothing_on_another_network() {
    let mut state = State::new();
    state.upsert_workload(workload("web", &["10.0.0.2"]));
    let elsewhere = NetworkAddress { network: Network::from("other"), ip: ip("10.0.0.2") };
    assert!(state.workload_by_address(&elsewhere).is_none());
}

#[test]
fn a_workload_on_its_nodes_network_is_not_found_by_address() {
    let mut state = State::new();
    let mut web = workload("web", &["10.0.0.2"]);
    web.network_mode = NetworkMode::HostNetwork;
    state.upsert_workload(web);
    assert_eq!(found_at(&state, "10.0.0.2"), None);
    assert!(state.workload(&uid("web")).is_some());
}

#[test]
fn an_address_given_to_a_new_pod_is_the_new_pods_and_the_end_of_the_old_one_does_not_take_it() {
    let mut state = State::new();
    state.upsert_workload(workload("old", &["10.0.0.2"]));
    state.upsert_workload(workload("new", &["10.0.0.2"]));
    assert_eq!(found_at(&state, "10.0.0.2"), Some(uid("new")));
    state.upsert_workload(workload("old", &["10.0.0.2"]));
    assert_eq!(found_at(&state, "10.0.0.2"), Some(uid("new")), "news of the old pod is no new claim");
    state.remove_workload(&uid("old"));
    assert_eq!(found_at(&state, "10.0.0.2"), Some(uid("new")));
}

#[test]
fn a_pod_of_this_node_is_found_by_name_namespace_and_service_account() {
    let mut state = State::new();
    state.upsert_workload(workload("web", &["10.0.0.2"]));
    let find = |namespace: &str, name, account: &str| {
        state.workload_by_pod(&namespace.into(), name, &account.into()).is_some()
    };
    assert!(find("shop", "web", "web"));
    assert!(!find("shop", "web", "other"));
    assert!(!find("other", "web", "web"));
    assert!(!find("shop", "other", "web"));
}

#[test]
fn of_services_that_share_an_address_the_clients_own_namespace_wins() {
    let mut state = State::new();
    for namespace in ["a", "b", "c"] {
        state.upsert_service(service(namespace, "web", &["10.9.0.1"], &[]));
    }
    let found = |state: &State, client: &str| {
        state.service_by_vip(&address("10.9.0.1"), &client.into()).map(|found| found.name.clone())
    };
    assert_eq!(found(&state, "b"), Some(service_name("b", "web")));
    assert_eq!(found(&state, "elsewhere"), Some(service_name("a", "web")));
    assert!(state.remove_service(&service_name("b", "web")));
    assert_eq!(found(&state, "b"), Some(service_name("a", "web")));
}

#[test]
fn two_services_of_one_namespace_that_share_an_address_or_a_range_stay_beside_each_other() {
    let mut state = State::new();
    let ranged = |name: &str| {
        let mut ranged = service("shop", name, &["10.9.0.1"], &[]);
        ranged.cidr_vips = vec![range("10.9.0.0/16")];
        ranged
    };
    let found = |state: &State| {
        let by_vip = state.service_by_vip(&address("10.9.0.1"), &"shop".into());
        let by_range = state.service_by_range(&address("10.9.7.7"), &"shop".into());
        [by_vip, by_range].map(|found| found.map(|found| found.short_name.clone()))
    };
    let both = |name: &str| [Some(name.to_owned()), Some(name.to_owned())];
    state.upsert_service(ranged("a"));
    state.upsert_service(ranged("b"));
    state.upsert_service(ranged("a"));
    assert_eq!(found(&state), both("a"));
    // The one that goes takes nothing of the other's with it, whichever it is.
    state.remove_service(&service_name("shop", "a"));
    assert_eq!(found(&state), both("b"));
    state.upsert_service(ranged("a"));
    state.remove_service(&service_name("shop", "b"));
    assert_eq!(found(&state), both("a"));
    state.remove_service(&service_name("shop", "a"));
    assert_eq!(found(&state), [None, None]);
    assert!(state.by_vip.is_empty() && state.by_range.is_empty() && state.by_hostname.is_empty());
}

#[test]
fn a_range_leads_to_the_endpoints_there_are_now_and_is_held_once_however_often_they_change() {
    let web = service_name("shop", "web");
    let mut state = State::new();
    let mut ranged = service("shop", "web", &[], &[(80, 8080)]);
    ranged.cidr_vips = vec![range("10.9.0.0/16")];
    state.upsert_service(ranged.clone());
    for n in 1..=50 {
        let at = format!("10.0.0.{n}");
        state.upsert_workload(endpoint_of(workload("a", &[&at]), &web, &[(80, 8080)]));
        if n % 10 == 0 {
            state.upsert_service(ranged.clone());
        }
        let found = state.service_by_range(&address("10.9.1.2"), &"shop".into()).unwrap();
        let addresses: Vec<_> =
            state.endpoints(&found.name).unwrap().iter().flat_map(|pod| pod.addresses.clone()).collect();
        assert_eq!(addresses, [ip(&at)]);
        let held: Vec<_> = state.by_range.iter().map(|(_, names)| names.len()).collect();
        assert_eq!(held, [1]);
    }
    assert_eq!(state.services_over(&address("10.9.1.2")).count(), 1);
}

#[test]
fn services_and_workloads_are_found_by_their_host_names_until_they_go() {
    let mut state = State::new();
    state.upsert_service(service("shop", "web", &[], &[]));
    let service = |state: &State, text| state.service_by_hostname(text, &"shop".into()).is_some();
    assert!(service(&state, "web.shop.svc.cluster.local") && service(&state, "WEB.shop.svc.cluster.local"));
    assert!(!service(&state, "web"));
    state.remove_service(&service_name("shop", "web"));
    assert!(!service(&state, "web.shop.svc.cluster.local"));
    let named = |hostname: Option<&str>| Workload {
        hostname: hostname.map(Into::into),
        ..workload("db", &["10.0.0.2"])
    };
    let workload = |state: &State, text| state.workload_by_hostname(text).is_some();
    state.upsert_workload(named(Some("DB.example.com")));
    assert!(workload(&state, "db.example.com"));
    state.upsert_workload(named(Some("db2.example.com")));
    assert!(workload(&state, "db2.example.com") && !workload(&state, "db.example.com"));
    state.upsert_workload(named(None));
    assert!(state.workloads_by_hostname.is_empty());
}

#[test]
fn endpoints_follow_their_workloads_whether_or_not_the_service_is_known() {
    let web = service_name("shop", "web");
    let mut state = State::new();
    let names = |state: &State| {
        let mut names: Vec<String> = state
            .endpoints(&service_name("shop", "web"))
            .into_iter()
            .flat_map(Endpoints::iter)
            .map(|endpoint| endpoint.name.clone())
            .collect();
        names.sort();
        names
    };
    state.upsert_workload(endpoint_of(workload("a", &["10.0.0.1"]), &web, &[(80, 8080)]));
    state.upsert_workload(endpoint_of(workload("b", &["10.0.0.2"]), &web, &[(80, 8080)]));
    assert_eq!(names(&state), ["a", "b"]);
    state.upsert_service(service("shop", "web", &["10.9.0.1"], &[(80, 8080)]));
    state.upsert_workload(workload("a", &["10.0.0.1"]));
    assert_eq!(names(&state), ["b"]);
    state.remove_workload(&uid("b"));
    assert!(state.endpoints(&web).is_none());
}

#[test]
fn a_resource_name_removes_the_workload_or_the_service_it_names() {
    let mut state = State::new();
    state.upsert_workload(workload("web", &["10.0.0.2"]));
    state.upsert_service(service("shop", "web", &["10.9.0.1"], &[]));
    assert!(state.remove_address("Kubernetes//Pod/shop/web"));
    assert!(state.remove_address("shop/web.shop.svc.cluster.local"));
    assert!(!state.remove_address("shop/web.shop.svc.cluster.local"));
    assert!(!state.remove_address("nonsense"));
    assert_eq!((state.workloads().len(), state.services().len()), (0, 0));
}

/// A resource that states these addresses and means nothing.
fn rejected(resource: &str, addresses: &[&str]) -> RejectedAddress {
    RejectedAddress {
        resource: resource.to_owned(),
        pod: None,
        addresses: addresses.iter().map(|at| address(at)).collect(),
        ranges: Vec::new(),
        reason: "nonsense".to_owned(),
    }
}

fn rejected_at(state: &State, at: &str) -> Option<String> {
    let at = address(at);
    let found = state.rejected_at(&at).or_else(|| state.rejected_by_range(&at));
    found.map(|rejected| rejected.resource.clone())
}

#[test]
fn what_cannot_be_read_takes_the_place_of_what_was_known_and_keeps_its_addresses() {
    let mut state = State::new();
    state.upsert_workload(endpoint_of(
        workload("web", &["10.0.0.2"]),
        &service_name("shop", "web"),
        &[(80, 8080)],
    ));
    let mut ranged = service("shop", "web", &["10.9.0.1"], &[(80, 8080)]);
    ranged.cidr_vips = vec![range("10.9.1.0/24")];
    state.upsert_service(ranged.clone());
    let (pod, name) = (uid("web"), ranged.name.to_string());
    state.reject_address(rejected(pod.as_str(), &["10.0.0.3"]));
    state.reject_address(rejected(&name, &[]));
    assert!(state.workload(&pod).is_none() && state.endpoints(&ranged.name).is_none());
    assert!(state.service(&ranged.name).is_none());
    for (at, expected) in [
        ("10.0.0.2", Some(pod.to_string())),
        ("10.0.0.3", Some(pod.to_string())),
        ("10.9.0.1", Some(name.clone())),
        ("10.9.1.77", Some(name)),
        ("10.9.2.1", None),
    ] {
        assert_eq!(rejected_at(&state, at), expected, "{at}");
    }
    assert!(state.rejected_pod(&"shop".into(), "web").is_some(), "known before");
    state.reject_address(rejected(pod.as_str(), &[]));
    assert!(rejected_at(&state, "10.0.0.3").is_some(), "the version before could be read as far as that");
}

#[test]
fn a_good_version_or_a_removal_ends_it_and_nothing_is_left() {
    let mut state = State::new();
    let web = service("shop", "web", &["10.9.0.1"], &[]);
    let (pod, name) = (uid("web"), web.name.to_string());
    let reject = |state: &mut State| {
        state.reject_address(rejected(pod.as_str(), &["10.0.0.2"]));
        state.reject_address(RejectedAddress {
            ranges: vec![range("10.9.0.0/16")],
            ..rejected(&name, &["10.9.0.1"])
        });
        assert_eq!(state.rejected_addresses().len(), 2);
    };
    reject(&mut state);
    state.upsert_workload(workload("web", &["10.0.0.2"]));
    state.upsert_service(web);
    assert_eq!(found_at(&state, "10.0.0.2"), Some(pod.clone()));
    assert!(state.rejected.is_empty() && state.rejected.indexes_are_empty());
    reject(&mut state);
    assert!(state.remove_address(pod.as_str()) && state.remove_address(&name));
    assert!(!state.remove_address(pod.as_str()) && !state.remove_address(&name), "gone with all it was");
    assert_eq!((state.workloads().len(), state.services().len()), (0, 0));
    assert!(state.rejected.is_empty() && state.rejected.indexes_are_empty());
}

#[test]
fn a_workload_on_its_nodes_network_leaves_no_address_to_be_refused() {
    let mut state = State::new();
    let mut web = workload("web", &["10.0.0.2"]);
    web.network_mode = NetworkMode::HostNetwork;
    state.upsert_workload(web);
    state.reject_address(rejected(uid("web").as_str(), &[]));
    assert_eq!(rejected_at(&state, "10.0.0.2"), None);
}

#[test]
fn a_policy_that_changes_its_scope_leaves_the_old_one() {
    let policy = |scope| Authorization {
        name: "shop/p".parse().unwrap(),
        scope,
        action: Action::Deny,
        rules: vec![],
        dry_run: false,
    };
    let mut state = State::new();
    let web = workload("web", &[]);
    let applies = |state: &State| state.policies_for(&web).count();
    for (scope, expected) in [
        (PolicyScope::Global, 1),
        (PolicyScope::Namespace, 1),
        (PolicyScope::WorkloadSelector, 0),
        (PolicyScope::Global, 1),
    ] {
        state.upsert_policy(policy(scope));
        assert_eq!(applies(&state), expected, "{scope:?}");
    }
    assert!(state.remove_policy(&"shop/p".parse().unwrap()));
    assert_eq!(applies(&state), 0);
}

/// A random resource out of few, so that names, addresses and services collide.
fn change(state: &mut State, numbers: &mut Numbers) {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    let name = NAMES[numbers.below(5)];
    let other = NAMES[numbers.below(5)];
    match numbers.below(8) {
        7 => {
            let resource = match numbers.below(2) {
                0 => uid(name).to_string(),
                _ => service_name("shop", name).to_string(),
            };
            let mut one = rejected(&resource, &[&format!("10.0.0.{}", numbers.below(4))]);
            one.ranges = vec![range(["10.9.0.0/16", "10.9.0.0/24"][numbers.below(2)])];
            state.reject_address(one);
        }
        0..3 => {
            let at = format!("10.0.0.{}", numbers.below(4));
            let mut changed = workload(name, &[&at, &format!("fd00::{}", numbers.below(4))]);
            for service in [name, other].into_iter().take(numbers.below(3)) {
                changed = endpoint_of(changed, &service_name("shop", service), &[(80, 8080)]);
            }
            if numbers.below(5) == 0 {
                changed.network_mode = NetworkMode::HostNetwork;
            }
            changed.hostname =
                [None, Some("a.example.com"), Some("B.example.com")][numbers.below(3)].map(Into::into);
            changed.capacity = u32::try_from(numbers.below(3)).unwrap();
            state.upsert_workload(changed);
        }
        3 => {
            state.remove_workload(&uid(name));
        }
        4 | 5 => {
            let vip = format!("10.9.0.{}", numbers.below(3));
            let mut changed = service(["shop", "x"][numbers.below(2)], name, &[&vip], &[(80, 0)]);
            changed.load_balancing.routing_preference = vec![Scope::Node; numbers.below(2)];
            changed.load_balancing.allow_unhealthy = numbers.below(2) == 0;
            for _ in 0..numbers.below(3) {
                changed.cidr_vips.push(range(["10.9.0.0/16", "10.9.0.0/24", "fd09::/64"][numbers.below(3)]));
            }
            state.upsert_service(changed);
        }
        _ => {
            state.remove_service(&service_name("shop", name));
        }
    }
}

/// Everything that can be looked up, but for whose an address is that two workloads state.
fn lookups(state: &State) -> Vec<String> {
    let mut seen = Vec::new();
    for (at, uids) in &state.by_address {
        let mut uids = uids.clone();
        uids.sort();
        seen.push(format!("{at:?} {uids:?}"));
    }
    for (pod, uids) in &state.by_pod {
        seen.push(format!("{pod:?} {uids:?}"));
    }
    for (hostname, uids) in &state.workloads_by_hostname {
        seen.push(format!("{hostname} {uids:?}"));
    }
    for (host, names) in &state.by_hostname {
        seen.push(format!("{host} {names:?}"));
    }
    for (vip, names) in &state.by_vip {
        seen.push(format!("{vip:?} {names:?}"));
    }
    for (range, names) in state.by_range.iter() {
        seen.push(format!("{range} {names:?}"));
    }
    for at in ["10.9.0.1", "10.9.1.1", "fd09::1"] {
        seen.push(format!("{at} {:?}", state.by_range.covering(&address(at)).collect::<Vec<_>>()));
    }
    for at in ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.9.0.1", "10.9.1.1"] {
        seen.push(format!("{at} {:?}", rejected_at(state, at)));
    }
    for (name, endpoints) in &state.endpoints {
        let mut members: Vec<String> =
            endpoints.iter().map(|member| format!("{} {}", member.uid, member.capacity)).collect();
        members.sort();
        // What a service said that is gone does not matter.
        let balancing = state.service(name).map(|_| endpoints.balancing());
        seen.push(format!("{name} {members:?} {balancing:?}"));
    }
    seen.sort();
    seen
}

#[test]
fn after_any_changes_the_indexes_are_those_of_a_mesh_built_afresh() {
    for seed in 1..=200 {
        let mut numbers = Numbers::from_seed(seed);
        let mut state = State::new();
        for step in 0..60 {
            change(&mut state, &mut numbers);
            let mut fresh = State::new();
            state.workloads().for_each(|workload| fresh.upsert_workload(Workload::clone(workload)));
            state.services().for_each(|service| fresh.upsert_service(Service::clone(service)));
            state.rejected_addresses().for_each(|one| fresh.reject_address(RejectedAddress::clone(one)));
            assert_eq!(lookups(&state), lookups(&fresh), "seed {seed}, step {step}");
        }
    }
}

#[test]
fn a_service_that_changes_leaves_nothing_of_its_ranges() {
    let mut state = State::new();
    let mut ranged = service("shop", "web", &[], &[]);
    for ranges in
        [&["10.0.0.0/8", "fd00::/8"][..], &["10.0.0.0/8", "10.0.0.1/8", "10.1.0.0/16"], &["0.0.0.0/0"], &[]]
    {
        ranged.cidr_vips = ranges.iter().map(|text| range(text)).collect();
        state.upsert_service(ranged.clone());
        let found = state.service_by_range(&address("10.1.2.3"), &"any".into());
        assert_eq!(found.is_some(), !ranges.is_empty(), "{ranges:?}");
    }
    assert!(state.by_range.is_empty());
}

#[test]
fn ten_thousand_endpoints_of_one_service_come_and_go_and_leave_nothing() {
    let web = service_name("shop", "web");
    let mut state = State::new();
    for pass in 0..3_u32 {
        for n in 0..10_000_u32 {
            let at = format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
            let mut member = endpoint_of(workload(&format!("w{n}"), &[&at]), &web, &[(80, 8080)]);
            member.capacity = 1 + (n + pass) % 3;
            state.upsert_workload(member);
        }
    }
    assert_eq!(state.endpoints(&web).unwrap().iter().len(), 10_000);
    for n in 0..10_000_u32 {
        state.remove_workload(&uid(&format!("w{n}")));
    }
    assert!(state.endpoints(&web).is_none());
    assert!(state.by_address.is_empty() && state.by_pod.is_empty());
}

#[test]
fn names_are_read_as_they_are_written() {
    let name = service_name("shop", "web");
    assert_eq!(name.to_string().parse(), Ok(name));
    let policy: PolicyName = "shop/p".parse().unwrap();
    assert_eq!(policy.to_string(), "shop/p");
    for wrong in ["", "shop", "/p", "shop/", "a/b/c"] {
        assert!(wrong.parse::<PolicyName>().is_err(), "{wrong}");
        assert!(wrong.parse::<ServiceName>().is_err(), "{wrong}");
    }
    assert_eq!(port_map(&[(80, 0)]).get(&80), Some(&0));
}
