//! Queries of a pod: from the mesh's state, or forwarded to servers that the test plays.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::dns::{Code, Edns, Kind, Message, Name, Record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::Instant;
use tunnel::socket::{Accepted, DatagramListener, Netns};

use super::world::{At, World, service_at};
use crate::dns::{self, Query, Resolver, Transport};
use crate::pods::{Listeners, Pod, PodSpec, PodUid};
use crate::proxy::Share;

const FIRST: &str = "10.96.0.10:53";
const SECOND: &str = "10.96.0.11:53";
const ELSEWHERE: &str = "8.8.8.8:53";

/// What a server of the test does with a query; none: it is silent.
type Says = Box<dyn Fn(&Message, Transport) -> Vec<Message> + Send + Sync>;

/// How many datagrams wait in a socket that nobody reads.
fn received(silent: &std::net::UdpSocket) -> usize {
    std::iter::from_fn(|| silent.recv(&mut [0; 512]).ok()).count()
}

/// A server on either transport, on a port of this machine.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start(says: impl Fn(&Message, Transport) -> Vec<Message> + Send + Sync + 'static) -> Self {
        let says: Arc<Says> = Arc::new(Box::new(says));
        let stream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = stream.local_addr().unwrap();
        let datagrams = UdpSocket::bind(address).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (counted, answers) = (asked.clone(), says.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 65_535];
            loop {
                let (length, from) = datagrams.recv_from(&mut buffer).await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let query = Message::decode(&buffer[..length]).unwrap();
                for answer in answers(&query, Transport::Udp) {
                    datagrams.send_to(&answer.encode(), from).await.unwrap();
                }
            }
        });
        let counted = asked.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = stream.accept().await.unwrap();
                let (counted, says) = (counted.clone(), says.clone());
                tokio::spawn(async move {
                    while let Some(query) = receive(&mut stream).await {
                        counted.fetch_add(1, Ordering::SeqCst);
                        for answer in says(&query, Transport::Tcp) {
                            send(&mut stream, &answer.encode()).await;
                        }
                    }
                });
            }
        });
        Self { address, asked }
    }

    /// Answers every query with this address.
    async fn with_address(ip: [u8; 4]) -> Self {
        Self::start(move |query, _| vec![with_addresses(query, &[ip])]).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn send(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Option<Message> {
    let length = stream.read_u16().await.ok()?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(Message::decode(&bytes).unwrap())
}

fn answer_to(query: &Message) -> Message {
    let (id, flags) = (query.id, query.flags.answered(Code::OK));
    Message { id, flags, questions: query.questions.clone(), ..Message::default() }
}

fn with_addresses(query: &Message, addresses: &[[u8; 4]]) -> Message {
    let mut answer = answer_to(query);
    let name = &query.questions[0].name;
    answer.answers = addresses.iter().map(|ip| Record::address(name.clone(), 60, (*ip).into())).collect();
    answer
}

fn name(text: &str) -> Name {
    Name::from_text(text).unwrap()
}

fn query_of(text: &str, kind: Kind) -> Message {
    Message::query(0x77, name(text), kind)
}

fn edns() -> Record {
    Edns { payload: 4096, version: 0, dnssec_ok: false }.record()
}

fn with_edns(query: Message) -> Message {
    Message { additionals: vec![edns()], ..query }
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(Record::ip).collect()
}

/// A world with a pod whose `resolv.conf` names two servers, and a service.
struct Place {
    world: World,
    pod: Arc<Pod>,
}

impl Place {
    async fn new() -> Self {
        let world = World::new();
        let pod = world.pod(At::East, "client", "10.1.0.1").await;
        world.tell(|state| state.upsert_service(service_at("web", "10.0.0.1")));
        world.complete();
        let text =
            "nameserver 10.96.0.10\nnameserver 10.96.0.11\nsearch shop.svc.cluster.local\noptions ndots:2";
        pod.dns.set_resolver(Some(Resolver::read(text)));
        pod.own().await.unwrap();
        Self { world, pod }
    }

    fn lead(&self, from: &str, to: &Server) {
        self.world.wires.lead(from.parse().unwrap(), to.address);
    }

    /// Leads to where nobody reads; the socket is to be kept.
    fn silence(&self, from: &str) -> std::net::UdpSocket {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        silent.set_nonblocking(true).unwrap();
        self.world.wires.lead(from.parse().unwrap(), silent.local_addr().unwrap());
        silent
    }

    /// The answer to a query over UDP to `server`.
    async fn ask(&self, server: &str, query: &Message) -> Message {
        let node = self.world.node(At::East);
        let client = "10.1.0.1".parse().unwrap();
        let bytes = query.encode();
        let Ok(asked) = Query::read(node, &self.pod, bytes, Transport::Udp) else { panic!("{query:?}") };
        let answer = match asked.answer_now(node, &self.pod) {
            Some(answer) => answer,
            None => asked.answer(node, &self.pod, client, Some(server.parse().unwrap())).await,
        };
        let answer = Message::decode(&answer).unwrap();
        assert_eq!(answer.id, query.id);
        answer
    }

    /// The addresses it is told for a name.
    async fn resolve(&self, server: &str, name: &str) -> Vec<IpAddr> {
        addresses(&self.ask(server, &query_of(name, Kind::A)).await)
    }

    /// A connection that capture led here on its way to `to`.
    async fn connect(&self, to: &str) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(dialled, listener.accept());
        let peer = "10.1.0.1:41000".parse().unwrap();
        let accepted = Accepted { stream: accepted.unwrap().0, peer, local: to.parse().unwrap() };
        let (node, pod) = (self.world.node(At::East).clone(), self.pod.clone());
        tokio::spawn(async move { dns::stream(&node, &pod, accepted).await });
        client.unwrap()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_whoever_was_asked_and_all_others_by_whoever_was() {
    let place = Place::new().await;
    let (first, other) = (Server::with_address([1, 1, 1, 1]).await, Server::with_address([8, 8, 8, 8]).await);
    place.lead(FIRST, &first);
    place.lead(ELSEWHERE, &other);
    for server in [FIRST, ELSEWHERE] {
        for name in ["web.shop.svc.cluster.local.", "web.", "WEB.shop.svc.CLUSTER.local."] {
            assert_eq!(place.resolve(server, name).await, [ip("10.0.0.1")], "{name} of {server}");
        }
    }
    assert_eq!((first.asked(), other.asked()), (0, 0), "nobody else was asked");
    assert_eq!(place.resolve(FIRST, "example.com.").await, [ip("1.1.1.1")]);
    assert_eq!(place.resolve(ELSEWHERE, "example.com.").await, [ip("8.8.8.8")], "as `dig @8.8.8.8`");
    // With two dots a name is whole to this pod.
    assert_eq!(place.resolve(FIRST, "web.shop.svc.").await, [ip("1.1.1.1")]);
    let dialled = place.world.wires.dialled.lock().unwrap().clone();
    assert!(dialled.iter().all(|(source, _)| *source == Some(ip("10.1.0.1"))), "from the pod: {dialled:?}");
}

#[tokio::test]
async fn what_the_mesh_does_not_answer_is_forwarded_as_it_is() {
    let place = Place::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let server = Server::start(move |query, _| {
        kept.lock().unwrap().push(query.clone());
        vec![answer_to(query)]
    })
    .await;
    place.lead(FIRST, &server);
    let mut notify = query_of("web.shop.svc.cluster.local.", Kind::SOA);
    notify.flags.0 |= 4 << 11;
    let none = Message { id: 5, additionals: vec![edns()], ..Message::default() };
    let queries = [
        query_of("web.shop.svc.cluster.local.", Kind::SRV),
        query_of("web.shop.svc.cluster.local.", Kind(65_280)),
        with_edns(query_of("_dns.resolver.arpa.", Kind(64))),
        notify,
        none,
    ];
    for query in queries {
        place.ask(FIRST, &query).await;
        let mut forwarded = seen.lock().unwrap().pop().unwrap();
        forwarded.id = query.id;
        assert_eq!(forwarded.encode(), query.encode());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_server_costs_one_time_out_and_none_of_those_who_ask_later() {
    let place = Place::new().await;
    let silent = place.silence(FIRST);
    let second = Server::with_address([2, 2, 2, 2]).await;
    place.lead(SECOND, &second);
    let ask = async || {
        let began = Instant::now();
        assert_eq!(place.resolve(FIRST, "example.com.").await, [ip("2.2.2.2")]);
        began.elapsed().as_secs()
    };
    assert_eq!(ask().await, 2);
    assert_eq!(received(&silent), 2, "none is sent that has no time to be answered");
    // Over a minute, in which it is tried again and again.
    let mut waited = 0;
    for _ in 0..120 {
        waited += ask().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(waited, 0);
    drop(silent);
    let first = Server::with_address([1, 1, 1, 1]).await;
    place.lead(FIRST, &first);
    tokio::time::sleep(Duration::from_secs(60)).await;
    ask().await;
    while first.asked() == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(place.resolve(FIRST, "example.com.").await, [ip("1.1.1.1")], "it has answered a trial");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_nobody_is_told_of_by_servfail() {
    let place = Place::new().await;
    let silent = [place.silence(FIRST), place.silence(SECOND), place.silence(ELSEWHERE)];
    for (server, seconds) in [(FIRST, 4), (ELSEWHERE, 5)] {
        let began = Instant::now();
        let answer = place.ask(server, &query_of("example.com.", Kind::A)).await;
        assert_eq!(answer.flags.code(), Code::SERVER, "{server}");
        assert_eq!(began.elapsed().as_secs(), seconds, "{server}");
    }
    assert_eq!(place.resolve(FIRST, "web.").await, [ip("10.0.0.1")], "the mesh's names need none of them");
    assert_eq!(
        silent.map(|server| received(&server)),
        [2, 2, 5],
        "none is sent that has no time to be answered"
    );
}

#[tokio::test(start_paused = true)]
async fn a_datagram_that_is_lost_is_sent_again() {
    let place = Place::new().await;
    let count = AtomicUsize::new(0);
    let server = Server::start(move |query, _| {
        let answer = with_addresses(query, &[[1, 1, 1, 1]]);
        if count.fetch_add(1, Ordering::SeqCst) == 0 { vec![] } else { vec![answer] }
    })
    .await;
    place.lead(FIRST, &server);
    assert_eq!(place.resolve(FIRST, "example.com.").await, [ip("1.1.1.1")]);
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn a_reply_that_is_not_the_answer_is_passed_over() {
    let place = Place::new().await;
    let server = Server::start(|query, _| {
        let mut guessed = with_addresses(query, &[[6, 6, 6, 6]]);
        guessed.id = guessed.id.wrapping_add(1);
        let mut other = with_addresses(&query_of("example.org.", Kind::A), &[[6, 6, 6, 6]]);
        other.id = query.id;
        vec![guessed, other, with_addresses(query, &[[1, 1, 1, 1]])]
    })
    .await;
    place.lead(FIRST, &server);
    assert_eq!(place.resolve(FIRST, "example.com.").await, [ip("1.1.1.1")]);
}

/// Over UDP says that there is more, over TCP says it.
fn in_two_steps(query: &Message, transport: Transport) -> Vec<Message> {
    let all: Vec<[u8; 4]> = (1..=60).map(|number| [10, 9, 0, number]).collect();
    let mut answer = with_addresses(query, if transport == Transport::Tcp { &all } else { &[] });
    if transport == Transport::Udp {
        answer.flags = answer.flags.truncated();
    }
    vec![answer]
}

#[tokio::test]
async fn an_answer_that_was_cut_is_asked_for_over_tcp_if_the_client_can_take_it() {
    let place = Place::new().await;
    let server = Server::start(in_two_steps).await;
    place.lead(FIRST, &server);
    let whole = place.ask(FIRST, &with_edns(query_of("big.example.", Kind::A))).await;
    assert_eq!((addresses(&whole).len(), whole.flags.is_truncated()), (60, false));
    assert_eq!(server.asked(), 2);
    let cut = place.ask(FIRST, &query_of("big.example.", Kind::A)).await;
    assert_eq!((addresses(&cut).len(), cut.flags.is_truncated()), (0, true));
    assert_eq!(server.asked(), 3, "to this client it would not fit anyhow");
    let mut stream = place.connect(FIRST).await;
    send(&mut stream, &query_of("big.example.", Kind::A).encode()).await;
    assert_eq!(addresses(&receive(&mut stream).await.unwrap()).len(), 60, "so it asks over TCP");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_exist_is_asked_for_once_in_the_time_its_zone_states() {
    let place = Place::new().await;
    let server = Server::start(|query, _| {
        let flags = query.flags.answered(Code::NO_NAME);
        let authorities = vec![Record::authority(name("example."), 3600, 10)];
        vec![Message { flags, authorities, ..answer_to(query) }]
    })
    .await;
    place.lead(FIRST, &server);
    place.lead(ELSEWHERE, &server);
    let query = query_of("nope.example.", Kind::A);
    for _ in 0..5 {
        assert_eq!(place.ask(FIRST, &query).await.flags.code(), Code::NO_NAME);
    }
    assert_eq!(server.asked(), 1);
    assert_eq!(place.ask(ELSEWHERE, &query).await.flags.code(), Code::NO_NAME);
    assert_eq!(server.asked(), 2, "what others said is not what this one says");
    tokio::time::sleep(Duration::from_secs(10)).await;
    place.ask(FIRST, &query).await;
    assert_eq!(server.asked(), 3);
}

#[tokio::test]
async fn a_connection_carries_many_queries_and_answers_overtake_each_other() {
    let place = Place::new().await;
    let server = Server::start(|query, _| {
        let is_slow = query.questions[0].name.to_string().starts_with("slow");
        if is_slow { vec![] } else { vec![with_addresses(query, &[[1, 1, 1, 1]])] }
    })
    .await;
    place.lead(FIRST, &server);
    let mut stream = place.connect(FIRST).await;
    let mut all = Vec::new();
    for (id, name) in [(1, "slow.example."), (2, "quick.example."), (3, "web.")] {
        let mut query = query_of(name, Kind::A);
        query.id = id;
        let bytes = query.encode();
        all.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        all.extend(bytes);
    }
    // In pieces that have nothing to do with the messages.
    for piece in all.chunks(7) {
        stream.write_all(piece).await.unwrap();
    }
    let mut ids = [0; 2];
    for id in &mut ids {
        let answer = receive(&mut stream).await.unwrap();
        *id = answer.id;
        assert_eq!(addresses(&answer).len(), 1);
    }
    ids.sort_unstable();
    assert_eq!(ids, [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_nothing_or_half_a_query_is_left() {
    let place = Place::new().await;
    let mut idle = place.connect(FIRST).await;
    let began = Instant::now();
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(began.elapsed().as_secs(), 10);
    let mut half = place.connect(FIRST).await;
    half.write_all(&[0, 40, 1, 2]).await.unwrap();
    let began = Instant::now();
    // An end or a reset, as what it sent was read or not.
    let _ = half.read(&mut [0; 1]).await;
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn what_is_no_query_is_told_so_over_tcp_and_the_conversation_goes_on() {
    let place = Place::new().await;
    let mut stream = place.connect(FIRST).await;
    let good = query_of("web.", Kind::A).encode();
    send(&mut stream, &good[..good.len() - 3]).await;
    assert_eq!(receive(&mut stream).await.unwrap().flags.code(), Code::FORMAT);
    send(&mut stream, &good).await;
    assert_eq!(addresses(&receive(&mut stream).await.unwrap()), [ip("10.0.0.1")]);
}

#[tokio::test]
async fn a_transfer_of_a_zone_is_a_conversation_with_the_server_itself() {
    let place = Place::new().await;
    let server = Server::start(|query, _| vec![with_addresses(query, &[[1, 1, 1, 1]]); 3]).await;
    place.lead(FIRST, &server);
    let mut stream = place.connect(FIRST).await;
    send(&mut stream, &query_of("example.", Kind::AXFR).encode()).await;
    for part in 0..3 {
        let answer = receive(&mut stream).await.unwrap();
        assert_eq!((answer.id, addresses(&answer).len()), (0x77, 1), "part {part}");
    }
}

#[tokio::test]
async fn our_own_port_dialled_as_such_is_reset() {
    let place = Place::new().await;
    for to in ["127.0.0.1:15053", "10.1.0.1:15053", "10.1.0.1:53", "10.96.0.10:80"] {
        let mut stream = place.connect(to).await;
        // A query that is on its way meets the reset as well.
        let _ = stream.write_all(&[0, 1]).await;
        let error = stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{to}");
    }
    assert_eq!(place.world.lines(4).await[0]["response_flags"], "OWN_PORT");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_too_many_answers_is_told_at_once_and_hears_of_the_mesh_all_the_same() {
    let place = Place::new().await;
    let _silent = (place.silence(FIRST), place.silence(SECOND));
    // The world's pods may hold 100 connections.
    let names: Vec<_> = (0..100).map(|number| format!("n{number}.example.")).collect();
    let waiting = futures::future::join_all(names.iter().map(|name| place.resolve(FIRST, name)));
    let one_more = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = Instant::now();
        let answer = place.ask(FIRST, &query_of("one.more.", Kind::A)).await;
        assert_eq!(answer.flags.code(), Code::SERVER);
        assert_eq!(place.resolve(FIRST, "web.").await, [ip("10.0.0.1")]);
        assert_eq!(began.elapsed().as_millis(), 0);
    };
    tokio::join!(waiting, one_more);
    let second = Server::with_address([2, 2, 2, 2]).await;
    place.lead(SECOND, &second);
    assert_eq!(place.resolve(SECOND, "example.com.").await, [ip("2.2.2.2")], "places are given back");
}

#[tokio::test(start_paused = true)]
async fn before_the_mesh_is_known_its_names_are_not_asked_for_elsewhere() {
    let world = World::new();
    let pod = world.pod_stated_at(At::East, "client", "10.1.0.1", vec![ip("10.1.0.1")]).await;
    let place = Place { world, pod };
    let server = Server::with_address([6, 6, 6, 6]).await;
    place.lead(FIRST, &server);
    let began = Instant::now();
    let answer = place.ask(FIRST, &query_of("web.shop.svc.cluster.local.", Kind::A)).await;
    assert_eq!(answer.flags.code(), Code::SERVER);
    assert_eq!((began.elapsed().as_secs(), server.asked()), (5, 0));
}

#[tokio::test]
async fn without_its_resolv_conf_a_pod_asks_whom_it_asks_and_completes_names_as_kubelet_has_it() {
    let place = Place::new().await;
    place.pod.dns.set_resolver(None);
    let server = Server::with_address([1, 1, 1, 1]).await;
    place.lead(FIRST, &server);
    assert_eq!(place.resolve(FIRST, "web.shop.svc.").await, [ip("10.0.0.1")]);
    assert_eq!(place.resolve(FIRST, "example.com.").await, [ip("1.1.1.1")]);
}

#[tokio::test]
async fn queries_that_rules_of_others_led_here_are_answered_from_here() {
    let place = Place::new().await;
    let server = Server::with_address([1, 1, 1, 1]).await;
    place.lead(FIRST, &server);
    let netns = Netns::current().unwrap();
    let node = place.world.node(At::East).clone();
    let spec = PodSpec {
        uid: PodUid::from("client"),
        name: "client".to_owned(),
        namespace: "shop".into(),
        service_account: "client".into(),
        addresses: vec![ip("127.0.0.1")],
        netns: netns.clone(),
        listeners: Listeners::Ours,
        resolver: Some(Resolver::read("nameserver 10.96.0.10\nsearch shop.svc.cluster.local")),
    };
    let pod = Arc::new(Pod::new(&spec, Share::new(node.capacity.clone(), 10), node.rules));
    let (follower, following) = (node.clone(), pod.clone());
    tokio::spawn(async move {
        following.follow(&follower.mesh, &follower.identities, &follower.trust_domain).await;
    });
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let listener = DatagramListener::adopt(socket.into(), netns).unwrap();
    tokio::spawn(dns::datagrams(node, pod, listener));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(address).await.unwrap();
    for (name, expected) in [("web.", "10.0.0.1"), ("example.com.", "1.1.1.1")] {
        client.send(&query_of(name, Kind::A).encode()).await.unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).await.unwrap();
        assert_eq!(addresses(&Message::decode(&buffer[..length]).unwrap()), [ip(expected)], "{name}");
    }
}
