//! What `culvert status` shows: one picture of the node's agent, as JSON over `agent.sock`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ebpf_common::Counter;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::enroll::pod::PodUid;
use crate::enroll::steps::State;

/// The agent and everything it looks after.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AgentStatus {
    /// The node's name.
    pub(crate) node: String,
    /// This program's version.
    pub(crate) version: String,
    /// How outbound programs are attached: `tcx` or `clsact`.
    pub(crate) redirection: String,
    /// Whether the stream to control stands.
    pub(crate) control: ControlStatus,
    /// The ztunnels connected; the last is the active one.
    pub(crate) ztunnels: Vec<ZtunnelStatus>,
    /// The pods, by uid.
    pub(crate) pods: BTreeMap<PodUid, PodStatus>,
    /// Packets by decision and reason, over all pods, since the programs were first loaded.
    pub(crate) packets: Vec<PacketCount>,
    /// Of these what is counted for each pod: not the packets that go their usual way on a connection.
    #[serde(default)]
    pub(crate) pod_packets: BTreeMap<PodUid, Vec<PacketCount>>,
}

/// The connection to control.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ControlStatus {
    /// Its address.
    pub(crate) address: String,
    /// Whether it is connected now.
    pub(crate) connected: bool,
    /// Whether a complete configuration was received since the agent started.
    pub(crate) synchronised: bool,
}

/// A connected ztunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ZtunnelStatus {
    /// Its process.
    pub(crate) pid: u32,
    /// It takes listeners from the agent; Istio's does not, and nothing is captured for it.
    pub(crate) takes_listeners: bool,
    /// Since when it is connected.
    pub(crate) since: SystemTime,
    /// It has been told of all pods.
    pub(crate) synchronised: bool,
    /// How many pods it acknowledged.
    pub(crate) pods: usize,
}

/// One pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodStatus {
    /// Its name.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its service account.
    pub(crate) service_account: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether it takes plaintext from nobody.
    pub(crate) strict: bool,
    /// How far it is.
    pub(crate) state: State,
    /// Since when.
    pub(crate) since: SystemTime,
    /// Its network namespace, such as `net:[4026532300]`.
    pub(crate) netns: Option<String>,
    /// Its devices, without the loopback device.
    pub(crate) devices: Vec<String>,
    /// The links that capture for it.
    pub(crate) links: Vec<String>,
    /// The ports on which the agent holds listeners in it.
    pub(crate) listeners: Vec<u16>,
    /// Connections from before it joined, which pass the mesh.
    pub(crate) pre_mesh: Vec<Connection>,
    /// What went wrong last, if it still stands.
    pub(crate) last_error: Option<LastError>,
}

/// A connection of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    /// The pod's end.
    pub(crate) local: SocketAddr,
    /// The other end.
    pub(crate) remote: SocketAddr,
}

/// A failure that has not been overcome.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LastError {
    /// What happened, for people.
    pub(crate) message: String,
    /// The kind, as in the metric `culvert_enrolment_failures_total`.
    pub(crate) reason: String,
    /// Since when it has been failing.
    pub(crate) since: SystemTime,
    /// How often it was tried.
    pub(crate) attempts: u32,
}

/// A packet counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PacketCount {
    /// What was done.
    pub(crate) decision: String,
    /// Why.
    pub(crate) reason: String,
    /// How often.
    pub(crate) packets: u64,
}

impl PacketCount {
    /// So many packets under a counter.
    pub(crate) fn new(counter: Counter, packets: u64) -> Self {
        let (decision, reason) = (counter.decision().label().to_owned(), counter.reason().to_owned());
        Self { decision, reason, packets }
    }
}

/// Where the pods' tasks post how they stand.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pods: Mutex<BTreeMap<PodUid, PodStatus>>,
    changed: watch::Sender<()>,
}

impl Board {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<PodUid, PodStatus>> {
        // Entries are replaced whole, so a panic elsewhere left nothing half done.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts a pod's status; time in state and length of a failure carry on from the former one.
    pub(crate) fn post(&self, uid: &PodUid, mut status: PodStatus) {
        let mut pods = self.pods();
        if let Some(before) = pods.get(uid) {
            if before.state == status.state {
                status.since = before.since;
            }
            if let (Some(was), Some(now)) = (&before.last_error, &mut status.last_error)
                && was.reason == now.reason
            {
                now.since = was.since;
                now.attempts += was.attempts;
            }
        }
        pods.insert(uid.clone(), status);
        self.changed.send_replace(());
    }

    /// Tells of each status that is posted from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// How a pod stands.
    pub(crate) fn one(&self, uid: &PodUid) -> Option<PodStatus> {
        self.pods().get(uid).cloned()
    }

    /// The pod is forgotten.
    pub(crate) fn remove(&self, uid: &PodUid) {
        self.pods().remove(uid);
    }

    /// All pods.
    pub(crate) fn all(&self) -> BTreeMap<PodUid, PodStatus> {
        self.pods().clone()
    }

    /// Namespace and name of the pod with this address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<(String, String)> {
        let pods = self.pods();
        let found = pods.values().find(|pod| pod.addresses.contains(&address));
        found.map(|pod| (pod.namespace.clone(), pod.name.clone()))
    }

    /// How many pods are in `state`.
    pub(crate) fn count(&self, state: State) -> usize {
        self.pods().values().filter(|pod| pod.state == state).count()
    }
}

#[cfg(test)]
impl PodStatus {
    /// A pod of which only that matters.
    pub(crate) fn in_state(state: State, error: Option<&str>) -> Self {
        Self {
            name: "web".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            addresses: vec![],
            strict: false,
            state,
            since: SystemTime::now(),
            netns: None,
            devices: vec![],
            links: vec![],
            listeners: vec![],
            pre_mesh: vec![],
            last_error: error.map(|reason| LastError {
                message: reason.into(),
                reason: reason.into(),
                since: SystemTime::now(),
                attempts: 1,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_state_and_of_a_failure_carry_on() {
        let board = Board::default();
        let uid = PodUid::from("a");
        board.post(&uid, PodStatus::in_state(State::Searching, Some("no_process")));
        let first = board.all()[&uid].clone();
        board.post(&uid, PodStatus::in_state(State::Searching, Some("no_process")));
        let second = board.all()[&uid].clone();
        assert_eq!(second.since, first.since);
        let (was, now) = (first.last_error.unwrap(), second.last_error.unwrap());
        assert_eq!((now.since, now.attempts), (was.since, 2));

        board.post(&uid, PodStatus::in_state(State::Searching, Some("port_in_use")));
        assert_eq!(board.all()[&uid].last_error.as_ref().unwrap().attempts, 1, "another failure begins anew");
        assert_eq!((board.count(State::Searching), board.count(State::Enrolled)), (1, 0));
    }
}
