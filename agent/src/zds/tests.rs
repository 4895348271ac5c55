//! Whole sessions over a socket pair: the test plays ztunnel.

use std::collections::HashSet;
use std::sync::Arc;

use api::proto::zds::{self, workload_request::Payload, workload_response};
use prost::Message;

use super::admission::Place;
use super::hub::{AnnounceError, Hub};
use super::session::{self, SessionError};
use super::{Announcement, Takes};
use crate::enroll::pod::{PodSpec, PodUid};
use crate::listeners::{KINDS, Listeners};
use crate::netns::Netns;
use crate::resolv_conf::Reader;
use api::seqpacket::SeqPacket;
use daemon::visitors::Visitor as Peer;

/// ztunnel's end of a session, and the session's result.
struct Ztunnel {
    socket: SeqPacket,
    session: tokio::task::JoinHandle<Result<(), SessionError>>,
}

impl Ztunnel {
    async fn connect(hub: &Arc<Hub>, listeners: bool) -> Self {
        Self::at(hub, Place::Named, listeners, false, false).await
    }

    /// One that answers DNS.
    async fn with_dns(hub: &Arc<Hub>) -> Self {
        Self::at(hub, Place::Named, true, false, true).await
    }

    /// One that leaves and takes deposits.
    async fn heir(hub: &Arc<Hub>, place: Place) -> Self {
        Self::at(hub, place, true, true, false).await
    }

    async fn at(hub: &Arc<Hub>, place: Place, listeners: bool, deposits: bool, dns: bool) -> Self {
        let (socket, agents) = SeqPacket::pair().unwrap();
        let hub = Arc::clone(hub);
        let session = tokio::spawn(async move {
            let hello = session::greet(&agents).await?;
            session::run(agents, hello, Peer { pid: 1, uid: 0 }, place, &hub).await
        });
        let hello = zds::ZdsHello { version: zds::Version::V1 as i32, listeners, deposits, dns };
        socket.send(&hello.encode_to_vec(), &[]).await.unwrap();
        Self { socket, session }
    }

    async fn leave(&self, file: &std::fs::File) {
        let payload = workload_response::Payload::Deposit(zds::Deposit {});
        let deposit = zds::WorkloadResponse { payload: Some(payload) }.encode_to_vec();
        self.socket.send(&deposit, &[std::os::fd::AsFd::as_fd(file)]).await.unwrap();
    }

    /// Answers that it does not serve a pod any more.
    async fn lets_go(&self) {
        assert!(matches!(self.next().await.0, Payload::Del(_)));
        self.answer("").await;
    }

    /// The next request and how many descriptors came with it.
    async fn next(&self) -> (Payload, usize) {
        let datagram = self.socket.receive().await.unwrap().expect("a request");
        let request = zds::WorkloadRequest::decode(datagram.bytes.as_slice()).unwrap();
        (request.payload.unwrap(), datagram.descriptors.len())
    }

    async fn answer(&self, error: &str) {
        let ack = zds::Ack { error: error.to_owned() };
        let response = zds::WorkloadResponse { payload: Some(workload_response::Payload::Ack(ack)) };
        self.socket.send(&response.encode_to_vec(), &[]).await.unwrap();
    }

    /// Takes and acknowledges requests up to the end of the snapshot; their names in order.
    async fn take_snapshot(&self) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let (payload, fds) = self.next().await;
            self.answer("").await;
            seen.push(match payload {
                Payload::Add(add) => format!("add {} {fds}", add.uid),
                Payload::Keep(keep) => format!("keep {}", keep.uid),
                Payload::Del(del) => format!("del {}", del.uid),
                Payload::ReturnListeners(_) => "return".to_owned(),
                Payload::TakeBack(_) => format!("take back {fds}"),
                Payload::SnapshotSent(_) => return seen,
            });
        }
    }

    async fn ended(self) -> SessionError {
        self.session.await.unwrap().unwrap_err()
    }
}

fn descriptors() -> Arc<Listeners> {
    let any = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into();
    Arc::new(Listeners::unchecked([any(), any(), any()], Some([any(), any()])))
}

fn announcement(uid: &str) -> Arc<Announcement> {
    Arc::new(Announcement {
        pod: PodSpec { addresses: vec!["10.0.0.1".parse().unwrap()], ..PodSpec::named(uid) },
        netns: Arc::new(Netns::own().unwrap()),
        listeners: Some(descriptors()),
        resolv_conf: None,
    })
}

fn roster(hub: &Hub, pods: &[&str]) {
    hub.set_roster(pods.iter().map(|uid| PodUid::from(*uid)).collect::<HashSet<_>>());
}

#[tokio::test]
async fn listeners_for_dns_and_a_pods_resolv_conf_go_to_a_ztunnel_that_answers_it_alone() {
    let process = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(process.path().join("root/etc")).unwrap();
    std::fs::write(process.path().join("root/etc/resolv.conf"), "nameserver 10.0.0.1").unwrap();
    let resolv_conf = Reader::default().read(process.path()).await.unwrap();
    let hub = Arc::new(Hub::new());
    roster(&hub, &["a"]);
    let Some(announcement) = Arc::into_inner(announcement("a")) else { unreachable!() };
    let a = Arc::new(Announcement { resolv_conf: Some(resolv_conf), ..announcement });
    assert_eq!(hub.announce(&a).await, Err(AnnounceError::NoZtunnel));
    assert_eq!(hub.takes_dns(), None);
    let without = Ztunnel::connect(&hub, true).await;
    assert_eq!(without.take_snapshot().await, ["return", "add a 4"]);
    assert_eq!(hub.takes_dns(), Some(false));
    let with = Ztunnel::with_dns(&hub).await;
    assert_eq!(with.take_snapshot().await, ["add a 7"], "the namespace, five listeners and resolv.conf");
    assert_eq!(hub.takes_dns(), Some(true));
}

#[tokio::test]
async fn a_new_ztunnel_gets_the_snapshot_then_what_changes() {
    let hub = Arc::new(Hub::new());
    roster(&hub, &["a", "b"]);
    let a = announcement("a");
    assert_eq!(hub.announce(&a).await, Err(AnnounceError::NoZtunnel));

    let ztunnel = Ztunnel::connect(&hub, true).await;
    assert_eq!(ztunnel.take_snapshot().await, ["return", "add a 4", "keep b"]);

    let b = announcement("b");
    let (announced, ()) = tokio::join!(hub.announce(&b), async {
        let (request, fds) = ztunnel.next().await;
        let Payload::Add(add) = request else { panic!("{request:?}") };
        assert_eq!((add.uid.as_str(), fds, add.listeners), ("b", 4, vec![1, 2, 3]));
        assert_eq!(add.addresses, [[10, 0, 0, 1]]);
        ztunnel.answer("").await;
    });
    assert_eq!(announced, Ok(()));
    assert!(hub.acknowledged(&a) && hub.acknowledged(&b));
    assert!(
        !hub.acknowledged(&announcement("a")),
        "another announcement of the same pod is not acknowledged"
    );
}

#[tokio::test]
async fn what_a_ztunnel_leaves_is_given_to_the_next_and_not_what_a_draining_one_leaves() {
    let hub = Arc::new(Hub::new());
    roster(&hub, &[]);
    let first = Ztunnel::heir(&hub, Place::Named).await;
    assert_eq!(first.take_snapshot().await, ["take back 0", "return"]);
    let (kept, late) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    first.leave(&kept).await;
    // Its turn has come when something after it is answered.
    let uid = PodUid::from("a");
    tokio::join!(hub.withdraw(&uid), first.lets_go());
    let second = Ztunnel::heir(&hub, Place::Named).await;
    assert_eq!(second.take_snapshot().await, ["take back 1"]);
    first.leave(&late).await;
    tokio::join!(hub.withdraw(&uid), async { tokio::join!(first.lets_go(), second.lets_go()) });
    let third = Ztunnel::heir(&hub, Place::Named).await;
    let datagram = third.socket.receive().await.unwrap().unwrap();
    let inode = |fd: &dyn std::os::fd::AsFd| nix::sys::stat::fstat(fd.as_fd()).unwrap().st_ino;
    assert_eq!(inode(&datagram.descriptors[0]), inode(&kept));
}

#[tokio::test]
async fn who_runs_just_anywhere_gets_no_keys_while_another_ztunnel_is_connected() {
    let hub = Arc::new(Hub::new());
    roster(&hub, &[]);
    let owner = Ztunnel::heir(&hub, Place::Anywhere).await;
    assert_eq!(owner.take_snapshot().await, ["take back 0", "return"]);
    owner.leave(&tempfile::tempfile().unwrap()).await;
    // The deposit is kept when something after it is answered.
    let uid = PodUid::from("a");
    tokio::join!(hub.withdraw(&uid), owner.lets_go());
    let stranger = Ztunnel::heir(&hub, Place::Anywhere).await;
    assert_eq!(stranger.take_snapshot().await, ["take back 0"]);
    let placed = Ztunnel::heir(&hub, Place::Named).await;
    assert_eq!(placed.take_snapshot().await, ["take back 1"]);
    let mut changes = hub.changes();
    drop([owner.socket, stranger.socket, placed.socket]);
    while !hub.sessions().is_empty() {
        changes.changed().await.unwrap();
    }
    let heir = Ztunnel::heir(&hub, Place::Anywhere).await;
    assert_eq!(heir.take_snapshot().await, ["take back 1"]);
}

#[tokio::test]
async fn the_snapshot_waits_until_it_is_known_which_pods_there_are() {
    let hub = Arc::new(Hub::new());
    let ztunnel = Ztunnel::connect(&hub, true).await;
    assert!(matches!(ztunnel.next().await.0, Payload::ReturnListeners(_)));
    ztunnel.answer("").await;
    let mut changes = hub.changes();
    while !hub.holdings_known() {
        changes.changed().await.unwrap();
    }
    let mut early = std::pin::pin!(ztunnel.next());
    assert!(futures::poll!(&mut early).is_pending(), "nothing may be sent before the roster is known");
    roster(&hub, &["a"]);
    assert!(matches!(early.await.0, Payload::Keep(_)));
}

#[tokio::test]
async fn istios_ztunnel_gets_one_descriptor_and_no_extension() {
    let hub = Arc::new(Hub::new());
    roster(&hub, &["a"]);
    let a = announcement("a");
    assert_eq!(hub.announce(&a).await, Err(AnnounceError::NoZtunnel));
    let ztunnel = Ztunnel::connect(&hub, false).await;
    let (request, fds) = ztunnel.next().await;
    let Payload::Add(add) = request else { panic!("{request:?}") };
    assert_eq!((fds, add.listeners.len(), add.addresses.len()), (1, 0, 0));
    assert_eq!(add.workload_info.unwrap().name, "pod-a");
    assert_eq!((hub.takes_listeners(), hub.holdings_known()), (Some(false), true));
}

#[tokio::test]
async fn listeners_are_taken_for_as_long_as_one_that_takes_them_lives_whoever_joins_beside_it() {
    let hub = Arc::new(Hub::new());
    assert_eq!(hub.takes_listeners(), None);
    let mut changes = hub.changes();
    let mut connected = async |count: usize| {
        while hub.sessions().len() != count {
            changes.changed().await.unwrap();
        }
        hub.takes_listeners()
    };
    let ours = Ztunnel::connect(&hub, true).await;
    assert_eq!(connected(1).await, Some(true));
    let other = Ztunnel::connect(&hub, false).await;
    assert_eq!(connected(2).await, Some(true), "it is not the other's to have them closed");
    drop(other.socket);
    assert_eq!(connected(1).await, Some(true));
    let other = Ztunnel::connect(&hub, false).await;
    assert_eq!(connected(2).await, Some(true));
    drop(ours.socket);
    assert_eq!(connected(1).await, Some(false), "now they are in its way alone");
    drop(other.socket);
    assert_eq!(connected(0).await, Some(false), "the next one is awaited as one of its kind");
}

#[tokio::test]
async fn pods_are_added_to_the_newest_and_taken_from_all() {
    let hub = Arc::new(Hub::new());
    roster(&hub, &[]);
    let old = Ztunnel::connect(&hub, true).await;
    assert_eq!(old.take_snapshot().await, ["return"]);
    let new = Ztunnel::connect(&hub, true).await;
    assert!(new.take_snapshot().await.is_empty(), "what is held is asked for once");

    let a = announcement("a");
    let (announced, ()) = tokio::join!(hub.announce(&a), async {
        assert!(matches!(new.next().await.0, Payload::Add(_)));
        new.answer("").await;
    });
    assert_eq!(announced, Ok(()));
    let uid = PodUid::from("a");
    tokio::join!(hub.withdraw(&uid), async {
        for ztunnel in [&old, &new] {
            let (request, _) = ztunnel.next().await;
            assert!(matches!(request, Payload::Del(del) if del.uid == "a"));
            ztunnel.answer("").await;
        }
    });
    assert!(!hub.acknowledged(&a));

    drop(new.socket);
    new.session.await.unwrap().unwrap();
    assert_eq!(hub.sessions().len(), 1, "the old one is active again");
    drop(old.socket);
    old.session.await.unwrap().unwrap();
    assert_eq!(hub.announce(&a).await, Err(AnnounceError::NoZtunnel));
}

#[tokio::test]
async fn a_refusal_reaches_the_pod_with_its_reason() {
    let hub = Arc::new(Hub::new());
    roster(&hub, &["a"]);
    let ztunnel = Ztunnel::connect(&hub, true).await;
    ztunnel.take_snapshot().await;
    let a = announcement("a");
    let (announced, ()) = tokio::join!(hub.announce(&a), async {
        ztunnel.next().await;
        ztunnel.answer("no room").await;
    });
    assert_eq!(announced, Err(AnnounceError::Refused("no room".to_owned())));
    assert!(!hub.acknowledged(&a));
}

#[tokio::test]
async fn what_a_ztunnel_held_can_be_taken_once() {
    let hub = Arc::new(Hub::new());
    let ztunnel = Ztunnel::connect(&hub, true).await;
    ztunnel.next().await;
    let held =
        zds::HeldWorkload { uid: "a".into(), listeners: vec![1, 2, 3], addresses: vec![vec![10, 0, 0, 1]] };
    let response = zds::WorkloadResponse { payload: Some(workload_response::Payload::Held(held)) };
    let held = announcement("a");
    ztunnel
        .socket
        .send(&response.encode_to_vec(), &held.fds(Takes { listeners: true, dns: false }))
        .await
        .unwrap();
    ztunnel.answer("").await;
    let mut changes = hub.changes();
    while !hub.holdings_known() {
        changes.changed().await.unwrap();
    }
    let uid = PodUid::from("a");
    let held = hub.take_held(&uid).expect("what was sent");
    assert_eq!(held.listeners.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), KINDS);
    assert!(hub.take_held(&uid).is_none());
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_session() {
    let cases: [(&str, Vec<u8>, usize); 4] = [
        ("a message without content", vec![0x52, 0], 0),
        ("bytes that are no message", vec![0xff; 8], 0),
        ("a descriptor with an acknowledgement", ack(), 1),
        ("an acknowledgement of nothing", ack(), 0),
    ];
    for (name, message, fds) in cases {
        let hub = Arc::new(Hub::new());
        roster(&hub, &[]);
        let ztunnel = Ztunnel::connect(&hub, true).await;
        ztunnel.take_snapshot().await;
        let netns = Netns::own().unwrap();
        let fds = &[std::os::fd::AsFd::as_fd(&netns)][..fds];
        ztunnel.socket.send(&message, fds).await.unwrap();
        assert!(matches!(ztunnel.ended().await, SessionError::Protocol(_) | SessionError::NotDue), "{name}");
        assert!(hub.sessions().is_empty(), "{name}");
    }
}

fn ack() -> Vec<u8> {
    let ack = workload_response::Payload::Ack(zds::Ack { error: String::new() });
    zds::WorkloadResponse { payload: Some(ack) }.encode_to_vec()
}

#[tokio::test(start_paused = true)]
async fn a_ztunnel_that_does_not_answer_is_given_up_after_five_seconds() {
    let hub = Arc::new(Hub::new());
    roster(&hub, &["a"]);
    let ztunnel = Ztunnel::connect(&hub, true).await;
    ztunnel.next().await;
    let started = tokio::time::Instant::now();
    let Ztunnel { socket, session } = ztunnel;
    assert!(matches!(session.await.unwrap(), Err(SessionError::Deadline)));
    assert_eq!(started.elapsed(), session::DEADLINE);
    drop(socket);
}

#[tokio::test]
async fn another_version_of_the_protocol_is_refused() {
    let (socket, agents) = SeqPacket::pair().unwrap();
    let hello = zds::ZdsHello { version: 2, listeners: true, deposits: false, dns: false };
    socket.send(&hello.encode_to_vec(), &[]).await.unwrap();
    let error = session::greet(&agents).await.unwrap_err();
    assert_eq!(error.to_string(), "ztunnel broke the protocol: version 2 of the protocol, not 1");
}
