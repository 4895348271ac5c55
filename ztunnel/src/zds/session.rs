//! What the agent's messages mean: which pods are served, which wait, which are gone.
//!
//! Invariants: a pod that could not be started is tried again until it is started, deleted, or not announced any
//! more; after a reconnect a pod goes on until the snapshot is complete, and ends if it was not in it; the process is
//! not ready without the snapshot of the present connection, nor while a pod waits.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use api::seqpacket::Datagram;
use api::zds::{Add, Held, Listener, Request, Response, Violation};
use daemon::readiness::{BlockReady, Readiness};
use tokio::sync::watch;
use tunnel::socket::Netns;

use crate::dns::Resolver;
use crate::pods::{Listeners, PodSpec, PodUid};

/// What serves the pods.
pub(crate) trait Proxies {
    /// Serves the pod as `spec` says; nothing changes if it is served so already. The error is for people.
    fn start(&mut self, spec: &PodSpec) -> Result<(), String>;
    /// Serves the pod no more.
    fn stop(&mut self, uid: &PodUid);
    /// Which are served.
    fn served(&self) -> Vec<PodUid>;
    /// What is held of each that is served.
    fn held(&self) -> io::Result<Vec<HeldPod>>;
    /// How many could not be started; for metrics.
    fn pending(&self, count: usize);
    /// Takes over what a predecessor left in the agent's keeping. The error is for people.
    fn take_back(&mut self, deposit: OwnedFd) -> Result<(), String>;
    /// What is to be left for a successor now, if anything.
    fn deposit(&self) -> io::Result<Option<OwnedFd>>;
    /// Changes whenever that does.
    fn deposits(&self) -> watch::Receiver<u64>;
}

/// What the agent may ask back.
pub(crate) struct HeldPod {
    /// The pod.
    pub(crate) uid: PodUid,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub(crate) netns: OwnedFd,
    /// The listeners that were handed over.
    pub(crate) listeners: Vec<(Listener, OwnedFd)>,
}

/// A message to send.
pub(crate) struct Answer {
    /// The message.
    pub(crate) response: Response,
    /// What goes with it.
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self { response, descriptors: Vec::new() }
    }
}

struct Pending {
    spec: PodSpec,
    _block: BlockReady,
}

/// See the module.
pub(crate) struct Session<P> {
    proxies: P,
    readiness: Readiness,
    /// Announced on the present connection.
    announced: HashSet<PodUid>,
    pending: HashMap<PodUid, Pending>,
    /// Held until the snapshot of the present connection is complete.
    incomplete: Option<BlockReady>,
    /// The agent of the present connection keeps deposits.
    keeps: bool,
    /// No snapshot has been complete yet. Afterwards what an agent keeps is this process's own, or older than what it holds.
    heir: bool,
}

impl<P: Proxies> Session<P> {
    /// Not connected yet.
    pub(crate) fn new(proxies: P, readiness: Readiness) -> Self {
        let incomplete = Some(readiness.block("pods from the node agent"));
        Self {
            proxies,
            readiness,
            announced: HashSet::new(),
            pending: HashMap::new(),
            incomplete,
            keeps: false,
            heir: true,
        }
    }

    /// Whether the present connection has given a whole snapshot.
    pub(crate) fn has_snapshot(&self) -> bool {
        self.incomplete.is_none()
    }

    /// The connection is gone; what it announced has to be announced again.
    pub(crate) fn disconnected(&mut self) {
        self.announced.clear();
        self.keeps = false;
        if self.incomplete.is_none() {
            self.incomplete = Some(self.readiness.block("pods from the node agent"));
        }
    }

    /// Does what a message says. The answers are to be sent in order.
    pub(crate) fn handle(&mut self, datagram: Datagram) -> Result<Vec<Answer>, Violation> {
        let request = Request::decode(&datagram.bytes, datagram.descriptors.len())?;
        let response = match request {
            Request::Add(add) => self.add(add, datagram.descriptors),
            Request::Keep(uid) => self.keep(&uid),
            Request::Del(uid) => {
                self.remove(&PodUid::from(uid.as_str()));
                Response::Ack
            }
            Request::SnapshotSent => {
                self.complete();
                Response::Ack
            }
            Request::ReturnListeners => return Ok(self.give_back()),
            Request::TakeBack { .. } => self.take_back(datagram.descriptors),
        };
        Ok(vec![response.into()])
    }

    /// Whether the agent is to be left what is held. Not before its snapshot, which asks for answers.
    pub(crate) fn may_deposit(&self) -> bool {
        self.keeps && self.has_snapshot()
    }

    /// Changes whenever there is something else to leave.
    pub(crate) fn deposits(&self) -> watch::Receiver<u64> {
        self.proxies.deposits()
    }

    /// What is to be left in the agent's keeping.
    pub(crate) fn deposit(&self) -> Option<Answer> {
        match self.proxies.deposit() {
            Ok(deposit) => deposit.map(|fd| Answer { response: Response::Deposit, descriptors: vec![fd] }),
            Err(error) => {
                tracing::warn!(%error, "the keys cannot be left for a successor");
                None
            }
        }
    }

    fn take_back(&mut self, descriptors: Vec<OwnedFd>) -> Response {
        self.keeps = true;
        if !self.heir {
            return Response::Ack;
        }
        let taken = descriptors.into_iter().try_for_each(|deposit| self.proxies.take_back(deposit));
        taken.map_or_else(
            |error| {
                tracing::warn!(error, "what a predecessor left cannot be used; new certificates are needed");
                Response::Nack(error)
            },
            |()| Response::Ack,
        )
    }

    /// Tries again what could not be started.
    pub(crate) fn retry_pending(&mut self) {
        let proxies = &mut self.proxies;
        self.pending.retain(|uid, pending| match proxies.start(&pending.spec) {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(%uid, pod = %pending.spec.name, namespace = %pending.spec.namespace, %error, "pod cannot be served yet");
                true
            }
        });
        self.proxies.pending(self.pending.len());
    }

    fn add(&mut self, add: Add, descriptors: Vec<OwnedFd>) -> Response {
        let uid = PodUid::from(add.uid.as_str());
        self.announced.insert(uid.clone());
        let spec = match spec_of(add, descriptors) {
            Ok(spec) => spec,
            Err(error) => return Response::Nack(format!("descriptors: {error}")),
        };
        let started = self.proxies.start(&spec);
        self.pending.remove(&uid);
        let response = match started {
            Ok(()) => Response::Ack,
            Err(error) => {
                tracing::warn!(%uid, pod = %spec.name, namespace = %spec.namespace, %error, "pod cannot be served yet");
                let block = self.readiness.block(format!("pod {}/{}", spec.namespace, spec.name));
                self.pending.insert(uid, Pending { spec, _block: block });
                Response::Nack(error)
            }
        };
        self.proxies.pending(self.pending.len());
        response
    }

    fn keep(&mut self, uid: &str) -> Response {
        let uid = PodUid::from(uid);
        let response = match self.proxies.served().contains(&uid) {
            true => Response::Ack,
            false => Response::Nack(format!("pod {uid} is not served; it has to be added")),
        };
        self.announced.insert(uid);
        response
    }

    fn remove(&mut self, uid: &PodUid) {
        self.announced.remove(uid);
        self.pending.remove(uid);
        self.proxies.pending(self.pending.len());
        self.proxies.stop(uid);
    }

    fn complete(&mut self) {
        let waiting = self.pending.keys().cloned();
        let known: Vec<PodUid> = self.proxies.served().into_iter().chain(waiting).collect();
        for uid in known.iter().filter(|uid| !self.announced.contains(*uid)).cloned().collect::<Vec<_>>() {
            self.remove(&uid);
        }
        self.incomplete = None;
        self.heir = false;
        tracing::info!(pods = self.announced.len(), "snapshot of the node's pods is complete");
    }

    fn give_back(&self) -> Vec<Answer> {
        let held = match self.proxies.held() {
            Ok(held) => held,
            Err(error) => return vec![Response::Nack(format!("descriptors: {error}")).into()],
        };
        let one = |pod: HeldPod| {
            let (listeners, sockets): (Vec<_>, Vec<_>) = pod.listeners.into_iter().unzip();
            let descriptors = std::iter::once(pod.netns).chain(sockets).collect();
            let held = Held { uid: pod.uid.as_str().to_owned(), listeners, addresses: pod.addresses };
            Answer { response: Response::Held(held), descriptors }
        };
        held.into_iter().map(one).chain([Response::Ack.into()]).collect()
    }
}

/// The longest `resolv.conf` that is read, in bytes: what counts of it is far shorter.
const LONGEST_RESOLV_CONF: usize = 64 * 1024;

/// What the agent has read of the pod's `resolv.conf`.
fn resolver_of(descriptor: OwnedFd) -> io::Result<Resolver> {
    let file = File::from(descriptor);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(LONGEST_RESOLV_CONF);
    let mut text = vec![0; length];
    // Not by the offset, which everybody who has the descriptor shares.
    file.read_exact_at(&mut text, 0)?;
    Ok(Resolver::read(&String::from_utf8_lossy(&text)))
}

/// The codec has checked that the descriptors are as many as the message says.
fn spec_of(add: Add, descriptors: Vec<OwnedFd>) -> io::Result<PodSpec> {
    let mut descriptors = descriptors.into_iter();
    let netns = descriptors.next().ok_or(io::ErrorKind::InvalidInput)?;
    // Last, and only if the message says so.
    let resolver = if add.resolver { descriptors.next_back() } else { None };
    let listeners = match add.listeners.is_empty() {
        true => Listeners::Ours,
        false => Listeners::Handed(add.listeners.into_iter().zip(descriptors).collect()),
    };
    Ok(PodSpec {
        uid: PodUid::from(add.uid.as_str()),
        name: add.info.name,
        namespace: add.info.namespace.into(),
        service_account: add.info.service_account.into(),
        addresses: add.addresses,
        netns: Netns::new(netns)?,
        listeners,
        resolver: resolver.map(resolver_of).transpose()?,
    })
}
