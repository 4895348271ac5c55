//! Where a connection that a pod makes goes (Istio contract 1.2).
//!
//! What the client dialled is looked up in one order everywhere: a service's virtual address, a workload's address, a
//! service's range of virtual addresses. Then, in this order:
//! 1. a service goes through its waypoint; a workload that was called by its own address through the workload's, and
//!    through none that the client itself is a part of;
//! 2. a service that passes through leaves the address as it is;
//! 3. an endpoint is chosen; one on another network is reached through that network's gateway, and by services alone;
//! 4. a workload is reached over HBONE, or in plaintext if it is outside the mesh.
//!
//! What the mesh knows and cannot serve is refused, never let past it in plaintext; only what it does not know passes
//! unchanged. A service that the client's namespace does not see is not known. What was stated and cannot be read comes
//! before all else that has its address, but for a service of the client's own namespace, and is refused.

mod gateway;
#[cfg(test)]
mod tests;
mod upstream;

use std::cell::Cell;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::{Choice, address_for, mix};
use crate::gateway::GatewayAddress;
use crate::identity::SpiffeId;
use crate::ports::is_proxy_port;
use crate::service::{Hostname, Mode, Service, ServiceName};
use crate::state::{RejectedAddress, State};
use crate::workload::{NetworkAddress, TunnelProtocol, Workload, WorkloadUid};
use gateway::Pods;

pub use gateway::GatewayTrouble;
pub(crate) use gateway::{Meant, choose_waypoint, is_part_of, meaning};
pub use upstream::{Hop, NamedUpstream, Place, Upstream};

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Back to the pod it came from: its own address, or its own service whose choice fell on it.
    SameWorkload(Upstream),
    /// To a workload of the mesh, this node's or another's.
    Hbone(Upstream),
    /// To a workload outside the mesh, in plaintext.
    Plaintext(Upstream),
    /// To a workload whose address has to be asked for first.
    Named(NamedUpstream),
    /// Through a waypoint, which decides the rest.
    Waypoint {
        /// The waypoint.
        hop: Hop,
        /// What it is asked for: the address that the client dialled.
        authority: SocketAddr,
        /// What was called.
        called: Called,
    },
    /// To another network: a tunnel to its gateway, and through that a tunnel to the endpoint.
    Gateway {
        /// The gateway.
        hop: Hop,
        /// What both are asked for: the host name and the port of the service that was called.
        authority: (Hostname, u16),
        /// The identities of which the far end of the inner tunnel must prove one; never empty.
        inner: Vec<SpiffeId>,
        /// The far end that was chosen. The gateway may choose another one.
        workload: Arc<Workload>,
        /// The service that was called.
        service: Arc<Service>,
    },
    /// To the original destination, unchanged: the mesh does not know it.
    Passthrough(SocketAddr),
    /// Nowhere.
    Refused(Refused),
}

/// What the client called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Called {
    /// A service, by a virtual address.
    Service(Arc<Service>),
    /// A workload, by its own address.
    Workload(Arc<Workload>),
}

impl Called {
    /// The service, if it was one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service(service) => Some(service),
            Self::Workload(_) => None,
        }
    }

    fn name(&self) -> CalledName {
        match self {
            Self::Service(service) => CalledName::Service(service.name.clone()),
            Self::Workload(workload) => CalledName::Workload(workload.uid.clone()),
        }
    }
}

/// The name of what the client called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalledName {
    /// A service's.
    Service(ServiceName),
    /// A workload's.
    Workload(WorkloadUid),
}

impl fmt::Display for CalledName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name}"),
            Self::Workload(uid) => write!(f, "workload {uid}"),
        }
    }
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// What states the address cannot be read.
    #[error("{} of the control plane has this address and cannot be read: {}", .0.resource, .0.reason)]
    Unreadable(Arc<RejectedAddress>),
    /// No endpoint of the service is ready, has the port, and is of the rank its preference demands.
    #[error("service {0} has no healthy endpoint")]
    NoHealthyEndpoint(ServiceName),
    /// The service has no such port.
    #[error("service {0} has no port {1}")]
    NoSuchPort(ServiceName, u16),
    /// What was called is reached through a waypoint, and the waypoint is not reached.
    #[error("{called} is reached through the waypoint {waypoint}, which {trouble}")]
    Waypoint {
        /// What was called.
        called: CalledName,
        /// Its waypoint.
        waypoint: GatewayAddress,
        /// What is wrong.
        trouble: GatewayTrouble,
    },
    /// The service has waypoints, and all of them have the weight 0.
    #[error("service {0} is reached through waypoints, none of which takes connections")]
    WaypointWeights(ServiceName),
    /// The chosen endpoint is on another network, whose gateway is not reached.
    #[error("service {service} is reached through the network gateway {gateway}, which {trouble}")]
    NetworkGateway {
        /// What was called.
        service: ServiceName,
        /// The endpoint's network's gateway.
        gateway: GatewayAddress,
        /// What is wrong.
        trouble: GatewayTrouble,
    },
    /// All endpoints of the service are on other networks and no gateway leads there.
    #[error("service {0} has endpoints on other networks only, and no gateway leads there")]
    OtherNetwork(ServiceName),
    /// Who the far end of a gateway is can be proved only against the identities that the service states.
    #[error("service {0} has endpoints on other networks and states no identity for them to prove")]
    NoRemoteIdentity(ServiceName),
    /// The port is the proxy's own.
    #[error("port {0} is the proxy's own")]
    ProxyPort(u16),
    /// The address is no destination of a captured connection (loopback, unspecified, multicast).
    #[error("{0} is not an address to connect to")]
    NoDestination(IpAddr),
}

/// Decides where a connection of the pod `client` to `destination` goes, by what of `choice` is needed: a number that
/// is uniform over `u64` is enough.
pub fn route<'a>(
    state: &State,
    client: &Workload,
    destination: SocketAddr,
    choice: impl Into<Choice<'a>>,
) -> Route {
    let ip = destination.ip().to_canonical();
    let destination = SocketAddr::new(ip, destination.port());
    if !is_destination(ip) {
        return Route::Refused(Refused::NoDestination(ip));
    }
    // The choice of an endpoint must not depend on that of a waypoint before it.
    let choice = choice.into();
    let random = choice.random;
    let choice = Choice { random: mix(random), ..choice };
    let call = Call { state, client, destination, choice };
    call.decide(random).unwrap_or_else(Route::Refused)
}

/// Whether a captured connection can lead to the address, in its own family's form.
pub(crate) fn is_destination(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// A connection whose way is looked for.
struct Call<'a> {
    state: &'a State,
    client: &'a Workload,
    destination: SocketAddr,
    /// Among endpoints, be they the service's, a waypoint's or a gateway's.
    choice: Choice<'a>,
}

impl Call<'_> {
    fn decide(&self, random: u64) -> Result<Route, Refused> {
        let Self { state, client, destination, .. } = self;
        let address = NetworkAddress { network: client.network.clone(), ip: destination.ip() };
        let service = state.service_by_vip(&address, &client.namespace);
        if let Some(rejected) = state.rejected_at(&address)
            && !service.is_some_and(|service| self.is_own(service))
        {
            return Err(Refused::Unreadable(Arc::clone(rejected)));
        }
        if let Some(service) = service {
            return self.to_service(service, random);
        }
        // The pod's own address is its own even before the control plane has said so.
        if client.addresses.contains(&address.ip) && is_proxy_port(destination.port()) {
            return Err(Refused::ProxyPort(destination.port()));
        }
        if let Some(workload) = state.workload_by_address(&address) {
            return self.to_workload(workload);
        }
        let service = state.service_by_range(&address, &client.namespace);
        if let Some(rejected) = state.rejected_by_range(&address)
            && !service.is_some_and(|service| self.is_own(service))
        {
            return Err(Refused::Unreadable(Arc::clone(rejected)));
        }
        match service {
            Some(service) => self.to_service(service, random),
            None => Ok(Route::Passthrough(*destination)),
        }
    }

    fn is_own(&self, service: &Service) -> bool {
        service.name.namespace == self.client.namespace
    }

    /// A connection to a workload's own address.
    fn to_workload(&self, workload: &Arc<Workload>) -> Result<Route, Refused> {
        if let Some(waypoint) = &workload.waypoint
            && workload.uid != self.client.uid
            && !is_part_of(self.state, self.client, waypoint)
        {
            return self.through(waypoint, Called::Workload(Arc::clone(workload)));
        }
        let workload = Arc::clone(workload);
        self.connect(Upstream { workload, service: None, application: self.destination })
    }

    /// A connection to a virtual address. A waypoint of the endpoint's does not count here.
    fn to_service(&self, service: &Arc<Service>, random: u64) -> Result<Route, Refused> {
        // A waypoint that calls what is behind it must reach it, not itself again.
        if !service.waypoints().any(|waypoint| is_part_of(self.state, self.client, waypoint))
            && let Some(waypoint) = choose_waypoint(service, random)?
        {
            return self.through(waypoint, Called::Service(Arc::clone(service)));
        }
        if service.load_balancing.mode == Mode::Passthrough {
            return self.unchanged(service);
        }
        let name = &service.name;
        if !service.ports.contains_key(&self.destination.port()) {
            return Err(Refused::NoSuchPort(name.clone(), self.destination.port()));
        }
        let none = || Refused::NoHealthyEndpoint(name.clone());
        let endpoints = self.state.endpoints(name).ok_or_else(none)?;
        // Whether there is anybody to ask a second time.
        let some_fit = Cell::new(false);
        let fit = |endpoint: &Workload| {
            let port = self.target_port(service, endpoint).filter(|_| self.is_eligible(endpoint))?;
            some_fit.set(true);
            Some(port)
        };
        let sound = |endpoint: &Workload| {
            fit(endpoint).is_some_and(|port| !self.choice.passes_over(endpoint, port))
                && self.has_way(endpoint, Pods::Sound)
        };
        let choose = |eligible: &dyn Fn(&Workload) -> bool| {
            endpoints.choose(self.client, eligible, self.choice.random)
        };
        let again = |eligible: &dyn Fn(&Workload) -> bool| {
            if some_fit.get() { choose(eligible) } else { None }
        };
        // Where all are ejected, none is. Where no gateway is left, the choice says what is wrong with it.
        let chosen = choose(&sound)
            .or_else(|| again(&|endpoint| fit(endpoint).is_some() && self.has_way(endpoint, Pods::Any)))
            .or_else(|| again(&|endpoint| fit(endpoint).is_some()));
        let Some(chosen) = chosen else {
            let elsewhere = endpoints.iter().all(|endpoint| self.is_out_of_reach(endpoint));
            return Err(if elsewhere { Refused::OtherNetwork(name.clone()) } else { none() });
        };
        if chosen.network != self.client.network {
            return self.across(service, service, chosen);
        }
        let port = self.target_port(service, chosen).ok_or_else(none)?;
        let (workload, service) = (Arc::clone(chosen), Some(Arc::clone(service)));
        match (address_for(&workload, self.destination.ip()), &workload.hostname) {
            (Some(ip), _) => {
                self.connect(Upstream { workload, service, application: SocketAddr::new(ip, port) })
            }
            (None, Some(hostname)) => {
                let (hostname, requested) = (hostname.clone(), self.destination.ip());
                Ok(Route::Named(NamedUpstream { workload, service, hostname, port, requested }))
            }
            (None, None) => Err(none()),
        }
    }

    /// A service that passes through, unless the mesh knows better how to reach that address.
    fn unchanged(&self, service: &Arc<Service>) -> Result<Route, Refused> {
        let address = NetworkAddress { network: self.client.network.clone(), ip: self.destination.ip() };
        if let Some(rejected) = self.state.rejected_at(&address) {
            return Err(Refused::Unreadable(Arc::clone(rejected)));
        }
        let Some(workload) = self.state.workload_by_address(&address) else {
            return Ok(Route::Passthrough(self.destination));
        };
        // There is one place to go to: once it has failed there is none.
        if !self.choice.admits(workload) {
            return Err(Refused::NoHealthyEndpoint(service.name.clone()));
        }
        let (workload, service) = (Arc::clone(workload), Some(Arc::clone(service)));
        self.connect(Upstream { workload, service, application: self.destination })
    }

    /// Whether the endpoint may be tried, and a way to it is stated: an address or a name on the client's network, a
    /// gateway from another one, through which all ways are encrypted.
    fn is_eligible(&self, endpoint: &Workload) -> bool {
        if endpoint.network == self.client.network {
            has_place(endpoint) && self.choice.admits(endpoint)
        } else {
            !self.is_out_of_reach(endpoint) && !self.choice.has_tried(endpoint)
        }
    }

    fn is_out_of_reach(&self, endpoint: &Workload) -> bool {
        endpoint.network != self.client.network && endpoint.network_gateway.is_none()
    }

    fn target_port(&self, service: &Service, endpoint: &Workload) -> Option<u16> {
        target_port(service, endpoint, self.destination.port())
    }

    fn connect(&self, upstream: Upstream) -> Result<Route, Refused> {
        connect(self.client, upstream)
    }
}

/// Connects `client` to a workload whose address is known.
fn connect(client: &Workload, upstream: Upstream) -> Result<Route, Refused> {
    if upstream.workload.uid == client.uid {
        // What reaches the pod's own listeners would come back here.
        return match upstream.application.port() {
            port if is_proxy_port(port) => Err(Refused::ProxyPort(port)),
            _ => Ok(Route::SameWorkload(upstream)),
        };
    }
    Ok(match upstream.workload.tunnel_protocol {
        TunnelProtocol::Hbone => Route::Hbone(upstream),
        TunnelProtocol::None => Route::Plaintext(upstream),
    })
}

/// Whether the workload can be dialled on its own network.
fn has_place(workload: &Workload) -> bool {
    !workload.addresses.is_empty() || workload.hostname.is_some()
}

/// The endpoint's own port for the service's, else the service's target; `None` where neither states one.
pub(crate) fn target_port(service: &Service, endpoint: &Workload, port: u16) -> Option<u16> {
    let own = endpoint.services.get(&service.name).and_then(|ports| ports.get(&port));
    let stated = own.copied().filter(|target| *target != 0);
    stated.or_else(|| service.ports.get(&port).copied().filter(|target| *target != 0))
}
