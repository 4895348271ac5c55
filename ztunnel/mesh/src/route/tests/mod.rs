//! Where connections of the pod `client` (10.0.0.1, fd00::1, node east) go: a file for each step of the contract's
//! decision, and one for their order.

mod endpoints;
mod lookup;
mod networks;
mod order;
mod unreadable;
mod waypoints;

use super::*;
use crate::fixtures::{Numbers, address, endpoint_of, ip, range, service, service_name, uid, workload};
use crate::gateway::{GatewayDestination, WeightedWaypoint};
use crate::service::Visibility;
use crate::workload::{Health, Network, NetworkMode};

fn client() -> Workload {
    workload("client", &["10.0.0.1", "fd00::1"])
}

fn web() -> Workload {
    endpoint_of(workload("web", &["10.0.0.2", "fd00::2"]), &service_name("shop", "web"), &[(80, 8080)])
}

fn web_service() -> Service {
    service("shop", "web", &["10.9.0.1", "fd09::1"], &[(80, 8080)])
}

/// The waypoint `way` of the namespace `infra`: a service at 10.9.1.1 and its pod at 10.0.1.1.
fn way() -> (Workload, Service) {
    let service = service("infra", "way", &["10.9.1.1", "fd09::101"], &[(15008, 15008)]);
    let pod = endpoint_of(workload("way", &["10.0.1.1", "fd00::101"]), &service.name, &[(15008, 15008)]);
    (pod, service)
}

fn by_name(namespace: &str, name: &str) -> GatewayAddress {
    let destination = GatewayDestination::Hostname(service_name(namespace, name));
    GatewayAddress { destination, hbone_port: 15008 }
}

fn by_address(at: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Address(address(at)), hbone_port: 15008 }
}

fn unknown() -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Unknown, hbone_port: 15008 }
}

/// On the network `far`, reached through `gateway`.
fn far(workload: Workload, gateway: Option<GatewayAddress>) -> Workload {
    Workload { network: Network::from("far"), network_gateway: gateway.map(Box::new), ..workload }
}

fn mesh(workloads: Vec<Workload>, services: Vec<Service>) -> State {
    let mut state = State::new();
    state.upsert_workload(client());
    workloads.into_iter().for_each(|workload| state.upsert_workload(workload));
    services.into_iter().for_each(|service| state.upsert_service(service));
    state
}

/// The route of the client to an address.
fn to(state: &State, destination: &str, random: u64) -> Route {
    let own = state.workload(&uid("client")).map_or_else(client, |own| Workload::clone(own));
    route(state, &own, destination.parse().unwrap(), random)
}

/// The route in a form that a table can state.
fn goes(state: &State, destination: &str) -> String {
    show(to(state, destination, 1))
}

/// Every route that 64 draws lead to.
fn all_ways(state: &State, destination: &str) -> Vec<String> {
    let mut numbers = Numbers::from_seed(1);
    let seen: std::collections::BTreeSet<_> =
        (0..64).map(|_| show(to(state, destination, numbers.next()))).collect();
    seen.into_iter().collect()
}

fn show(route: Route) -> String {
    let upstream = |way: &str, to: Upstream| {
        let by = to.service.map_or(String::new(), |service| format!(" by {}", service.short_name));
        format!("{way} {} at {}{by}", to.workload.name, to.application)
    };
    match route {
        Route::SameWorkload(to) => upstream("back to", to),
        Route::Hbone(to) => upstream("hbone to", to),
        Route::Plaintext(to) => upstream("plaintext to", to),
        Route::Named(to) => format!("asks for {} of {} and port {}", to.hostname, to.workload.name, to.port),
        Route::Waypoint { hop, authority, called } => {
            let called = called.service().map_or("a workload", |service| &service.short_name).to_owned();
            format!("through {} at {} to {authority} for {called}", hop.workload.name, hop.hbone)
        }
        Route::Gateway { hop, authority: (host, port), workload, .. } => {
            format!("through {} at {} to {host}:{port}, {}", hop.workload.name, hop.hbone, workload.name)
        }
        Route::Passthrough(to) => format!("passes to {to}"),
        Route::Refused(why) => format!("refused: {why}"),
    }
}

fn identities(expected: &[SpiffeId]) -> Vec<String> {
    expected.iter().map(ToString::to_string).collect()
}
