//! One enrolled pod: what its connections share.
//!
//! The pod's workload and certificate follow the mesh's state ([`Pod::follow`]); a connection waits a bounded
//! time for them. The pod itself is known from the agent, over a socket only the agent can open: its network
//! namespace and listeners are what proves a connection's source identity.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh::authorize::Attempt;
use mesh::state::RejectedAddress;
use mesh::{Namespace, ServiceAccount, TrustDomain, Workload};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tunnel::socket::{PodNetns, Rules};
use tunnel::tls::WorkloadCertificate;

use super::basis::Basis;
use super::spec::{PodSpec, PodUid};
use crate::config::START_WAIT;
use crate::dns::PodDns;
use crate::identity::{Identities, Lease};
use crate::mesh_state::MeshState;
use crate::proxy::{Failure, Handshakes, LiveConnections, Share};

/// What the control plane says of the pod.
pub(crate) struct Own {
    /// Its workload.
    pub(crate) workload: Arc<Workload>,
    /// Its claim on a certificate.
    pub(crate) lease: Arc<Lease<WorkloadCertificate>>,
}

impl Own {
    /// The certificate, waiting a bounded time for it.
    pub(crate) async fn certificate(&self) -> Result<Arc<WorkloadCertificate>, Failure> {
        let deadline = Instant::now() + START_WAIT;
        self.lease.certificate(deadline).await.map_err(Failure::Certificate)
    }

    /// The certificate that has taken the place of `old`, if one has.
    pub(crate) fn newer_certificate(
        &self,
        old: &Arc<WorkloadCertificate>,
    ) -> Option<Arc<WorkloadCertificate>> {
        self.lease.valid_now().filter(|now| !Arc::ptr_eq(now, old))
    }
}

/// See the module.
pub(crate) struct Pod {
    /// Its Kubernetes uid.
    pub(crate) uid: PodUid,
    /// Its name.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: Namespace,
    /// Its service account.
    pub(crate) service_account: ServiceAccount,
    /// Its network namespace, and what brings its traffic here.
    pub(crate) netns: PodNetns,
    /// Its live connections.
    pub(crate) live: Arc<LiveConnections<Attempt>>,
    /// Its account of connections.
    pub(crate) share: Arc<Share>,
    /// Peers that have not proved yet who they are.
    pub(crate) handshakes: Arc<Handshakes>,
    /// Accepts nothing further; live connections may end.
    pub(crate) stopping: CancellationToken,
    /// Everything of it ends.
    pub(crate) ended: CancellationToken,
    /// What its DNS remembers.
    pub(crate) dns: PodDns,
    stated_addresses: Vec<IpAddr>,
    /// It was said that its workload is of another trust domain.
    warned: AtomicBool,
    told: watch::Sender<Told>,
}

/// What is known of a pod from the control plane.
#[derive(Clone)]
enum Told {
    /// Nothing, or not yet.
    Nothing,
    /// Something that cannot be read: connections need not wait for more.
    Unreadable(Arc<RejectedAddress>),
    /// Its workload.
    Own(Arc<Own>),
}

impl Pod {
    /// A pod of which nothing is known yet but what the agent said.
    pub(crate) fn new(spec: &PodSpec, share: Arc<Share>, rules: Rules) -> Self {
        Self {
            uid: spec.uid.clone(),
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            service_account: spec.service_account.clone(),
            netns: PodNetns::new(spec.netns.clone(), spec.listeners.redirection(rules)),
            live: LiveConnections::new(),
            share,
            handshakes: Handshakes::new(),
            stopping: CancellationToken::new(),
            ended: CancellationToken::new(),
            dns: PodDns::new(spec.resolver.clone()),
            stated_addresses: spec.addresses.clone(),
            warned: AtomicBool::new(false),
            told: watch::Sender::new(Told::Nothing),
        }
    }

    /// Its workload and certificate, waiting a bounded time for the control plane to tell them.
    pub(crate) async fn own(&self) -> Result<Arc<Own>, Failure> {
        let mut told = self.told.subscribe();
        let something = told.wait_for(|told| !matches!(told, Told::Nothing));
        match tokio::time::timeout(START_WAIT, something).await.map(|told| told.map(|told| told.clone())) {
            Ok(Ok(Told::Own(own))) => Ok(own),
            Ok(Ok(Told::Unreadable(rejected))) => Err(Failure::Unreadable(rejected)),
            Ok(Ok(Told::Nothing) | Err(_)) | Err(_) => Err(Failure::NoConfiguration),
        }
    }

    /// What is known now.
    pub(crate) fn own_now(&self) -> Option<Arc<Own>> {
        match &*self.told.borrow() {
            Told::Own(own) => Some(own.clone()),
            Told::Nothing | Told::Unreadable(_) => None,
        }
    }

    /// The pod's addresses as far as they are known: the agent's word, else the control plane's.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        match (&self.stated_addresses[..], self.own_now()) {
            ([], Some(own)) => own.workload.addresses.clone(),
            (stated, _) => stated.to_vec(),
        }
    }

    /// The address to dial `to` from: the pod's address `preferred` if it has one of that family, else another of
    /// that family.
    pub(crate) fn source_for(&self, preferred: IpAddr, to: IpAddr) -> Option<IpAddr> {
        let addresses = self.addresses();
        let fits = |ip: &IpAddr| ip.is_ipv4() == to.is_ipv4();
        let own = Some(preferred).filter(|ip| fits(ip) && addresses.contains(ip));
        own.or_else(|| addresses.iter().copied().find(fits))
    }

    /// Whether `ip` is one of the pod's addresses.
    pub(crate) fn has_address(&self, ip: IpAddr) -> bool {
        match &self.stated_addresses[..] {
            [] => self.own_now().is_some_and(|own| own.workload.addresses.contains(&ip)),
            stated => stated.contains(&ip),
        }
    }

    /// Whether these are the addresses the agent told of it.
    pub(crate) fn is_stated_at(&self, addresses: &[IpAddr]) -> bool {
        self.stated_addresses == addresses
    }

    /// Keeps the workload and the certificate up to date, and asks about live connections again whenever what decides
    /// about them has changed. Runs until dropped.
    pub(crate) async fn follow(
        &self,
        mesh: &MeshState,
        identities: &Identities<WorkloadCertificate>,
        trust_domain: &TrustDomain,
    ) {
        let mut progress = mesh.subscribe();
        let mut judged: Option<Basis> = None;
        let mut seen = 0;
        loop {
            if progress.borrow_and_update().complete {
                let pending = mesh.pending(seen);
                self.update(mesh, identities, trust_domain);
                // A change between this look and the last answer is a reason to come back here at once.
                let basis =
                    mesh.read(|state| Basis::of(state, &self.namespace, &self.name, &self.service_account));
                if !judged.as_ref().is_some_and(|judged| judged.is_same_as(&basis)) {
                    self.recheck(mesh, pending.since.unwrap_or_else(Instant::now)).await;
                    judged = Some(basis);
                }
                seen = pending.generation;
            }
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// `since`: when word came in of what makes it necessary.
    async fn recheck(&self, mesh: &MeshState, since: Instant) {
        let cut = |refusal| Failure::PolicyChanged { refusal, since };
        let allowed = |attempt: &Attempt| mesh.still_allows(attempt.clone()).map_err(cut);
        let cut = self.live.recheck(allowed).await;
        if cut > 0 {
            tracing::info!(pod = %self.name, namespace = %self.namespace, cut, "connections are no longer allowed");
        }
    }

    fn update(
        &self,
        mesh: &MeshState,
        identities: &Identities<WorkloadCertificate>,
        trust_domain: &TrustDomain,
    ) {
        let (workload, rejected) = mesh.read(|state| {
            let workload = state.workload_by_pod(&self.namespace, &self.name, &self.service_account);
            (workload.cloned(), state.rejected_pod(&self.namespace, &self.name).cloned())
        });
        let workload = workload.filter(|workload| {
            let ours = workload.trust_domain == *trust_domain;
            if !ours && !self.warned.swap(true, Ordering::Relaxed) {
                tracing::error!(uid = %workload.uid, theirs = %workload.trust_domain, ours = %trust_domain, "workload of another trust domain; its pod stays refused");
            }
            ours
        });
        self.told.send_if_modified(|told| {
            let next = match (workload, rejected) {
                (Some(workload), _) => {
                    let held = match told {
                        Told::Own(own) if Arc::ptr_eq(&own.workload, &workload) => return false,
                        Told::Own(own) => Some(own.lease.clone()),
                        Told::Nothing | Told::Unreadable(_) => None,
                    };
                    let id = workload.identity();
                    let held = held.filter(|lease| *lease.id() == id);
                    let lease = held.unwrap_or_else(|| Arc::new(identities.lease(&id)));
                    Told::Own(Arc::new(Own { workload, lease }))
                }
                (None, Some(rejected)) => Told::Unreadable(rejected),
                (None, None) if matches!(told, Told::Nothing) => return false,
                (None, None) => Told::Nothing,
            };
            *told = next;
            true
        });
    }
}
