//! Connections a pod makes (listener 15001): where they go, and by which of the ways.
//!
//! The source identity is the pod's, because only its own traffic reaches a listener in its namespace. What the mesh
//! knows and cannot serve is refused; nothing that should be encrypted ever falls back to plaintext. An endpoint that is
//! not reached gives way to the next one of its service (`tries`).
//!
//! Known and not spoken yet, so refused, each with a failure of its own: other networks ([`Failure::OtherNetwork`];
//! their endpoints are not chosen either, see [`mesh::route::Reach::OwnNetwork`]), workloads of which only a name is known
//! ([`Failure::Hostname`]), and, where a connection arrives, applications that are told of their clients by a protocol
//! ([`Failure::ApplicationTunnel`]).

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh::authorize::Attempt;
use mesh::route::{Called, Hop, NamedUpstream, Route, Upstream};
use mesh::{ServiceName, SpiffeId};
use tokio::net::TcpStream;
use tunnel::hbone::{Authority, OpenError, Opened, PoolKey, TunnelStream};
use tunnel::socket::{Accepted, DialError};
use tunnel::tls::ExpectedPeers;

use super::admission::Admitted;
use super::failure::Failure;
use super::headers;
use super::held::Held;
use super::live::{Listed, Live};
use super::local::{self, Local};
use super::node::Node;
use super::refusal::refuse_early;
use super::relay::relay;
use super::tries::{Tries, endpoint, is_of_endpoint};
use crate::pods::{Own, Pod};
use crate::telemetry::{Path, Record, Reporter, TraceParent};

/// A peer's port of HBONE that is closed is tried again after each of these: word of a pod that joins reaches us when it reaches the pod's
/// own node, which then takes a while to listen for it (its agent 54 ms in the median and 117 ms at most, on two busy processors).
const UNTIL_IT_LISTENS: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
];

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
    record.finish(result.as_ref().err());
}

/// What a tunnel is asked for.
struct Tunnelled<'a> {
    /// The proxy at its other end.
    peer: SocketAddr,
    /// The identities of which that has to prove one.
    expected: Vec<SpiffeId>,
    /// Where it is to lead.
    authority: SocketAddr,
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
        let mut tries = Tries::new();
        let mut route = self.route(&own, &tries);
        loop {
            let endpoint = endpoint(&route).cloned();
            let (endpoint, failure) = match (self.take(&own, route).await, endpoint) {
                (Ok(way), Some(endpoint)) => {
                    self.node.outliers.succeeded(&endpoint);
                    return Ok(way);
                }
                (Err(failure), Some(endpoint)) if is_of_endpoint(&failure) => (endpoint, failure),
                (decided, _) => return decided,
            };
            self.node.outliers.failed(&endpoint, &self.node.metrics);
            if !tries.failed(&endpoint) {
                return Err(failure);
            }
            route = self.route(&own, &tries);
            if !tries.may_take(&route) {
                return Err(failure);
            }
            self.record.try_again(&endpoint.workload.name, endpoint.application, &failure);
        }
    }

    fn route(&self, own: &Own, tries: &Tries) -> Route {
        self.node.outliers.route(&self.node.mesh, &own.workload, self.destination, tries)
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
            Route::Gateway { service, .. } => Err(Failure::OtherNetwork(service.name.clone())),
            Route::Named(NamedUpstream { workload, hostname, .. }) => {
                self.record.ends.destination = Some(workload);
                Err(Failure::Hostname(hostname))
            }
            Route::Plaintext(upstream) => {
                self.describe(&upstream);
                self.plain(upstream.application).await
            }
            Route::Passthrough(destination) => self.plain(destination).await,
            Route::Refused(refused) => Err(Failure::Unroutable(refused)),
        }
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
            authority: upstream.application,
            service,
        };
        self.tunnel(own, to).await
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
        let to = Tunnelled { peer: hop.hbone, expected: hop.expected_identities(), authority, service };
        self.tunnel(own, to).await
    }

    async fn tunnel(&mut self, own: &Own, to: Tunnelled<'_>) -> Result<Way, Failure> {
        let Tunnelled { peer, expected, authority, service } = to;
        self.record.destination_address = peer;
        self.record.hbone_address = Some(authority);
        let source = self.source_to(peer.ip())?;
        let mut certificate = own.certificate().await?;
        let key = PoolKey {
            source: own.workload.identity(),
            expected: ExpectedPeers::new(expected.iter().map(ToString::to_string)),
            destination: peer,
            source_ip: source,
        };
        let headers = headers::request(&own.workload, self.client, service, &self.record.trace);
        let authority = Authority::Address(authority);
        let dial = || {
            let dial = self.node.dialer.network(&self.pod.netns, Some(source), peer);
            async move { dial.await.map_err(into_io) }
        };
        let mut again = true;
        let mut pauses = UNTIL_IT_LISTENS.into_iter();
        let opened = loop {
            let error = match self.node.tunnels.open(&key, &certificate, &authority, &headers, dial).await {
                Ok(opened) => break opened,
                Err(error) => error,
            };
            if matches!(&error, OpenError::Dial(error) if error.kind() == ErrorKind::ConnectionRefused)
                && let Some(pause) = pauses.next()
            {
                tokio::time::sleep(pause).await;
                continue;
            }
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
        };
        let Opened { stream, peer: verified, .. } = opened;
        self.record.ends.source_identity = Some(own.workload.identity());
        self.record.ends.destination_identity = Some(verified.identity().clone());
        self.record.tls = Some(verified.tls());
        Ok(Way::Tunnel(stream))
    }
}

/// The pool knows the kernel's errors, and times out by itself.
fn into_io(error: DialError) -> std::io::Error {
    match error {
        DialError::Failed { error, .. } => error,
        DialError::Timeout { .. } => ErrorKind::TimedOut.into(),
    }
}
