//! Connections a pod makes (listener 15001): where they go, and by which of the ways.
//!
//! The source identity is the pod's, because only its own traffic reaches a listener in its namespace. What the mesh
//! knows and cannot serve is refused; nothing that should be encrypted ever falls back to plaintext. An endpoint that is
//! not reached gives way to the next one of its service, and so do pods of waypoints and gateways (`tries`).
//!
//! What is on another network is reached by a tunnel within a tunnel: the outer one to the gateway there, the inner one
//! through it to an endpoint, which proves who it is to this end and not to the gateway.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;
use mesh::authorize::Attempt;
use mesh::balance::record_for;
use mesh::route::{Called, Hop, NamedUpstream, Place, Route, Upstream, route};
use mesh::service::Hostname;
use mesh::{Service, ServiceName, SpiffeId};
use tokio::net::TcpStream;
use tunnel::copy::Side;
use tunnel::hbone::{Authority, OpenError, Opened, PoolKey, TunnelStream};
use tunnel::socket::{Accepted, DialError};
use tunnel::tls::ExpectedPeers;

use super::admission::Admitted;
use super::failure::Failure;
use super::headers;
use super::held::Held;
use super::live::{Listed, Live};
use super::local::{self, Local};
use super::names::ResolveError;
use super::node::Node;
use super::refusal::refuse_early;
use super::relay::relay;
use super::tries::{Aim, Tries};
use crate::pods::{Own, Pod};
use crate::telemetry::{OnDemandLabels, Path, Record, Reporter, TraceParent};

/// The way to the destination, open.
enum Way {
    /// Within this process.
    Local(Box<Local>),
    /// Through another node's proxy.
    Tunnel(TunnelStream),
    /// In plaintext, to something outside the mesh.
    Plain(TcpStream),
}

/// Serves one connection to its end.
pub(crate) async fn serve(node: &Node, pod: &Arc<Pod>, accepted: Accepted) {
    let Accepted { stream, peer, local } = accepted;
    let destination = pod.netns.original_destination(&stream, local);
    let client = Held::new(stream);
    let admitted = match admit(pod, destination) {
        Ok(admitted) => admitted,
        Err(failure) => return refuse_early(node, pod, peer, destination, &failure),
    };
    let record = Record::new(&node.metrics, Reporter::Source, peer, destination, TraceParent::random());
    let mut record = Box::new(record);
    let listed = Listed { source: peer, original: destination, actual: destination, protocol: "TCP" };
    let mut live = pod.live.enter(listed, None, record.transferred().clone());
    // In a block of its own, so that the rest of the task has its room.
    let way = {
        let mut call = Call { node, pod, client: peer, destination, record: &mut record };
        // Apart, so that the connection's task does not keep room for its opening as long as it lives.
        tokio::select! {
            way = Box::pin(call.open()) => way,
            why = live.cut() => Err(why),
        }
    };
    match way {
        Err(failure) => record.finish(Some(&failure)),
        Ok(way) => carry(node, client, way, record, live).await,
    }
    drop(admitted);
}

/// A captured connection never has one of the pod's own addresses as its destination, since those are reached over
/// loopback, which is not captured: whoever shows up with one has dialled the listener itself.
fn admit(pod: &Pod, destination: SocketAddr) -> Result<Admitted, Failure> {
    let ip = destination.ip();
    if ip.is_loopback() || ip.is_unspecified() || pod.has_address(ip) {
        return Err(match mesh::ports::is_proxy_port(destination.port()) {
            true => Failure::OwnPort(destination.port()),
            false => Failure::ForeignAddress(ip),
        });
    }
    pod.share.admit().ok_or(Failure::Overload)
}

async fn carry(node: &Node, client: Held, way: Way, mut record: Box<Record>, mut live: Live<Attempt>) {
    record.established();
    live.routed(record.destination_address, if matches!(way, Way::Tunnel(_)) { "HBONE" } else { "TCP" });
    let idle = node.limits.idle;
    let client = client.into_stream();
    let result = match way {
        Way::Local(local) => return local.carry(client, record, live, idle).await,
        Way::Tunnel(stream) => relay(client, stream, &mut [&mut *record], idle, live.cut()).await,
        Way::Plain(stream) => relay(client, stream, &mut [&mut *record], idle, live.cut()).await,
    };
    let result = result.map_err(|failure| failure.of_tunnel(Side::Destination, &record.standing));
    record.finish(result.as_ref().err());
}

/// What a tunnel is asked for.
struct Tunnelled<'a> {
    /// The proxy at its other end.
    peer: SocketAddr,
    /// The identities of which that has to prove one.
    expected: Vec<SpiffeId>,
    /// Where it is to lead.
    authority: &'a Authority,
    /// The service that was called.
    service: Option<&'a ServiceName>,
}

/// A connection whose way is being looked for.
struct Call<'a> {
    node: &'a Node,
    pod: &'a Arc<Pod>,
    /// The client's socket in the pod.
    client: SocketAddr,
    /// What it dialled.
    destination: SocketAddr,
    record: &'a mut Record,
}

impl Call<'_> {
    async fn open(&mut self) -> Result<Way, Failure> {
        let own = self.pod.own().await?;
        self.record.ends.source = Some(own.workload.clone());
        if let Some(on_demand) = &self.node.on_demand {
            let learnt = on_demand.learn(&self.node.mesh, &own.workload, self.destination.ip()).await;
            learnt.map_err(|error| Failure::Unknown(Box::new(error)))?;
        }
        let Node { outliers, mesh, metrics, .. } = self.node;
        let mut tries = Tries::new();
        let mut route = self.route(&own, &tries);
        loop {
            let aim = Aim::of(&route);
            let (aim, failure) = match (self.take(&own, route).await, aim) {
                (Ok(way), aim) => {
                    aim.iter().for_each(|aim| outliers.succeeded(aim.reached()));
                    return Ok(way);
                }
                (Err(failure), Some(aim)) => (aim, failure),
                (Err(failure), None) => return Err(failure),
            };
            let Some(blamed) = aim.blamed(&failure) else { return Err(failure) };
            let first = tries.failed(blamed.target, blamed.fault);
            if first && blamed.counts {
                outliers.failed(blamed.target, blamed.fault, mesh, metrics);
            }
            route = self.route(&own, &tries);
            if tries.may_go_on(&aim) && tries.may_take(&route) {
                if first {
                    let target = blamed.target;
                    self.record.try_again(&target.workload.name, &target.place, &failure);
                }
                continue;
            }
            let Some(pause) = tries.try_again_after() else { return Err(failure) };
            tokio::time::sleep(pause).await;
            route = self.route(&own, &tries);
            if !tries.may_take(&route) {
                return Err(failure);
            }
        }
    }

    fn route(&self, own: &Own, tries: &Tries) -> Route {
        let Node { outliers, mesh, .. } = self.node;
        outliers
            .decide(tries, |choice| mesh.read(|state| route(state, &own.workload, self.destination, choice)))
    }

    async fn take(&mut self, own: &Own, route: Route) -> Result<Way, Failure> {
        match route {
            Route::SameWorkload(upstream) => {
                let pod = self.pod.clone();
                self.local(own, pod, upstream).await
            }
            Route::Hbone(upstream) => {
                match self.node.pods.of_workload(&upstream.workload, upstream.application.ip()) {
                    Some(pod) => self.local(own, pod, upstream).await,
                    None => self.hbone(own, upstream).await,
                }
            }
            Route::Waypoint { hop, authority, called } => self.waypoint(own, hop, authority, &called).await,
            Route::Gateway { hop, authority, inner, service, .. } => {
                self.gateway(own, hop, authority, inner, &service).await
            }
            Route::Named(named) => {
                let found = self.find(own, named).await?;
                // What was found has an address.
                Box::pin(self.take(own, found)).await
            }
            Route::Plaintext(upstream) => {
                self.describe(&upstream);
                self.plain(upstream.application).await
            }
            Route::Passthrough(destination) => self.plain(destination).await,
            Route::Refused(refused) => Err(Failure::Unroutable(refused)),
        }
    }

    /// The way to a workload of which only a name is known.
    async fn find(&mut self, own: &Own, named: NamedUpstream) -> Result<Route, Failure> {
        self.record.ends.destination = Some(named.workload.clone());
        self.record.ends.service = named.service.as_ref().map(|service| service.name.clone());
        let hostname = named.hostname.clone();
        let addresses = self.addresses(&hostname).await?;
        let found = named.found(&own.workload, &addresses, rand::random());
        found.ok_or(Failure::Resolve(ResolveError::NoDestination(hostname)))
    }

    /// The address of a waypoint's or gateway's pod.
    async fn at(&self, place: &Place) -> Result<SocketAddr, Failure> {
        match place {
            Place::Address(address) => Ok(*address),
            Place::Name { hostname, port } => {
                let addresses = self.addresses(hostname).await?;
                let ip = record_for(&addresses, self.destination.ip(), rand::random());
                let none = || Failure::Resolve(ResolveError::NoDestination(hostname.clone()));
                Ok(SocketAddr::new(ip.ok_or_else(none)?, *port))
            }
        }
    }

    async fn addresses(&self, name: &Hostname) -> Result<Vec<IpAddr>, Failure> {
        let labels = OnDemandLabels::new(self.record.ends.source.as_deref(), name);
        self.node.metrics.shared.dns.on_demand.get_or_create(&labels).inc();
        self.node.names.addresses(name).await.map_err(Failure::Resolve)
    }

    fn describe(&mut self, upstream: &Upstream) {
        self.record.ends.destination = Some(upstream.workload.clone());
        self.record.ends.service = upstream.service.as_ref().map(|service| service.name.clone());
    }

    async fn local(&mut self, own: &Own, pod: Arc<Pod>, upstream: Upstream) -> Result<Way, Failure> {
        self.describe(&upstream);
        self.record.path = Path::SameNode;
        self.record.destination_address = upstream.application;
        self.record.ends.source_identity = Some(own.workload.identity());
        self.record.ends.destination_identity = Some(upstream.workload.identity());
        // As a tunnel would: of the application's family. A pod that calls itself does so from the address it calls,
        // which is the only way the kernel brings the answers back.
        let ip = match Arc::ptr_eq(&pod, self.pod) {
            true => upstream.application.ip(),
            false => self.source_to(upstream.application.ip())?,
        };
        let client = SocketAddr::new(ip, self.client.port());
        let local = local::open(self.node, pod, client, upstream.application, self.record).await?;
        Ok(Way::Local(Box::new(local)))
    }

    /// The address that the mesh is shown for a connection to `to`. The client's own word for it is not taken: a pod
    /// can send from any address, and policies judge by them.
    fn source_to(&self, to: IpAddr) -> Result<IpAddr, Failure> {
        let stated = self.client.ip();
        let own = self.pod.source_for(stated, to).filter(|_| self.pod.has_address(stated));
        own.ok_or(Failure::ForeignSource(stated))
    }

    async fn plain(&mut self, to: SocketAddr) -> Result<Way, Failure> {
        self.record.path = Path::Passthrough;
        self.record.destination_address = to;
        let source = self.pod.source_for(self.client.ip(), to.ip());
        let dialled = self.node.dialer.network(&self.pod.netns, source, to).await;
        dialled.map(Way::Plain).map_err(Failure::Dial)
    }

    /// To a workload of another node, through the proxy there.
    async fn hbone(&mut self, own: &Own, upstream: Upstream) -> Result<Way, Failure> {
        self.describe(&upstream);
        self.record.path = Path::OtherNode;
        let service = upstream.service.as_ref().map(|service| &service.name);
        let to = Tunnelled {
            peer: upstream.hbone(),
            expected: upstream.expected_identities(),
            authority: &Authority::Address(upstream.application),
            service,
        };
        let opened = self.tunnel(own, to).await?;
        Ok(self.through(own, opened))
    }

    /// To a waypoint, on whatever node it is: it has a proxy of its own. The service is the one that was called, the
    /// workload is the waypoint's, because nobody knows yet which one the waypoint will choose.
    async fn waypoint(
        &mut self,
        own: &Own,
        hop: Hop,
        authority: SocketAddr,
        called: &Called,
    ) -> Result<Way, Failure> {
        let service = called.service().map(|service| &service.name);
        self.record.path = Path::Waypoint;
        self.record.ends.destination = Some(hop.workload.clone());
        self.record.ends.service = service.cloned();
        let to = Tunnelled {
            peer: self.at(&hop.hbone).await?,
            expected: hop.expected_identities(),
            authority: &Authority::Address(authority),
            service,
        };
        let opened = self.tunnel(own, to).await?;
        Ok(self.through(own, opened))
    }

    /// To another network, through the gateway there, which chooses the endpoint. As with a waypoint the workload is the
    /// gateway's; the identity is the one that was proved at the far end.
    async fn gateway(
        &mut self,
        own: &Own,
        hop: Hop,
        (host, port): (Hostname, u16),
        inner: Vec<SpiffeId>,
        service: &Service,
    ) -> Result<Way, Failure> {
        self.record.path = Path::OtherNetwork;
        self.record.ends.destination = Some(hop.workload.clone());
        self.record.ends.service = Some(service.name.clone());
        let gateway = self.at(&hop.hbone).await?;
        let authority = &Authority::Name { host: host.to_string(), port };
        let service = Some(&service.name);
        let to = Tunnelled { peer: gateway, expected: hop.expected_identities(), authority, service };
        let outer = self.tunnel(own, to).await?;
        let certificate = own.certificate().await?;
        let expected = ExpectedPeers::new(inner.iter().map(ToString::to_string));
        let mut headers = headers::request(&own.workload, self.client, service, &self.record.trace);
        headers.forwarded_network = HeaderValue::from_str(own.workload.network.as_str()).ok();
        let source = self.source_to(gateway.ip())?;
        let tunnels = &self.node.tunnels;
        let opened =
            tunnels.open_within(outer.stream, source, &certificate, &expected, authority, &headers).await;
        let opened = opened.map_err(|error| Failure::Inner { gateway, error: Box::new(error) })?;
        Ok(self.through(own, opened))
    }

    fn through(&mut self, own: &Own, opened: Opened) -> Way {
        let Opened { stream, peer, .. } = opened;
        self.record.ends.source_identity = Some(own.workload.identity());
        self.record.ends.destination_identity = Some(peer.identity().clone());
        self.record.tls = Some(peer.tls());
        self.record.standing = peer.standing().clone();
        Way::Tunnel(stream)
    }

    async fn tunnel(&mut self, own: &Own, to: Tunnelled<'_>) -> Result<Opened, Failure> {
        let Tunnelled { peer, expected, authority, service } = to;
        self.record.destination_address = peer;
        self.record.hbone_address = Some(authority.clone());
        let source = self.source_to(peer.ip())?;
        let mut certificate = own.certificate().await?;
        let key = PoolKey {
            source: own.workload.identity(),
            expected: ExpectedPeers::new(expected.iter().map(ToString::to_string)),
            destination: peer,
            source_ip: source,
        };
        let headers = headers::request(&own.workload, self.client, service, &self.record.trace);
        let dial = || {
            let dial = self.node.dialer.network(&self.pod.netns, Some(source), peer);
            async move { dial.await.map_err(into_io) }
        };
        let mut again = true;
        loop {
            let error = match self.node.tunnels.open(&key, &certificate, authority, &headers, dial).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            // A renewal gives up the dials that are under way with the certificate before it: once more, with the new
            // one.
            match own.newer_certificate(&certificate) {
                Some(newer) if matches!(error, OpenError::Http2(_) | OpenError::GivenUp) => {
                    certificate = newer;
                }
                // Word of it may come when the new one is in use already. A renewal is hours from the next.
                None if matches!(error, OpenError::GivenUp) && std::mem::take(&mut again) => {}
                _ => return Err(Failure::Tunnel { peer, error }),
            }
        }
    }
}

/// The pool knows the kernel's errors, and times out by itself.
fn into_io(error: DialError) -> std::io::Error {
    match error {
        DialError::Failed { error, .. } => error,
        DialError::Timeout { .. } => ErrorKind::TimedOut.into(),
    }
}
