//! A session over a socket pair, with proxies that only remember.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use api::seqpacket::SeqPacketListener;
use api::zds::{Add, Held, Listener, PodInfo, Request, Response};
use daemon::drain::Deadline;

use tokio::task::JoinHandle;

use super::session::HeldPod;
use super::*;
use crate::pods::{Listeners, PodSpec, PodUid};

#[derive(Clone, Default)]
struct Remembered(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    served: BTreeMap<PodUid, usize>,
    broken: bool,
    taken_back: Option<OwnedFd>,
    deposits: tokio::sync::watch::Sender<u64>,
}

impl Remembered {
    fn uids(&self) -> Vec<String> {
        self.0.lock().unwrap().served.keys().map(ToString::to_string).collect()
    }
}

impl Proxies for Remembered {
    fn start(&mut self, spec: &PodSpec) -> Result<(), String> {
        let mut inner = self.0.lock().unwrap();
        if inner.broken {
            return Err("port 15008 is taken".to_owned());
        }
        let listeners = match &spec.listeners {
            Listeners::Handed(handed) => handed.len(),
            Listeners::Ours => 0,
        };
        inner.served.insert(spec.uid.clone(), listeners);
        Ok(())
    }

    fn stop(&mut self, uid: &PodUid) {
        self.0.lock().unwrap().served.remove(uid);
    }

    fn served(&self) -> Vec<PodUid> {
        self.0.lock().unwrap().served.keys().cloned().collect()
    }

    fn held(&self) -> io::Result<Vec<HeldPod>> {
        let pod = |(uid, listeners): (&PodUid, &usize)| HeldPod {
            uid: uid.clone(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            netns: netns(),
            listeners: [Listener::Outbound, Listener::InboundPlaintext, Listener::Hbone]
                .into_iter()
                .take(*listeners)
                .map(|listener| (listener, netns()))
                .collect(),
        };
        Ok(self.0.lock().unwrap().served.iter().map(pod).collect())
    }

    fn pending(&self, _: usize) {}

    fn take_back(&mut self, deposit: OwnedFd) -> Result<(), String> {
        self.0.lock().unwrap().taken_back = Some(deposit);
        Ok(())
    }

    fn deposit(&self) -> io::Result<Option<OwnedFd>> {
        Ok(Some(netns()))
    }

    fn deposits(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.lock().unwrap().deposits.subscribe()
    }
}

fn netns() -> OwnedFd {
    File::open("/proc/self/ns/net").unwrap().into()
}

/// The agent's end of a connection, with the session running at the other.
struct Agent<T = Followed> {
    socket: SeqPacket,
    task: JoinHandle<T>,
}

/// The session for the next connection, and why this one ended.
type Followed = (Session<Remembered>, SessionEnd);

impl Agent {
    async fn connect(mut session: Session<Remembered>) -> Self {
        let (socket, theirs) = SeqPacket::pair().unwrap();
        let task = tokio::spawn(async move {
            let end = follow(&theirs, Hello::ALL, &mut session).await;
            session.disconnected();
            (session, end)
        });
        Self::greeted(socket, task).await
    }

    /// Goes away.
    async fn leave(self) -> Followed {
        drop(self.socket);
        self.task.await.unwrap()
    }
}

impl<T> Agent<T> {
    async fn greeted(socket: SeqPacket, task: JoinHandle<T>) -> Self {
        let hello = socket.receive().await.unwrap().unwrap();
        assert!(Hello::decode(&hello.bytes, 0).unwrap().listeners);
        Self { socket, task }
    }

    async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) {
        self.socket.send(&request.encode().unwrap(), descriptors).await.unwrap();
    }

    async fn answer(&self) -> (Response, usize) {
        let datagram = self.socket.receive().await.unwrap().expect("an answer");
        (Response::decode(&datagram.bytes, datagram.descriptors.len()).unwrap(), datagram.descriptors.len())
    }

    async fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Response {
        self.send(request, descriptors).await;
        self.answer().await.0
    }

    async fn add(&self, uid: &str, listeners: &[Listener]) -> Response {
        let info =
            PodInfo { name: uid.to_owned(), namespace: "shop".to_owned(), service_account: "web".to_owned() };
        let addresses = vec!["10.0.0.1".parse().unwrap()];
        let add =
            Add { uid: uid.to_owned(), info, listeners: listeners.to_vec(), addresses, resolver: false };
        let descriptors: Vec<OwnedFd> = (0..=listeners.len()).map(|_| netns()).collect();
        let borrowed: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
        self.ask(&Request::Add(add), &borrowed).await
    }
}

const ALL: [Listener; 3] = [Listener::Outbound, Listener::InboundPlaintext, Listener::Hbone];

#[tokio::test]
async fn a_pod_that_the_next_connection_does_not_announce_ends_with_its_snapshot() {
    let (proxies, readiness) = (Remembered::default(), Readiness::new());
    let agent = Agent::connect(Session::new(proxies.clone(), readiness.clone())).await;
    for uid in ["kept", "added-again", "gone"] {
        assert_eq!(agent.add(uid, &ALL).await, Response::Ack);
    }
    assert!(!readiness.pending().is_empty(), "not ready before the snapshot");
    assert_eq!(agent.ask(&Request::SnapshotSent, &[]).await, Response::Ack);
    assert!(readiness.pending().is_empty());
    let (session, _) = agent.leave().await;
    assert!(!readiness.pending().is_empty(), "not ready without an agent");
    assert_eq!(proxies.uids().len(), 3, "pods go on without an agent");

    let agent = Agent::connect(session).await;
    assert_eq!(agent.ask(&Request::Keep("kept".to_owned()), &[]).await, Response::Ack);
    assert_eq!(agent.add("added-again", &ALL).await, Response::Ack);
    assert_eq!(proxies.uids().len(), 3, "nothing ends before the snapshot is complete");
    agent.ask(&Request::SnapshotSent, &[]).await;
    assert_eq!(proxies.uids(), ["added-again", "kept"]);
    assert_eq!(agent.ask(&Request::Del("kept".to_owned()), &[]).await, Response::Ack);
    assert_eq!(proxies.uids(), ["added-again"]);
}

#[tokio::test]
async fn a_pod_that_is_not_served_cannot_be_kept() {
    let agent = Agent::connect(Session::new(Remembered::default(), Readiness::new())).await;
    let answer = agent.ask(&Request::Keep("never-seen".to_owned()), &[]).await;
    assert!(matches!(answer, Response::Nack(_)), "{answer:?}");
}

#[tokio::test]
async fn a_pod_that_cannot_be_served_is_refused_with_the_reason_and_tried_again() {
    let (proxies, readiness) = (Remembered::default(), Readiness::new());
    proxies.0.lock().unwrap().broken = true;
    let agent = Agent::connect(Session::new(proxies.clone(), readiness.clone())).await;
    assert_eq!(agent.add("web", &[]).await, Response::Nack("port 15008 is taken".to_owned()));
    agent.ask(&Request::SnapshotSent, &[]).await;
    assert_eq!(readiness.pending(), ["pod shop/web"]);
    let (mut session, _) = agent.leave().await;
    proxies.0.lock().unwrap().broken = false;
    session.retry_pending();
    assert_eq!(proxies.uids(), ["web"]);
}

#[tokio::test]
async fn listeners_are_given_back_with_the_namespace_first() {
    let agent = Agent::connect(Session::new(Remembered::default(), Readiness::new())).await;
    agent.add("handed", &ALL).await;
    agent.add("ours", &[]).await;
    agent.send(&Request::ReturnListeners, &[]).await;
    let held = |uid: &str, listeners: &[Listener]| {
        let addresses = vec!["10.0.0.1".parse().unwrap()];
        Response::Held(Held { uid: uid.to_owned(), listeners: listeners.to_vec(), addresses })
    };
    assert_eq!(agent.answer().await, (held("handed", &ALL), 4));
    assert_eq!(agent.answer().await, (held("ours", &[]), 1));
    assert_eq!(agent.answer().await, (Response::Ack, 0));
}

#[tokio::test]
async fn what_was_left_is_taken_over_by_who_is_new_and_not_by_its_owner_who_comes_back() {
    let proxies = Remembered::default();
    let taken = || proxies.0.lock().unwrap().taken_back.take().is_some();
    let mut session = Session::new(proxies.clone(), Readiness::new());
    // A connection that ends before the snapshot is complete was none.
    for (complete, expected) in [(false, true), (true, true), (true, false)] {
        let agent = Agent::connect(session).await;
        let answer = agent.ask(&Request::TakeBack { present: true }, &[netns().as_fd()]).await;
        assert_eq!((answer, taken()), (Response::Ack, expected));
        if complete {
            assert_eq!(agent.ask(&Request::SnapshotSent, &[]).await, Response::Ack);
        }
        (session, _) = agent.leave().await;
    }
}

#[tokio::test]
async fn a_broken_message_ends_the_connection_and_no_pod() {
    let proxies = Remembered::default();
    let agent = Agent::connect(Session::new(proxies.clone(), Readiness::new())).await;
    agent.add("web", &ALL).await;
    agent.socket.send(&[0xff; 20], &[]).await.unwrap();
    let (_, end) = agent.task.await.unwrap();
    assert!(matches!(end, SessionEnd::Violation(_)), "{end}");
    assert_eq!(proxies.uids(), ["web"]);
}

#[tokio::test]
async fn an_agents_orderly_end_is_told_as_such() {
    let agent = Agent::connect(Session::new(Remembered::default(), Readiness::new())).await;
    let (_, end) = agent.leave().await;
    assert!(matches!(end, SessionEnd::Closed), "{end}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_reads_nothing_costs_its_connection_and_no_hang() {
    let proxies = Remembered::default();
    let agent = Agent::connect(Session::new(proxies.clone(), Readiness::new())).await;
    agent.add("web", &ALL).await;
    let keep = Request::Keep("web".to_owned()).encode().unwrap();
    // Until the session is gone: its answers have filled the buffer long before.
    while agent.socket.send(&keep, &[]).await.is_ok() {}
    let (_, end) = agent.task.await.unwrap();
    assert!(matches!(end, SessionEnd::Stalled), "{end}");
    assert_eq!(proxies.uids(), ["web"]);
}

#[tokio::test]
async fn a_pod_that_leaves_during_a_drain_ends_and_there_is_no_new_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zds.sock");
    let listener = SeqPacketListener::bind(&path).unwrap();
    let proxies = Remembered::default();
    let (drain, signal) = daemon::drain::drain();
    let task = tokio::spawn({
        let (proxies, path) = (proxies.clone(), path.clone());
        async move { run(&path, Hello::ALL, proxies, Readiness::new(), signal).await }
    });
    let agent = Agent::greeted(listener.accept().await.unwrap(), task).await;
    agent.add("leaving", &ALL).await;
    agent.ask(&Request::SnapshotSent, &[]).await;
    drain.start(&Deadline::new(Duration::from_secs(60))).await;
    assert_eq!(agent.ask(&Request::Del("leaving".to_owned()), &[]).await, Response::Ack);
    assert!(proxies.uids().is_empty());
    let Agent { socket, task } = agent;
    drop(socket);
    task.await.unwrap();
}
