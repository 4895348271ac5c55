//! Ways that lead through a pod in between: a waypoint, or the gateway of another network.

use std::net::IpAddr;
use std::sync::Arc;

use super::upstream::stated_identities;
use super::{Call, Called, Hop, Place, Refused, Route, has_place, target_port};
use crate::balance::{address_for, mix, scale};
use crate::gateway::{GatewayAddress, GatewayDestination};
use crate::service::{Hostname, Service};
use crate::state::State;
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

/// Which pods of a gateway count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pods {
    /// Those that do not keep failing.
    Sound,
    /// All that have not failed for this connection.
    Any,
}

impl Chosen<'_> {
    fn hop(&self) -> Option<Hop> {
        let port = self.port;
        let hbone = match (address_for(self.workload, self.like), &self.workload.hostname) {
            (Some(ip), _) => Place::Address((ip, port).into()),
            (None, Some(hostname)) => Place::Name { hostname: hostname.clone(), port },
            (None, None) => return None,
        };
        Some(Hop { workload: Arc::clone(self.workload), service: self.service.map(Arc::clone), hbone })
    }
}

/// The waypoint that a connection to the service takes, if there is one: of several, by weight.
pub(crate) fn choose_waypoint(service: &Service, random: u64) -> Result<Option<&GatewayAddress>, Refused> {
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

/// Whether the workload is a part of the waypoint or gateway.
pub(crate) fn is_part_of(state: &State, workload: &Workload, gateway: &GatewayAddress) -> bool {
    match &gateway.destination {
        GatewayDestination::Hostname(name) => {
            let stated = name.hostname.as_str();
            let own = |hostname: &Hostname| hostname.as_str().eq_ignore_ascii_case(stated);
            workload.services.contains_key(name) || workload.hostname.as_ref().is_some_and(own)
        }
        GatewayDestination::Address(address) => {
            let own = address.network == workload.network && workload.addresses.contains(&address.ip);
            let services = state.services_at(address);
            own || services.iter().any(|service| workload.services.contains_key(&service.name))
        }
        GatewayDestination::Unknown => false,
    }
}

impl Call<'_> {
    /// The way through a waypoint. A service's may be on another network, a workload's not.
    pub(super) fn through(&self, waypoint: &GatewayAddress, called: Called) -> Result<Route, Refused> {
        let refused =
            |trouble| Refused::Waypoint { called: called.name(), waypoint: waypoint.clone(), trouble };
        let chosen = self
            .choose(waypoint, self.choice.random, |pod| {
                self.is_waypoint_reachable(pod) && self.has_way(pod, Pods::Any)
            })
            .or_else(|_| self.choose(waypoint, self.choice.random, |pod| self.is_waypoint_reachable(pod)))
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
            true => has_place(pod),
            false => !self.is_out_of_reach(pod),
        }
    }

    /// Whether the client comes to the network of `pod`: it is its own, or a pod of the gateway there can be tried.
    pub(super) fn has_way(&self, pod: &Workload, pods: Pods) -> bool {
        pod.network == self.client.network
            || pod.network_gateway.as_deref().is_some_and(|gateway| self.gate(gateway, pods).is_ok())
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
        let chosen =
            self.gate(gateway, Pods::Sound).or_else(|_| self.gate(gateway, Pods::Any)).map_err(refused)?;
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

    /// A pod of a network's gateway.
    fn gate<'s>(&'s self, gateway: &GatewayAddress, pods: Pods) -> Result<Chosen<'s>, GatewayTrouble> {
        self.pick(gateway, mix(self.choice.random), has_place, pods)
    }

    /// A pod of the waypoint, one that does not keep failing if there is one.
    fn choose<'s>(
        &'s self,
        gateway: &GatewayAddress,
        random: u64,
        eligible: impl Fn(&Workload) -> bool,
    ) -> Result<Chosen<'s>, GatewayTrouble> {
        let sound = self.pick(gateway, random, &eligible, Pods::Sound);
        sound.or_else(|_| self.pick(gateway, random, eligible, Pods::Any))
    }

    /// A pod of the waypoint or gateway. Who sees its service does not matter: it is the control plane that sends the
    /// connection there, not the client.
    fn pick<'s>(
        &'s self,
        gateway: &GatewayAddress,
        random: u64,
        eligible: impl Fn(&Workload) -> bool,
        pods: Pods,
    ) -> Result<Chosen<'s>, GatewayTrouble> {
        let may = |pod: &Workload, port| {
            let passed_over = || pods == Pods::Sound && self.choice.passes_over(pod, port);
            !self.choice.has_tried(pod) && !passed_over()
        };
        let elsewhere =
            |pod: &Workload| pod.network != self.client.network && has_place(pod) && !eligible(pod);
        let dialled = self.destination.ip();
        let service = match meaning(self.state, gateway)? {
            Meant::Service(service) => service,
            Meant::Workload(workload, stated) => {
                let (port, like) = (gateway.hbone_port, stated.unwrap_or(dialled));
                return match eligible(workload) && may(workload, port) {
                    true => Ok(Chosen { workload, service: None, like, port }),
                    false if elsewhere(workload) => Err(GatewayTrouble::OtherNetwork),
                    false => Err(GatewayTrouble::NoEndpoint),
                };
            }
        };
        let port =
            |pod: &Workload| target_port(service, pod, gateway.hbone_port).unwrap_or(gateway.hbone_port);
        let endpoints = self.state.endpoints(&service.name).ok_or(GatewayTrouble::NoEndpoint)?;
        let chosen = endpoints.choose(self.client, |pod| eligible(pod) && may(pod, port(pod)), random);
        let Some(workload) = chosen else {
            let elsewhere = endpoints.iter().all(|pod| elsewhere(pod));
            return Err(if elsewhere { GatewayTrouble::OtherNetwork } else { GatewayTrouble::NoEndpoint });
        };
        Ok(Chosen { workload, service: Some(service), like: dialled, port: port(workload) })
    }
}

/// What a waypoint's or gateway's address or name means.
pub(crate) enum Meant<'a> {
    /// A service.
    Service(&'a Arc<Service>),
    /// A workload; one that is stated by an address, at that one.
    Workload(&'a Arc<Workload>, Option<IpAddr>),
}

/// Finds what the address or the name of a waypoint or gateway means. Names of services come before those of workloads.
pub(crate) fn meaning<'a>(state: &'a State, gateway: &GatewayAddress) -> Result<Meant<'a>, GatewayTrouble> {
    let found = match &gateway.destination {
        GatewayDestination::Unknown => return Err(GatewayTrouble::Unstated),
        GatewayDestination::Hostname(name) => {
            let workload = || state.workload_by_hostname(name.hostname.as_str());
            let service = state.service(name).map(Meant::Service);
            let found = service.or_else(|| Some(Meant::Workload(workload()?, None)));
            if found.is_none() && state.rejected_address(&name.to_string()).is_some() {
                return Err(GatewayTrouble::Unreadable);
            }
            found
        }
        GatewayDestination::Address(address) if state.rejected_at(address).is_some() => {
            return Err(GatewayTrouble::Unreadable);
        }
        GatewayDestination::Address(address) => {
            let service = state.services_at(address).first().copied().map(Meant::Service);
            service.or_else(|| Some(Meant::Workload(state.workload_by_address(address)?, Some(address.ip))))
        }
    };
    found.ok_or(GatewayTrouble::NotKnown)
}
