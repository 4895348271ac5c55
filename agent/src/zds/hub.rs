//! What all ZDS sessions share: the pods to serve, the sessions there are, and what each acknowledged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};

use super::admission::Place;
use super::{Announcement, Held, Takes};
use crate::enroll::pod::PodUid;
use crate::netns::Netns;
use crate::status::ZtunnelStatus;
use daemon::visitors::Visitor as Peer;

/// How long a pod's task waits for its answer, which may have to wait for a snapshot of other pods.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Which session, in the order of their beginning: the greatest is the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId(u64);

/// Why ztunnel does not serve a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AnnounceError {
    /// None is connected.
    #[error("no ztunnel is connected")]
    NoZtunnel,
    /// It answered with an error.
    #[error("ztunnel refused the pod: {0}")]
    Refused(String),
    /// The pod's names do not fit into a message.
    #[error("ztunnel cannot be told of the pod: {0}")]
    Unspeakable(api::zds::Violation),
    /// It went away or did not answer in time.
    #[error("the connection to ztunnel ended before it answered")]
    Ended,
}

/// What a session is asked to do while it runs.
#[derive(Debug)]
pub(crate) enum Command {
    /// Have the pod served.
    Add(Arc<Announcement>, oneshot::Sender<Result<(), AnnounceError>>),
    /// Have it no longer served.
    Del(PodUid, oneshot::Sender<()>),
}

/// What a new session is told of a pod.
#[derive(Debug)]
pub(crate) enum SnapshotEntry {
    /// Serve it.
    Add(Arc<Announcement>),
    /// Go on serving it if you do; its turn comes.
    Keep(PodUid),
}

#[derive(Debug)]
struct Session {
    commands: mpsc::UnboundedSender<Command>,
    peer: Peer,
    takes: Takes,
    since: SystemTime,
    synchronised: bool,
    acknowledged: HashMap<PodUid, Arc<Announcement>>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<PodUid, Arc<Announcement>>,
    sessions: BTreeMap<SessionId, Session>,
    next_session: u64,
    held: Option<HashMap<PodUid, Held>>,
    /// Whether a ztunnel that is connected takes listeners, or the last one that was did; none: none has joined yet.
    takes_listeners: Option<bool>,
    deposit: Option<Arc<OwnedFd>>,
}

impl State {
    /// Takes note of what kind of ztunnel there is. One that takes listeners holds them for as long as it lives, whoever joins beside it.
    fn note_kind(&mut self) {
        if !self.sessions.is_empty() {
            self.takes_listeners = Some(self.sessions.values().any(|session| session.takes.listeners));
        }
    }
}

/// Shared by the pod tasks, the sessions and the status.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    roster: watch::Sender<Option<HashSet<PodUid>>>,
    changes: watch::Sender<u64>,
    learnt: watch::Sender<()>,
}

impl Hub {
    /// Without sessions, without pods, and not knowing yet which pods there are.
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            roster: watch::Sender::new(None),
            changes: watch::Sender::new(0),
            learnt: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single insertion or removal, so a panic elsewhere left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|generation| *generation += 1);
    }

    /// Changes whenever sessions come, go or finish their snapshot.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// States which pods there are. Until the first time no snapshot is finished, so that a ztunnel which serves pods
    /// does not take the agent's ignorance for their absence.
    pub(crate) fn set_roster(&self, pods: HashSet<PodUid>) {
        let mut state = self.state();
        if let Some(held) = &mut state.held {
            held.retain(|uid, _| pods.contains(uid));
        }
        drop(state);
        self.roster.send_replace(Some(pods));
        self.learnt.send_replace(());
    }

    /// Changes whenever more may be known of the pods: which there are, and where.
    pub(super) fn learnt(&self) -> watch::Receiver<()> {
        self.learnt.subscribe()
    }

    /// The pods that are in the mesh, or are to be, or are leaving it.
    pub(super) fn known_pods(&self) -> HashSet<PodUid> {
        let announced = self.state().pods.keys().cloned().collect::<Vec<_>>();
        let mut pods = self.roster.borrow().clone().unwrap_or_default();
        pods.extend(announced);
        pods
    }

    /// The pod whose namespace this is, named as by `/proc/PID/ns/net`, if ztunnel was to be told of one.
    pub(super) fn pod_in(&self, netns: &str) -> Option<PodUid> {
        let state = self.state();
        let mut pods = state.pods.values();
        pods.find(|pod| pod.netns.id().to_string() == netns).map(|pod| pod.pod.uid.clone())
    }

    /// The namespaces of the pods that ztunnel serves or is to serve.
    pub(crate) fn namespaces(&self) -> BTreeMap<PodUid, Arc<Netns>> {
        let state = self.state();
        state.pods.iter().map(|(uid, pod)| (uid.clone(), Arc::clone(&pod.netns))).collect()
    }

    /// Resolves when it is known which pods there are.
    pub(crate) async fn roster_known(&self) {
        let mut roster = self.roster.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = roster.wait_for(Option::is_some).await;
    }

    /// Has `announcement` served by the active ztunnel and waits for its answer; every later ztunnel is told as well.
    pub(crate) async fn announce(&self, announcement: &Arc<Announcement>) -> Result<(), AnnounceError> {
        let answer = {
            let mut state = self.state();
            state.pods.insert(announcement.pod.uid.clone(), Arc::clone(announcement));
            self.learnt.send_replace(());
            let (_, session) = state.sessions.last_key_value().ok_or(AnnounceError::NoZtunnel)?;
            let (reply, answer) = oneshot::channel();
            let command = Command::Add(Arc::clone(announcement), reply);
            session.commands.send(command).map_err(|_| AnnounceError::Ended)?;
            answer
        };
        match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(AnnounceError::Ended),
        }
    }

    /// Has the pod served by no ztunnel any more, and waits until each has answered or gone.
    pub(crate) async fn withdraw(&self, uid: &PodUid) {
        let answers: Vec<_> = {
            let mut state = self.state();
            state.pods.remove(uid);
            let ask = |session: &Session| {
                let (reply, answer) = oneshot::channel();
                session.commands.send(Command::Del(uid.clone(), reply)).ok().map(|()| answer)
            };
            state.sessions.values().filter_map(ask).collect()
        };
        for answer in answers {
            // A session that ends instead of answering serves nothing any more.
            let _ = tokio::time::timeout(ANSWER_DEADLINE, answer).await;
        }
    }

    /// Whether the active ztunnel acknowledged exactly this announcement.
    pub(crate) fn acknowledged(&self, announcement: &Arc<Announcement>) -> bool {
        let state = self.state();
        let active = state.sessions.last_key_value();
        let acknowledged = active.and_then(|(_, session)| session.acknowledged.get(&announcement.pod.uid));
        acknowledged.is_some_and(|acknowledged| Arc::ptr_eq(acknowledged, announcement))
    }

    /// Whether there is a ztunnel that takes listeners. Beside one, what was made for it would be in the way of the other kind in any case,
    /// and must still be there when that has gone again. When all have gone it is as it was: the next one is of the last one's kind more
    /// often than not. `None`: none has joined yet.
    pub(crate) fn takes_listeners(&self) -> Option<bool> {
        self.state().takes_listeners
    }

    /// Whether the active ztunnel answers DNS; none: there is none.
    pub(crate) fn takes_dns(&self) -> Option<bool> {
        self.state().sessions.last_key_value().map(|(_, session)| session.takes.dns)
    }

    /// The active session and its process.
    pub(crate) fn active(&self) -> Option<(SessionId, u32)> {
        self.state().sessions.last_key_value().map(|(id, session)| (*id, session.peer.pid))
    }

    /// Whether a ztunnel has been asked what it holds. Before that no listener may be made: the port would be
    /// taken by the very socket that is to be had back.
    pub(crate) fn holdings_known(&self) -> bool {
        self.state().held.is_some()
    }

    /// Takes what a ztunnel held of `uid`, if anything.
    pub(crate) fn take_held(&self, uid: &PodUid) -> Option<Held> {
        self.state().held.as_mut()?.remove(uid)
    }

    /// The sessions, the active one last.
    pub(crate) fn sessions(&self) -> Vec<ZtunnelStatus> {
        let state = self.state();
        let info = |session: &Session| ZtunnelStatus {
            pid: session.peer.pid,
            takes_listeners: session.takes.listeners,
            since: session.since,
            synchronised: session.synchronised,
            pods: session.acknowledged.len(),
        };
        state.sessions.values().map(info).collect()
    }

    /// A session begins; it becomes the active one.
    pub(super) fn join(
        self: &Arc<Self>,
        peer: Peer,
        takes: Takes,
    ) -> (Membership, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        state.next_session += 1;
        let id = SessionId(state.next_session);
        let session = Session {
            commands,
            peer,
            takes,
            since: SystemTime::now(),
            synchronised: false,
            acknowledged: HashMap::new(),
        };
        state.sessions.insert(id, session);
        state.note_kind();
        drop(state);
        self.changed();
        (Membership { hub: Arc::clone(self), id }, receiver)
    }
}

/// There is a deposit, and it is not for this session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Withheld;

/// A session's place in the hub; it is given up when this is dropped.
#[derive(Debug)]
pub(super) struct Membership {
    hub: Arc<Hub>,
    id: SessionId,
}

impl Membership {
    fn with<T: Default>(&self, change: impl FnOnce(&mut Session) -> T) -> T {
        self.hub.state().sessions.get_mut(&self.id).map(change).unwrap_or_default()
    }

    /// What this session's ztunnel must be told first. Complete only once the roster is known.
    pub(super) fn snapshot(&self) -> Vec<SnapshotEntry> {
        let state = self.hub.state();
        let mut entries: Vec<_> = state.pods.values().cloned().map(SnapshotEntry::Add).collect();
        let roster = self.hub.roster.borrow();
        let others = roster.iter().flatten().filter(|uid| !state.pods.contains_key(*uid));
        entries.extend(others.cloned().map(SnapshotEntry::Keep));
        entries
    }

    /// ztunnel has acknowledged the pod.
    pub(super) fn acknowledge(&self, announcement: &Arc<Announcement>) {
        self.with(|session| {
            session.acknowledged.insert(announcement.pod.uid.clone(), Arc::clone(announcement));
        });
    }

    /// Whether it has done so before.
    pub(super) fn has_acknowledged(&self, announcement: &Arc<Announcement>) -> bool {
        self.with(|session| {
            let known = session.acknowledged.get(&announcement.pod.uid);
            known.is_some_and(|known| Arc::ptr_eq(known, announcement))
        })
    }

    /// ztunnel no longer serves the pod.
    pub(super) fn forget(&self, uid: &PodUid) {
        self.with(|session| session.acknowledged.remove(uid));
    }

    /// ztunnel has the whole snapshot.
    pub(super) fn synchronised(&self) {
        self.with(|session| session.synchronised = true);
        self.hub.changed();
    }

    /// What a ztunnel left in the agent's keeping last. While another one is connected it is kept from who runs just anywhere: its
    /// owner is there and needs no heir.
    pub(super) fn deposit(&self, place: Place) -> Result<Option<Arc<OwnedFd>>, Withheld> {
        let state = self.hub.state();
        let alone = state.sessions.keys().all(|id| *id == self.id);
        match (&state.deposit, place) {
            (Some(_), Place::Anywhere) if !alone => Err(Withheld),
            (deposit, _) => Ok(deposit.clone()),
        }
    }

    /// Keeps what the active ztunnel leaves; one that drains has a successor with keys of its own.
    pub(super) fn keep(&self, deposit: OwnedFd) {
        let mut state = self.hub.state();
        if state.sessions.last_key_value().is_some_and(|(id, _)| *id == self.id) {
            state.deposit = Some(Arc::new(deposit));
        }
    }

    /// Hands in what this ztunnel held.
    pub(super) fn report(&self, held: Vec<Held>) {
        let mut state = self.hub.state();
        state.held.get_or_insert_default().extend(held.into_iter().map(|held| (held.uid.clone(), held)));
        drop(state);
        self.hub.changed();
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        state.sessions.remove(&self.id);
        state.note_kind();
        drop(state);
        self.hub.changed();
    }
}
