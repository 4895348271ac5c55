//! Ways that lead through a waypoint, which is another make of HBONE server here, and ways that this proxy does not go.

use mesh::gateway::GatewayDestination;
use mesh::service::{LoadBalancing, Visibility};
use mesh::workload::ApplicationTunnel;
use mesh::{GatewayAddress, NetworkAddress, Service, ServiceName, SpiffeId, Workload};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tunnel::hbone::{Budget, ServerConfig, Terms};

use super::*;
use crate::proxy::Failure;

const WAYPOINT: &str = "10.3.0.1:15008";
const VIRTUAL: &str = "10.96.0.1:80";
const LONG: Duration = Duration::from_secs(60);

/// What a waypoint was asked for, and by whom.
struct Asked {
    by: SpiffeId,
    authority: String,
    forwarded: String,
    baggage: String,
    traceparent: String,
}

/// An HBONE server at `at` that proves to be `account` and takes every connection to `application`.
async fn hbone_server(world: &World, at: &str, account: &str, application: &str) -> UnboundedReceiver<Asked> {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
    let certificate = world.ca.issue(&id);
    world.echo(application).await;
    let way = world.wires.way(application.parse().unwrap()).unwrap();
    let listener = world.listen(at).await;
    let (sender, asked) = unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (certificate, sender) = (certificate.clone(), sender.clone());
            tokio::spawn(async move {
                // A client that does not want this server.
                let Ok((io, client)) = tunnel::tls::accept(stream, &certificate, LONG).await else { return };
                let share = Budget::default().share(way.ip());
                let standing = client.standing().clone();
                let terms = Terms { expires: client.expires(), standing, share };
                let on_connect = |request: Result<tunnel::hbone::ConnectRequest, _>| {
                    let Ok(request) = request else { return };
                    let text = |value: &Option<http::HeaderValue>| {
                        value.as_ref().map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
                    };
                    let headers = request.headers();
                    let _ = sender.send(Asked {
                        by: client.identity().clone(),
                        authority: request.authority().to_string(),
                        forwarded: text(&headers.forwarded),
                        baggage: text(&headers.baggage),
                        traceparent: text(&headers.traceparent),
                    });
                    tokio::spawn(async move {
                        let application = TcpStream::connect(way).await.unwrap();
                        let stream = request.accept(None).unwrap();
                        let never = std::future::pending::<Failure>();
                        let _ =
                            tunnel::copy::relay(stream, application, &Default::default(), LONG, never).await;
                    });
                };
                let never = std::future::pending();
                let _ = tunnel::hbone::serve(io, &ServerConfig::default(), &terms, never, on_connect).await;
            });
        }
    });
    asked
}

fn name(short: &str) -> ServiceName {
    format!("shop/{short}.shop.svc.cluster.local").parse().unwrap()
}

fn service(short: &str, vip: &str, ports: [(u16, u16); 1], waypoint: Option<GatewayAddress>) -> Service {
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

fn by_address() -> GatewayAddress {
    let at = NetworkAddress { network: "".into(), ip: "10.3.0.1".parse().unwrap() };
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
async fn what_this_proxy_does_not_speak_is_refused_and_never_plaintext() {
    type Change = fn(&mut Workload);
    let named: Change = |server| {
        server.addresses.clear();
        server.hostname = Some("server.example.com".into());
    };
    let elsewhere: Change = |server| {
        server.network = "far".into();
        server.network_gateway = Some(Box::new(by_address()));
    };
    let proxied: Change = |server| server.application_tunnel = Some(ApplicationTunnel::Proxy { port: None });
    for at in [At::East, At::West] {
        for (change, flag) in
            [(named, "HOSTNAME"), (elsewhere, "OTHER_NETWORK"), (proxied, "APPLICATION_TUNNEL")]
        {
            let world = World::new();
            let client = behind(&world, None, None).await;
            if matches!(at, At::East) {
                world.pod(At::East, "server", SERVER).await;
            }
            world.tell(|state| {
                let mut server = Workload {
                    services: [(name("server"), [(80, 8080)].into())].into(),
                    ..workload("server", SERVER)
                };
                change(&mut server);
                state.upsert_workload(server);
            });
            assert!(is_reset(&mut world.dial(At::East, &client, VIRTUAL).await).await);
            let lines = world.lines(1).await;
            let decided = lines.iter().find(|line| line["response_flags"] == flag);
            let decided = decided.unwrap_or_else(|| panic!("{flag}: {lines:?}"));
            assert_eq!(decided["path"], "refused");
            let dials = world.wires.dials();
            assert!(!dials.contains(&SERVER_APP.parse().unwrap()), "{flag}: {dials:?}");
        }
    }
}
