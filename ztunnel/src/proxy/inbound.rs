//! Connections to a pod from other nodes (listener 15008): mutual TLS under the pod's own certificate, then CONNECT
//! requests, each for an application of this pod and no other (contract 2.1).

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use tunnel::hbone::{Authority, ConnectRequest, ServeEnd, ServerConfig, Terms, serve as serve_http2};
use tunnel::socket::Accepted;
use tunnel::tls::{ServerStream, VerifiedPeer, accept};

use super::arrival::{Arrived, Visitor, arrive};
use super::failure::Failure;
use super::headers;
use super::held::Held;
use super::node::Node;
use super::refusal::refuse_early;
use super::relay::relay;
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

/// The certificate is the pod's whose listener it is, never one by name (SNI).
async fn handshake(
    node: &Node,
    pod: &Pod,
    stream: tokio::net::TcpStream,
    local: SocketAddr,
) -> Result<(ServerStream<tokio::net::TcpStream>, VerifiedPeer), Failure> {
    let stream = Held::new(stream);
    let own = pod.own().await?;
    if !pod.has_address(local.ip()) {
        return Err(Failure::ForeignAddress(local.ip()));
    }
    let certificate = own.certificate().await?;
    accept(stream.into_tunnel(), &certificate, node.limits.handshake).await.map_err(Failure::Handshake)
}

impl Tunnel {
    async fn run(self: Arc<Self>, stream: ServerStream<tokio::net::TcpStream>, burden: &Burden) {
        let drain = async {
            tokio::select! {
                () = self.node.drain.started() => {}
                () = self.pod.stopping.cancelled() => {}
            }
        };
        let on_connect = |request| {
            let (tunnel, guard, burden) = (self.clone(), self.node.drain.guard(), burden.clone());
            tokio::spawn(async move {
                tunnel.answer(request).await;
                drop((guard, burden));
            });
        };
        let config = ServerConfig { http2: self.node.tunnels.http2(), ..ServerConfig::default() };
        let share = self.node.tunnels.budget().share(self.local.ip());
        let terms = Terms { expires: self.verified.expires(), share };
        tokio::select! {
            served = serve_http2(stream, &config, &terms, drain, on_connect) => match served {
                Ok(ServeEnd::Closed | ServeEnd::Drained | ServeEnd::Idle | ServeEnd::Expired) => {}
                Err(error) => tracing::debug!(peer = %self.peer, pod = %self.pod.name, %error, "tunnel ended"),
            },
            // Dropping it resets what is left of it.
            () = self.pod.ended.cancelled() => {}
        }
    }

    async fn answer(&self, mut request: ConnectRequest) {
        let trace = headers::trace(request.headers());
        let mut record = Record::new(&self.node.metrics, Reporter::Destination, self.peer, self.local, trace);
        record.path = Path::OtherNode;
        record.tls = Some(self.verified.tls());
        record.ends.source_identity = Some(self.verified.identity().clone());
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
        let destination = target(&authority, self.local)?;
        record.hbone_address = Some(destination);
        let identity = Some(self.verified.identity().clone());
        let visitor = Visitor { identity, address: self.peer, destination, protocol: "HBONE" };
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
        let stream = request.accept(headers::baggage(&workload)).map_err(|_| Failure::GivenUp)?;
        record.established();
        relay(stream, application.into_stream(), &mut [record], self.node.limits.idle, live.cut()).await
    }
}

fn refuse(request: ConnectRequest, record: Record, failure: &Failure) {
    request.reject(StatusCode::from_u16(failure.meaning().status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE));
    record.finish(Some(failure));
}

/// The application a request is for: an address of this pod, which is the one that was dialled.
fn target(authority: &Authority, local: SocketAddr) -> Result<SocketAddr, Failure> {
    match authority {
        Authority::Address(address) if address.ip().to_canonical() == local.ip() => {
            Ok(SocketAddr::new(local.ip(), address.port()))
        }
        Authority::Address(address) => {
            Err(Failure::BadRequest(format!("{address} was asked for at {}", local.ip())))
        }
        Authority::Name { host, port } => Err(Failure::BadRequest(format!(
            "{host}:{port} is a name; this proxy serves addresses of its pod"
        ))),
    }
}
