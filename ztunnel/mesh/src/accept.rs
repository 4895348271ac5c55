//! Where a request leads that has reached a pod's HBONE port (Istio contract 2.1).
//!
//! It is for the pod's own application, on the port that it names: by the pod's address, by the host name and a port of
//! a service, or, where the pod is a waypoint, by the address of what is behind it. An application that is told of
//! its clients ([`ApplicationTunnel`](crate::workload::ApplicationTunnel)) judges addresses for itself.
//!
//! Where the pod is the gateway of its network, what is asked for by the name of a service that has endpoints behind
//! it goes on to the HBONE port of one of them as it is: a tunnel of its own, of which the gateway sees neither end.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::{Choice, address_for, mix};
use crate::gateway::GatewayAddress;
use crate::identity::Namespace;
use crate::ports::HBONE;
use crate::route::{Meant, choose_waypoint, is_part_of, meaning, target_port};
use crate::service::{Hostname, Service, ServiceName};
use crate::state::State;
use crate::workload::{ApplicationTunnel, NetworkAddress, TunnelProtocol, Workload};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An address.
    Address(SocketAddr),
    /// A service's host name and port.
    Name(Hostname, u16),
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Where a request leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// To the pod's application.
    Application {
        /// The pod's address and the application's port: what policies judge, and what is dialled unless the application
        /// is told of its clients.
        at: SocketAddr,
        /// The service whose name was asked for.
        service: Option<Arc<Service>>,
    },
    /// On to another pod of the pod's network, whose gateway the pod is.
    Onward(Onward),
}

/// Where a network's gateway passes a connection on to, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onward {
    /// An endpoint of the service, or of its waypoint.
    pub workload: Arc<Workload>,
    /// Where its HBONE port is.
    pub hbone: SocketAddr,
    /// The service that was asked for.
    pub service: Arc<Service>,
    /// The service whose endpoint it is, if it was chosen among several.
    pub chosen_among: Option<ServiceName>,
}

/// Why a request leads nowhere. Whoever asks has to look into it, but for the last one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misdirected {
    /// The address is neither the pod's own nor that of anything behind it.
    #[error("{asked} was asked for at {local}, and is not behind it")]
    NotHere {
        /// What was asked for.
        asked: SocketAddr,
        /// Where.
        local: IpAddr,
    },
    /// No service of this name is known, or none that the pod's namespace sees.
    #[error("no service is known by the name {0}")]
    UnknownName(Hostname),
    /// Neither the pod nor the service states a target for the port.
    #[error("service {0} has no port {1} here")]
    NoSuchPort(ServiceName, u16),
    /// The pod is the gateway to the service, and there is nobody to pass the connection on to.
    #[error("service {0} has no healthy endpoint behind this gateway")]
    NoEndpoint(ServiceName),
}

/// Decides where a request goes that `client`'s namespace makes of the pod `own` at its address `local`, by what of
/// `choice` is needed.
pub fn accept<'a>(
    state: &State,
    own: &Workload,
    local: IpAddr,
    asked: &Asked,
    client: &Namespace,
    choice: impl Into<Choice<'a>>,
) -> Result<Accepted, Misdirected> {
    let application = |port, service| Accepted::Application { at: SocketAddr::new(local, port), service };
    match asked {
        Asked::Address(address) => {
            let ip = address.ip().to_canonical();
            let here = ip == local || own.application_tunnel.is_some() || is_behind(state, own, ip);
            match here {
                true => Ok(application(address.port(), None)),
                false => Err(Misdirected::NotHere { asked: *address, local }),
            }
        }
        Asked::Name(host, port) => {
            let service = state.service_by_hostname(host.as_str(), &own.namespace);
            let service = service.ok_or_else(|| Misdirected::UnknownName(host.clone()))?;
            let gate = Gate { state, own, local, service, port: *port, choice: choice.into() };
            let is_endpoint = own.services.contains_key(&service.name);
            if !is_endpoint
                && own.application_tunnel.is_none()
                && service.is_visible_to(client)
                && let Some(onward) = gate.onward()?
            {
                return Ok(Accepted::Onward(onward));
            }
            // An application with a port of its own for all of them needs no target.
            let told = matches!(own.application_tunnel, Some(ApplicationTunnel::Proxy { port: Some(_) }));
            let target = target_port(service, own, *port).or(told.then_some(*port));
            let target = target.ok_or_else(|| Misdirected::NoSuchPort(service.name.clone(), *port))?;
            Ok(application(target, Some(Arc::clone(service))))
        }
    }
}

/// Whether the pod is the waypoint of what has the address.
fn is_behind(state: &State, own: &Workload, ip: IpAddr) -> bool {
    let address = NetworkAddress { network: own.network.clone(), ip };
    let leads_here = |waypoint: &GatewayAddress| is_part_of(state, own, waypoint);
    let workload = state.workload_by_address(&address);
    workload.is_some_and(|workload| workload.waypoint.as_deref().is_some_and(leads_here))
        || state.services_at(&address).into_iter().any(|service| service.waypoints().any(leads_here))
        || state.services_over(&address).any(|service| service.waypoints().any(leads_here))
}

/// A pod that may be the gateway of its network, and the service that is asked for there.
struct Gate<'a> {
    state: &'a State,
    own: &'a Workload,
    local: IpAddr,
    service: &'a Arc<Service>,
    port: u16,
    choice: Choice<'a>,
}

impl Gate<'_> {
    /// Where the connection goes on to; `None` if the pod is no gateway to the service.
    fn onward(&self) -> Result<Option<Onward>, Misdirected> {
        let Self { state, service, choice, .. } = self;
        // Nobody is let past a waypoint.
        let waypoint = choose_waypoint(service, choice.random)
            .map_err(|_| Misdirected::NoEndpoint(service.name.clone()))?;
        let Some(waypoint) = waypoint else {
            return self.among(&service.name, |pod| {
                let meshed = pod.tunnel_protocol == TunnelProtocol::Hbone;
                (meshed && target_port(service, pod, self.port).is_some()).then_some(HBONE)
            });
        };
        match meaning(state, waypoint) {
            Ok(Meant::Service(found)) => {
                let stated = waypoint.hbone_port;
                self.among(&found.name, |pod| Some(target_port(found, pod, stated).unwrap_or(stated)))
            }
            Ok(Meant::Workload(pod, stated)) if self.is_behind(pod) => {
                let ip = stated.or_else(|| address_for(pod, self.local));
                let none = || Misdirected::NoEndpoint(service.name.clone());
                let ip = ip.filter(|_| !choice.has_tried(pod)).ok_or_else(none)?;
                Ok(Some(self.to(pod, (ip, waypoint.hbone_port).into(), None)))
            }
            Ok(Meant::Workload(..)) | Err(_) => Ok(None),
        }
    }

    /// Whether the pod is the gateway by which other networks come to `pod`.
    fn is_behind(&self, pod: &Workload) -> bool {
        let gateway = pod.network_gateway.as_deref();
        pod.network == self.own.network
            && pod.uid != self.own.uid
            && gateway.is_some_and(|gateway| is_part_of(self.state, self.own, gateway))
    }

    fn to(&self, pod: &Arc<Workload>, hbone: SocketAddr, chosen_among: Option<ServiceName>) -> Onward {
        Onward { workload: Arc::clone(pod), hbone, service: Arc::clone(self.service), chosen_among }
    }

    /// One of the service's pods behind this one whose HBONE port `listens` tells of.
    fn among(
        &self,
        service: &ServiceName,
        listens: impl Fn(&Workload) -> Option<u16>,
    ) -> Result<Option<Onward>, Misdirected> {
        let Self { state, own, local, choice, .. } = self;
        let Some(endpoints) = state.endpoints(service) else { return Ok(None) };
        if !endpoints.iter().any(|pod| self.is_behind(pod)) {
            return Ok(None);
        }
        let fit =
            |pod: &Workload| match self.is_behind(pod) && !pod.addresses.is_empty() && !choice.has_tried(pod)
            {
                true => listens(pod),
                false => None,
            };
        let random = mix(choice.random);
        let sound = |pod: &Workload| fit(pod).is_some_and(|port| !choice.passes_over(pod, port));
        let chosen = endpoints.choose(own, sound, random);
        let chosen = chosen.or_else(|| endpoints.choose(own, |pod| fit(pod).is_some(), random));
        let found = chosen.and_then(|pod| Some((pod, address_for(pod, *local)?, listens(pod)?)));
        let (pod, ip, port) = found.ok_or_else(|| Misdirected::NoEndpoint(self.service.name.clone()))?;
        Ok(Some(self.to(pod, SocketAddr::new(ip, port), Some(service.clone()))))
    }
}
