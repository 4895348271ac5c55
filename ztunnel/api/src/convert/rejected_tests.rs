//! What stays of a workload or service that cannot be read: where it is, as far as that can be told.

use super::proto::workload::address::Type;
use super::proto::workload::{NetworkAddress, Service, Workload};
use super::*;

fn pack_address(content: Type) -> Any {
    pack(ResourceType::Address, &proto::workload::Address { r#type: Some(content) })
}

fn workload() -> Workload {
    Workload {
        uid: "c//Pod/shop/web".to_owned(),
        name: "web".to_owned(),
        namespace: "shop".to_owned(),
        network: "blue".to_owned(),
        addresses: vec![vec![10, 0, 0, 2], vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]],
        ..Workload::default()
    }
}

fn service(addresses: Vec<NetworkAddress>) -> Service {
    let port = proto::workload::Port { service_port: 0, target_port: 1, app_protocol: 0 };
    Service {
        namespace: "shop".to_owned(),
        hostname: "web.shop".to_owned(),
        addresses,
        ports: vec![port],
        ..Service::default()
    }
}

fn at(address: &[u8], length: Option<u32>) -> NetworkAddress {
    NetworkAddress { network: "blue".to_owned(), address: address.to_vec(), length }
}

/// One field of a message: number, wire type 2, content.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(number < 16 && length < 128);
    [&[number << 3 | 2, length], content].concat()
}

fn raw(value: Vec<u8>) -> Any {
    Any { type_url: ResourceType::Address.url().to_owned(), value }
}

fn marker(name: &str, aliases: &[&str], any: &Any) -> RejectedAddress {
    let aliases: Vec<String> = aliases.iter().map(ToString::to_string).collect();
    let rejected = read(ResourceType::Address, name, &aliases, any).unwrap_err();
    match rejected.marker {
        Some(Marker::Address(address)) => {
            assert_eq!(address.reason, rejected.error.to_string());
            assert_eq!(address.resource, name);
            *address
        }
        other => panic!("{other:?}"),
    }
}

fn places(marker: &RejectedAddress) -> Vec<String> {
    let addresses = marker.addresses.iter().map(ToString::to_string);
    addresses.chain(marker.ranges.iter().map(ToString::to_string)).collect()
}

#[test]
fn a_workload_that_cannot_be_read_is_marked_at_each_address_that_can() {
    type Change = fn(&mut Workload);
    let both = &["blue/10.0.0.2", "blue/fd00::2"][..];
    let cases: [(&str, Change, &[&str]); 4] = [
        ("sidecar mTLS", |w| w.tunnel_protocol = 2, both),
        ("a policy without namespace", |w| w.authorization_policies = vec!["p".to_owned()], both),
        ("half of an address", |w| w.addresses[0].truncate(2), &both[1..]),
        (
            "its node's network, of which nothing is its own",
            |w| {
                w.tunnel_protocol = 2;
                w.network_mode = 1;
            },
            &[],
        ),
    ];
    for (sentence, change, expected) in cases {
        let mut wire = workload();
        change(&mut wire);
        let marker = marker("c//Pod/shop/web", &[], &pack_address(Type::Workload(wire)));
        assert_eq!(places(&marker), expected, "{sentence}");
        assert_eq!(marker.pod, Some(("shop".into(), "web".to_owned())), "{sentence}");
    }
}

#[test]
fn a_service_that_cannot_be_read_is_marked_at_each_address_and_range_that_can() {
    let cases: [(&str, Vec<NetworkAddress>, &[&str]); 4] = [
        ("an address", vec![at(&[10, 9, 0, 1], None)], &["blue/10.9.0.1"]),
        ("a range", vec![at(&[10, 9, 0, 1], Some(16))], &["blue/10.9.0.0/16"]),
        ("a range of one address", vec![at(&[10, 9, 0, 1], Some(32))], &["blue/10.9.0.1"]),
        (
            "a range of no meaning, of which the address is left, and half an address",
            vec![at(&[10, 9, 0, 1], Some(99)), at(&[10], None)],
            &["blue/10.9.0.1"],
        ),
    ];
    for (sentence, addresses, expected) in cases {
        let any = pack_address(Type::Service(service(addresses)));
        assert_eq!(places(&marker("shop/web.shop", &[], &any)), expected, "{sentence}");
    }
}

#[test]
fn of_bytes_that_are_no_message_counts_what_comes_before_they_stop_being_one() {
    let place = [field(3, &[10, 0, 0, 2]), field(4, b"blue")].concat();
    let not_utf8 = [&field(1, &[0xff])[..], &place].concat();
    let broken_later = [&place[..], &[0xff]].concat();
    let broken_before = [&[0x1a, 0x7f][..], &place].concat();
    let of_a_service =
        field(4, &[field(1, b"blue"), field(2, &[10, 9, 0, 1])].concat()).into_iter().chain([0xff]);
    let cases = [
        ("a text that is none, before them", field(1, &not_utf8), vec!["blue/10.0.0.2"]),
        ("a break after them", field(1, &broken_later), vec!["blue/10.0.0.2"]),
        ("a break before them", field(1, &broken_before), vec![]),
        ("a break after the workload", [&field(1, &place)[..], &[0xff]].concat(), vec!["blue/10.0.0.2"]),
        ("a break in a service", field(2, &of_a_service.collect::<Vec<_>>()), vec!["blue/10.9.0.1"]),
        ("nothing but noise", vec![0xff; 9], vec![]),
    ];
    for (sentence, bytes, expected) in cases {
        assert_eq!(places(&marker("x", &[], &raw(bytes))), expected, "{sentence}");
    }
}

#[test]
fn aliases_say_where_it_is_when_nothing_else_does() {
    let aliases = [
        "blue/10.0.0.2",
        "/10.0.0.3",
        "blue/fd00::2",
        "blue/10.9.0.0/16",
        "shop/web.shop",
        "no",
        "blue/1/2/3",
    ];
    let expected = ["blue/10.0.0.2", "/10.0.0.3", "blue/fd00::2", "blue/10.9.0.0/16"];
    for any in [raw(vec![0xff]), Any { type_url: "another".to_owned(), value: Vec::new() }] {
        assert_eq!(places(&marker("shop/web.shop", &aliases, &any)), expected);
    }
    let known = pack_address(Type::Service(service(vec![at(&[10, 0, 0, 2], None)])));
    let marker = marker("shop/web.shop", &["blue/10.0.0.2", "blue/10.0.0.3"], &known);
    assert_eq!(places(&marker), ["blue/10.0.0.2", "blue/10.0.0.3"], "each once");
}

#[test]
fn content_under_another_name_marks_its_addresses_under_that_name() {
    let any = pack_address(Type::Workload(workload()));
    assert_eq!(places(&marker("other", &[], &any)), ["blue/10.0.0.2", "blue/fd00::2"]);
}
