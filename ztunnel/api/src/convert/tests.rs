//! What control writes ztunnel reads, and what cannot be read says why.

use mesh::gateway::{GatewayDestination, WeightedWaypoint};
use mesh::identity::Namespace;
use mesh::policy::{Action, Clause, Match, Rule, ServiceAccountMatch, StringMatch};
use mesh::service::{IpFamilies, LoadBalancing, Mode, Scope, ServiceName, Visibility};
use mesh::workload::{ApplicationTunnel, Health, Locality, NetworkMode, TunnelProtocol, WorkloadType};
use mesh::{GatewayAddress, NetworkRange};

use super::*;

fn workload() -> Workload {
    let name = |host: &str| ServiceName { namespace: "shop".into(), hostname: host.into() };
    Workload {
        uid: "Kubernetes//Pod/shop/web-0".into(),
        name: "web-0".to_owned(),
        namespace: Namespace::from("shop"),
        trust_domain: "example.org".into(),
        service_account: "web".into(),
        network: "blue".into(),
        addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: NetworkMode::HostNetwork,
        node: "east".to_owned(),
        canonical_name: "web".to_owned(),
        canonical_revision: "v2".to_owned(),
        workload_type: WorkloadType::CronJob,
        workload_name: "web".to_owned(),
        cluster_id: "c1".to_owned(),
        locality: Locality { region: "r".to_owned(), zone: "z".to_owned(), subzone: "s".to_owned() },
        health: Health::Unhealthy,
        capacity: 0,
        services: [(name("a"), [(80, 8080), (81, 0)].into()), (name("b"), [].into())].into(),
        authorization_policies: vec!["shop/p".parse().unwrap()],
        waypoint: Some(Box::new(by_name())),
        network_gateway: Some(Box::new(by_address())),
        hostname: Some("web.example.com".into()),
        application_tunnel: Some(ApplicationTunnel::Proxy { port: Some(15088) }),
    }
}

fn by_name() -> GatewayAddress {
    let name = ServiceName { namespace: "infra".into(), hostname: "way.infra".into() };
    GatewayAddress { destination: GatewayDestination::Hostname(name), hbone_port: 15009 }
}

fn by_address() -> GatewayAddress {
    let at = mesh::NetworkAddress { network: "blue".into(), ip: "10.9.1.1".parse().unwrap() };
    GatewayAddress { destination: GatewayDestination::Address(at), hbone_port: 15008 }
}

fn service() -> Service {
    Service {
        name: "shop/web.shop.svc.cluster.local".parse().unwrap(),
        short_name: "web".to_owned(),
        vips: ["10.9.0.1", "fd09::1"]
            .map(|ip| mesh::NetworkAddress { network: "blue".into(), ip: ip.parse().unwrap() })
            .to_vec(),
        cidr_vips: ["10.99.0.0/16", "fd99::/64"]
            .map(|range| NetworkRange::new("blue".into(), range.parse().unwrap()))
            .to_vec(),
        ip_families: IpFamilies::Dual,
        ports: [(80, 8080), (81, 0)].into(),
        subject_alt_names: vec!["spiffe://cluster.local/ns/shop/sa/x".to_owned()],
        load_balancing: LoadBalancing {
            routing_preference: vec![
                Scope::Network,
                Scope::Region,
                Scope::Zone,
                Scope::Subzone,
                Scope::Node,
                Scope::Cluster,
            ],
            mode: Mode::Strict,
            allow_unhealthy: true,
        },
        canonical: true,
        visibility: Visibility::Namespace,
        waypoint: Some(by_address()),
        weighted_waypoints: vec![
            WeightedWaypoint { destination: by_name(), weight: 1 },
            WeightedWaypoint { destination: by_address(), weight: 9 },
        ],
    }
}

fn policy() -> Authorization {
    let texts = |text: &str| {
        vec![
            StringMatch::Exact(text.to_owned()),
            StringMatch::Prefix(text.to_owned()),
            StringMatch::Suffix(text.to_owned()),
            StringMatch::Presence,
        ]
    };
    let account =
        |name: &str| vec![ServiceAccountMatch { namespace: "shop".into(), service_account: name.into() }];
    let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    let full = Match {
        namespaces: texts("1"),
        not_namespaces: texts("2"),
        principals: texts("3"),
        not_principals: texts("4"),
        service_accounts: account("5"),
        not_service_accounts: account("6"),
        source_ips: nets(&["10.0.0.0/8", "fd00::/8"]),
        not_source_ips: nets(&["10.1.0.0/16"]),
        destination_ips: nets(&["0.0.0.0/0"]),
        not_destination_ips: nets(&["::1/128"]),
        destination_ports: vec![1, 65535],
        not_destination_ports: vec![22],
    };
    Authorization {
        name: "shop/p".parse().unwrap(),
        scope: PolicyScope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![full] }] }, Rule::default()],
        dry_run: true,
    }
}

#[test]
fn what_is_written_is_read_as_it_was() {
    let workload = workload();
    let (name, any) = workload_resource(&workload);
    assert_eq!(read(ResourceType::Address, &name, &[], &any), Ok(Resource::Workload(Box::new(workload))));
    let service = service();
    let (name, any) = service_resource(&service);
    assert_eq!(name, "shop/web.shop.svc.cluster.local");
    assert_eq!(read(ResourceType::Address, &name, &[], &any), Ok(Resource::Service(Box::new(service))));
    let policy = policy();
    let (name, any) = policy_resource(&policy);
    assert_eq!(name, "shop/p");
    assert_eq!(read(ResourceType::Authorization, &name, &[], &any), Ok(Resource::Policy(Box::new(policy))));
    let pod = proto::node::Pod { uid: "u".to_owned(), probe_ports: vec![80], ..Default::default() };
    let (name, any) = pod_resource(&pod);
    assert_eq!(read(ResourceType::NodePod, &name, &[], &any), Ok(Resource::Pod(Box::new(pod))));
}

#[test]
fn what_a_control_plane_leaves_out_has_istios_defaults() {
    let bare = proto::workload::Workload { uid: "u".to_owned(), ..Default::default() };
    let read = workload_from_proto(bare).unwrap();
    assert_eq!(read.identity().to_string(), "spiffe://cluster.local/ns//sa/default");
    assert_eq!((read.cluster_id.as_str(), read.capacity), ("Kubernetes", 1));
    assert_eq!((read.health, read.tunnel_protocol), (Health::Healthy, TunnelProtocol::None));
}

#[test]
fn numbers_of_a_later_version_get_the_value_that_admits_least() {
    let later = proto::workload::Workload {
        uid: "u".to_owned(),
        tunnel_protocol: 99,
        status: 99,
        network_mode: 99,
        workload_type: 99,
        ..Default::default()
    };
    let read = workload_from_proto(later).unwrap();
    assert_eq!(read.tunnel_protocol, TunnelProtocol::Hbone, "what is not plaintext must not be sent as such");
    assert_eq!((read.health, read.network_mode), (Health::Unhealthy, NetworkMode::Standard));
    let later = proto::workload::Service {
        load_balancing: Some(proto::workload::LoadBalancing {
            routing_preference: vec![99, 4],
            mode: 2,
            health_policy: 99,
        }),
        ip_families: 99,
        visibility: 99,
        ..service_to_proto(&service())
    };
    let read = service_from_proto(later).unwrap().load_balancing;
    let expected =
        LoadBalancing { routing_preference: vec![Scope::Node], mode: Mode::Failover, allow_unhealthy: false };
    assert_eq!(read, expected);
}

#[test]
fn a_gateway_of_a_later_version_is_one_that_is_not_known_and_never_none() {
    let bare = proto::workload::GatewayAddress::default;
    let unknown = || GatewayAddress { destination: GatewayDestination::Unknown, hbone_port: 15008 };
    let wire = proto::workload::Workload {
        waypoint: Some(bare()),
        network_gateway: Some(bare()),
        application_tunnel: Some(proto::workload::ApplicationTunnel { protocol: 9, port: 0 }),
        ..workload_to_proto(&workload())
    };
    let read = workload_from_proto(wire).unwrap();
    assert_eq!(read.waypoint.as_deref(), Some(&unknown()));
    assert_eq!(read.network_gateway.as_deref(), Some(&unknown()));
    assert_eq!(read.application_tunnel, Some(ApplicationTunnel::Unknown));
    let wire = proto::workload::Service {
        waypoint: Some(bare()),
        weighted_waypoints: vec![proto::workload::WeightedWaypoint { destination: None, weight: 2 }],
        visibility: 9,
        ..service_to_proto(&service())
    };
    let read = service_from_proto(wire).unwrap();
    assert_eq!(read.waypoint, Some(unknown()));
    assert_eq!(read.weighted_waypoints, [WeightedWaypoint { destination: unknown(), weight: 2 }]);
    assert_eq!(read.visibility, Visibility::Namespace);
}

#[test]
fn what_is_not_stated_of_ways_is_none() {
    let none = proto::workload::ApplicationTunnel::default();
    let bare = proto::workload::Workload {
        uid: "u".to_owned(),
        application_tunnel: Some(none),
        ..Default::default()
    };
    let read = workload_from_proto(bare).unwrap();
    assert_eq!((read.waypoint, read.network_gateway, read.hostname), (None, None, None));
    assert_eq!(read.application_tunnel, None, "the protocol NONE");
    let bare = proto::workload::Service {
        namespace: "shop".to_owned(),
        hostname: "web".to_owned(),
        ..Default::default()
    };
    let read = service_from_proto(bare).unwrap();
    assert!(read.waypoints().next().is_none() && !read.canonical);
    assert_eq!(read.visibility, Visibility::Public);
}

#[test]
fn a_virtual_address_with_a_prefix_is_a_range_unless_the_prefix_is_the_whole() {
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let cases: [(&[u8], Option<u32>, &str); 8] = [
        (&[10, 1, 2, 3], None, "blue/10.1.2.3"),
        (&[10, 1, 2, 3], Some(32), "blue/10.1.2.3"),
        (&[10, 1, 2, 3], Some(8), "blue/10.0.0.0/8"),
        (&[10, 1, 2, 3], Some(0), "blue/0.0.0.0/0"),
        (&mapped, None, "blue/10.1.2.3"),
        (&mapped, Some(112), "blue/10.1.0.0/16"),
        (&v6, Some(128), "blue/fd00::1"),
        (&v6, Some(64), "blue/fd00::/64"),
    ];
    let with = |address: &[u8], length| {
        let address =
            proto::workload::NetworkAddress { network: "blue".to_owned(), address: address.to_vec(), length };
        service_from_proto(proto::workload::Service {
            addresses: vec![address],
            ..service_to_proto(&service())
        })
    };
    for (address, length, expected) in cases {
        let read = with(address, length).unwrap();
        let vips = read.vips.iter().map(ToString::to_string);
        let ranges = read.cidr_vips.iter().map(ToString::to_string);
        assert_eq!(vips.chain(ranges).collect::<Vec<_>>(), [expected], "{address:?} {length:?}");
    }
    for (address, length) in [(&[10, 1, 2, 3][..], 33), (&v6, 129), (&mapped, 95), (&[10, 1, 2, 3], 256)] {
        let expected = ConvertError::PrefixLength { field: "addresses", length };
        assert_eq!(with(address, Some(length)), Err(expected), "{address:?}");
    }
}

#[test]
fn a_gateway_that_means_nothing_says_why() {
    use proto::workload::gateway_address::Destination;
    let at = |address: &[u8], hbone_mtls_port| {
        let address = proto::workload::NetworkAddress { address: address.to_vec(), ..Default::default() };
        let waypoint = proto::workload::GatewayAddress {
            destination: Some(Destination::Address(address)),
            hbone_mtls_port,
        };
        proto::workload::Workload { waypoint: Some(waypoint), ..workload_to_proto(&workload()) }
    };
    let port = |wire| workload_from_proto(wire).map(|read| read.waypoint.unwrap().hbone_port);
    assert_eq!(port(at(&[10, 0, 0, 1], 0)), Ok(15008), "HBONE's own");
    assert_eq!(port(at(&[10, 0, 0, 1], 15009)), Ok(15009));
    let no_port = ConvertError::Port { field: "waypoint", value: 65536 };
    assert_eq!(port(at(&[10, 0, 0, 1], 65536)), Err(no_port));
    assert_eq!(port(at(&[10], 0)), Err(ConvertError::Address { field: "waypoint", length: 1 }));
}

#[test]
fn a_workload_or_service_that_means_nothing_says_why() {
    type Change = fn(&mut proto::workload::Workload);
    let cases: [(&str, Change, ConvertError); 6] = [
        ("no uid", |w| w.uid.clear(), ConvertError::Missing("uid")),
        (
            "half an address",
            |w| w.addresses = vec![vec![1, 2]],
            ConvertError::Address { field: "addresses", length: 2 },
        ),
        ("sidecar mTLS", |w| w.tunnel_protocol = 2, ConvertError::LegacyTunnel),
        (
            "a service without namespace",
            |w| w.services = [("web".to_owned(), proto::workload::PortList::default())].into(),
            ConvertError::Name { field: "services", value: "web".to_owned(), wanted: "namespace/hostname" },
        ),
        (
            "a policy without namespace",
            |w| w.authorization_policies = vec!["p".to_owned()],
            ConvertError::Name {
                field: "authorization_policies",
                value: "p".to_owned(),
                wanted: "namespace/name",
            },
        ),
        (
            "a port out of range",
            |w| {
                let port = proto::workload::Port { service_port: 80, target_port: 65536, app_protocol: 0 };
                let ports = proto::workload::PortList { ports: vec![port] };
                w.services = [("shop/web".to_owned(), ports)].into();
            },
            ConvertError::Port { field: "services", value: 65536 },
        ),
    ];
    for (sentence, change, expected) in cases {
        let mut wire = workload_to_proto(&workload());
        change(&mut wire);
        assert_eq!(workload_from_proto(wire), Err(expected), "{sentence}");
    }
    let mut wire = service_to_proto(&service());
    wire.ports[0].service_port = 0;
    assert_eq!(service_from_proto(wire), Err(ConvertError::Port { field: "ports", value: 0 }));
}

/// What counts in the place of a policy.
fn policy_of(read: Result<Resource, Rejected>) -> RejectedPolicy {
    match read.unwrap_err().marker {
        Some(Marker::Policy(policy)) => policy,
        other => panic!("{other:?}"),
    }
}

type PolicyChange = fn(&mut proto::security::Match);

/// Each would make a DENY inert or an ALLOW wide if it were skipped.
fn policy_cases() -> Vec<(&'static str, PolicyChange, ConvertError)> {
    use proto::security::string_match::MatchType;
    fn range(address: &[u8], length: u32) -> Vec<proto::security::Address> {
        vec![proto::security::Address { address: address.to_vec(), length }]
    }
    fn text(match_type: Option<MatchType>) -> Vec<proto::security::StringMatch> {
        vec![proto::security::StringMatch { match_type }]
    }
    vec![
        (
            "a range of a broken address",
            |m| m.source_ips = range(&[10, 0, 0], 8),
            ConvertError::Address { field: "source_ips", length: 3 },
        ),
        (
            "a prefix longer than IPv4",
            |m| m.not_source_ips = range(&[10, 0, 0, 0], 33),
            ConvertError::PrefixLength { field: "not_source_ips", length: 33 },
        ),
        (
            "a prefix longer than IPv6",
            |m| m.destination_ips = range(&[0; 16], 129),
            ConvertError::PrefixLength { field: "destination_ips", length: 129 },
        ),
        (
            "a prefix that would wrap",
            |m| m.not_destination_ips = range(&[10, 0, 0, 0], 256),
            ConvertError::PrefixLength { field: "not_destination_ips", length: 256 },
        ),
        ("a match of nothing", |m| m.principals = text(None), ConvertError::EmptyMatch("principals")),
        (
            "an exact match of no text",
            |m| m.not_principals = text(Some(MatchType::Exact(String::new()))),
            ConvertError::EmptyMatch("not_principals"),
        ),
        (
            "a prefix of all texts",
            |m| m.namespaces = text(Some(MatchType::Prefix(String::new()))),
            ConvertError::EmptyMatch("namespaces"),
        ),
        (
            "a suffix of all texts",
            |m| m.not_namespaces = text(Some(MatchType::Suffix(String::new()))),
            ConvertError::EmptyMatch("not_namespaces"),
        ),
        (
            "a service account of no namespace",
            |m| m.service_accounts = vec![proto::security::ServiceAccountMatch::default()],
            ConvertError::EmptyMatch("service_accounts"),
        ),
        (
            "a port out of range",
            |m| m.destination_ports = vec![65536 + 80],
            ConvertError::Port { field: "destination_ports", value: 65616 },
        ),
        (
            "port 0",
            |m| m.not_destination_ports = vec![0],
            ConvertError::Port { field: "not_destination_ports", value: 0 },
        ),
    ]
}

#[test]
fn one_meaningless_value_rejects_the_policy_whole_and_is_enforced_as_a_refusal() {
    for (sentence, change, expected) in policy_cases() {
        let mut wire = policy_to_proto(&Authorization { dry_run: false, ..policy() });
        change(&mut wire.rules[0].clauses[0].matches[0]);
        let any = pack(ResourceType::Authorization, &wire);
        let rejected = read(ResourceType::Authorization, "shop/p", &[], &any).unwrap_err();
        let policy = RejectedPolicy {
            name: "shop/p".parse().unwrap(),
            scope: PolicyScope::WorkloadSelector,
            dry_run: false,
            reason: expected.to_string(),
        };
        let marker = Some(Marker::Policy(policy));
        assert_eq!(rejected, Rejected { error: expected, marker }, "{sentence}");
    }
}

#[test]
fn a_policy_of_which_not_even_the_scope_is_known_applies_to_all() {
    let unknown_scope = proto::security::Authorization { scope: 9, ..policy_to_proto(&policy()) };
    let unknown_action = proto::security::Authorization { action: 9, ..policy_to_proto(&policy()) };
    let pack = |wire: &proto::security::Authorization| pack(ResourceType::Authorization, wire);
    let cases = [
        ("garbage", Any { value: vec![0xff], ..pack(&unknown_scope) }, PolicyScope::Global, false),
        ("another type", Any { type_url: "x".to_owned(), value: vec![] }, PolicyScope::Global, false),
        ("an unknown scope", pack(&unknown_scope), PolicyScope::Global, true),
        ("an unknown action", pack(&unknown_action), PolicyScope::WorkloadSelector, true),
    ];
    for (sentence, any, scope, dry_run) in cases {
        let rejected = policy_of(read(ResourceType::Authorization, "shop/p", &[], &any));
        assert_eq!((rejected.scope, rejected.dry_run), (scope, dry_run), "{sentence}");
    }
}

#[test]
fn a_resource_whose_content_has_another_name_is_not_taken() {
    let (_, any) = workload_resource(&workload());
    let error = read(ResourceType::Address, "other", &[], &any).unwrap_err().error;
    assert_eq!(error, ConvertError::NameMismatch("Kubernetes//Pod/shop/web-0".to_owned()));
    let (_, any) = policy_resource(&policy());
    let rejected = policy_of(read(ResourceType::Authorization, "no-namespace", &[], &any));
    assert_eq!(rejected.name, policy_name("no-namespace"));
}

#[test]
fn an_ipv4_range_in_ipv6_form_is_the_ipv4_range() {
    let mut wire = policy_to_proto(&policy());
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 0].to_vec();
    wire.rules[0].clauses[0].matches[0].source_ips =
        vec![proto::security::Address { address: mapped, length: 104 }];
    let read = policy_from_proto(wire.clone()).unwrap();
    assert_eq!(read.rules[0].clauses[0].matches[0].source_ips, ["10.0.0.0/8".parse().unwrap()]);
    wire.rules[0].clauses[0].matches[0].source_ips[0].length = 95;
    let error = policy_from_proto(wire).unwrap_err();
    assert_eq!(error, ConvertError::PrefixLength { field: "source_ips", length: 95 });
}

#[test]
fn a_service_that_could_not_be_removed_by_its_name_is_not_taken() {
    for hostname in ["web/shop.svc", "/"] {
        let message =
            proto::workload::Service { hostname: hostname.to_owned(), ..service_to_proto(&service()) };
        let refused = service_from_proto(message).unwrap_err();
        assert!(matches!(refused, ConvertError::Name { field: "hostname", .. }), "{refused}");
    }
}
