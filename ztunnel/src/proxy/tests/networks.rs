//! Two networks: the client on one, its service's endpoints on the other, behind a gateway that is a pod there.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::gateway::GatewayDestination;
use mesh::service::Scope;
use mesh::{GatewayAddress, NetworkAddress, Service, Workload};

use super::waypoints::{hbone_server, name, refusing_server, service};
use super::*;
use crate::pods::Pod;

const VIP: &str = "10.96.0.1:80";
const GATE: &str = "10.2.9.9";
const HOST: &str = "web.shop.svc.cluster.local:80";

fn gate() -> GatewayAddress {
    let at = NetworkAddress { network: "far".into(), ip: GATE.parse().unwrap() };
    GatewayAddress { destination: GatewayDestination::Address(at), hbone_port: 15008 }
}

fn far(workload: Workload) -> Workload {
    Workload { network: "far".into(), ..workload }
}

/// An endpoint of the service on the far network.
fn endpoint(name_of_it: &str, ip: &str) -> Workload {
    Workload {
        network_gateway: Some(Box::new(gate())),
        service_account: "server".into(),
        services: [(name("web"), [(80, 8080)].into())].into(),
        ..far(workload(name_of_it, ip))
    }
}

fn web(identities: &[&str]) -> Service {
    let mut web = service("web", "10.96.0.1", [(80, 8080)], None);
    web.subject_alt_names = identities.iter().map(|id| (*id).to_owned()).collect();
    web
}

const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// The client, the gateway and the server `server`, with its application.
async fn two_networks() -> (World, Arc<Pod>) {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "gate", GATE).await;
    world.pod(At::West, "server", SERVER).await;
    world.tell(|state| {
        state.upsert_workload(far(workload("gate", GATE)));
        state.upsert_workload(endpoint("server", SERVER));
        state.upsert_service(web(&[SERVER_ID]));
    });
    world.echo(SERVER_APP).await;
    world.complete();
    (world, client)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_endpoint_of_another_network_is_reached_through_its_gateway_and_proves_itself_to_the_client() {
    let (world, client) = two_networks().await;
    let sent: Vec<u8> = (0..=u8::MAX).cycle().take(300_000).collect();
    let answer = exchange(world.dial(At::East, &client, VIP).await, &sent).await.unwrap();
    assert!(answer == sent, "{} bytes came back", answer.len());
    assert_eq!(
        world.wires.dials(),
        [address("10.2.9.9:15008"), address("10.2.0.1:15008"), address(SERVER_APP)]
    );
    let lines = world.lines(3).await;
    let of = |direction: &str, workload: &str| {
        let found =
            lines.iter().find(|line| line["direction"] == direction && line["dst.workload"] == workload);
        found.unwrap_or_else(|| panic!("{direction} {workload}: {lines:?}"))
    };
    let client_id = "spiffe://cluster.local/ns/shop/sa/client";
    for (line, fields) in [
        (
            of("outbound", "gate"),
            [("path", "other_network"), ("dst.addr", "10.2.9.9:15008"), ("dst.identity", SERVER_ID)],
        ),
        (
            of("inbound", "gate"),
            [
                ("path", "other_network"),
                ("dst.addr", "10.2.0.1:15008"),
                ("dst.identity", "spiffe://cluster.local/ns/shop/sa/gate"),
            ],
        ),
        (
            of("inbound", "server"),
            [("path", "other_node"), ("dst.addr", "10.2.0.1:15008"), ("dst.identity", SERVER_ID)],
        ),
    ] {
        for (field, expected) in fields.into_iter().chain([
            ("src.identity", client_id),
            ("dst.hbone_addr", HOST),
            ("dst.service", "web.shop.svc.cluster.local"),
            ("response_flags", "-"),
        ]) {
            assert_eq!(line[field], expected, "{field} of {line:?}");
        }
        assert!(!line.contains_key("error"), "{line:?}");
    }
    assert_eq!(of("outbound", "gate")["bytes_sent"], "300000");
    assert!(of("inbound", "gate")["bytes_recv"].parse::<u64>().unwrap() > 300_000, "it carries a tunnel");
    assert_eq!(of("outbound", "gate")["trace_id"], of("inbound", "server")["trace_id"]);
}

#[tokio::test]
async fn the_far_end_is_told_the_clients_network_and_the_gateway_is_not() {
    let (world, client) = two_networks().await;
    let of_near = |ip: &str| NetworkAddress { network: "near".into(), ip: ip.parse().unwrap() };
    world.tell(|state| {
        state.upsert_workload(Workload { network: "near".into(), ..workload("client", CLIENT) });
        state.upsert_service(Service { vips: vec![of_near("10.96.0.1")], ..web(&[SERVER_ID]) });
    });
    let mut far_end = hbone_server(&world, "10.2.0.1:15008", "server", "192.0.2.1:1").await;
    let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    let asked = far_end.recv().await.unwrap();
    assert_eq!((&*asked.authority, &*asked.network), (HOST, "near"));
    // In the place of the gateway.
    let mut gateway = refusing_server(&world, "10.2.9.9:15008", "gate", 503).await;
    world.node(At::East).tunnels.retire(|_| true);
    assert!(is_reset(&mut world.dial(At::East, &client, VIP).await).await);
    let asked = gateway.recv().await.unwrap();
    assert_eq!((&*asked.authority, &*asked.network), (HOST, ""));
}

#[tokio::test]
async fn each_connection_has_an_inner_tunnel_of_its_own_and_the_outer_one_is_shared() {
    let (world, client) = two_networks().await;
    for _ in 0..3 {
        exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
    }
    let count = |to: &str| world.wires.dials().iter().filter(|dialled| **dialled == address(to)).count();
    assert_eq!((count("10.2.9.9:15008"), count("10.2.0.1:15008")), (1, 3));
}

#[tokio::test]
async fn a_far_end_that_proves_no_identity_of_the_services_gets_no_request() {
    let (world, client) = two_networks().await;
    // Its own identity does not count: the gateway chooses who it is.
    world.tell(|state| state.upsert_service(web(&["spiffe://cluster.local/ns/shop/sa/other"])));
    assert!(is_reset(&mut world.dial(At::East, &client, VIP).await).await);
    let lines = world.lines(1).await;
    let line = lines.iter().find(|line| line["direction"] == "outbound").expect("outbound");
    assert_eq!((&*line["path"], &*line["response_flags"]), ("refused", "TLS_FAILURE"), "{line:?}");
    assert!(line["error"].starts_with("tunnel through the gateway 10.2.9.9:15008: TLS: "), "{line:?}");
    assert!(!world.wires.dials().contains(&address(SERVER_APP)));
}

#[tokio::test]
async fn policies_of_the_gateway_and_of_the_server_judge_the_client_by_its_own_identity() {
    for (refusing, at_gateway) in [("gate", true), ("server", false)] {
        let (world, client) = two_networks().await;
        let mut deny = policy("no-client", Action::Deny, of_principal(CLIENT_PRINCIPAL));
        deny.scope = PolicyScope::WorkloadSelector;
        world.tell(|state| {
            let of = if at_gateway { far(workload("gate", GATE)) } else { endpoint("server", SERVER) };
            state.upsert_workload(Workload { authorization_policies: vec![deny.name.clone()], ..of });
            state.upsert_policy(deny.clone());
        });
        assert!(is_reset(&mut world.dial(At::East, &client, VIP).await).await);
        let lines = world.lines(2).await;
        let inbound = lines.iter().find(|line| line.get("policy").is_some()).expect("refused by a policy");
        assert_eq!(inbound["dst.workload"], refusing);
        let outbound = lines.iter().find(|line| line["direction"] == "outbound").expect("outbound");
        assert_eq!((&*outbound["path"], &*outbound["response_flags"]), ("refused", "DENY"));
        assert_eq!(world.wires.dials().contains(&address("10.2.0.1:15008")), !at_gateway);
    }
}

#[tokio::test]
async fn a_live_connection_is_cut_at_the_gateway_when_its_policy_comes_to_refuse_it() {
    let (world, client) = two_networks().await;
    let application = world.listen(SERVER_APP).await;
    let mut live = world.dial(At::East, &client, VIP).await;
    live.write_all(b"x").await.unwrap();
    let (mut served, _) = application.accept().await.unwrap();
    assert_eq!(served.read_u8().await.unwrap(), b'x');
    let mut deny = policy("no-client", Action::Deny, of_principal(CLIENT_PRINCIPAL));
    deny.scope = PolicyScope::WorkloadSelector;
    world.tell(|state| {
        state.upsert_policy(deny.clone());
        let authorization_policies = vec![deny.name.clone()];
        state.upsert_workload(Workload { authorization_policies, ..far(workload("gate", GATE)) });
    });
    assert!(is_reset(&mut live).await);
    assert!(is_reset(&mut served).await);
}

#[tokio::test]
async fn a_gateway_goes_on_to_the_next_endpoint_behind_it() {
    let (world, client) = two_networks().await;
    world.tell(|state| {
        state.upsert_workload(endpoint("down", "10.2.0.9"));
        // Nearest to the gateway.
        let mut server = endpoint("server", SERVER);
        server.locality.region = "elsewhere".to_owned();
        state.upsert_workload(server);
        let mut near = web(&[SERVER_ID]);
        near.load_balancing.routing_preference = vec![Scope::Region];
        state.upsert_service(near);
    });
    let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    assert_eq!(world.wires.dials()[1..3], [address("10.2.0.9:15008"), address("10.2.0.1:15008")]);
    let lines = world.lines(3).await;
    let tried: Vec<_> = lines.iter().filter_map(|line| line.get("failed_tries")).collect();
    assert!(tried[0].starts_with("down at 10.2.0.9:15008: CONNECT: "), "{tried:?}");
    assert_eq!(tried.len(), 1, "the client knows nothing of it");
}

#[tokio::test]
async fn a_gateway_that_is_not_reached_gives_way_to_its_other_pod_or_to_an_endpoint_on_the_clients_network() {
    for other in ["gate-2", "near"] {
        let (world, client) = two_networks().await;
        world.wires.lead(address("10.2.9.9:15008"), address("127.0.0.1:1"));
        let by_service =
            GatewayAddress { destination: GatewayDestination::Hostname(name("gate")), hbone_port: 15008 };
        world.pod(At::West, other, "10.2.0.3").await;
        world.echo("10.2.0.3:8080").await;
        world.tell(|state| {
            let member = |pod| Workload { services: [(name("gate"), [].into())].into(), ..far(pod) };
            state.upsert_service(service("gate", "10.96.0.8", [(15008, 15008)], None));
            state.upsert_workload(member(workload("gate", GATE)));
            let network_gateway = Some(Box::new(by_service.clone()));
            state.upsert_workload(Workload { network_gateway, ..endpoint("server", SERVER) });
            let spare = workload(other, "10.2.0.3");
            state.upsert_workload(match other {
                "near" => Workload { services: [(name("web"), [(80, 8080)].into())].into(), ..spare },
                _ => member(spare),
            });
        });
        for _ in 0..6 {
            let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
            assert_eq!(answer, b"hello", "{other}");
        }
        assert!(world.wires.dials().contains(&address("10.2.0.3:15008")));
    }
}

#[tokio::test]
async fn what_the_gateway_cannot_serve_is_told_as_such() {
    let (world, client) = two_networks().await;
    world.node(At::West).mesh.change(tokio::time::Instant::now(), |state| {
        let gone = Workload { health: mesh::workload::Health::Unhealthy, ..endpoint("server", SERVER) };
        state.upsert_workload(gone);
    });
    assert!(is_reset(&mut world.dial(At::East, &client, VIP).await).await);
    let lines = world.lines(2).await;
    let flags = |direction: &str| {
        &*lines.iter().find(|line| line["direction"] == direction).expect("both lines")["response_flags"]
    };
    assert_eq!((flags("outbound"), flags("inbound")), ("TUNNEL_STATUS", "NO_HEALTHY_UPSTREAM"));
    assert_eq!(world.wires.dials(), [address("10.2.9.9:15008")]);
    assert_eq!(world.node(At::East).metrics.endpoint_ejections.get(), 0);
}
