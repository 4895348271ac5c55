//! Ways that lead through a waypoint, which is another make of HBONE server here.

use mesh::gateway::GatewayDestination;
use mesh::service::{LoadBalancing, Scope, Visibility};
use mesh::{GatewayAddress, NetworkAddress, Service, ServiceName, SpiffeId, Workload};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tunnel::hbone::{Budget, ConnectRequest, ServerConfig, Terms};

use super::*;
use crate::proxy::Failure;

const WAYPOINT: &str = "10.3.0.1:15008";
const VIRTUAL: &str = "10.96.0.1:80";
const LONG: Duration = Duration::from_secs(60);

/// What a waypoint was asked for, and by whom.
pub(super) struct Asked {
    by: SpiffeId,
    pub(super) authority: String,
    pub(super) network: String,
    forwarded: String,
    baggage: String,
    traceparent: String,
}

/// An HBONE server at `at` that proves to be `account` and takes every connection to `application`.
pub(super) async fn hbone_server(
    world: &World,
    at: &str,
    account: &str,
    application: &str,
) -> UnboundedReceiver<Asked> {
    world.echo(application).await;
    let way = world.wires.way(application.parse().unwrap()).unwrap();
    server(world, at, account, move |request| {
        tokio::spawn(async move {
            let application = TcpStream::connect(way).await.unwrap();
            let stream = request.accept(None).unwrap();
            let never = std::future::pending::<Failure>();
            let _ = tunnel::copy::relay(stream, application, &Default::default(), LONG, never).await;
        });
    })
    .await
}

/// One that answers every request with this status.
pub(super) async fn refusing_server(
    world: &World,
    at: &str,
    account: &str,
    status: u16,
) -> UnboundedReceiver<Asked> {
    server(world, at, account, move |request| request.reject(status.try_into().unwrap())).await
}

async fn server(
    world: &World,
    at: &str,
    account: &str,
    answer: impl Fn(ConnectRequest) + Clone + Send + Sync + 'static,
) -> UnboundedReceiver<Asked> {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
    let certificate = world.ca.issue(&id);
    let listener = world.listen(at).await;
    let (sender, asked) = unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (certificate, sender, answer) = (certificate.clone(), sender.clone(), answer.clone());
            tokio::spawn(async move {
                // A client that does not want this server.
                let Ok((io, client)) = tunnel::tls::accept(stream, &certificate, LONG).await else { return };
                let share = Budget::default().share("127.0.0.1".parse().unwrap());
                let standing = client.standing().clone();
                let terms = Terms { expires: client.expires(), standing, share };
                let on_connect = |request: Result<ConnectRequest, _>| {
                    let Ok(request) = request else { return };
                    let text = |value: &Option<http::HeaderValue>| {
                        value.as_ref().map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
                    };
                    let headers = request.headers();
                    let _ = sender.send(Asked {
                        by: client.identity().clone(),
                        authority: request.authority().to_string(),
                        network: text(&headers.forwarded_network),
                        forwarded: text(&headers.forwarded),
                        baggage: text(&headers.baggage),
                        traceparent: text(&headers.traceparent),
                    });
                    answer(request);
                };
                let never = std::future::pending();
                let _ = tunnel::hbone::serve(io, &ServerConfig::default(), &terms, never, on_connect).await;
            });
        }
    });
    asked
}

pub(super) fn name(short: &str) -> ServiceName {
    format!("shop/{short}.shop.svc.cluster.local").parse().unwrap()
}

pub(super) fn service(
    short: &str,
    vip: &str,
    ports: [(u16, u16); 1],
    waypoint: Option<GatewayAddress>,
) -> Service {
    Service {
        name: name(short),
        short_name: short.to_owned(),
        vips: vec![NetworkAddress { network: "".into(), ip: vip.parse().unwrap() }],
        cidr_vips: Vec::new(),
        ip_families: mesh::service::IpFamilies::default(),
        ports: ports.into(),
        subject_alt_names: Vec::new(),
        load_balancing: LoadBalancing::default(),
        canonical: true,
        visibility: Visibility::Public,
        waypoint,
        weighted_waypoints: Vec::new(),
    }
}

fn by_name() -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Hostname(name("way")), hbone_port: 15008 }
}

fn by_service_address() -> GatewayAddress {
    at("10.96.0.9")
}

fn by_address() -> GatewayAddress {
    at("10.3.0.1")
}

fn at(ip: &str) -> GatewayAddress {
    let at = NetworkAddress { network: "".into(), ip: ip.parse().unwrap() };
    GatewayAddress { destination: GatewayDestination::Address(at), hbone_port: 15008 }
}

/// A client and a server of the mesh, the server's service, and the waypoint's pod and service.
async fn behind(
    world: &World,
    of_service: Option<GatewayAddress>,
    of_workload: Option<GatewayAddress>,
) -> std::sync::Arc<crate::pods::Pod> {
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.tell(|state| {
        state.upsert_service(service("server", "10.96.0.1", [(80, 8080)], of_service.clone()));
        state.upsert_service(service("way", "10.96.0.9", [(15008, 15008)], None));
        let member = |short: &str, ip, ports: [(u16, u16); 1]| Workload {
            services: [(name(short), ports.into())].into(),
            ..workload(short, ip)
        };
        state.upsert_workload(Workload {
            waypoint: of_workload.clone().map(Box::new),
            ..member("server", SERVER, [(80, 8080)])
        });
        state.upsert_workload(member("way", "10.3.0.1", [(15008, 15008)]));
    });
    world.echo(SERVER_APP).await;
    world.complete();
    client
}

#[tokio::test]
async fn what_is_behind_a_waypoint_is_asked_of_the_waypoint_by_the_address_that_was_dialled() {
    let host = "server.shop.svc.cluster.local";
    let cases = [
        (Some(by_name()), None, VIRTUAL, Some(host)),
        (Some(by_address()), None, VIRTUAL, Some(host)),
        (None, Some(by_name()), SERVER_APP, None),
        (None, Some(by_address()), SERVER_APP, None),
    ];
    for (of_service, of_workload, dialled, called) in cases {
        let world = World::new();
        let client = behind(&world, of_service, of_workload).await;
        let mut asked = hbone_server(&world, WAYPOINT, "way", "192.0.2.1:1").await;
        let answer = exchange(world.dial(At::East, &client, dialled).await, b"hello").await.unwrap();
        assert_eq!(answer, b"hello");
        assert_eq!(world.wires.dials(), [WAYPOINT.parse().unwrap()], "the waypoint alone");
        let asked = asked.recv().await.unwrap();
        assert_eq!(asked.by.to_string(), "spiffe://cluster.local/ns/shop/sa/client");
        assert_eq!(asked.authority, dialled);
        let host = called.map_or(String::new(), |host| format!(";host={host}"));
        assert_eq!(asked.forwarded, format!("for=\"{CLIENT}:40000\"{host}"));
        assert!(asked.baggage.contains("k8s.namespace.name=shop,k8s.pod.name=client"), "{}", asked.baggage);
        let line = &world.lines(1).await[0];
        assert!(asked.traceparent.contains(&line["trace_id"]), "{} {line:?}", asked.traceparent);
        for (field, expected) in [
            ("direction", "outbound"),
            ("path", "waypoint"),
            ("dst.addr", WAYPOINT),
            ("dst.hbone_addr", dialled),
            ("dst.workload", "way"),
            ("dst.identity", "spiffe://cluster.local/ns/shop/sa/way"),
            ("tls.version", "TLSv1.3"),
            ("bytes_sent", "5"),
        ] {
            assert_eq!(line[field], expected, "{field}");
        }
        assert_eq!(line.get("dst.service").map(String::as_str), called);
        assert!(!line.contains_key("error"), "{line:?}");
    }
}

#[tokio::test]
async fn a_waypoint_that_proves_another_identity_is_asked_for_nothing() {
    let world = World::new();
    let client = behind(&world, Some(by_name()), None).await;
    let mut asked = hbone_server(&world, WAYPOINT, "somebody", "192.0.2.1:1").await;
    assert!(is_reset(&mut world.dial(At::East, &client, VIRTUAL).await).await);
    let line = &world.lines(1).await[0];
    assert_eq!((&*line["path"], &*line["response_flags"]), ("refused", "TLS_FAILURE"));
    assert_eq!(world.wires.dials(), [WAYPOINT.parse().unwrap()]);
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn a_waypoint_that_is_not_there_is_not_passed_by() {
    let gone = GatewayAddress { destination: GatewayDestination::Hostname(name("gone")), hbone_port: 15008 };
    for (waypoint, path, flag) in [(gone, "refused", "WAYPOINT"), (by_name(), "waypoint", "CONNECT")] {
        for (of_service, of_workload, dialled) in
            [(Some(waypoint.clone()), None, VIRTUAL), (None, Some(waypoint.clone()), SERVER_APP)]
        {
            let world = World::new();
            let client = behind(&world, of_service, of_workload).await;
            assert!(is_reset(&mut world.dial(At::East, &client, dialled).await).await);
            let line = &world.lines(1).await[0];
            assert_eq!((&*line["path"], &*line["response_flags"]), (path, flag), "{line:?}");
            let dials = world.wires.dials();
            assert!(dials.iter().all(|to| *to == WAYPOINT.parse().unwrap()), "{dials:?}");
            assert_eq!(dials.is_empty(), path == "refused");
        }
    }
}

#[tokio::test]
async fn a_pod_of_a_waypoint_that_is_not_reached_gives_way_to_the_next_and_is_passed_over_when_it_keeps_failing()
 {
    const SECOND: &str = "10.3.0.2:15008";
    for waypoint in [by_name(), by_service_address()] {
        let world = World::new();
        let client = behind(&world, Some(waypoint), None).await;
        world.tell(|state| {
            // Its turn comes last: it is further away.
            let mut second = Workload {
                services: [(name("way"), [(15008, 15008)].into())].into(),
                ..workload("way-2", "10.3.0.2")
            };
            second.locality.region = "elsewhere".to_owned();
            state.upsert_workload(second);
            let mut near = service("way", "10.96.0.9", [(15008, 15008)], None);
            near.load_balancing.routing_preference = vec![Scope::Region];
            state.upsert_service(near);
        });
        // The first one takes connections and does not speak TLS.
        let broken = world.listen(WAYPOINT).await;
        tokio::spawn(async move {
            loop {
                drop(broken.accept().await.unwrap());
            }
        });
        let mut asked = hbone_server(&world, SECOND, "way-2", "192.0.2.1:1").await;
        for _ in 0..5 {
            let answer = exchange(world.dial(At::East, &client, VIRTUAL).await, b"hello").await.unwrap();
            assert_eq!(answer, b"hello");
            assert_eq!(asked.recv().await.unwrap().authority, VIRTUAL);
        }
        let first = world.wires.dials().iter().filter(|to| **to == WAYPOINT.parse().unwrap()).count();
        assert_eq!(first, 3, "then it is ejected");
        let lines = world.lines(5).await;
        assert!(lines[0]["failed_tries"].starts_with("way at 10.3.0.1:15008: "), "{:?}", lines[0]);
        assert_eq!((&*lines[0]["dst.workload"], &*lines[0]["path"]), ("way-2", "waypoint"));
        assert!(!lines[4].contains_key("failed_tries"), "{:?}", lines[4]);
    }
}

#[tokio::test]
async fn what_a_waypoint_answers_is_not_asked_of_another_and_does_not_count_against_it() {
    for status in [503, 401, 404] {
        let world = World::new();
        let client = behind(&world, Some(by_name()), None).await;
        world.tell(|state| {
            state.upsert_workload(Workload {
                services: [(name("way"), [(15008, 15008)].into())].into(),
                service_account: "way".into(),
                ..workload("way-2", "10.3.0.2")
            });
        });
        let mut refusing = Vec::new();
        for at in [WAYPOINT, "10.3.0.2:15008"] {
            refusing.push(refusing_server(&world, at, "way", status).await);
        }
        for _ in 0..4 {
            assert!(is_reset(&mut world.dial(At::East, &client, VIRTUAL).await).await);
        }
        let asked: usize =
            refusing.iter_mut().map(|asked| std::iter::from_fn(|| asked.try_recv().ok()).count()).sum();
        assert_eq!(asked, 4, "{status}");
        assert_eq!(world.node(At::East).metrics.endpoint_ejections.get(), 0);
    }
}

#[tokio::test]
async fn a_waypoint_that_is_known_by_a_workloads_name_is_asked_for_its_address() {
    let world = World::new();
    let hostname = ServiceName { namespace: "shop".into(), hostname: "way.example.com".into() };
    let named = GatewayAddress { destination: GatewayDestination::Hostname(hostname), hbone_port: 15008 };
    let client = behind(&world, Some(named), None).await;
    world.tell(|state| {
        state.upsert_workload(Workload {
            addresses: Vec::new(),
            hostname: Some("way.example.com".into()),
            ..workload("way", "10.3.0.1")
        });
    });
    let mut asked = hbone_server(&world, WAYPOINT, "way", "192.0.2.1:1").await;
    assert!(is_reset(&mut world.dial(At::East, &client, VIRTUAL).await).await, "nobody knows the name");
    world.names.set("way.example.com", &["10.3.0.1"]);
    let answer = exchange(world.dial(At::East, &client, VIRTUAL).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    assert_eq!(asked.recv().await.unwrap().authority, VIRTUAL);
    assert_eq!(world.lines(2).await[0]["response_flags"], "DNS");
}
