//! The data path between two nodes and within one, end to end but for the kernel's part.

mod dns;
mod names;
mod networks;
mod peers;
mod retry;
mod revocation;
mod sizes;
mod told;
mod unreadable;
mod waypoints;
mod world;

use std::time::Duration;

use daemon::drain::Deadline;
use mesh::policy::{Action, Authorization, Clause, Match, PolicyScope, Rule, StringMatch};
use mesh::{PolicyName, WorkloadUid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
pub(crate) use world::workload;
use world::{At, World, service_at};

const CLIENT: &str = "10.1.0.1";
const SERVER: &str = "10.2.0.1";
const SERVER_APP: &str = "10.2.0.1:8080";

/// Sends `bytes`, finishes, and reads to the end.
async fn exchange(mut client: TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    client.write_all(bytes).await?;
    client.shutdown().await?;
    let mut all = Vec::new();
    client.read_to_end(&mut all).await?;
    Ok(all)
}

/// Reads until the other end has had enough.
async fn is_reset(client: &mut TcpStream) -> bool {
    let end =
        timeout(Duration::from_secs(10), client.read(&mut [0; 16])).await.expect("neither bytes nor an end");
    end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

fn policy(name: &str, action: Action, only: Match) -> Authorization {
    Authorization {
        name: PolicyName { namespace: "shop".into(), name: name.into() },
        scope: PolicyScope::Namespace,
        action,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![only] }] }],
        dry_run: false,
    }
}

fn of_principal(principal: &str) -> Match {
    Match { principals: vec![StringMatch::Exact(principal.to_owned())], ..Match::default() }
}

const CLIENT_PRINCIPAL: &str = "cluster.local/ns/shop/sa/client";

#[tokio::test]
async fn pods_of_two_nodes_talk_through_mutual_tls_and_both_sides_say_so() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    world.complete();
    let sent: Vec<u8> = (0..=u8::MAX).cycle().take(300_000).collect();
    let answer = exchange(world.dial(At::East, &client, SERVER_APP).await, &sent).await.unwrap();
    assert!(answer == sent, "{} bytes came back", answer.len());
    let lines = world.lines(2).await;
    for (direction, hbone) in [("inbound", SERVER_APP), ("outbound", SERVER_APP)] {
        let line = lines.iter().find(|line| line["direction"] == direction).expect(direction);
        assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/shop/sa/client");
        assert_eq!(line["dst.identity"], "spiffe://cluster.local/ns/shop/sa/server");
        assert_eq!(line["path"], "other_node");
        assert_eq!(line["tls.version"], "TLSv1.3");
        assert_eq!(line["tls.group"], "X25519MLKEM768");
        assert_eq!(line["dst.hbone_addr"], hbone);
        assert_eq!((&*line["bytes_recv"], &*line["bytes_sent"]), ("300000", "300000"));
        assert!(!line.contains_key("error"), "{line:?}");
    }
    assert_eq!(lines[0]["trace_id"], lines[1]["trace_id"]);
    let dialled = world.wires.dialled.lock().unwrap().clone();
    let client_ip = Some(CLIENT.parse().unwrap());
    assert_eq!(
        dialled,
        [(client_ip, "10.2.0.1:15008".parse().unwrap()), (client_ip, SERVER_APP.parse().unwrap())]
    );
}

#[tokio::test]
async fn pods_of_one_node_meet_in_the_process_with_identity_policy_and_both_lines() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::East, "server", SERVER).await;
    world.tell(|state| {
        state.upsert_policy(policy("only-client", Action::Allow, of_principal(CLIENT_PRINCIPAL)));
    });
    world.echo(SERVER_APP).await;
    world.complete();
    let answer = exchange(world.dial(At::East, &client, SERVER_APP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    let lines = world.lines(2).await;
    for line in &lines {
        assert_eq!(line["path"], "same_node");
        assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/shop/sa/client");
        assert_eq!(line["dst.identity"], "spiffe://cluster.local/ns/shop/sa/server");
        assert_eq!(line["bytes_recv"], "5");
        assert!(!line.contains_key("tls.version"), "{line:?}");
    }
    assert_eq!(lines[0]["trace_id"], lines[1]["trace_id"]);
    assert_eq!(world.wires.dials(), [SERVER_APP.parse().unwrap()], "no tunnel");
}

#[tokio::test]
async fn an_identity_that_policy_does_not_allow_is_reset_before_the_application_is_dialled() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(at, "server", SERVER).await;
        world.tell(|state| {
            state.upsert_policy(policy("only-admin", Action::Allow, of_principal("somebody/else")));
        });
        world.echo(SERVER_APP).await;
        world.complete();
        assert!(is_reset(&mut world.dial(At::East, &client, SERVER_APP).await).await);
        let lines = world.lines(2).await;
        let inbound = lines.iter().find(|line| line["direction"] == "inbound").expect("inbound");
        assert_eq!(inbound["policy"], "shop/only-admin");
        for line in &lines {
            assert_eq!((&*line["path"], &*line["response_flags"]), ("refused", "DENY"), "{line:?}");
        }
        assert!(!world.wires.dials().contains(&SERVER_APP.parse().unwrap()));
    }
}

#[tokio::test]
async fn a_live_connection_is_cut_when_a_policy_comes_to_refuse_it() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(at, "server", SERVER).await;
        let application = world.listen(SERVER_APP).await;
        world.complete();
        let mut live = world.dial(At::East, &client, SERVER_APP).await;
        live.write_all(b"x").await.unwrap();
        let (mut served, _) = application.accept().await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
        let mut deny = policy("no-client", Action::Deny, of_principal(CLIENT_PRINCIPAL));
        deny.scope = PolicyScope::WorkloadSelector;
        world.tell(|state| state.upsert_policy(deny.clone()));
        live.write_all(b"y").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'y', "it does not select the workload yet");
        world.tell(|state| {
            let mut selected = workload("server", SERVER);
            selected.authorization_policies = vec![deny.name.clone()];
            state.upsert_workload(selected);
        });
        assert!(is_reset(&mut live).await);
        assert!(is_reset(&mut served).await);
        let lines = world.lines(2).await;
        let inbound = lines.iter().find(|line| line["direction"] == "inbound").expect("inbound");
        assert_eq!(inbound["policy"], "shop/no-client");
        assert!(inbound["error"].contains("closed due to policy change"), "{inbound:?}");
    }
}

#[tokio::test]
async fn plaintext_reaches_a_pod_unless_a_policy_demands_an_identity() {
    let world = World::new();
    let server = world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    world.complete();
    let answer = exchange(world.dial_plaintext(At::West, &server, SERVER_APP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    let any = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    world.tell(|state| state.upsert_policy(policy("strict", Action::Deny, any.clone())));
    assert!(is_reset(&mut world.dial_plaintext(At::West, &server, SERVER_APP).await).await);
    let lines = world.lines(2).await;
    assert_eq!((&*lines[0]["path"], &*lines[1]["path"]), ("passthrough", "refused"));
    assert_eq!(lines[1]["policy"], "shop/strict");
    assert!(!lines[1].contains_key("src.identity"));
}

#[tokio::test]
async fn what_the_mesh_does_not_know_passes_unchanged_and_what_it_knows_never_falls_back() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.tell(|state| state.upsert_workload(workload("unreachable", "10.2.0.9")));
    for outside in ["192.0.2.1:443", "10.2.0.9:8080"] {
        world.echo(outside).await;
    }
    world.complete();
    let answer = exchange(world.dial(At::East, &client, "192.0.2.1:443").await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
    // Its proxy takes no connection, but its application would.
    assert!(is_reset(&mut world.dial(At::East, &client, "10.2.0.9:8080").await).await);
    let lines = world.lines(2).await;
    assert_eq!(lines[0]["path"], "passthrough");
    assert_eq!(lines[1]["response_flags"], "CONNECT");
    assert!(!world.wires.dials().contains(&"10.2.0.9:8080".parse().unwrap()));
}

#[tokio::test]
async fn an_application_that_refuses_is_a_reset_to_the_client() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(at, "server", SERVER).await;
        world.complete();
        assert!(is_reset(&mut world.dial(At::East, &client, SERVER_APP).await).await);
        let lines = world.lines(2).await;
        let inbound = lines.iter().find(|line| line["direction"] == "inbound").expect("inbound");
        assert_eq!(inbound["response_flags"], "CONNECT");
    }
}

#[tokio::test]
async fn ports_of_the_mesh_and_foreign_addresses_are_refused_on_every_listener() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.complete();
    for to in ["10.1.0.1:15001", "10.1.0.1:80", "127.0.0.1:15001", "[::1]:15001"] {
        assert!(is_reset(&mut world.dial(At::East, &client, to).await).await, "outbound {to}");
    }
    for to in ["10.1.0.1:15006", "10.1.0.1:15001", "10.1.0.2:80"] {
        assert!(is_reset(&mut world.dial_plaintext(At::East, &client, to).await).await, "plaintext {to}");
    }
    assert!(world.wires.dials().is_empty());
    for to in ["10.2.0.1:15001", "10.2.0.1:15006", "10.2.0.1:15008"] {
        assert!(is_reset(&mut world.dial(At::East, &client, to).await).await, "through a tunnel {to}");
    }
    assert!(world.wires.dials().iter().all(|to| to.port() == 15008), "{:?}", world.wires.dials());
}

#[tokio::test(start_paused = true)]
async fn without_configuration_a_connection_waits_and_is_then_refused() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.echo("192.0.2.1:443").await;
    // Policies may be missing still: the state is not complete.
    assert!(is_reset(&mut world.dial(At::East, &client, "192.0.2.1:443").await).await);
    let lines = world.lines(1).await;
    assert_eq!(lines[0]["response_flags"], "NO_CONFIGURATION");
    assert!(world.wires.dials().is_empty());
}

#[tokio::test]
async fn a_pod_reaches_itself_through_its_service_by_the_same_gate() {
    let world = World::new();
    let pod = world.pod(At::East, "client", CLIENT).await;
    world.echo("10.1.0.1:8080").await;
    world.tell(|state| {
        let service = service_at("client", "10.96.0.1");
        let name = service.name.clone();
        state.upsert_service(service);
        let mut endpoint = workload("client", CLIENT);
        endpoint.services = [(name, [(80, 8080)].into())].into();
        state.upsert_workload(endpoint);
    });
    world.complete();
    let answer = exchange(world.dial(At::East, &pod, "10.96.0.1:80").await, b"me").await.unwrap();
    assert_eq!(answer, b"me");
    let lines = world.lines(2).await;
    assert!(lines.iter().all(|line| line["path"] == "same_node" && line["dst.service"] == "client.shop.svc.cluster.local"));
    world.tell(|state| state.upsert_policy(policy("not-me", Action::Deny, of_principal(CLIENT_PRINCIPAL))));
    assert!(is_reset(&mut world.dial(At::East, &pod, "10.96.0.1:80").await).await);
}

#[tokio::test]
async fn a_draining_node_lets_live_connections_end() {
    let mut world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    let application = world.listen(SERVER_APP).await;
    world.complete();
    let mut live = world.dial(At::East, &client, SERVER_APP).await;
    live.write_all(b"x").await.unwrap();
    let (mut served, _) = application.accept().await.unwrap();
    let drain = world.west.drain.take().unwrap();
    let ended = tokio::spawn(async move { drain.start(&Deadline::new(Duration::from_secs(60))).await });
    live.write_all(b"y").await.unwrap();
    let mut both = [0; 2];
    served.read_exact(&mut both).await.unwrap();
    assert_eq!(&both, b"xy");
    served.write_all(b"bye").await.unwrap();
    drop(served);
    let answer = exchange(live, b"").await.unwrap();
    assert_eq!(answer, b"bye");
    assert_eq!(ended.await.unwrap(), daemon::drain::Drained::Completely);
}

#[tokio::test]
async fn a_pod_whose_workload_is_gone_loses_its_connections() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    let application = world.listen(SERVER_APP).await;
    world.complete();
    let mut live = world.dial(At::East, &client, SERVER_APP).await;
    live.write_all(b"x").await.unwrap();
    let (mut served, _) = application.accept().await.unwrap();
    served.read_u8().await.unwrap();
    world.tell(|state| {
        state.remove_workload(&WorkloadUid::from("Kubernetes//Pod/shop/server"));
    });
    assert!(is_reset(&mut live).await);
    assert!(is_reset(&mut served).await);
}

#[tokio::test]
async fn an_address_that_is_not_the_pods_is_not_shown_to_the_mesh() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(at, "server", SERVER).await;
        world.echo(SERVER_APP).await;
        world.complete();
        for forged in ["10.2.0.9", "fd00::9"] {
            let forged = forged.parse().unwrap();
            assert!(is_reset(&mut world.dial_from(At::East, &client, forged, SERVER_APP).await).await);
        }
        for line in world.lines(2).await {
            assert_eq!((&*line["path"], &*line["response_flags"]), ("refused", "FOREIGN_SOURCE"), "{line:?}");
        }
        assert!(world.wires.dials().is_empty());
    }
}

#[tokio::test]
async fn a_pod_without_an_address_of_the_family_reaches_no_pod_of_it() {
    for at in [At::East, At::West] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        world.pod(at, "server", "fd00::2").await;
        world.echo("[fd00::2]:8080").await;
        world.complete();
        assert!(is_reset(&mut world.dial(At::East, &client, "[fd00::2]:8080").await).await);
        assert_eq!(world.lines(1).await[0]["response_flags"], "FOREIGN_SOURCE");
        assert!(world.wires.dials().is_empty());
    }
}

#[tokio::test]
async fn plaintext_to_another_address_is_refused_also_when_addresses_come_with_the_workload() {
    let world = World::new();
    let server = world.pod_stated_at(At::West, "server", SERVER, Vec::new()).await;
    world.echo("10.2.0.9:8080").await;
    world.echo(SERVER_APP).await;
    let mut early = world.dial_plaintext(At::West, &server, "10.2.0.9:8080").await;
    world.tell(|state| {
        let mut both = workload("server", SERVER);
        both.addresses.push("fd00::2".parse().unwrap());
        state.upsert_workload(both);
    });
    world.complete();
    assert!(is_reset(&mut early).await);
    assert_eq!(world.lines(1).await[0]["response_flags"], "FOREIGN_ADDRESS");
    assert!(world.wires.dials().is_empty());
    let answer = exchange(world.dial_plaintext(At::West, &server, SERVER_APP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
}

#[tokio::test]
async fn with_a_renewed_certificate_come_new_tunnels_and_no_connection_is_lost() {
    let world = World::with_validity(Duration::from_secs(4));
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    let application = world.listen(SERVER_APP).await;
    world.complete();
    let hbone = "10.2.0.1:15008".parse().unwrap();
    let tunnels = || world.wires.dials().iter().filter(|to| **to == hbone).count();
    let mut old = world.dial(At::East, &client, SERVER_APP).await;
    let (mut served, _) = application.accept().await.unwrap();
    let mut same = world.dial(At::East, &client, SERVER_APP).await;
    let (mut served_too, _) = application.accept().await.unwrap();
    assert_eq!(tunnels(), 1, "they share one");
    // From the first renewal on there is a connection that needs a new one.
    let lost = async {
        while tunnels() == 1 {
            let connection = world.dial(At::East, &client, SERVER_APP).await;
            application.accept().await.unwrap();
            drop(connection);
        }
    };
    timeout(Duration::from_secs(10), lost).await.expect("no new tunnel");
    for (client, application) in [(&mut old, &mut served), (&mut same, &mut served_too)] {
        client.write_all(b"x").await.unwrap();
        assert_eq!(application.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn a_dial_that_a_renewal_gives_up_is_made_again_with_the_new_certificate() {
    let world = World::with_validity(Duration::from_secs(4));
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    let slow = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hbone = "10.2.0.1:15008".parse().unwrap();
    let proxy = world.wires.lead(hbone, slow.local_addr().unwrap()).unwrap();
    world.complete();
    let waiting = world.dial(At::East, &client, SERVER_APP).await;
    let (mut held, _) = slow.accept().await.unwrap();
    world.wires.lead(hbone, proxy);
    let serial = || {
        let own = world.node(At::East).identities.snapshot();
        own[0].1.current.as_ref().unwrap().0.serial().to_owned()
    };
    let first = serial();
    while serial() == first {
        tokio::task::yield_now().await;
    }
    // Now the first dial may be finished, too late.
    tokio::spawn(async move {
        let mut proxy = TcpStream::connect(proxy).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut held, &mut proxy).await;
    });
    assert_eq!(exchange(waiting, b"hello").await.unwrap(), b"hello");
    assert_eq!(world.wires.dials().iter().filter(|to| **to == hbone).count(), 2);
}

#[tokio::test]
async fn a_peer_that_does_not_listen_yet_is_waited_for() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    let hbone = "10.2.0.1:15008".parse().unwrap();
    let dials = || world.wires.dials().iter().filter(|to| **to == hbone).count();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = world.wires.lead(hbone, closed).unwrap();
    world.complete();
    let waiting = world.dial(At::East, &client, SERVER_APP).await;
    while dials() == 0 {
        tokio::task::yield_now().await;
    }
    world.wires.lead(hbone, proxy);
    assert_eq!(exchange(waiting, b"hello").await.unwrap(), b"hello");
    assert!(dials() > 1, "it did listen");
}

#[tokio::test]
async fn a_peer_that_never_listens_is_refused() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::West, "server", SERVER).await;
    let hbone = "10.2.0.1:15008".parse().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    world.wires.lead(hbone, closed);
    world.complete();
    assert!(is_reset(&mut world.dial(At::East, &client, SERVER_APP).await).await);
    let lines = world.lines(1).await;
    assert!(lines[0]["error"].contains("refused"), "{:?}", lines[0]);
    assert_eq!(world.wires.dials().iter().filter(|to| **to == hbone).count(), 6);
}
