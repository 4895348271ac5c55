//! What all connections of this process share.

use std::sync::Arc;
use std::time::Duration;

use daemon::drain::{Deadline, DrainSignal};
use mesh::TrustDomain;
use tunnel::hbone::Pool;
use tunnel::socket::{Rules, TcpOptions};
use tunnel::tls::{TlsPolicy, WorkloadCertificate};

use super::admission::Capacity;
use super::dial::Dialer;
use super::names::Resolve;
use super::outliers::Outliers;
use super::workers::Workers;
use crate::dns::Surroundings;
use crate::identity::Identities;
use crate::mesh_state::MeshState;
use crate::on_demand::OnDemand;
use crate::pods::Pods;
use crate::telemetry::Metrics;

/// Bounds that hold for every connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A client's TLS handshake: at most so long.
    pub(crate) handshake: Duration,
    /// No byte either way for so long ends a connection.
    pub(crate) idle: Duration,
    /// Connections held at once for one pod.
    pub(crate) per_pod: u32,
}

/// See the module.
pub(crate) struct Node {
    /// Counters.
    pub(crate) metrics: Metrics,
    /// The mesh.
    pub(crate) mesh: MeshState,
    /// Where the mesh is asked for piece by piece.
    pub(crate) on_demand: Option<OnDemand>,
    /// Endpoints that keep failing.
    pub(crate) outliers: Outliers,
    /// The trust domain of the pods here.
    pub(crate) trust_domain: TrustDomain,
    /// What handshakes agree on.
    pub(crate) tls: TlsPolicy,
    /// Certificates.
    pub(crate) identities: Identities<WorkloadCertificate>,
    /// What connections run on.
    pub(crate) workers: Workers,
    /// What is known to all pods' DNS.
    pub(crate) dns: Surroundings,
    /// The pods served.
    pub(crate) pods: Pods,
    /// The way out.
    pub(crate) dialer: Arc<dyn Dialer>,
    /// The addresses of names.
    pub(crate) names: Arc<dyn Resolve>,
    /// Tunnels to other nodes.
    pub(crate) tunnels: Pool,
    /// Connections that may be held in all.
    pub(crate) capacity: Arc<Capacity>,
    /// Whether the other side of a tunnel is told who answers.
    pub(crate) response_baggage: bool,
    /// Bounds.
    pub(crate) limits: Limits,
    /// Sockets in pods whose listeners we make.
    pub(crate) rules: Rules,
    /// Options of accepted sockets.
    pub(crate) options: TcpOptions,
    /// How long live connections may go on when their pod leaves or the process ends.
    pub(crate) drain_deadline: Deadline,
    /// The process is ending.
    pub(crate) drain: DrainSignal,
}
