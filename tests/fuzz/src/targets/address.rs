//! A workload or service as it comes over xDS, and what the mesh's state then holds.

use api::convert::{
    Marker, Resource, read, service_from_proto, service_resource, workload_from_proto, workload_resource,
};
use api::proto::workload as proto;
use api::type_url::ResourceType;
use mesh::{NetworkAddress, Service, SpiffeId, State, Workload};
use prost::Message as _;
use prost_types::Any;

/// What is taken is written back alike; the state finds it by its addresses, and forgets all of it with its name.
pub fn run(input: &[u8]) {
    let name = name_of(input).unwrap_or_default();
    let content = Any { type_url: ResourceType::Address.url().to_owned(), value: input.to_vec() };
    let mut state = State::new();
    state.upsert_workload(pod());
    state.upsert_service(service());
    let outcome = read(ResourceType::Address, &name, &[], &content);
    match &outcome {
        Ok(Resource::Workload(workload)) => {
            let (again, written) = workload_resource(workload);
            assert_eq!(
                (again, read(ResourceType::Address, &name, &[], &written)),
                (name.clone(), outcome.clone())
            );
            state.upsert_workload(Workload::clone(workload));
            assert_eq!(state.workload(&workload.uid).map(|held| &**held), Some(&**workload));
        }
        Ok(Resource::Service(service)) => {
            let (again, written) = service_resource(service);
            assert_eq!(
                (again, read(ResourceType::Address, &name, &[], &written)),
                (name.clone(), outcome.clone())
            );
            state.upsert_service(Service::clone(service));
            for vip in &service.vips {
                assert!(!state.services_at(vip).is_empty(), "{vip} is not found");
            }
        }
        Ok(other) => panic!("read as {other:?}"),
        Err(rejected) => {
            let Some(Marker::Address(marker)) = &rejected.marker else {
                panic!("nothing counts in its place")
            };
            assert_eq!(marker.resource, name);
            return;
        }
    }
    look_around(&state);
    assert!(state.remove_address(&name), "{name:?} is not forgotten");
    assert!(!state.remove_address(&name), "{name:?} is forgotten twice");
    look_around(&state);
}

/// What the data path asks of a state, for all that is in it.
fn look_around(state: &State) {
    let client = "shop".into();
    for workload in state.workloads() {
        for ip in &workload.addresses {
            let address = NetworkAddress { network: workload.network.clone(), ip: *ip };
            let _ = state.workload_by_address(&address);
            let _ = state.service_by_vip(&address, &client);
            let _ = state.service_by_range(&address, &client);
        }
    }
    for service in state.services() {
        let endpoints = state.endpoints(&service.name);
        let named =
            state.workloads().filter(|workload| workload.services.contains_key(&service.name)).count();
        assert!(
            endpoints.map_or(0, |all| all.iter().len()) <= named,
            "{} has endpoints that nobody stated",
            service.name
        );
    }
}

fn name_of(input: &[u8]) -> Option<String> {
    use proto::address::Type;
    match proto::Address::decode(input).ok()?.r#type? {
        Type::Workload(workload) => Some(workload.uid),
        Type::Service(service) => Some(format!("{}/{}", service.namespace, service.hostname)),
    }
}

/// A pod that is an endpoint of [`service`].
///
/// # Panics
/// It does not.
pub fn pod() -> Workload {
    workload_from_proto(pod_message()).unwrap_or_else(|error| panic!("{error}"))
}

/// A service with a virtual address.
///
/// # Panics
/// It does not.
pub fn service() -> Service {
    service_from_proto(service_message()).unwrap_or_else(|error| panic!("{error}"))
}

/// A client's identity.
pub fn web() -> SpiffeId {
    SpiffeId { trust_domain: "cluster.local".into(), namespace: "shop".into(), service_account: "web".into() }
}

fn pod_message() -> proto::Workload {
    proto::Workload {
        uid: "Kubernetes//Pod/shop/db-0".to_owned(),
        name: "db-0".to_owned(),
        namespace: "shop".to_owned(),
        service_account: "db".to_owned(),
        addresses: vec![vec![10, 0, 0, 2], [0xfd; 16].to_vec()],
        tunnel_protocol: proto::TunnelProtocol::Hbone.into(),
        node: "east".to_owned(),
        services: [(service_name(), proto::PortList { ports: ports() })].into(),
        authorization_policies: vec!["shop/p".to_owned()],
        capacity: Some(3),
        ..proto::Workload::default()
    }
}

fn service_message() -> proto::Service {
    let address = |bytes: &[u8], length| proto::NetworkAddress {
        address: bytes.to_vec(),
        length,
        ..Default::default()
    };
    proto::Service {
        name: "db".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "db.shop.svc".to_owned(),
        addresses: vec![address(&[10, 96, 0, 1], None), address(&[10, 99, 0, 0], Some(16))],
        ports: ports(),
        subject_alt_names: vec![web().to_string()],
        load_balancing: Some(proto::LoadBalancing {
            routing_preference: vec![6, 1, 2],
            mode: 2,
            ..Default::default()
        }),
        waypoint: Some(gateway()),
        ..proto::Service::default()
    }
}

fn service_name() -> String {
    "shop/db.shop.svc".to_owned()
}

fn ports() -> Vec<proto::Port> {
    let port = |service_port, target_port| proto::Port { service_port, target_port, ..Default::default() };
    vec![port(80, 8080), port(81, 0)]
}

fn gateway() -> proto::GatewayAddress {
    use proto::gateway_address::Destination;
    let name = proto::NamespacedHostname { namespace: "infra".to_owned(), hostname: "way.infra".to_owned() };
    proto::GatewayAddress { destination: Some(Destination::Hostname(name)), hbone_mtls_port: 15008 }
}

/// A pod, one with everything that a pod may have, and services.
pub fn seeds() -> Vec<Vec<u8>> {
    use proto::address::Type;

    let full = proto::Workload {
        waypoint: Some(gateway()),
        network_gateway: Some(gateway()),
        network: "blue".to_owned(),
        hostname: "db.example.com".to_owned(),
        application_tunnel: Some(proto::ApplicationTunnel { protocol: 1, port: 15088 }),
        network_mode: 1,
        status: 1,
        workload_type: 2,
        ..pod_message()
    };
    let weighted = proto::Service {
        weighted_waypoints: vec![proto::WeightedWaypoint { destination: Some(gateway()), weight: 7 }],
        visibility: 1,
        ..service_message()
    };
    let all = [
        Type::Workload(pod_message()),
        Type::Workload(full),
        Type::Service(service_message()),
        Type::Service(weighted),
    ];
    all.map(|one| proto::Address { r#type: Some(one) }.encode_to_vec()).to_vec()
}
