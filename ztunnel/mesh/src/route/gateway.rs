//! Ways that lead through a pod in between: a waypoint, or the gateway of another network.

use std::net::IpAddr;
use std::sync::Arc;

use super::upstream::stated_identities;
use super::{Call, Called, Hop, Refused, Route, target_port};
use crate::balance::{address_for, mix, scale};
use crate::gateway::{GatewayAddress, GatewayDestination};
use crate::service::Service;
use crate::workload::Workload;

/// Why a waypoint or a gateway is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayTrouble {
    /// It is stated in a form of a later version.
    #[error("is stated in a form that is not known")]
    Unstated,
    /// No service or workload is known by its name or address, and so no identity to expect of it.
    #[error("is not known")]
    NotKnown,
    /// What states it cannot be read.
    #[error("is stated by a resource that cannot be read")]
    Unreadable,
    /// None of its endpoints can be chosen.
    #[error("has no healthy endpoint")]
    NoEndpoint,
    /// It is on another network, and there is no way from here.
    #[error("is on another network")]
    OtherNetwork,
}

/// A pod of a gateway, chosen, and the service it was found by.
struct Chosen<'a> {
    workload: &'a Arc<Workload>,
    service: Option<&'a Arc<Service>>,
    /// Of its addresses the one of this address or of its family.
    like: IpAddr,
    port: u16,
}

impl Chosen<'_> {
    fn hop(&self) -> Option<Hop> {
        Some(Hop {
            workload: Arc::clone(self.workload),
            service: self.service.map(Arc::clone),
            hbone: (address_for(self.workload, self.like)?, self.port).into(),
        })
    }
}

/// The waypoint that a connection to the service takes, if there is one: of several, by weight.
pub(super) fn choose_waypoint(service: &Service, random: u64) -> Result<Option<&GatewayAddress>, Refused> {
    let total = service.weighted_waypoints.iter().map(|one| u64::from(one.weight)).sum();
    let Some(mut drawn) = scale(random, total) else {
        return match &service.waypoint {
            None if !service.weighted_waypoints.is_empty() => {
                Err(Refused::WaypointWeights(service.name.clone()))
            }
            only => Ok(only.as_ref()),
        };
    };
    let mut drawn_one = |weight: u64| {
        let found = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        found
    };
    let mut waypoints = service.weighted_waypoints.iter();
    Ok(waypoints.find(|one| drawn_one(one.weight.into())).map(|one| &one.destination))
}

impl Call<'_> {
    /// Whether the client is a part of the waypoint.
    pub(super) fn is_client(&self, waypoint: &GatewayAddress) -> bool {
        let client = self.client;
        match &waypoint.destination {
            GatewayDestination::Hostname(name) => client.services.contains_key(name),
            GatewayDestination::Address(address) => {
                let own = address.network == client.network && client.addresses.contains(&address.ip);
                let services = self.state.services_at(address);
                own || services.iter().any(|service| client.services.contains_key(&service.name))
            }
            GatewayDestination::Unknown => false,
        }
    }

    /// The way through a waypoint. A service's may be on another network, a workload's not.
    pub(super) fn through(&self, waypoint: &GatewayAddress, called: Called) -> Result<Route, Refused> {
        let refused =
            |trouble| Refused::Waypoint { called: called.name(), waypoint: waypoint.clone(), trouble };
        let chosen = self
            .choose(waypoint, self.choice.random, |pod| self.is_waypoint_reachable(pod))
            .map_err(refused)?;
        if chosen.workload.network != self.client.network {
            return match (&called, chosen.service) {
                (Called::Service(service), Some(own)) => self.across(service, own, chosen.workload),
                _ => Err(refused(GatewayTrouble::OtherNetwork)),
            };
        }
        let hop = chosen.hop().ok_or_else(|| refused(GatewayTrouble::NoEndpoint))?;
        Ok(Route::Waypoint { hop, authority: self.destination, called })
    }

    fn is_waypoint_reachable(&self, pod: &Workload) -> bool {
        match pod.network == self.client.network {
            true => !pod.addresses.is_empty(),
            false => !self.is_out_of_reach(pod),
        }
    }

    /// The way to `far` on another network, which was found by the service `found_by` for a call of `service`. The
    /// gateway is dialled directly, whatever network it counts itself to.
    pub(super) fn across(
        &self,
        service: &Arc<Service>,
        found_by: &Service,
        far: &Arc<Workload>,
    ) -> Result<Route, Refused> {
        let Some(gateway) = far.network_gateway.as_deref() else {
            return Err(Refused::OtherNetwork(service.name.clone()));
        };
        let refused = |trouble| Refused::NetworkGateway {
            service: service.name.clone(),
            gateway: gateway.clone(),
            trouble,
        };
        let chosen = self
            .choose(gateway, mix(self.choice.random), |pod| !pod.addresses.is_empty())
            .map_err(refused)?;
        let hop = chosen.hop().ok_or_else(|| refused(GatewayTrouble::NoEndpoint))?;
        let inner: Vec<_> = stated_identities(found_by).collect();
        if inner.is_empty() {
            return Err(Refused::NoRemoteIdentity(found_by.name.clone()));
        }
        Ok(Route::Gateway {
            hop,
            authority: (service.name.hostname.clone(), self.destination.port()),
            inner,
            workload: Arc::clone(far),
            service: Arc::clone(service),
        })
    }

    /// A pod of the gateway. Who sees the gateway's service does not matter: it is the control plane that sends the
    /// connection there, not the client.
    fn choose<'s>(
        &'s self,
        gateway: &GatewayAddress,
        random: u64,
        eligible: impl Fn(&Workload) -> bool,
    ) -> Result<Chosen<'s>, GatewayTrouble> {
        let service = match &gateway.destination {
            GatewayDestination::Unknown => return Err(GatewayTrouble::Unstated),
            GatewayDestination::Hostname(name) => match self.state.service(name) {
                Some(service) => service,
                None if self.state.rejected_address(&name.to_string()).is_some() => {
                    return Err(GatewayTrouble::Unreadable);
                }
                None => return Err(GatewayTrouble::NotKnown),
            },
            GatewayDestination::Address(address) if self.state.rejected_at(address).is_some() => {
                return Err(GatewayTrouble::Unreadable);
            }
            GatewayDestination::Address(address) => match self.state.services_at(address).first() {
                Some(service) => *service,
                None => {
                    let workload = self.state.workload_by_address(address).ok_or(GatewayTrouble::NotKnown)?;
                    if !eligible(workload) {
                        return Err(GatewayTrouble::OtherNetwork);
                    }
                    return Ok(Chosen {
                        workload,
                        service: None,
                        like: address.ip,
                        port: gateway.hbone_port,
                    });
                }
            },
        };
        let endpoints = self.state.endpoints(&service.name).ok_or(GatewayTrouble::NoEndpoint)?;
        let chosen = endpoints.choose(self.client, &eligible, random);
        let Some(workload) = chosen else {
            let elsewhere = endpoints.iter().all(|pod| pod.network != self.client.network && !eligible(pod));
            return Err(if elsewhere { GatewayTrouble::OtherNetwork } else { GatewayTrouble::NoEndpoint });
        };
        let port = target_port(service, workload, gateway.hbone_port).unwrap_or(gateway.hbone_port);
        Ok(Chosen { workload, service: Some(service), like: self.destination.ip(), port })
    }
}
