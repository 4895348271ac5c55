//! Connections to a service of which some endpoints cannot be reached. The service prefers its client's network, region
//! and zone, in that order, so that which endpoint comes first is not left to chance.

use mesh::service::{LoadBalancing, Mode, Scope};
use mesh::workload::TunnelProtocol;
use mesh::{NetworkAddress, Service, ServiceName, Workload};

use super::*;

const VIP: &str = "10.96.0.1:80";

/// How many scopes the endpoint shares with the client: the more, the sooner its turn.
fn endpoint(name: &str, ip: &str, shared: usize) -> Workload {
    let mut endpoint = workload(name, ip);
    let differ = |field: &mut String, scope: usize| {
        if scope >= shared {
            *field = "elsewhere".to_owned();
        }
    };
    differ(&mut endpoint.locality.region, 0);
    differ(&mut endpoint.locality.zone, 1);
    differ(&mut endpoint.locality.subzone, 2);
    endpoint.services = [(web(), [(80, 8080)].into())].into();
    endpoint
}

fn web() -> ServiceName {
    "shop/web.shop.svc.cluster.local".parse().unwrap()
}

fn service() -> Service {
    Service {
        name: web(),
        short_name: "web".to_owned(),
        vips: vec![NetworkAddress { network: "".into(), ip: "10.96.0.1".parse().unwrap() }],
        cidr_vips: Vec::new(),
        ip_families: mesh::service::IpFamilies::default(),
        ports: [(80, 8080)].into(),
        subject_alt_names: Vec::new(),
        load_balancing: LoadBalancing {
            routing_preference: vec![Scope::Region, Scope::Zone, Scope::Subzone],
            mode: Mode::Failover,
            allow_unhealthy: false,
        },
        canonical: true,
        visibility: mesh::service::Visibility::Public,
        waypoint: None,
        weighted_waypoints: Vec::new(),
    }
}

/// Tells everybody of the service and these endpoints, and that this is all.
fn tell(world: &World, endpoints: &[Workload]) {
    world.tell(|state| {
        state.upsert_service(service());
        endpoints.iter().for_each(|endpoint| state.upsert_workload(endpoint.clone()));
    });
    world.complete();
}

/// What was dialled, sorted. Where nothing else is left, proxies that refuse are dialled again, in case they have just
/// started.
fn dials(world: &World) -> Vec<std::net::SocketAddr> {
    let mut dials = world.wires.dials();
    dials.sort();
    dials.dedup();
    dials
}

/// Takes connections at the HBONE port and speaks no TLS.
async fn broken(world: &World, at: &str) {
    let broken = world.listen(at).await;
    tokio::spawn(async move {
        loop {
            drop(broken.accept().await.unwrap());
        }
    });
}

fn address(text: &str) -> std::net::SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn the_next_endpoint_serves_what_the_first_one_does_not_and_the_record_tells_both() {
    // On another node its proxy is away, or its application is; on this node the application.
    for (first, enrolled, reason) in [
        ("10.2.0.9", None, "CONNECT"),
        ("10.2.0.8", Some(At::West), "TUNNEL_STATUS"),
        ("10.1.0.8", Some(At::East), "CONNECT"),
    ] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(At::West, "server", SERVER).await;
        if let Some(at) = enrolled {
            world.pod(at, "first", first).await;
        }
        world.echo(SERVER_APP).await;
        tell(&world, &[endpoint("first", first, 3), endpoint("server", SERVER, 2)]);
        let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
        assert_eq!(answer, b"hello", "{first}");
        let lines = world.lines(2 + usize::from(enrolled.is_some())).await;
        let line = lines.iter().find(|line| line["direction"] == "outbound").expect("outbound");
        let tried = &line["failed_tries"];
        assert!(tried.starts_with(&format!("first at {first}:8080: {reason}: ")), "{tried}");
        for (field, value) in [
            ("dst.workload", "server"),
            ("dst.identity", "spiffe://cluster.local/ns/shop/sa/server"),
            ("dst.hbone_addr", SERVER_APP),
            ("path", "other_node"),
            ("bytes_sent", "5"),
            ("response_flags", "-"),
        ] {
            assert_eq!(line[field], value, "{field} after {first}");
        }
    }
}

#[tokio::test]
async fn three_endpoints_are_tried_and_no_more_and_none_of_them_twice() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    let endpoints: Vec<Workload> =
        (1..=5).map(|n| endpoint(&format!("down-{n}"), &format!("10.2.1.{n}"), n.min(3))).collect();
    tell(&world, &endpoints);
    assert!(is_reset(&mut world.dial(At::East, &client, VIP).await).await);
    let dials = dials(&world);
    let nearest = ["10.2.1.3:15008", "10.2.1.4:15008", "10.2.1.5:15008"];
    assert_eq!(dials, nearest.map(address));
    let lines = world.lines(1).await;
    assert_eq!(lines[0]["failed_tries"].matches("CONNECT: tunnel to").count(), 2, "{:?}", lines[0]);
    assert_eq!(lines[0]["response_flags"], "CONNECT");
}

#[tokio::test]
async fn an_endpoint_outside_the_mesh_does_not_stand_in_for_one_that_is_encrypted() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.echo("10.2.0.7:8080").await;
    let mut plain = endpoint("plain", "10.2.0.7", 2);
    plain.tunnel_protocol = TunnelProtocol::None;
    tell(&world, &[endpoint("down", "10.2.0.9", 3), plain.clone()]);
    assert!(is_reset(&mut world.dial(At::East, &client, VIP).await).await);
    assert_eq!(dials(&world), [address("10.2.0.9:15008")]);
    // Before one that is encrypted it may come.
    world.wires.dialled.lock().unwrap().clear();
    plain.locality = workload("plain", "10.2.0.7").locality;
    world.tell(|state| {
        state.upsert_workload(endpoint("down", "10.2.0.9", 2));
        state.upsert_workload(plain.clone());
    });
    let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
}

#[tokio::test]
async fn what_policy_refuses_is_not_tried_elsewhere() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(at, "server", SERVER).await;
        world.pod(at, "other", "10.2.0.2").await;
        world.echo("10.2.0.2:8080").await;
        let deny = policy("no-client", Action::Deny, of_principal(CLIENT_PRINCIPAL));
        let selected = PolicyScope::WorkloadSelector;
        world.tell(|state| state.upsert_policy(Authorization { scope: selected, ..deny.clone() }));
        let mut first = endpoint("server", SERVER, 3);
        first.authorization_policies = vec![deny.name.clone()];
        tell(&world, &[first, endpoint("other", "10.2.0.2", 2)]);
        assert!(is_reset(&mut world.dial(At::East, &client, VIP).await).await);
        let lines = world.lines(2).await;
        assert!(lines.iter().all(|line| line["response_flags"] == "DENY"), "{lines:?}");
        assert!(!world.wires.dials().iter().any(|to| to.ip() == address("10.2.0.2:1").ip()));
    }
}

#[tokio::test]
async fn a_connection_that_breaks_once_it_is_established_is_not_made_again() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.pod(At::West, "other", "10.2.0.2").await;
    let application = world.listen(SERVER_APP).await;
    world.echo("10.2.0.2:8080").await;
    tell(&world, &[endpoint("server", SERVER, 3), endpoint("other", "10.2.0.2", 2)]);
    // With a byte on its way, and without one.
    for byte in [&b"x"[..], &b""[..]] {
        let mut live = world.dial(At::East, &client, VIP).await;
        live.write_all(byte).await.unwrap();
        let (served, _) = application.accept().await.unwrap();
        // The other node has answered.
        while !client.live.list().iter().any(|(_, listed)| listed.protocol == "HBONE") {
            tokio::task::yield_now().await;
        }
        served.set_zero_linger().unwrap();
        drop(served);
        assert!(is_reset(&mut live).await);
    }
    assert!(!world.wires.dials().iter().any(|to| to.ip() == address("10.2.0.2:1").ip()));
    assert!(world.lines(2).await.iter().all(|line| !line.contains_key("failed_tries")));
}

#[tokio::test]
async fn an_endpoint_that_keeps_failing_is_not_dialled_any_more_for_a_while() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    broken(&world, "10.2.0.9:15008").await;
    tell(&world, &[endpoint("down", "10.2.0.9", 3), endpoint("server", SERVER, 2)]);
    for _ in 0..6 {
        let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
        assert_eq!(answer, b"hello");
    }
    let down = world.wires.dials().iter().filter(|to| **to == address("10.2.0.9:15008")).count();
    assert_eq!(down, 3);
    assert_eq!(world.node(At::East).metrics.endpoint_ejections.get(), 1);
}

#[tokio::test]
async fn a_workload_that_is_called_by_its_own_address_is_the_only_one() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    tell(&world, &[endpoint("down", "10.2.0.9", 3), endpoint("server", SERVER, 2)]);
    for _ in 0..4 {
        assert!(is_reset(&mut world.dial(At::East, &client, "10.2.0.9:8080").await).await);
    }
    assert_eq!(dials(&world), [address("10.2.0.9:15008")]);
}

#[tokio::test]
async fn an_endpoint_that_does_not_listen_yet_delays_nobody_while_there_is_another() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    tell(&world, &[endpoint("joins", "10.2.0.9", 3), endpoint("server", SERVER, 2)]);
    for _ in 0..20 {
        let answer = exchange(world.dial(At::East, &client, VIP).await, b"hello").await.unwrap();
        assert_eq!(answer, b"hello");
    }
    let joins = world.wires.dials().iter().filter(|to| **to == address("10.2.0.9:15008")).count();
    let tries = world.lines(40).await.iter().filter(|line| line.contains_key("failed_tries")).count();
    assert_eq!(joins, tries, "once for each connection that was led there");
}

#[tokio::test]
async fn where_no_other_is_left_an_endpoint_that_does_not_listen_yet_is_waited_for() {
    // Alone, called by its own address, and beside one that fails for good.
    for (to, beside) in [(VIP, false), ("10.2.0.9:8080", false), (VIP, true)] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.echo("10.2.0.9:8080").await;
        let mut all = vec![endpoint("joins", "10.2.0.9", 3)];
        if beside {
            broken(&world, "10.2.0.8:15008").await;
            all.push(endpoint("broken", "10.2.0.8", 2));
        }
        tell(&world, &all);
        let dialled = world.dial(At::East, &client, to).await;
        while world.wires.dials().iter().filter(|to| to.ip() == address("10.2.0.9:1").ip()).count() < 2 {
            tokio::task::yield_now().await;
        }
        world.pod_stated_at(At::West, "joins", "10.2.0.9", vec!["10.2.0.9".parse().unwrap()]).await;
        assert_eq!(exchange(dialled, b"hello").await.unwrap(), b"hello", "{to} {beside}");
        assert_eq!(world.node(At::East).metrics.endpoint_ejections.get(), 0);
    }
}
