//! Step 3: which service or workload an address means.

use super::*;

/// A service and its only endpoint.
type Known = (Workload, Service);

/// A service of the namespace at 10.9.0.1 and in the ranges, whose only endpoint is a pod named like it.
fn known(namespace: &str, vips: &[&str], ranges: &[&str]) -> Known {
    let mut service = service(namespace, namespace, vips, &[(80, 80)]);
    service.cidr_vips = ranges.iter().map(|text| range(text)).collect();
    (endpoint_of(workload(namespace, &["10.1.0.1"]), &service.name, &[]), service)
}

fn canonical(mut known: Known, canonical: bool) -> Known {
    known.1.canonical = canonical;
    known
}

fn hidden(mut known: Known) -> Known {
    known.1.visibility = Visibility::Namespace;
    known
}

fn mesh_of(known: Vec<Known>) -> State {
    let (workloads, services) = known.into_iter().unzip();
    mesh(workloads, services)
}

fn expect(cases: Vec<(&str, Vec<Known>, &str)>) {
    for (sentence, services, expected) in cases {
        let found = goes(&mesh_of(services), "10.9.0.1:80");
        let expected = match expected {
            "nobody" => "passes to 10.9.0.1:80".to_owned(),
            name => format!("hbone to {name} at 10.1.0.1:80 by {name}"),
        };
        assert_eq!(found, expected, "{sentence}");
    }
}

#[test]
fn of_services_with_one_address_the_clients_own_comes_first_then_a_canonical_one() {
    let at = |namespace| known(namespace, &["10.9.0.1"], &[]);
    expect(vec![
        ("its own before a canonical one", vec![canonical(at("shop"), false), at("a")], "shop"),
        ("a canonical one before others", vec![canonical(at("a"), false), at("b")], "b"),
        ("the first by name of equal ones", vec![at("b"), at("a")], "a"),
        (
            "none that another namespace keeps to itself",
            vec![hidden(at("a")), canonical(at("b"), false)],
            "b",
        ),
        ("nobody's", vec![hidden(at("a"))], "nobody"),
        ("what its own namespace keeps to itself", vec![hidden(at("shop")), at("a")], "shop"),
    ]);
}

#[test]
fn of_ranges_the_clients_own_comes_first_then_the_longest_then_a_canonical_one() {
    let of = |namespace, range| known(namespace, &[], &[range]);
    expect(vec![
        ("an address before a range", vec![known("b", &["10.9.0.1"], &[]), of("a", "10.9.0.1/32")], "b"),
        (
            "another's address before its own range",
            vec![known("b", &["10.9.0.1"], &[]), of("shop", "10.9.0.0/16")],
            "b",
        ),
        (
            "the longest prefix",
            vec![of("a", "10.0.0.0/8"), of("b", "10.9.0.0/16"), of("c", "0.0.0.0/0")],
            "b",
        ),
        ("its own before a longer one", vec![of("shop", "10.0.0.0/8"), of("b", "10.9.0.0/24")], "shop"),
        ("its own longest", vec![of("shop", "0.0.0.0/0"), of("b", "10.9.0.0/24")], "shop"),
        (
            "a longer one before a canonical one",
            vec![of("a", "10.0.0.0/8"), canonical(of("b", "10.9.0.0/24"), false)],
            "b",
        ),
        (
            "a canonical one of equal length",
            vec![canonical(of("a", "10.9.0.0/24"), false), of("b", "10.9.0.0/24")],
            "b",
        ),
        (
            "none that is hidden, though longer",
            vec![hidden(of("a", "10.9.0.0/24")), of("b", "10.0.0.0/8")],
            "b",
        ),
        ("a range with bits after its prefix", vec![of("a", "10.9.0.77/16")], "a"),
        ("a range of everything", vec![of("a", "0.0.0.0/0")], "a"),
        (
            "no range beside it",
            vec![of("a", "10.9.0.2/32"), of("b", "10.8.0.0/16"), of("c", "::/0")],
            "nobody",
        ),
    ]);
}

#[test]
fn a_workloads_address_comes_after_a_services_and_before_a_range() {
    let mut both = web_service();
    both.vips.push(address("10.0.0.2"));
    let state = mesh(vec![web()], vec![both]);
    assert_eq!(goes(&state, "10.0.0.2:80"), "hbone to web at 10.0.0.2:8080 by web");
    let mut ranged = web_service();
    ranged.load_balancing.mode = Mode::Passthrough;
    ranged.cidr_vips = vec![range("10.0.0.0/8")];
    let state = mesh(vec![web()], vec![ranged]);
    assert_eq!(goes(&state, "10.0.0.2:80"), "hbone to web at 10.0.0.2:80");
    assert_eq!(goes(&state, "10.0.0.3:80"), "passes to 10.0.0.3:80");
}

#[test]
fn ranges_are_of_one_network_and_family_and_go_with_their_service() {
    let mut ranged = web_service();
    ranged.cidr_vips = vec![range("fd99::/64"), range("10.99.0.0/16")];
    let mut state = mesh(vec![web()], vec![ranged]);
    assert_eq!(goes(&state, "[fd99::7]:80"), "hbone to web at [fd00::2]:8080 by web");
    assert_eq!(goes(&state, "10.99.0.7:80"), "hbone to web at 10.0.0.2:8080 by web");
    let abroad = Workload { network: Network::from("far"), ..client() };
    let passes = route(&state, &abroad, "10.99.0.7:80".parse().unwrap(), 1);
    assert_eq!(show(passes), "passes to 10.99.0.7:80", "addresses of another network mean nothing");
    state.upsert_service(web_service());
    assert_eq!(goes(&state, "10.99.0.7:80"), "passes to 10.99.0.7:80");
}
