//! Where a connection that a pod makes goes (Istio contract 1.2).
//!
//! Virtual addresses are looked up before workload addresses, in one order everywhere. What the mesh knows and
//! cannot serve is refused, never let past it in plaintext; only what it does not know passes unchanged.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::balance::{Choice, address_for};
use crate::identity::SpiffeId;
use crate::ports::{HBONE, is_proxy_port};
use crate::service::{Mode, Service, ServiceName};
use crate::state::State;
use crate::workload::{NetworkAddress, TunnelProtocol, Workload, WorkloadUid};

/// A workload to be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service it was called by, if it was.
    pub service: Option<Arc<Service>>,
    /// Its application: the pod's address and the target port. In HBONE the authority.
    pub application: SocketAddr,
}

impl Upstream {
    /// Where its HBONE listener is.
    pub fn hbone(&self) -> SocketAddr {
        SocketAddr::new(self.application.ip(), HBONE)
    }

    /// The identities of which it must prove one: its own and those its service states. A stated name that is
    /// no SPIFFE id of the mesh's form cannot be proved and is left out.
    pub fn expected_identities(&self) -> Vec<SpiffeId> {
        let mut expected = vec![self.workload.identity()];
        for name in self.service.iter().flat_map(|service| &service.subject_alt_names) {
            if let Ok(id) = name.parse()
                && !expected.contains(&id)
            {
                expected.push(id);
            }
        }
        expected
    }
}

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Back to the pod it came from: its own address, or its own service whose choice fell on it.
    SameWorkload(Upstream),
    /// To a workload of the mesh, this node's or another's.
    Hbone(Upstream),
    /// To a workload outside the mesh, in plaintext.
    Plaintext(Upstream),
    /// To the original destination, unchanged: the mesh does not know it.
    Passthrough(SocketAddr),
    /// Nowhere.
    Refused(Refused),
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No endpoint of the service is ready, has the port, and is of the rank its preference demands.
    NoHealthyEndpoint(ServiceName),
    /// The service has no such port.
    NoSuchPort(ServiceName, u16),
    /// The service is reached through a waypoint, which this build does not speak to.
    ServiceWaypoint(ServiceName),
    /// The workload is reached through a waypoint, which this build does not speak to.
    WorkloadWaypoint(WorkloadUid),
    /// All endpoints of the service are on other networks, which this build does not reach.
    OtherNetwork(ServiceName),
    /// The port is the proxy's own.
    ProxyPort(u16),
    /// The address is no destination of a captured connection (loopback, unspecified, multicast).
    NoDestination(IpAddr),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHealthyEndpoint(service) => write!(f, "service {service} has no healthy endpoint"),
            Self::NoSuchPort(service, port) => write!(f, "service {service} has no port {port}"),
            Self::ServiceWaypoint(service) => {
                write!(f, "service {service} is reached through a waypoint, which is not supported")
            }
            Self::WorkloadWaypoint(uid) => {
                write!(f, "workload {uid} is reached through a waypoint, which is not supported")
            }
            Self::OtherNetwork(service) => {
                write!(f, "service {service} has endpoints on other networks only, which is not supported")
            }
            Self::ProxyPort(port) => write!(f, "port {port} is the proxy's own"),
            Self::NoDestination(ip) => write!(f, "{ip} is not an address to connect to"),
        }
    }
}

impl std::error::Error for Refused {}

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
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Route::Refused(Refused::NoDestination(ip));
    }
    let address = NetworkAddress { network: client.network.clone(), ip };
    if let Some(service) = state.service_by_vip(&address, &client.namespace) {
        return to_service(state, client, service, destination, &choice.into())
            .unwrap_or_else(Route::Refused);
    }
    // The pod's own address is its own even before the control plane has said so.
    if client.addresses.contains(&ip) && is_proxy_port(destination.port()) {
        return Route::Refused(Refused::ProxyPort(destination.port()));
    }
    match state.workload_by_address(&address) {
        Some(workload) if workload.has_waypoint && workload.uid != client.uid => {
            Route::Refused(Refused::WorkloadWaypoint(workload.uid.clone()))
        }
        Some(workload) => connect(
            client,
            Upstream { workload: Arc::clone(workload), service: None, application: destination },
        )
        .unwrap_or_else(Route::Refused),
        None => Route::Passthrough(destination),
    }
}

/// A connection to a virtual address. A waypoint of the endpoint's does not count here (contract 1.2, step 7).
fn to_service(
    state: &State,
    client: &Workload,
    service: &Arc<Service>,
    destination: SocketAddr,
    choice: &Choice<'_>,
) -> Result<Route, Refused> {
    let name = &service.name;
    if service.has_waypoint {
        return Err(Refused::ServiceWaypoint(name.clone()));
    }
    if service.load_balancing.mode == Mode::Passthrough {
        return Ok(Route::Passthrough(destination));
    }
    let port = destination.port();
    if !service.ports.contains_key(&port) {
        return Err(Refused::NoSuchPort(name.clone(), port));
    }
    let target = |endpoint: &Workload| {
        let application = address_for(endpoint, destination.ip())?;
        Some(SocketAddr::new(application, target_port(service, endpoint, port)?))
    };
    let none = || Refused::NoHealthyEndpoint(name.clone());
    let endpoints = state.endpoints(name).ok_or_else(none)?;
    let reachable = |endpoint: &Workload| endpoint.network == client.network;
    let fit = |endpoint: &Workload| {
        if reachable(endpoint) && choice.admits(endpoint) { target(endpoint) } else { None }
    };
    let eligible = |endpoint: &Workload| fit(endpoint).is_some();
    let sound =
        |endpoint: &Workload| fit(endpoint).is_some_and(|at| !choice.passes_over(endpoint, at.port()));
    // Where all are ejected, none is.
    let chosen = endpoints.choose(client, sound, choice.random);
    let Some(chosen) = chosen.or_else(|| endpoints.choose(client, eligible, choice.random)) else {
        let elsewhere = endpoints.iter().all(|endpoint| !reachable(endpoint));
        return Err(if elsewhere { Refused::OtherNetwork(name.clone()) } else { none() });
    };
    let application = target(chosen).ok_or_else(none)?;
    let service = Some(Arc::clone(service));
    connect(client, Upstream { workload: Arc::clone(chosen), service, application })
}

/// The endpoint's own port for the service's, else the service's target; `None` where neither states one.
fn target_port(service: &Service, endpoint: &Workload, port: u16) -> Option<u16> {
    let own = endpoint.services.get(&service.name).and_then(|ports| ports.get(&port));
    let stated = own.copied().filter(|target| *target != 0);
    stated.or_else(|| service.ports.get(&port).copied().filter(|target| *target != 0))
}

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
