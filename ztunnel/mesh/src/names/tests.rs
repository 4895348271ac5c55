use super::*;
use crate::fixtures::{endpoint_of, ip, service, service_name, workload};
use crate::service::{IpFamilies, LoadBalancing, ServiceName, Visibility};

const DOMAIN: &str = "cluster.local";

/// `shop/web` with both families, `plain/web` with IPv4, `shop/db` headless with two endpoints, one of them not ready.
fn mesh() -> State {
    let mut state = State::new();
    state.upsert_service(service("shop", "web", &["10.0.0.1", "fd00::1"], &[(80, 80)]));
    state.upsert_service(service("plain", "web", &["10.0.0.2"], &[(80, 80)]));
    state.upsert_service(service("shop", "db", &[], &[(5432, 5432)]));
    let db = service_name("shop", "db");
    state.upsert_workload(endpoint_of(workload("db-0", &["10.1.0.5", "fd00::5"]), &db, &[(5432, 5432)]));
    let unready = Workload { health: Health::Unhealthy, ..workload("db-1", &["10.1.0.6"]) };
    state.upsert_workload(endpoint_of(unready, &db, &[(5432, 5432)]));
    state
}

/// A host outside of the cluster, as a ServiceEntry of `namespace` states it.
fn entry(namespace: &str, host: &str, vips: &[&str]) -> Service {
    let name = ServiceName { namespace: namespace.into(), hostname: host.into() };
    Service { name, canonical: false, ..service(namespace, "entry", vips, &[(443, 443)]) }
}

fn cluster_search() -> Search {
    Search::of_cluster(&"shop".into(), DOMAIN)
}

fn ask_with(state: &State, search: &Search, name: &str) -> Option<Answer> {
    let (namespace, network) = ("shop".into(), Network::default());
    let client = Client { namespace: &namespace, network: &network, search, cluster_domain: DOMAIN };
    resolve(state, &client, name)
}

fn ask(state: &State, name: &str) -> Option<Answer> {
    ask_with(state, &cluster_search(), name)
}

fn found(addresses: &[&str]) -> Option<Answer> {
    Some(Answer { canonical: None, addresses: addresses.iter().map(|address| ip(address)).collect() })
}

fn renamed(canonical: &str, addresses: &[&str]) -> Option<Answer> {
    found(addresses).map(|answer| Answer { canonical: Some(canonical.to_owned()), ..answer })
}

#[test]
fn names_of_one_to_five_labels_are_completed_as_the_clients_resolver_would() {
    let state = mesh();
    let own = &["10.0.0.1", "fd00::1"][..];
    for (name, expected) in [
        ("web.shop.svc.cluster.local", found(own)),
        ("web", found(own)),
        ("web.shop", found(own)),
        ("web.shop.svc", found(own)),
        ("web.plain", found(&["10.0.0.2"])),
        ("web.plain.svc.cluster.local", found(&["10.0.0.2"])),
        ("web.nowhere", None),
        ("example.com", None),
        ("local", None),
    ] {
        assert_eq!(ask(&state, name), expected, "{name}");
    }
}

#[test]
fn what_has_as_many_dots_as_ndots_is_not_completed() {
    let state = mesh();
    let search = Search { ndots: 1, ..cluster_search() };
    assert_eq!(ask_with(&state, &search, "web"), found(&["10.0.0.1", "fd00::1"]));
    assert_eq!(ask_with(&state, &search, "web.plain"), None, "a host of the top-level domain `plain`");
}

#[test]
fn names_are_completed_by_the_domains_of_the_pod_and_by_no_others() {
    let state = mesh();
    let search = Search { domains: vec!["plain.svc.cluster.local".into(), "corp.example".into()], ndots: 5 };
    assert_eq!(ask_with(&state, &search, "web"), found(&["10.0.0.2"]));
    assert_eq!(ask_with(&state, &search, "web.shop"), None);
    let none = Search { domains: vec![], ndots: 1 };
    assert_eq!(ask_with(&state, &none, "web"), None);
    assert_eq!(ask_with(&state, &none, "web.shop.svc.cluster.local"), found(&["10.0.0.1", "fd00::1"]));
}

#[test]
fn a_host_that_the_resolver_completed_in_vain_is_found_at_once_by_its_own_name() {
    let mut state = mesh();
    state.upsert_service(entry("shop", "api.example.com", &["240.240.0.1"]));
    for (name, expected) in [
        ("api.example.com", found(&["240.240.0.1"])),
        ("api.example.com.shop.svc.cluster.local", renamed("api.example.com", &["240.240.0.1"])),
        ("api.example.com.cluster.local", renamed("api.example.com", &["240.240.0.1"])),
        ("web.plain.shop.svc.cluster.local", renamed("web.plain.svc.cluster.local", &["10.0.0.2"])),
        ("other.example.com.shop.svc.cluster.local", None),
        ("shop.svc.cluster.local", None),
    ] {
        assert_eq!(ask(&state, name), expected, "{name}");
    }
}

#[test]
fn a_wildcard_covers_every_name_below_it_and_is_nobodys_other_name() {
    let mut state = mesh();
    state.upsert_service(entry("shop", "*.example.com", &["240.240.0.2"]));
    state.upsert_service(entry("shop", "api.example.com", &["240.240.0.1"]));
    for (name, expected) in [
        ("api.example.com", found(&["240.240.0.1"])),
        ("a.example.com", found(&["240.240.0.2"])),
        ("a.b.example.com", found(&["240.240.0.2"])),
        ("a.example.com.shop.svc.cluster.local", found(&["240.240.0.2"])),
        ("example.com", None),
        ("badexample.com", None),
    ] {
        assert_eq!(ask(&state, name), expected, "{name}");
    }
}

#[test]
fn a_headless_service_is_its_ready_endpoints_and_all_of_them_if_it_says_so() {
    let mut state = mesh();
    assert_eq!(ask(&state, "db"), found(&["10.1.0.5", "fd00::5"]));
    let load_balancing = LoadBalancing { allow_unhealthy: true, ..LoadBalancing::default() };
    state.upsert_service(Service { load_balancing, ..service("shop", "db", &[], &[(5432, 5432)]) });
    assert_eq!(ask(&state, "db"), found(&["10.1.0.5", "10.1.0.6", "fd00::5"]));
}

#[test]
fn a_service_without_anything_to_call_exists_all_the_same() {
    let mut state = mesh();
    state.upsert_service(service("shop", "empty", &[], &[(80, 80)]));
    assert_eq!(ask(&state, "empty"), found(&[]));
    let mut elsewhere = service("shop", "elsewhere", &["10.9.0.1"], &[(80, 80)]);
    elsewhere.vips[0].network = "other".into();
    state.upsert_service(elsewhere);
    assert_eq!(ask(&state, "elsewhere"), found(&[]), "addresses of another network are of no use");
}

#[test]
fn the_families_a_service_states_are_those_it_is_found_by() {
    let mut state = mesh();
    for (ip_families, expected) in [
        (IpFamilies::Automatic, found(&["10.0.0.1", "fd00::1"])),
        (IpFamilies::V4Only, found(&["10.0.0.1"])),
        (IpFamilies::V6Only, found(&["fd00::1"])),
        (IpFamilies::Dual, found(&["10.0.0.1", "fd00::1"])),
    ] {
        let web = service("shop", "web", &["10.0.0.1", "fd00::1"], &[(80, 80)]);
        state.upsert_service(Service { ip_families, ..web });
        assert_eq!(ask(&state, "web"), expected, "{ip_families:?}");
    }
}

#[test]
fn what_the_client_may_not_know_or_dns_has_to_say_is_left_to_dns() {
    let mut state = mesh();
    let hidden =
        Service { visibility: Visibility::Namespace, ..entry("plain", "hidden.example", &["10.8.0.1"]) };
    state.upsert_service(hidden);
    assert_eq!(ask(&state, "hidden.example"), None);
    state.upsert_service(entry("shop", "dns.example", &[]));
    assert_eq!(ask(&state, "dns.example"), None, "it has no address of its own");
    state.upsert_service(entry("shop", "svc.example.com", &[]));
    assert_eq!(ask(&state, "svc.example.com"), None, "no service of the cluster, whatever its name");
}

#[test]
fn of_several_services_with_a_name_the_clients_namespace_has_the_first_word_then_the_one_of_record() {
    let mut state = State::new();
    state.upsert_service(entry("a", "api.example", &["10.8.0.1"]));
    assert_eq!(ask(&state, "api.example"), found(&["10.8.0.1"]));
    state.upsert_service(Service { canonical: true, ..entry("z", "api.example", &["10.8.0.2"]) });
    assert_eq!(ask(&state, "api.example"), found(&["10.8.0.2"]));
    state.upsert_service(entry("shop", "api.example", &["10.8.0.3"]));
    assert_eq!(ask(&state, "api.example"), found(&["10.8.0.3"]));
    let own = ServiceName { namespace: "shop".into(), hostname: "api.example".into() };
    state.remove_service(&own);
    assert_eq!(ask(&state, "api.example"), found(&["10.8.0.2"]));
}

#[test]
fn a_workload_is_found_by_its_host_name_as_long_as_it_has_it() {
    let mut state = mesh();
    let named = |hostname: Option<&str>, addresses: &[&str]| Workload {
        hostname: hostname.map(Into::into),
        ..workload("vm", addresses)
    };
    state.upsert_workload(named(Some("vm.example"), &["10.7.0.1"]));
    assert_eq!(ask(&state, "vm.example"), found(&["10.7.0.1"]));
    state.upsert_workload(named(Some("vm2.example"), &["10.7.0.1"]));
    assert_eq!(ask(&state, "vm.example"), None);
    assert_eq!(ask(&state, "vm2.example"), found(&["10.7.0.1"]));
    state.upsert_workload(named(Some("vm2.example"), &[]));
    assert_eq!(ask(&state, "vm2.example"), None, "DNS knows where it is");
    state.remove_workload(&crate::fixtures::uid("vm"));
    assert_eq!(ask(&state, "vm2.example"), None);
}
