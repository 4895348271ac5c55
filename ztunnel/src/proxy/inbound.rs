//! Connections to a pod from other nodes (listener 15008): mutual TLS under the pod's own certificate, then CONNECT
//! requests, each for an application of this pod and no other, unless the pod is the gateway of its network
//! (`mesh::accept`, contract 2.1).

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use mesh::ServiceName;
use mesh::accept::{Accepted as Destination, Asked};
use mesh::service::Hostname;
use tokio::time::Instant;
use tunnel::copy::Side;
use tunnel::hbone::{
    Authority, ConnectHeaders, ConnectRequest, Malformed, ServeEnd, ServeError, ServerConfig, Terms,
    forwarded_host, serve as serve_http2,
};
use tunnel::socket::Accepted;
use tunnel::tls::{ServerStream, VerifiedPeer, accept};

use super::arrival::{Arrived, Visitor, arrive};
use super::failure::Failure;
use super::gate::Request;
use super::headers;
use super::held::Held;
use super::node::Node;
use super::refusal::refuse_early;
use super::relay::relay;
use super::tries::Tries;
use super::workers::Burden;
use crate::pods::Pod;
use crate::telemetry::{Path, Record, Reporter, TraceParent};

/// A verified connection that carries requests.
struct Tunnel {
    node: Arc<Node>,
    pod: Arc<Pod>,
    /// The other node's end, which is the client pod's address.
    peer: SocketAddr,
    /// Our end.
    local: SocketAddr,
    verified: VerifiedPeer,
}

/// Serves one connection, with all requests on it, to its end.
pub(crate) async fn serve(node: &Arc<Node>, pod: &Arc<Pod>, accepted: Accepted, burden: &Burden) {
    let Accepted { stream, peer, local } = accepted;
    let place = pod.handshakes.begin();
    // What is over soon has memory of its own: the task keeps room only for what lasts as long as it does.
    let shaken = tokio::select! {
        shaken = Box::pin(handshake(node, pod, stream, local)) => shaken,
        () = place.evicted() => Err(Failure::Evicted),
        () = pod.ended.cancelled() => Err(Failure::PodRemoved),
    };
    drop(place);
    // Only a peer that is known takes a place among the pod's connections.
    let admitted = shaken.and_then(|shaken| Ok((shaken, pod.share.admit().ok_or(Failure::Overload)?)));
    match admitted {
        Ok(((stream, verified), _admitted)) => {
            let tunnel = Tunnel { node: node.clone(), pod: pod.clone(), peer, local, verified };
            Arc::new(tunnel).run(stream, burden).await;
        }
        Err(
            failure @ (Failure::ForeignAddress(_)
            | Failure::NoConfiguration
            | Failure::Unreadable(_)
            | Failure::Evicted
            | Failure::Overload),
        ) => {
            refuse_early(node, pod, peer, local, &failure);
        }
        Err(failure) => {
            let mut record =
                Record::new(&node.metrics, Reporter::Destination, peer, local, TraceParent::random());
            record.ends.destination = pod.own_now().map(|own| own.workload.clone());
            record.finish(Some(&failure));
        }
    }
}

/// A client's connection after its handshake. It is moved from step to step, each of which would keep room for it.
type Shaken = Box<ServerStream<tokio::net::TcpStream>>;

/// The certificate is the pod's whose listener it is, never one by name (SNI).
async fn handshake(
    node: &Node,
    pod: &Pod,
    stream: tokio::net::TcpStream,
    local: SocketAddr,
) -> Result<(Shaken, VerifiedPeer), Failure> {
    let stream = Held::new(stream);
    let own = pod.own().await?;
    if !pod.has_address(local.ip()) {
        return Err(Failure::ForeignAddress(local.ip()));
    }
    let certificate = own.certificate().await?;
    let begun = Instant::now();
    let shaken = accept(stream.into_tunnel(), &certificate, node.limits.handshake).await;
    node.metrics.shared.handshake_time.0.observe(begun.elapsed().as_secs_f64());
    let (stream, verified) = shaken.map_err(Failure::Handshake)?;
    Ok((Box::new(stream), verified))
}

impl Tunnel {
    async fn run(self: Arc<Self>, stream: Shaken, burden: &Burden) {
        let drain = async {
            tokio::select! {
                () = self.node.drain.started() => {}
                () = self.pod.stopping.cancelled() => {}
            }
        };
        let on_connect = |request: Result<ConnectRequest, Malformed>| {
            let request = match request {
                Ok(request) => request,
                Err(malformed) => return self.refused(malformed),
            };
            let (tunnel, guard, burden) = (self.clone(), self.node.drain.guard(), burden.clone());
            tokio::spawn(async move {
                tunnel.answer(request).await;
                drop((guard, burden));
            });
        };
        let config = ServerConfig { http2: self.node.tunnels.http2(), ..ServerConfig::default() };
        let share = self.node.tunnels.budget().share(self.local.ip());
        let standing = self.verified.standing().clone();
        let terms = Terms { expires: self.verified.expires(), standing, share };
        tokio::select! {
            served = serve_http2(stream, &config, &terms, drain, on_connect) => match served {
                Ok(ServeEnd::Closed | ServeEnd::Drained | ServeEnd::Idle | ServeEnd::Expired) => {}
                Ok(ServeEnd::Revoked) => {
                    tracing::warn!(peer = %self.peer, identity = %self.verified.identity(), pod = %self.pod.name, "tunnel cut: its client's certificate was revoked");
                }
                Err(error @ ServeError::Connection(_)) => {
                    tracing::debug!(peer = %self.peer, pod = %self.pod.name, %error, "tunnel broke");
                }
                // What was on it has its own lines, which do not know why.
                Err(error) => {
                    refuse_early(&self.node, &self.pod, self.peer, self.local, &Failure::Http2(error));
                }
            },
            // Dropping it resets what is left of it.
            () = self.pod.ended.cancelled() => {}
        }
    }

    /// The record of a request, with what the tunnel and the client tell of it.
    fn record(&self, headers: &ConnectHeaders) -> Record {
        let trace = headers::trace(headers);
        let mut record = Record::new(&self.node.metrics, Reporter::Destination, self.peer, self.local, trace);
        record.path = Path::OtherNode;
        record.tls = Some(self.verified.tls());
        record.ends.source_identity = Some(self.verified.identity().clone());
        record
    }

    /// The service that the client says it called, if the pod is an endpoint of it. For telemetry alone (contract 2.1).
    fn called(&self, headers: &ConnectHeaders) -> Option<ServiceName> {
        let host = forwarded_host(headers.forwarded.as_ref()?)?;
        let own = self.pod.own_now()?;
        let mut services = own.workload.services.keys();
        services.find(|service| service.hostname.as_str().eq_ignore_ascii_case(host)).cloned()
    }

    /// Tells of a request that was answered 400.
    fn refused(&self, malformed: Malformed) {
        self.record(&malformed.headers).finish(Some(&Failure::BadRequest(malformed.why)));
    }

    async fn answer(&self, mut request: ConnectRequest) {
        let mut record = self.record(request.headers());
        record.ends.service = self.called(request.headers());
        let Some(admitted) = self.pod.share.admit() else {
            return refuse(request, record, &Failure::Overload);
        };
        let arrived = tokio::select! {
            arrived = Box::pin(self.arrive(request.authority().clone(), &mut record)) => arrived,
            () = request.cancelled() => Err(Failure::GivenUp),
        };
        let arrived = match arrived {
            Ok(arrived) => arrived,
            Err(failure) => return refuse(request, record, &failure),
        };
        let result = self.carry(request, arrived, &mut record).await;
        record.finish(result.as_ref().err());
        drop(admitted);
    }

    async fn arrive(&self, authority: Authority, record: &mut Record) -> Result<Arrived, Failure> {
        let own = self.pod.own().await?;
        let request = Request {
            node: &self.node,
            pod: &self.pod,
            own: &own,
            client: self.verified.identity(),
            peer: self.peer,
            local: self.local.ip(),
            asked: match &authority {
                Authority::Address(address) => Asked::Address(*address),
                Authority::Name { host, port } => Asked::Name(Hostname::from(host.as_str()), *port),
            },
        };
        record.hbone_address = Some(authority);
        let (at, service) = match request.decide(&Tries::new())? {
            Destination::Application { at, service } => (at, service),
            Destination::Onward(onward) => return request.pass_on(onward, record).await,
        };
        // Asked for by name, it is known; else the client's word for it counts.
        if let Some(service) = service {
            record.ends.service = Some(service.name.clone());
        }
        let asked = match request.asked {
            Asked::Address(address) => (address, None),
            Asked::Name(host, port) => (SocketAddr::new(at.ip(), port), Some(host)),
        };
        let identity = Some(self.verified.identity().clone());
        let visitor = Visitor { identity, address: self.peer, destination: at, asked, protocol: "HBONE" };
        arrive(&self.node, &self.pod, visitor, record).await
    }

    async fn carry(
        &self,
        request: ConnectRequest,
        arrived: Arrived,
        record: &mut Record,
    ) -> Result<(), Failure> {
        let Arrived { application, mut live, workload } = arrived;
        // The client gave up in the very moment in which the application took the connection.
        let baggage = self.node.response_baggage.then(|| headers::baggage(&workload)).flatten();
        let stream = request.accept(baggage).map_err(|_| Failure::GivenUp)?;
        record.established();
        let relayed =
            relay(stream, application.into_stream(), &mut [record], self.node.limits.idle, live.cut()).await;
        relayed.map_err(|failure| failure.of_tunnel(Side::Source, self.verified.standing()))
    }
}

fn refuse(request: ConnectRequest, record: Record, failure: &Failure) {
    request.reject(StatusCode::from_u16(failure.meaning().status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE));
    record.finish(Some(failure));
}
