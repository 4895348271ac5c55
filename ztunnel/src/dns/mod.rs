//! The pods' DNS (Istio contract 1.7): names of the mesh are answered from its state, all else by the servers the pod itself asks.
//!
//! `serve` takes queries from the listeners on 15053, to which the kernel leads what a pod sends to port 53; `message`, `negative`,
//! `upstreams` and `resolver` decide, without sockets or clocks; `query` joins them and `forward` asks others. What the mesh says of a name is decided in
//! `mesh::names`.
//!
//! **Whom a query goes to.** A name of the mesh is answered whichever server was asked, as Istio does: applications with a resolver of
//! their own call Services too. Any other query goes to the server that the pod asked. If that is one of the pod's `resolv.conf`, the
//! others stand in for it when it is silent; one that is not, as with `dig @server`, was meant, and nobody stands in for it. (Istio
//! sends all to the servers of ztunnel's own `resolv.conf`, so that a DNS server that runs in the mesh is led back to itself.)
//!
//! **Bounds.** A query that is forwarded takes a place of its pod's ([`QUERIES`], and of the node's descriptors what its share leaves);
//! what finds none is told SERVFAIL at once.

mod forward;
mod message;
mod negative;
mod query;
mod resolver;
mod serve;
mod upstreams;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::negative::Negative;
use self::upstreams::Upstreams;

pub(crate) use message::Transport;
#[cfg(test)]
pub(crate) use query::Query;
pub(crate) use resolver::Resolver;
pub(crate) use serve::{datagrams, stream};

/// Queries of one pod that wait for others at the same time.
const QUERIES: usize = 512;
/// Connections of one pod that carry queries.
const CONNECTIONS: usize = 64;

/// What is known to all pods' DNS.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The domain of the cluster, such as `cluster.local`.
    pub(crate) cluster_domain: String,
    /// Whom this process itself asks; stands in for what is not known of a pod.
    pub(crate) own: Resolver,
}

impl Surroundings {
    /// As this process is configured. Servers on the node's loopback are not there in a pod.
    pub(crate) fn new(cluster_domain: String, resolv_conf: &str) -> Self {
        let mut own = Resolver::read(resolv_conf);
        own.servers.retain(|server| !server.ip().is_loopback() && !server.ip().is_unspecified());
        Self { cluster_domain, own }
    }
}

/// What the DNS of one pod remembers.
#[derive(Debug)]
pub(crate) struct PodDns {
    /// The pod's own configuration, as far as it is known.
    resolver: RwLock<Option<Arc<Resolver>>>,
    upstreams: Mutex<Upstreams>,
    negative: Mutex<Negative>,
    queries: Semaphore,
    connections: Semaphore,
    /// Ends what is served now.
    serving: Mutex<CancellationToken>,
}

impl PodDns {
    /// For a pod with this configuration.
    pub(crate) fn new(resolver: Option<Resolver>) -> Self {
        let new = Self {
            resolver: RwLock::default(),
            upstreams: Mutex::new(Upstreams::new(&[])),
            negative: Mutex::default(),
            queries: Semaphore::new(QUERIES),
            connections: Semaphore::new(CONNECTIONS),
            serving: Mutex::default(),
        };
        new.set_resolver(resolver);
        new
    }

    /// Follows the pod's configuration.
    pub(crate) fn set_resolver(&self, resolver: Option<Resolver>) {
        let mut known = self.resolver.write().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() == resolver.as_ref() {
            return;
        }
        let servers: &[SocketAddr] = resolver.as_ref().map_or(&[], |resolver| &resolver.servers);
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).replace(servers);
        self.negative.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *known = resolver.map(Arc::new);
    }

    /// Ends what is served so far. What is served from now on ends with the token.
    pub(crate) fn begin(&self) -> CancellationToken {
        let next = CancellationToken::new();
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *serving, next.clone()).cancel();
        next
    }

    /// The pod's configuration, if it is known.
    pub(crate) fn resolver(&self) -> Option<Arc<Resolver>> {
        self.resolver.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn upstreams<T>(&self, work: impl FnOnce(&mut Upstreams) -> T) -> T {
        work(&mut self.upstreams.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn negative<T>(&self, work: impl FnOnce(&mut Negative) -> T) -> T {
        work(&mut self.negative.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
