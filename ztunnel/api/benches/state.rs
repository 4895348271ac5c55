//! What the mesh's state costs a ztunnel: a whole cluster in one push, from the bytes of the control plane's message, and then an
//! endpoint at a time. Prints a table; `cargo xtask bench state` runs it.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::time::{Duration, Instant};

use api::convert::{Resource, read};
use api::proto::discovery::{DeltaDiscoveryResponse, Resource as Pushed};
use api::proto::workload::{
    Address, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, address::Type,
};
use api::type_url::ResourceType;
use mesh::State;
use prost::Message;
use tikv_jemallocator::Jemalloc;

/// What ztunnel has.
#[global_allocator]
static JEMALLOC: Jemalloc = Jemalloc;

/// Workloads, and services, among which they are dealt in turn.
const SIZES: [(u32, u32); 3] = [(2_000, 1_000), (20_000, 4_000), (100_000, 10_000)];

/// Endpoints that change, one after the other.
const CHANGES: u32 = 1000;

fn main() {
    // What the harness passes on, such as `--bench`, chooses nothing here.
    println!(
        "workloads  services  push (MiB)  loaded in (ms)  memory (MiB)  a change, p50 (us)  longest (us)"
    );
    for (workloads, services) in SIZES {
        measure(workloads, services);
    }
}

fn measure(workloads: u32, services: u32) {
    let bytes = push(workloads, services);
    let before = resident();
    let begun = Instant::now();
    let mut state = State::new();
    apply(&mut state, &bytes);
    let loaded = begun.elapsed();
    // With what the message took while it was read.
    let memory = resident() - before;
    assert_eq!((state.workloads().len(), state.services().len()), (workloads as usize, services as usize));
    let mut changes: Vec<Duration> =
        (0..CHANGES).map(|turn| change(&mut state, turn, workloads, services)).collect();
    changes.sort_unstable();
    println!(
        "{workloads:>9}  {services:>8}  {:>10.1}  {:>14}  {memory:>12.1}  {:>18}  {:>12}",
        mebibytes(bytes.len() as u64),
        loaded.as_millis(),
        changes[changes.len() / 2].as_micros(),
        changes[changes.len() - 1].as_micros(),
    );
}

/// One endpoint becomes unhealthy, or healthy again, in a push of its own.
fn change(state: &mut State, turn: u32, workloads: u32, services: u32) -> Duration {
    let number = turn / 2 * 7919 % workloads;
    let bytes = response(vec![workload(number, services, turn.is_multiple_of(2))]).encode_to_vec();
    let begun = Instant::now();
    apply(state, &bytes);
    begun.elapsed()
}

fn apply(state: &mut State, push: &[u8]) {
    let push = DeltaDiscoveryResponse::decode(push).unwrap();
    for pushed in push.resources {
        match read(ResourceType::Address, &pushed.name, &pushed.aliases, &pushed.resource.unwrap()).unwrap() {
            Resource::Workload(workload) => state.upsert_workload(*workload),
            Resource::Service(service) => state.upsert_service(*service),
            other => panic!("{other:?}"),
        }
    }
}

fn push(workloads: u32, services: u32) -> Vec<u8> {
    let workloads = (0..workloads).map(|number| workload(number, services, false));
    response((0..services).map(service).chain(workloads).collect()).encode_to_vec()
}

fn response(resources: Vec<Pushed>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources,
        type_url: ResourceType::Address.url().to_owned(),
        ..Default::default()
    }
}

fn pushed(name: String, kind: Type) -> Pushed {
    let address = Address { r#type: Some(kind) };
    let any =
        prost_types::Any { type_url: ResourceType::Address.url().to_owned(), value: address.encode_to_vec() };
    Pushed { name, version: "1".to_owned(), resource: Some(any), ..Default::default() }
}

fn hostname(service: u32) -> String {
    format!("service-{service}.namespace-{}.svc.cluster.local", service % 100)
}

fn service(number: u32) -> Pushed {
    let (namespace, hostname) = (format!("namespace-{}", number % 100), hostname(number));
    let address =
        NetworkAddress { address: (0x0a60_0000 + number).to_be_bytes().to_vec(), ..Default::default() };
    let service = Service {
        name: format!("service-{number}"),
        namespace: namespace.clone(),
        hostname: hostname.clone(),
        addresses: vec![address],
        ports: vec![Port { service_port: 80, target_port: 8080, ..Default::default() }],
        ..Default::default()
    };
    pushed(format!("{namespace}/{hostname}"), Type::Service(service))
}

fn workload(number: u32, services: u32, unhealthy: bool) -> Pushed {
    let service = number % services;
    let namespace = format!("namespace-{}", service % 100);
    let uid = format!("Kubernetes//Pod/{namespace}/workload-{number}");
    let ports = PortList { ports: vec![Port { service_port: 80, target_port: 8080, ..Default::default() }] };
    let workload = Workload {
        uid: uid.clone(),
        name: format!("workload-{number}"),
        namespace: namespace.clone(),
        addresses: vec![(0x0b00_0000 + number).to_be_bytes().to_vec()],
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        service_account: format!("account-{service}"),
        node: format!("node-{}", number % 1000),
        canonical_name: format!("service-{service}"),
        canonical_revision: "v1".to_owned(),
        workload_name: format!("deployment-{service}"),
        cluster_id: "Kubernetes".to_owned(),
        status: i32::from(unhealthy),
        services: [(format!("{namespace}/{}", hostname(service)), ports)].into(),
        ..Default::default()
    };
    pushed(uid, Type::Workload(workload))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// MiB of this process that are in memory (proc(5), `VmRSS`).
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
