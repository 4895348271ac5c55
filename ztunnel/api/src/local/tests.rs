//! What a file comes to, and what of it is refused.

use mesh::authorize::{Attempt, authorize};
use mesh::{NetworkAddress, ServiceName};

use super::*;

const MESH: &str = r#"
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: sleep
  workloadIps: ["127.0.0.1", "fd00::1"]
  protocol: HBONE
  node: local
  network: ""
  waypoint: {destination: "/10.0.0.9", hboneMtlsPort: 15008}
  networkGateway: {destination: default/gateway.example.com, hboneMtlsPort: 15443}
  applicationTunnel: {protocol: PROXY, port: 8080}
  workloadType: cronjob
  locality: {region: r, zone: z}
  capacity: 3
  status: Unhealthy
  networkMode: HostNetwork
  services:
    "default/example.com":
      80: 8080
services:
- name: local
  namespace: default
  hostname: example.com
  vips: [/127.10.0.1, "remote/127.10.0.2"]
  cidrVips: [{network: "", cidr: 10.9.0.0/16}]
  ports: {80: 8080}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/local]
  loadBalancer: {routingPreferences: [Network, Zone], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: IPv4
  canonical: true
  visibility: Namespace
policies:
- name: deny-9999
  namespace: default
  action: Allow
  scope: Namespace
  rules:
  - - - notDestinationPorts: [9999]
        principals: [{Suffix: /sa/local}, {Presence: []}]
        sourceIps: [127.0.0.0/8]
"#;

fn parse(text: &str) -> Result<LocalConfig, LocalConfigError> {
    LocalConfig::parse(text)
}

fn state(text: &str) -> State {
    let mut state = State::new();
    parse(text).unwrap().apply_over(&LocalConfig::default(), &mut state);
    state
}

fn at(network: &str, ip: &str) -> NetworkAddress {
    NetworkAddress { network: network.into(), ip: ip.parse().unwrap() }
}

#[test]
fn what_istios_file_says_is_read() {
    let config = parse(MESH).unwrap();
    assert_eq!(config.len(), 3);
    let find = |kind, name: &str| config.0.get(&(kind, name.to_owned())).unwrap().clone();
    let Resource::Workload(workload) = find(ResourceType::Address, "cluster1//v1/Pod/default/local") else {
        panic!("no workload")
    };
    let wire = crate::convert::workload_to_proto(&workload);
    assert_eq!(wire.addresses.len(), 2);
    assert_eq!((wire.service_account.as_str(), wire.trust_domain.as_str()), ("sleep", "cluster.local"));
    assert_eq!((wire.workload_type(), wire.status()), {
        use crate::proto::workload::{WorkloadStatus, WorkloadType};
        (WorkloadType::Cronjob, WorkloadStatus::Unhealthy)
    });
    assert_eq!(wire.capacity, Some(3));
    assert_eq!(wire.application_tunnel.unwrap().port, 8080);
    assert_eq!(wire.services["default/example.com"].ports[0].target_port, 8080);
    let Resource::Service(service) = find(ResourceType::Address, "default/example.com") else {
        panic!("no service")
    };
    let wire = crate::convert::service_to_proto(&service);
    assert_eq!(wire.addresses.len(), 3);
    assert_eq!(wire.addresses[2].length, Some(16));
    assert_eq!(wire.load_balancing.unwrap().routing_preference.len(), 2);
    let Resource::Policy(policy) = find(ResourceType::Authorization, "default/deny-9999") else {
        panic!("no policy")
    };
    let wire = crate::convert::policy_to_proto(&policy);
    assert_eq!(wire.rules[0].clauses[0].matches[0].principals.len(), 2);
    assert_eq!(wire.rules[0].clauses[0].matches[0].not_destination_ports, [9999]);
}

#[test]
fn an_empty_file_is_a_mesh_without_anything() {
    for text in ["", "\n", "# nothing yet\n", "{}", "workloads: []"] {
        assert!(parse(text).unwrap().is_empty(), "{text}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let cases = [
        ("no YAML", "workloads: [", 1),
        ("an unknown section", "workloads: []\nwaypoints: []\n", 2),
        ("an unknown field", "workloads:\n- uid: a\n  namespace: n\n  port: 1\n", 4),
        ("an unknown protocol", "workloads:\n- uid: a\n  namespace: n\n  protocol: QUIC\n", 4),
        ("no address", "workloads:\n- uid: a\n  namespace: n\n  workloadIps: [10.0.0]\n", 4),
        ("a missing field", "workloads:\n- namespace: n\n", 2),
        ("a workload without a name", "workloads:\n- uid: \"\"\n  namespace: n\n", 2),
        (
            "an address without a network",
            "services:\n- {name: a, namespace: n, hostname: h,\n   vips: [10.0.0.1]}\n",
            3,
        ),
        (
            "an unknown field of a policy's match",
            "policies:\n- {name: a, namespace: n, scope: Global, action: Deny,\n   rules: [[[{hosts: [a]}]]]}\n",
            3,
        ),
        (
            "an unknown match of a text",
            "policies:\n- {name: a, namespace: n, scope: Global, action: Deny,\n   rules: [[[{namespaces: [{Regex: a}]}]]]}\n",
            3,
        ),
        (
            "an empty match of a text",
            "policies:\n\n- {name: a, namespace: n, scope: Global, action: Deny, rules: [[[{namespaces: [{}]}]]]}\n",
            3,
        ),
        ("one name twice", "workloads:\n- {uid: a, namespace: n}\n- {uid: a, namespace: n}\n", 3),
        ("port 0", "workloads:\n- uid: a\n  namespace: n\n  services: {n/h: {0: 1}}\n", 2),
    ];
    for (sentence, text, line) in cases {
        let error = parse(text).expect_err(sentence);
        assert!(error.to_string().starts_with(&format!("{line}:")), "{sentence}: {error}");
    }
}

#[test]
fn a_policy_of_a_file_is_enforced_like_any_other() {
    let state = state(MESH);
    let attempt = |port: u16| Attempt {
        source: Some("spiffe://cluster.local/ns/default/sa/local".parse().unwrap()),
        source_ip: "127.0.0.1".parse().unwrap(),
        workload: "cluster1//v1/Pod/default/local".into(),
        destination: ([127, 0, 0, 1], port).into(),
    };
    assert!(authorize(&state, attempt(80)).decision.is_ok());
    assert!(authorize(&state, attempt(9999)).decision.is_err());
}

#[test]
fn a_later_file_brings_what_is_new_and_takes_what_is_gone() {
    let mut state = state(MESH);
    let before = parse(MESH).unwrap();
    let service: ServiceName = "default/example.com".parse().unwrap();
    let kept = state.service(&service).cloned().unwrap();
    let text = MESH.split("policies:").next().unwrap().replace("127.0.0.1", "127.0.0.7");
    parse(&text).unwrap().apply_over(&before, &mut state);
    assert!(
        std::sync::Arc::ptr_eq(&kept, state.service(&service).unwrap()),
        "what is the same is not touched"
    );
    let uid = "cluster1//v1/Pod/default/local".into();
    let workload = state.workload(&uid).unwrap();
    assert!(workload.addresses.contains(&"127.0.0.7".parse().unwrap()));
    assert_eq!(state.policies_for(workload).count(), 0);
    LocalConfig::default().apply_over(&parse(&text).unwrap(), &mut state);
    assert!(state.workload(&uid).is_none() && state.service(&service).is_none());
    assert!(state.workload_by_address(&at("", "127.0.0.7")).is_none());
}
