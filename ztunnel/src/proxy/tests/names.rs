//! Workloads of which only a name is known.

use mesh::Workload;
use mesh::workload::TunnelProtocol;

use super::waypoints::{name, service};
use super::*;
use crate::telemetry::OnDemandLabels;

const VIP: &str = "10.96.0.1:80";

fn named(short: &str, hostname: &str, protocol: TunnelProtocol) -> Workload {
    Workload {
        addresses: Vec::new(),
        hostname: Some(hostname.into()),
        tunnel_protocol: protocol,
        services: [(name("server"), [(80, 8080)].into())].into(),
        ..workload(short, SERVER)
    }
}

/// A client, and a service with these endpoints.
async fn world_of(endpoints: &[Workload]) -> (World, std::sync::Arc<crate::pods::Pod>) {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.tell(|state| {
        state.upsert_service(service("server", "10.96.0.1", [(80, 8080)], None));
        endpoints.iter().for_each(|endpoint| state.upsert_workload(endpoint.clone()));
    });
    world.complete();
    (world, client)
}

#[tokio::test]
async fn a_workload_outside_the_mesh_is_dialled_at_the_address_of_its_name() {
    let (world, client) = world_of(&[named("db", "db.example.com", TunnelProtocol::None)]).await;
    world.names.set("db.example.com", &["2001:db8::7", "192.0.2.7", "127.0.0.1"]);
    world.echo("192.0.2.7:8080").await;
    let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    assert_eq!(world.wires.dials(), ["192.0.2.7:8080".parse().unwrap()]);
    let line = &world.lines(1).await[0];
    for (field, expected) in [
        ("dst.workload", "db"),
        ("dst.addr", "192.0.2.7:8080"),
        ("dst.service", "server.shop.svc.cluster.local"),
        ("path", "passthrough"),
    ] {
        assert_eq!(line[field], expected, "{field}");
    }
    let metrics = &world.node(At::East).metrics;
    let asked = OnDemandLabels::new(Some(&workload("client", CLIENT)), &"db.example.com".into());
    assert_eq!(metrics.shared.dns.on_demand.get_or_create(&asked).get(), 1);
}

#[tokio::test]
async fn a_workload_of_the_mesh_is_reached_over_hbone_at_the_address_of_its_name() {
    let (world, client) = world_of(&[named("server", "server.example.com", TunnelProtocol::Hbone)]).await;
    world.names.set("server.example.com", &[SERVER]);
    // The other node's own control plane knows its address.
    let own = Workload {
        addresses: vec![SERVER.parse().unwrap()],
        ..named("server", "server.example.com", TunnelProtocol::Hbone)
    };
    world.node(At::West).mesh.change(tokio::time::Instant::now(), |state| state.upsert_workload(own.clone()));
    world.pod_stated_at(At::West, "server", SERVER, vec![SERVER.parse().unwrap()]).await;
    world.echo(SERVER_APP).await;
    let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    let lines = world.lines(2).await;
    let line = lines.iter().find(|line| line["direction"] == "outbound").expect("outbound");
    assert_eq!(
        (&*line["path"], &*line["dst.identity"]),
        ("other_node", "spiffe://cluster.local/ns/shop/sa/server")
    );
}

#[tokio::test]
async fn a_name_without_an_address_that_can_be_dialled_is_a_failure_of_its_own_and_the_next_endpoint_serves()
{
    let lost = || named("lost", "lost.example.com", TunnelProtocol::None);
    for (addresses, error) in [
        (None, "the addresses of lost.example.com are not known: nobody has it"),
        (
            Some(&["127.0.0.1", "::1"][..]),
            "the name lost.example.com has no address that can be connected to",
        ),
    ] {
        let (world, client) = world_of(&[lost()]).await;
        if let Some(addresses) = addresses {
            world.names.set("lost.example.com", addresses);
        }
        assert!(is_reset(&mut world.dial(At::East, &client, VIP).await).await);
        let line = &world.lines(1).await[0];
        assert_eq!((&*line["response_flags"], &*line["error"]), ("DNS", error));
        assert!(world.wires.dials().is_empty());
        world.tell(|state| state.upsert_workload(named("db", "db.example.com", TunnelProtocol::None)));
        world.names.set("db.example.com", &["192.0.2.7"]);
        world.echo("192.0.2.7:8080").await;
        for _ in 0..8 {
            let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
            assert_eq!(answer, b"hello");
        }
    }
}
