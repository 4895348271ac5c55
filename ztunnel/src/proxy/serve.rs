//! Starts and stops serving a pod: an accept loop a listener, and the task that follows the mesh's state.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use api::zds::Listener;
use daemon::drain::DrainGuard;
use tokio::net::TcpListener;
use tunnel::socket::{
    Accepted, DatagramListener, InterceptPort, Netns, Rules, TcpOptions, accept, adopt_listener,
    bind_listener,
};

use super::accept::{Accept, Acceptor};
use super::admission::Share;
use super::failure::Failure;
use super::farewell::let_end;
use super::node::Node;
use super::workers::{Burden, Worker};
use super::{inbound, outbound, plaintext};
use crate::dns;
use crate::pods::{Listeners, Pod, PodSpec, PodUid, Serving};

/// Every pod has one of each.
const LISTENERS: [Listener; 3] = [Listener::Outbound, Listener::InboundPlaintext, Listener::Hbone];
/// A pod whose DNS is captured has both, any other none.
const DNS_LISTENERS: [Listener; 2] = [Listener::DnsStream, Listener::DnsDatagram];

/// Why a pod cannot be served. It can be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The agent handed over some listeners, but not this one.
    #[error("the listener {0:?} is missing")]
    Missing(Listener),
    /// A listener could not be made or used.
    #[error("listener {listener:?}: {error}")]
    Listener {
        /// Which.
        listener: Listener,
        /// What the kernel said; a port that an application has taken is named by it.
        error: io::Error,
    },
}

/// Serves a pod from now on, in the place of what was served under its uid. The spec is not used up, so that it can be
/// tried again.
pub(crate) fn start(node: &Arc<Node>, spec: &PodSpec) -> Result<(), StartError> {
    let home = node.workers.home();
    let (listeners, dns) = {
        // The sockets' readiness comes to the runtime that accepts.
        let _home = home.runtime().enter();
        (open_listeners(spec, &node.rules)?, open_dns(spec, &node.rules)?)
    };
    let held = held(spec)?;
    let share = Share::new(node.capacity.clone(), node.limits.per_pod);
    let pod = Arc::new(Pod::new(spec, share, node.rules));
    tokio::spawn(follow(node.clone(), pod.clone()));
    for (listener, socket) in listeners {
        home.runtime().spawn(accept_all(node.clone(), pod.clone(), home.clone(), listener, socket));
    }
    serve_dns(node, &pod, &home, dns);
    node.metrics.proxies_started.inc();
    node.metrics.active_proxies.inc();
    tracing::info!(pod = %pod.name, namespace = %pod.namespace, uid = %pod.uid, addresses = ?spec.addresses, "pod served");
    if let Some(old) = node.pods.insert(Serving { pod, listeners: held }) {
        retire(node, &old);
    }
    Ok(())
}

/// Goes on serving a pod as `spec` says, which differs from what is served in its DNS alone: its connections are not touched.
pub(crate) fn follow_dns(node: &Arc<Node>, serving: &Serving, spec: &PodSpec) -> Result<(), StartError> {
    let pod = &serving.pod;
    let home = node.workers.home();
    let dns = {
        let _home = home.runtime().enter();
        open_dns(spec, &node.rules)?
    };
    let listeners = held(spec)?;
    pod.dns.set_resolver(spec.resolver.clone());
    serve_dns(node, pod, &home, dns);
    node.pods.hold(Serving { pod: pod.clone(), listeners });
    Ok(())
}

/// What the agent may ask back.
fn held(spec: &PodSpec) -> Result<Vec<(Listener, OwnedFd)>, StartError> {
    match &spec.listeners {
        Listeners::Handed(handed) => handed
            .iter()
            .map(|(listener, fd)| Ok((*listener, fd.try_clone().map_err(|error| failed(*listener, error))?)))
            .collect(),
        Listeners::Ours => Ok(Vec::new()),
    }
}

/// Answers the pod's DNS on these listeners, and no longer on others.
fn serve_dns(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    home: &Arc<Worker>,
    listeners: Option<(TcpListener, DatagramListener)>,
) {
    let stop = pod.dns.begin();
    let Some((streams, datagrams)) = listeners else { return };
    let accepting = accept_all(node.clone(), pod.clone(), home.clone(), Listener::DnsStream, streams);
    let receiving = dns::datagrams(node.clone(), pod.clone(), datagrams);
    home.runtime().spawn(stop.clone().run_until_cancelled_owned(accepting));
    home.runtime().spawn(stop.run_until_cancelled_owned(receiving));
}

/// Serves the pod no more. Whether it was served. Its live connections may go on for the drain deadline.
pub(crate) fn stop(node: &Arc<Node>, uid: &PodUid) -> bool {
    let Some(old) = node.pods.remove(uid) else { return false };
    tracing::info!(pod = %old.pod.name, namespace = %old.pod.namespace, %uid, "pod no longer served");
    retire(node, &old);
    true
}

/// Keeps the certificates of the pods. A tunnel stands for the certificate it was made with, so with a renewal new
/// connections get new tunnels, and the old ones close when their last stream has ended. Runs until dropped.
pub(crate) async fn keep_identities(node: Arc<Node>) {
    let tunnels = node.tunnels.clone();
    node.identities.run(move |id| tunnels.retire(|key| key.source == *id)).await;
}

fn retire(node: &Arc<Node>, serving: &Serving) {
    let pod = serving.pod.clone();
    pod.stopping.cancel();
    let addresses = pod.addresses();
    node.tunnels.retire(|key| addresses.contains(&key.source_ip));
    node.metrics.proxies_stopped.inc();
    node.metrics.active_proxies.dec();
    let node = node.clone();
    tokio::spawn(async move {
        let_end(&pod.live, &node.drain_deadline, || Failure::PodRemoved).await;
        pod.ended.cancel();
        node.pods.left(&pod);
    });
}

fn failed(listener: Listener, error: io::Error) -> StartError {
    StartError::Listener { listener, error }
}

/// Both listeners for the pod's DNS, if it comes here: whoever makes the listeners knows.
fn open_dns(spec: &PodSpec, rules: &Rules) -> Result<Option<(TcpListener, DatagramListener)>, StartError> {
    let [streams, datagrams] = DNS_LISTENERS;
    let handed = match &spec.listeners {
        Listeners::Ours if !rules.dns => return Ok(None),
        Listeners::Ours => {
            let stream = bind_ours(&spec.netns, streams, rules).map_err(|error| failed(streams, error))?;
            let bound = DatagramListener::bind(&spec.netns, InterceptPort::DNS, rules);
            return Ok(Some((stream, bound.map_err(|error| failed(datagrams, error))?)));
        }
        Listeners::Handed(handed) => handed,
    };
    if !handed.iter().any(|(kind, _)| DNS_LISTENERS.contains(kind)) {
        return Ok(None);
    }
    let of = |kind| {
        let fd = handed.iter().find(|(one, _)| *one == kind).ok_or(StartError::Missing(kind))?;
        fd.1.as_fd().try_clone_to_owned().map_err(|error| failed(kind, error))
    };
    let stream = adopt_listener(of(streams)?).map_err(|error| failed(streams, error))?;
    let adopted = DatagramListener::adopt(of(datagrams)?, spec.netns.clone());
    Ok(Some((stream, adopted.map_err(|error| failed(datagrams, error))?)))
}

fn open_listeners(spec: &PodSpec, rules: &Rules) -> Result<Vec<(Listener, TcpListener)>, StartError> {
    let open = |listener| {
        let socket = match &spec.listeners {
            Listeners::Ours => bind_ours(&spec.netns, listener, rules),
            Listeners::Handed(handed) => {
                let fd =
                    handed.iter().find(|(kind, _)| *kind == listener).ok_or(StartError::Missing(listener))?;
                fd.1.as_fd().try_clone_to_owned().and_then(adopt_listener)
            }
        };
        socket.map(|socket| (listener, socket)).map_err(|error| failed(listener, error))
    };
    LISTENERS.into_iter().map(open).collect()
}

fn bind_ours(netns: &Netns, listener: Listener, rules: &Rules) -> io::Result<TcpListener> {
    let port = match listener {
        Listener::Outbound => InterceptPort::OUTBOUND,
        Listener::InboundPlaintext => InterceptPort::INBOUND_PLAINTEXT,
        Listener::Hbone => InterceptPort::HBONE,
        Listener::DnsStream | Listener::DnsDatagram => InterceptPort::DNS,
    };
    bind_listener(netns, port, rules)
}

async fn follow(node: Arc<Node>, pod: Arc<Pod>) {
    tokio::select! {
        () = pod.follow(&node.mesh, &node.identities, &node.trust_domain) => {}
        () = pod.ended.cancelled() => {}
    }
}

/// A listener with the options of what it accepts.
struct Listening {
    socket: TcpListener,
    options: TcpOptions,
}

impl Accept for Listening {
    type Connection = Accepted;

    async fn accept(&mut self) -> io::Result<Accepted> {
        accept(&self.socket, &self.options).await
    }
}

/// Runs until the pod or the process stops. What is not accepted stays in the queue for whoever holds the listener too.
async fn accept_all(
    node: Arc<Node>,
    pod: Arc<Pod>,
    home: Arc<Worker>,
    listener: Listener,
    socket: TcpListener,
) {
    let listening = Listening { socket, options: node.options.clone() };
    let name = match listener {
        Listener::Outbound => "outbound",
        Listener::InboundPlaintext => "inbound plaintext",
        Listener::Hbone => "inbound HBONE",
        Listener::DnsStream | Listener::DnsDatagram => "DNS",
    };
    let mut acceptor = Acceptor::new(listening, name, node.metrics.clone());
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.next() => accepted,
            () = pod.stopping.cancelled() => return,
            () = node.drain.started() => return,
        };
        let burden = node.workers.place(&home);
        let call = Call { node: node.clone(), pod: pod.clone(), listener, guard: node.drain.guard() };
        if Arc::ptr_eq(burden.worker(), &home) {
            tokio::spawn(call.serve(accepted, burden));
        } else {
            call.serve_elsewhere(accepted, burden);
        }
    }
}

/// A connection that has been accepted.
struct Call {
    node: Arc<Node>,
    pod: Arc<Pod>,
    listener: Listener,
    guard: DrainGuard,
}

impl Call {
    async fn serve(self, accepted: Accepted, burden: Burden) {
        let Self { node, pod, listener, guard } = self;
        match listener {
            Listener::Outbound => outbound::serve(&node, &pod, accepted).await,
            Listener::InboundPlaintext => plaintext::serve(&node, &pod, accepted).await,
            Listener::Hbone => inbound::serve(&node, &pod, accepted, &burden).await,
            // Apart, so that the task of any other connection does not keep room for it.
            Listener::DnsStream | Listener::DnsDatagram => {
                Box::pin(dns::stream(&node, &pod, accepted)).await;
            }
        }
        drop((burden, guard));
    }

    fn serve_elsewhere(self, accepted: Accepted, burden: Burden) {
        let worker = burden.worker().clone();
        let name = self.pod.name.clone();
        let lost = move |error: io::Error| {
            tracing::warn!(pod = %name, %error, "a connection is reset: it could not be handed to another worker");
        };
        match accepted.detach() {
            Ok(detached) => {
                worker.runtime().spawn(async move {
                    match detached.attach() {
                        Ok(accepted) => self.serve(accepted, burden).await,
                        Err(error) => lost(error),
                    }
                });
            }
            Err(error) => lost(error),
        }
    }
}
