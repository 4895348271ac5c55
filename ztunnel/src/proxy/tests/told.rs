//! Applications that are told of their clients by the PROXY protocol, and waypoints that are pods of this mesh's nodes.

use mesh::gateway::GatewayDestination;
use mesh::service::Visibility;
use mesh::workload::ApplicationTunnel;
use mesh::{GatewayAddress, SpiffeId, Workload};
use tunnel::proxy_protocol::ProxyHeader;

use super::waypoints::{name, service};
use super::*;

const TOLD: &str = "10.2.0.1:15088";

fn proxy(port: Option<u16>) -> Workload {
    Workload { application_tunnel: Some(ApplicationTunnel::Proxy { port }), ..workload("server", SERVER) }
}

fn header(source: &str, destination: &str, identity: Option<&str>, host: Option<&str>) -> Vec<u8> {
    let identity: Option<SpiffeId> = identity.map(|text| text.parse().unwrap());
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    ProxyHeader { source, destination, identity: identity.as_ref(), host }.encode().unwrap().to_vec()
}

const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";

#[tokio::test]
async fn an_application_is_told_who_its_client_is_before_the_clients_first_byte() {
    // Of a connection from another node the source port is the tunnel's.
    for (at, source) in [(At::East, "10.1.0.1:40000"), (At::West, "10.1.0.1:41000")] {
        for (port, told) in [(Some(15088), TOLD), (None, SERVER_APP)] {
            let world = World::new();
            let client = world.pod(At::East, "client", CLIENT).await;
            world.pod(at, "server", SERVER).await;
            world.tell(|state| state.upsert_workload(proxy(port)));
            world.echo(told).await;
            world.complete();
            let answer = exchange(world.dial(At::East, &client, SERVER_APP).await, b"hello").await.unwrap();
            let expected = [&header(source, SERVER_APP, Some(CLIENT_ID), None)[..], b"hello"].concat();
            assert_eq!(answer, expected, "{port:?}");
            for line in world.lines(2).await {
                let of_client = if line["direction"] == "outbound" { "bytes_sent" } else { "bytes_recv" };
                assert_eq!(line[of_client], "5", "what it was told is not the client's");
            }
        }
    }
}

#[tokio::test]
async fn policies_judge_by_the_port_that_was_asked_for() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(at, "server", SERVER).await;
        world.tell(|state| {
            state.upsert_workload(proxy(Some(15088)));
            let only = Match { destination_ports: vec![9090], ..Match::default() };
            state.upsert_policy(policy("not-9090", Action::Deny, only));
        });
        world.echo(TOLD).await;
        world.complete();
        assert!(is_reset(&mut world.dial(At::East, &client, "10.2.0.1:9090").await).await);
        assert!(!world.wires.dials().contains(&TOLD.parse().unwrap()));
        assert!(exchange(world.dial(At::East, &client, SERVER_APP).await, b"x").await.is_ok());
    }
}

#[tokio::test]
async fn plaintext_tells_an_application_nothing_that_was_not_proved() {
    let world = World::new();
    let server = world.pod(At::West, "server", SERVER).await;
    world.tell(|state| state.upsert_workload(proxy(Some(15088))));
    world.echo(SERVER_APP).await;
    world.echo(TOLD).await;
    world.complete();
    let answer = exchange(world.dial_plaintext(At::West, &server, SERVER_APP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello", "beside the port where it is told it is as any other");
    let mut lie = world.dial_plaintext(At::West, &server, TOLD).await;
    // It may be reset by then.
    let _ = lie.write_all(&header("10.1.0.1:1", SERVER_APP, Some(CLIENT_ID), None)).await;
    assert!(is_reset(&mut lie).await);
    assert!(!world.wires.dials().contains(&TOLD.parse().unwrap()));
    let lines = world.lines(2).await;
    assert!(lines.iter().any(|line| line["response_flags"] == "APPLICATION_TUNNEL"), "{lines:?}");
    // Where every port is one where it is told, it is told of nobody.
    world.tell(|state| state.upsert_workload(proxy(None)));
    let answer = exchange(world.dial_plaintext(At::West, &server, SERVER_APP).await, b"hello").await.unwrap();
    assert_eq!(answer, [&header("192.0.2.7:40000", SERVER_APP, None, None)[..], b"hello"].concat());
}

#[tokio::test]
async fn a_protocol_of_a_later_version_is_refused() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(at, "server", SERVER).await;
        world.tell(|state| {
            let application_tunnel = Some(ApplicationTunnel::Unknown);
            state.upsert_workload(Workload { application_tunnel, ..workload("server", SERVER) });
        });
        world.echo(SERVER_APP).await;
        world.complete();
        assert!(is_reset(&mut world.dial(At::East, &client, SERVER_APP).await).await);
        let lines = world.lines(2).await;
        assert!(lines.iter().any(|line| line["response_flags"] == "APPLICATION_TUNNEL"), "{lines:?}");
        assert!(!world.wires.dials().contains(&SERVER_APP.parse().unwrap()));
    }
}

/// A waypoint in the pod `server`, and a service behind it that only its own namespace knows.
async fn sandwich(tunnel: Option<ApplicationTunnel>) -> (World, std::sync::Arc<crate::pods::Pod>) {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    let way = GatewayAddress { destination: GatewayDestination::Hostname(name("way")), hbone_port: 15008 };
    world.tell(|state| {
        let mut behind = service("web", "10.96.0.1", [(80, 8080)], Some(way.clone()));
        behind.visibility = Visibility::Namespace;
        state.upsert_service(behind);
        state.upsert_service(service("way", "10.96.0.9", [(15008, 15008)], None));
        state.upsert_workload(Workload {
            services: [(name("way"), [(15008, 15008)].into())].into(),
            application_tunnel: tunnel,
            ..workload("server", SERVER)
        });
    });
    world.complete();
    (world, client)
}

#[tokio::test]
async fn a_waypoint_in_a_pod_of_the_mesh_is_told_what_was_dialled_and_by_whom() {
    let (world, client) = sandwich(Some(ApplicationTunnel::Proxy { port: Some(15088) })).await;
    world.echo(TOLD).await;
    let answer = exchange(world.dial(At::East, &client, "10.96.0.1:80").await, b"hello").await.unwrap();
    let told = header("10.1.0.1:41000", "10.96.0.1:80", Some(CLIENT_ID), None);
    assert_eq!(answer, [&told[..], b"hello"].concat());
}

#[tokio::test]
async fn a_waypoint_that_is_not_told_gets_what_is_behind_it_at_its_own_address() {
    let (world, client) = sandwich(None).await;
    world.echo("10.2.0.1:80").await;
    let answer = exchange(world.dial(At::East, &client, "10.96.0.1:80").await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    let line = world.lines(2).await.into_iter().find(|line| line["direction"] == "inbound").expect("inbound");
    assert_eq!((&*line["dst.hbone_addr"], &*line["response_flags"]), ("10.96.0.1:80", "-"));
}
