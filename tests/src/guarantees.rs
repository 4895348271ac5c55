//! The core guarantees, each checked over IPv4 and IPv6. They hold whatever the way packets are taken, so that every
//! way runs the same list.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use anyhow::{Context, ensure};
use sandbox::{Direction, Family, Fetch, Program};

use crate::world::{MARKER, SETTLE, STRICT, World, identity, pods, ports};
use crate::{Case, echo};

/// Connections of the flood, for each family.
const CONNECTIONS: u64 = 10_000;

/// How long the flood may take; 30 s were seen on 2 cores.
const FLOOD_DEADLINE: Duration = Duration::from_secs(240);

/// A client that is to get no answer waits that long for it.
const NO_ANSWER: Duration = Duration::from_secs(1);

/// The guarantees, in the order they are to be checked: the last one looks at the whole run.
pub const GUARANTEES: &[Case<World>] = &[
    ("pods_reach_services_by_name_and_pods_by_address_with_mutual_tls_between_nodes", calls),
    ("the_server_sees_the_clients_own_address", source_address),
    ("a_pod_that_calls_its_own_service_reaches_itself", hairpin),
    ("a_strict_pod_refuses_plaintext_from_its_own_and_from_the_other_node", strict),
    ("the_meshs_own_ports_refuse_whoever_dials_them", own_ports),
    ("an_unauthorized_identity_is_refused_and_logged_with_the_policys_name", unauthorized),
    ("kubelets_probes_succeed_under_strict", probes),
    ("nothing_but_kubelets_probes_to_declared_ports_passes_beside_the_mesh", only_probes),
    ("resets_closed_ports_and_half_closed_connections_reach_the_client_as_they_are", faithful),
    ("a_reader_that_does_not_read_holds_its_writer_back", back_pressure),
    ("ten_thousand_short_connections_to_the_other_node_arrive_byte_exact", flood),
    ("ten_thousand_short_connections_within_a_node_arrive_byte_exact", flood_near),
    ("a_dead_ztunnel_means_refused_and_not_bypassed", dead_ztunnel),
    ("no_plaintext_crossed_the_link_between_the_nodes_in_the_whole_run", sealed),
];

fn calls(world: &mut World) -> anyhow::Result<()> {
    let client = world.sandbox.pod(pods::CLIENT)?;
    for family in Family::BOTH {
        for (server, path) in [("near", "same_node"), ("far", "other_node")] {
            let named = Fetch::new(format!("http://{server}.shop/")).over(family).header("x-marker", MARKER);
            let pod = format!("shop/{server}");
            for reply in [named.from_pod(client)?, world.fetch(pods::CLIENT, &pod, family, ports::HTTP)?] {
                let what = format!("{family} to {server}");
                ensure!(
                    reply.ok() && reply.body.contains(&format!("pod={server}\n")),
                    "{what}: {}",
                    reply.outcome()
                );
                let local = reply.local.context("no local address")?;
                let entry = world.mesh.access_log().of(local, Direction::Outbound, SETTLE)?;
                let both = (entry.source_identity.as_deref(), entry.destination_identity.as_deref());
                let expected = (identity("shop", "client"), identity("shop", server));
                ensure!(both == (Some(&*expected.0), Some(&*expected.1)), "{what}: {entry:?}");
                ensure!(entry.path.as_deref() == Some(path), "{what}: {entry:?}");
                let tls = (path == "other_node").then_some("TLSv1.3");
                ensure!(entry.tls_version.as_deref() == tls, "{what}: {entry:?}");
            }
        }
    }
    Ok(())
}

fn source_address(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let client = world.sandbox.pod(pods::CLIENT)?.address(family)?;
        for server in [pods::NEAR, pods::FAR] {
            let reply = world.fetch(pods::CLIENT, server, family, ports::HTTP)?;
            let peer = reply.body.lines().find_map(|line| line.strip_prefix("peer="));
            let peer: Option<std::net::SocketAddr> = peer.and_then(|peer| peer.parse().ok());
            ensure!(
                peer.map(|peer| peer.ip()) == Some(client),
                "{family} {server}: {} {}",
                reply.outcome(),
                reply.body
            );
        }
    }
    Ok(())
}

fn hairpin(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let reply = Fetch::new("http://near.shop/").over(family).from_pod(world.sandbox.pod(pods::NEAR)?)?;
        ensure!(reply.ok() && reply.body.contains("pod=near\n"), "{family}: {}", reply.outcome());
    }
    Ok(())
}

fn strict(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        // On the node itself, so that the marker stays there; between nodes without it.
        let client = world.sandbox.pod(pods::OUTSIDER_EAST)?.address(family)?;
        let near = || world.fetch(pods::OUTSIDER_EAST, pods::NEAR, family, ports::HTTP);
        world.ensure_refused(client, STRICT, near).with_context(|| format!("{family}, same node"))?;
        let outsider = world.sandbox.pod(pods::OUTSIDER_WEST)?;
        let url = format!("http://{}/", world.address(pods::NEAR, family, ports::HTTP)?);
        let far = || Ok(Fetch::new(url).from_pod(outsider)?);
        let client = outsider.address(family)?;
        world.ensure_refused(client, STRICT, far).with_context(|| format!("{family}, other node"))?;
    }
    Ok(())
}

fn own_ports(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for port in [15001, 15006, 15008] {
            for from in [pods::OUTSIDER_EAST, pods::CLIENT, pods::NEAR] {
                let request = world.request(pods::NEAR, family, port)?.within(NO_ANSWER);
                let reply = request.from_pod(world.sandbox.pod(from)?)?;
                ensure!(!reply.ok(), "{family}: port {port} answered {from}: {}", reply.outcome());
            }
        }
    }
    world.mesh.check_alive()?;
    Ok(())
}

fn unauthorized(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let client = world.sandbox.pod(pods::INTRUDER)?.address(family)?;
        for server in [pods::NEAR, pods::FAR] {
            let send = || world.fetch(pods::INTRUDER, server, family, ports::HTTP);
            let entry = world.ensure_refused(client, "shop/no-guests", send);
            let entry = entry.with_context(|| format!("{family} {server}"))?;
            ensure!(entry.source_identity.as_deref() == Some(&identity("guest", "intruder")), "{entry:?}");
        }
    }
    Ok(())
}

fn probes(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for (node, pod) in [("east", pods::NEAR), ("east", pods::INTRUDER), ("west", pods::FAR)] {
            let url = format!("http://{}/healthz", world.address(pod, family, ports::HTTP)?);
            let reply = Fetch::new(url).from_kubelet(world.sandbox.node(node)?)?;
            ensure!(reply.ok(), "{family} kubelet of {node} to {pod}: {}", reply.outcome());
        }
    }
    Ok(())
}

fn only_probes(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    for family in Family::BOTH {
        let [v4, v6] = node.addresses();
        let client = if family == Family::V4 { v4 } else { v6 };
        let probed = world.request(pods::NEAR, family, ports::HTTP)?;
        let not_kubelet = || Ok(probed.from_node(node)?);
        world
            .ensure_refused(client, STRICT, not_kubelet)
            .with_context(|| format!("{family}: not kubelet"))?;
        let other = world.request(pods::NEAR, family, ports::RESET)?;
        let kubelet = || Ok(other.from_kubelet(node)?);
        world
            .ensure_refused(client, STRICT, kubelet)
            .with_context(|| format!("{family}: a port that is not probed"))?;
    }
    Ok(())
}

fn faithful(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for server in [pods::NEAR, pods::FAR] {
            for port in [ports::RESET, ports::CLOSED] {
                let reply = world.fetch(pods::CLIENT, server, family, port)?;
                ensure!(reply.reset(), "{family} {server} port {port}: {}", reply.outcome());
            }
            let mut stream = world.connect(pods::CLIENT, world.address(server, family, ports::SINK)?)?;
            stream.write_all(b"to the end")?;
            stream.set_read_timeout(Some(Duration::from_millis(300)))?;
            let early = stream.read(&mut [0; 1]).map_err(|error| error.kind());
            ensure!(
                early == Err(ErrorKind::WouldBlock),
                "{family} {server}: {early:?} before the client's end"
            );
            stream.set_read_timeout(Some(SETTLE))?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.starts_with("10 "), "{family} {server}: {answer:?}");
        }
    }
    Ok(())
}

fn back_pressure(world: &mut World) -> anyhow::Result<()> {
    for server in [pods::NEAR, pods::FAR] {
        let target = world.address(server, Family::V4, ports::SILENT)?.to_string();
        let output =
            world.sandbox.pod(pods::CLIENT)?.exec(&Program::new(echo()?).args(["push", &target]), SETTLE)?;
        let taken: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        ensure!(
            (1..128 << 20).contains(&taken),
            "{server}: {taken} bytes were taken by a reader that does not read"
        );
    }
    Ok(())
}

fn flood(world: &mut World) -> anyhow::Result<()> {
    Family::BOTH.into_iter().try_for_each(|family| flood_to(world, pods::FAR, family))
}

fn flood_near(world: &mut World) -> anyhow::Result<()> {
    Family::BOTH.into_iter().try_for_each(|family| flood_to(world, pods::NEAR, family))
}

fn flood_to(world: &World, server: &str, family: Family) -> anyhow::Result<()> {
    let program = Program::new(echo()?)
        .args(["flood", "--connections", &CONNECTIONS.to_string(), "--marker", MARKER])
        .args(["--echo", &world.address(server, family, ports::ECHO)?.to_string()])
        .args(["--sink", &world.address(server, family, ports::SINK)?.to_string()]);
    let output = world.sandbox.pod(pods::CLIENT)?.exec(&program, FLOOD_DEADLINE)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{family}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(report["ok"] == CONNECTIONS, "{family}: {text}");
    println!("    {server} over {family}: {}", text.trim());
    Ok(())
}

fn dead_ztunnel(world: &mut World) -> anyhow::Result<()> {
    world.mesh.kill_ztunnel("east")?;
    for family in Family::BOTH {
        for (from, to) in [
            (pods::CLIENT, pods::FAR),
            (pods::CLIENT, pods::NEAR),
            // Neither leaves the mesh's pods in plaintext what would have been passed through in plaintext.
            (pods::CLIENT, pods::OUTSIDER_EAST),
            (pods::OUTSIDER_EAST, pods::NEAR),
            (pods::FAR, pods::NEAR),
        ] {
            let request = world.request(to, family, ports::HTTP)?.within(NO_ANSWER);
            let reply = request.from_pod(world.sandbox.pod(from)?)?;
            ensure!(reply.exit != 0 && reply.status == 0, "{family} {from} to {to}: {}", reply.outcome());
        }
    }
    let node = world.sandbox.node("east")?;
    world.mesh.start_ztunnel(node)?;
    world.mesh.wait_ready(node)?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
        world.answered_within(SETTLE, pods::FAR, pods::NEAR, family)?;
    }
    Ok(())
}

fn sealed(world: &mut World) -> anyhow::Result<()> {
    let traffic = world.capture.take().context("the capture has ended before")?.finish()?;
    ensure!(traffic.missed == 0, "packets were not looked at: {traffic:?}");
    // A quick run, and what segmentation offload makes of large writes, are few packets.
    ensure!(traffic.packets > 100 && traffic.bytes > 1 << 20, "the run sent hardly anything: {traffic:?}");
    ensure!(traffic.markers == 0, "plaintext on the wire: {traffic:?}");
    Ok(())
}
