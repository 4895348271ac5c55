//! What a pod calls is asked for when it calls it, where the control plane is not asked for the whole mesh (contract 1.5): what is
//! at the address, and the waypoints and gateways through which that is reached.
//!
//! A connection waits for the answers. Without them it is refused: to know nothing of a destination would be to call it in
//! plaintext.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use api::xds_client::{DemandError, Demander};
use mesh::gateway::GatewayDestination;
use mesh::{GatewayAddress, Namespace, NetworkAddress, State, Workload};
use tokio::time::Instant;

use crate::mesh_state::MeshState;

/// See the module.
#[derive(Debug)]
pub(crate) struct OnDemand {
    demander: Demander,
    /// For all that one connection needs to know.
    patience: Duration,
}

impl OnDemand {
    /// Through `demander`, and a connection waits for `patience` at most.
    pub(crate) fn new(demander: Demander, patience: Duration) -> Self {
        Self { demander, patience }
    }

    /// Waits until all is known that the way from `client` to `destination` depends on.
    pub(crate) async fn learn(
        &self,
        mesh: &MeshState,
        client: &Workload,
        destination: IpAddr,
    ) -> Result<(), DemandError> {
        let deadline = Instant::now() + self.patience;
        let address = NetworkAddress { network: client.network.clone(), ip: destination.to_canonical() };
        self.demand(&name(&address), deadline).await?;
        for gateway in mesh.read(|state| gateways(state, &address, &client.namespace)) {
            self.demand(&gateway, deadline).await?;
        }
        Ok(())
    }

    async fn demand(&self, name: &str, deadline: Instant) -> Result<(), DemandError> {
        self.demander.demand(name, deadline.saturating_duration_since(Instant::now())).await
    }
}

/// The name by which an address is asked for (contract 2.2).
fn name(address: &NetworkAddress) -> String {
    format!("{}/{}", address.network, address.ip)
}

/// The names of what stands before the destination at `address`, for clients of `client`.
fn gateways(state: &State, address: &NetworkAddress, client: &Namespace) -> BTreeSet<String> {
    let workload = state.workload_by_address(address);
    let service = state.service_by_vip(address, client).or_else(|| state.service_by_range(address, client));
    let of_workload = workload.into_iter().flat_map(|workload| before(workload));
    let of_service = service.into_iter().flat_map(|service| {
        let endpoints = state.endpoints(&service.name);
        let endpoints = endpoints.into_iter().flat_map(|endpoints| endpoints.iter());
        service.waypoints().chain(endpoints.filter_map(|endpoint| endpoint.network_gateway.as_deref()))
    });
    of_workload.chain(of_service).filter_map(name_of).collect()
}

fn before(workload: &Workload) -> impl Iterator<Item = &GatewayAddress> {
    workload.waypoint.as_deref().into_iter().chain(workload.network_gateway.as_deref())
}

fn name_of(gateway: &GatewayAddress) -> Option<String> {
    match &gateway.destination {
        GatewayDestination::Address(address) => Some(name(address)),
        GatewayDestination::Hostname(service) => Some(service.to_string()),
        GatewayDestination::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use mesh::Service;

    use super::*;
    use crate::proxy::tests::workload;

    fn at(ip: &str) -> NetworkAddress {
        NetworkAddress { network: "".into(), ip: ip.parse().unwrap() }
    }

    fn behind(destination: GatewayDestination) -> GatewayAddress {
        GatewayAddress { destination, hbone_port: 15008 }
    }

    fn service(state: &str) -> Service {
        let text = format!(
            "services: [{{name: db, namespace: shop, hostname: db.shop, vips: [/10.8.0.1], {state}}}]"
        );
        let mut parsed = State::new();
        api::local::LocalConfig::parse(&text).unwrap().apply_over(&Default::default(), &mut parsed);
        let found = parsed.services().next().unwrap();
        Service::clone(found)
    }

    #[test]
    fn what_stands_before_a_destination_is_needed_too() {
        let mut state = State::new();
        let mut called = workload("web", "10.0.0.1");
        called.waypoint = Some(Box::new(behind(GatewayDestination::Address(at("10.0.0.9")))));
        state.upsert_workload(called);
        let mut far = workload("far", "10.0.0.2");
        far.services.insert("shop/db.shop".parse().unwrap(), [(80, 80)].into());
        far.network_gateway =
            Some(Box::new(behind(GatewayDestination::Hostname("net/gateway.net".parse().unwrap()))));
        state.upsert_workload(far);
        state.upsert_service(service("waypoint: {destination: shop/waypoint.shop, hboneMtlsPort: 15008}"));
        for (ip, expected) in [
            ("10.0.0.1", &["/10.0.0.9"][..]),
            ("10.8.0.1", &["net/gateway.net", "shop/waypoint.shop"]),
            ("10.7.7.7", &[]),
        ] {
            let names: Vec<String> = gateways(&state, &at(ip), &"shop".into()).into_iter().collect();
            assert_eq!(names, expected, "{ip}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_for_all_of_it_no_longer_than_for_one_answer() {
        let patience = Duration::from_secs(5);
        let on_demand = OnDemand::new(Demander::default(), patience);
        let begun = Instant::now();
        let client = workload("web", "10.0.0.1");
        let error = on_demand.learn(&MeshState::default(), &client, [10, 0, 0, 2].into()).await;
        let expected = DemandError::TimedOut { name: "/10.0.0.2".to_owned(), after: patience };
        assert_eq!(error, Err(expected));
        assert_eq!(begun.elapsed(), patience);
    }
}
