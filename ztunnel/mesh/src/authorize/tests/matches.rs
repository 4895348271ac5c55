//! What a single match holds for.

use super::*;

/// Matches against a client `shop/client` (or none) at 10.0.0.1 that asks for 10.0.0.2:8080.
#[expect(clippy::too_many_lines, reason = "a table")]
fn match_cases() -> Vec<(&'static str, Match, bool, bool)> {
    let with = |set: fn(&mut Match)| {
        let mut one = Match::default();
        set(&mut one);
        one
    };
    // (what it says, the match, with the identity, without one)
    vec![
        ("a match that states nothing never matches", with(|_| {}), false, false),
        ("an exact principal has no spiffe://", with(|m| m.principals = exact(CLIENT)), false, false),
        (
            "an exact principal",
            with(|m| m.principals = exact("cluster.local/ns/shop/sa/client")),
            true,
            false,
        ),
        ("a prefix of the principal", with(|m| m.principals = prefix("cluster.local/ns/shop/")), true, false),
        ("a suffix of the principal", with(|m| m.principals = suffix("/sa/client")), true, false),
        ("presence of a principal", with(|m| m.principals = vec![StringMatch::Presence]), true, false),
        ("absence of a principal", with(|m| m.not_principals = vec![StringMatch::Presence]), false, true),
        (
            "a prefix that is longer than the principal",
            with(|m| m.principals = prefix("cluster.local/ns/shop/sa/client/x")),
            false,
            false,
        ),
        (
            "a prefix of the principal excluded",
            with(|m| m.not_principals = prefix("cluster.local/")),
            false,
            true,
        ),
        ("a suffix of the principal excluded", with(|m| m.not_principals = suffix("/client")), false, true),
        (
            "the principal excluded",
            with(|m| m.not_principals = exact("cluster.local/ns/shop/sa/client")),
            false,
            true,
        ),
        (
            "the principal of another trust domain",
            with(|m| m.principals = exact("other/ns/shop/sa/client")),
            false,
            false,
        ),
        ("another principal excluded", with(|m| m.not_principals = suffix("/sa/other")), true, true),
        ("its namespace", with(|m| m.namespaces = exact("shop")), true, false),
        ("a namespace that begins otherwise", with(|m| m.namespaces = prefix("hop")), false, false),
        ("a prefix of its namespace", with(|m| m.namespaces = prefix("sh")), true, false),
        ("a suffix of its namespace", with(|m| m.namespaces = suffix("op")), true, false),
        ("presence of a namespace", with(|m| m.namespaces = vec![StringMatch::Presence]), true, false),
        ("absence of a namespace", with(|m| m.not_namespaces = vec![StringMatch::Presence]), false, true),
        ("another namespace excluded", with(|m| m.not_namespaces = exact("other")), true, true),
        ("its namespace excluded", with(|m| m.not_namespaces = exact("shop")), false, true),
        ("its service account", with(|m| m.service_accounts = account("shop", "client")), true, false),
        (
            "the same account of another namespace",
            with(|m| m.service_accounts = account("other", "client")),
            false,
            false,
        ),
        (
            "its service account excluded",
            with(|m| m.not_service_accounts = account("shop", "client")),
            false,
            true,
        ),
        ("another account excluded", with(|m| m.not_service_accounts = account("shop", "other")), true, true),
        ("another range excluded", with(|m| m.not_source_ips = nets("10.0.1.0/24")), true, true),
        (
            "a range without the address dialled",
            with(|m| m.destination_ips = nets("10.0.3.0/24")),
            false,
            false,
        ),
        ("another port excluded", with(|m| m.not_destination_ports = vec![80]), true, true),
        (
            "wanted and excluded at once",
            with(|m| {
                m.namespaces = exact("shop");
                m.not_namespaces = exact("shop");
            }),
            false,
            false,
        ),
        (
            "wanted, and another one excluded",
            with(|m| {
                m.namespaces = prefix("sh");
                m.not_namespaces = exact("shipping");
            }),
            true,
            false,
        ),
        (
            "a range of which a part is excluded",
            with(|m| {
                m.source_ips = nets("10.0.0.0/8");
                m.not_source_ips = nets("10.0.0.0/31");
            }),
            false,
            false,
        ),
        ("a range with the client", with(|m| m.source_ips = nets("10.0.0.0/24")), true, true),
        ("a range without the client", with(|m| m.source_ips = nets("10.0.1.0/24")), false, false),
        ("a range with the client excluded", with(|m| m.not_source_ips = nets("10.0.0.1/32")), false, false),
        ("all of the other family", with(|m| m.source_ips = nets("::/0")), false, false),
        ("a range with the address dialled", with(|m| m.destination_ips = nets("10.0.0.2/32")), true, true),
        ("that range excluded", with(|m| m.not_destination_ips = nets("10.0.0.2/32")), false, false),
        ("the port among others", with(|m| m.destination_ports = vec![80, 8080]), true, true),
        ("another port", with(|m| m.destination_ports = vec![80]), false, false),
        ("the port excluded", with(|m| m.not_destination_ports = vec![8080]), false, false),
        (
            "all fields must hold",
            with(|m| {
                m.namespaces = exact("shop");
                m.destination_ports = vec![80];
            }),
            false,
            false,
        ),
        (
            "any value of a field suffices",
            with(|m| m.namespaces = [exact("other"), exact("shop")].concat()),
            true,
            false,
        ),
    ]
}

#[test]
fn a_match_holds_exactly_when_all_its_stated_fields_do() {
    for (sentence, one, with_identity, without) in match_cases() {
        for (source, expected) in [(Some(CLIENT), with_identity), (None, without)] {
            let denied = outcome(vec![deny(one.clone())], source).is_err();
            assert_eq!(denied, expected, "{sentence}, with source {source:?}, as DENY");
            let allowed = outcome(vec![allow(one.clone())], source).is_ok();
            assert_eq!(allowed, expected, "{sentence}, with source {source:?}, as ALLOW");
        }
    }
}

#[test]
fn a_range_holds_addresses_of_its_own_family_alone_in_whatever_form_they_come() {
    let cases = [
        ("an IPv4 range with it", "10.1.2.3", "10.1.0.0/16", true),
        ("an IPv4 range without it", "10.2.2.3", "10.1.0.0/16", false),
        ("exactly it", "10.1.2.3", "10.1.2.3/32", true),
        ("exactly its neighbour", "10.1.2.3", "10.1.2.2/32", false),
        ("the range's first", "10.1.0.0", "10.1.0.0/16", true),
        ("the range's last", "10.1.255.255", "10.1.0.0/16", true),
        ("all of IPv4", "10.1.2.3", "0.0.0.0/0", true),
        ("all of IPv6", "10.1.2.3", "::/0", false),
        ("an IPv4 address in IPv6 form", "::ffff:10.1.2.3", "10.1.0.0/16", true),
        ("an IPv4 address in IPv6 form, of all of IPv6", "::ffff:10.1.2.3", "::/0", false),
        ("an IPv6 range with it", "fd00:1::7", "fd00:1::/64", true),
        ("an IPv6 range without it", "fd00:2::7", "fd00:1::/64", false),
        ("exactly it, in IPv6", "fd00:1::7", "fd00:1::7/128", true),
        ("an IPv6 address of all of IPv4", "fd00:1::7", "0.0.0.0/0", false),
        ("an IPv6 address of all of IPv6", "fd00:1::7", "::/0", true),
        ("a range whose address has bits after its prefix", "10.1.2.3", "10.1.9.9/16", true),
    ];
    for (sentence, address, range, holds) in cases {
        let by_source = Attempt { source_ip: ip(address), ..attempt(None) };
        let mut web = workload("web", &["10.0.0.2"]);
        web.addresses.push(ip(address).to_canonical());
        let by_destination = Attempt { destination: (ip(address), 8080).into(), ..attempt(None) };
        for (attempt, wanted, unwanted) in [
            (
                by_source,
                Match { source_ips: nets(range), ..Match::default() },
                Match { not_source_ips: nets(range), ..Match::default() },
            ),
            (
                by_destination,
                Match { destination_ips: nets(range), ..Match::default() },
                Match { not_destination_ips: nets(range), ..Match::default() },
            ),
        ] {
            for (one, expected) in [(wanted, holds), (unwanted, !holds)] {
                let mut state = state_with(vec![deny(one.clone())]);
                state.upsert_workload(web.clone());
                assert_eq!(outcome_in(&state, attempt.clone()).is_err(), expected, "{sentence}: {one:?}");
            }
        }
    }
}
