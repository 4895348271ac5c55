//! Two networks with a gateway between them: a tunnel through a tunnel.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use e2e::Case;
use e2e::steady::Live;
use e2e::world::{MARKER, SETTLE, World, identity, pods, ports};
use sandbox::{AccessEntry, AccessLog, Direction, Fetch, Redirection, wait};

const SERVICE: [&str; 2] = ["10.43.0.20", "[fd43::20]"];

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[
        ("a_service_of_another_network_is_reached_through_its_gateway_and_each_end_knows_the_other", reached),
        ("policy_at_the_far_end_judges_the_client_and_not_the_gateway", judged),
    ];
    e2e::run(start, CASES, World::explain)
}

/// The proxy of `west` is told its network, as its DaemonSet there would tell it.
fn start() -> anyhow::Result<World> {
    let mut world = World::of("networks", Redirection::Auto)?;
    world.mesh.set_ztunnel_env("NETWORK", "far");
    world.mesh.kill_ztunnel("west")?;
    let west = world.sandbox.node("west")?;
    world.mesh.start_ztunnel(west)?;
    world.mesh.wait_ready(west)?;
    Ok(world)
}

fn answered(world: &World, host: &str) -> anyhow::Result<()> {
    let request = Fetch::new(format!("http://{host}/")).header("x-marker", MARKER);
    let client = world.sandbox.pod(pods::CLIENT)?;
    wait::try_until(
        SETTLE,
        || format!("an answer of {host}"),
        || match request.from_pod(client) {
            Ok(reply) if reply.ok() => Ok(()),
            Ok(reply) => Err(reply.outcome()),
            Err(error) => Err(error.to_string()),
        },
    )?;
    Ok(())
}

/// The line of a side about a workload that the client called by the service's name and this port. Earlier calls are of other ports: their
/// lines may still be on their way.
fn line(log: &AccessLog, direction: Direction, workload: &str, port: u16) -> anyhow::Result<AccessEntry> {
    let called = format!("far.shop.svc.cluster.local:{port}");
    Ok(log.find(
        SETTLE,
        || format!("a line of {workload} for {called}"),
        |entry| {
            entry.direction == Some(direction)
                && entry.destination_workload.as_deref() == Some(workload)
                && entry.others["dst.hbone_addr"] == called
        },
    )?)
}

fn reached(world: &mut World) -> anyhow::Result<()> {
    let (client, far, gate) = (identity("shop", "client"), identity("shop", "far"), identity("shop", "gate"));
    for host in SERVICE {
        answered(world, host)?;
        let log = world.mesh.access_log().from_now();
        let mut live = Live::to(world, pods::CLIENT, format!("{host}:9000").parse()?, host)?;
        live.exchange()?;
        drop(live);
        for (direction, workload, path, server) in [
            (Direction::Outbound, "gate", "other_network", &far),
            (Direction::Inbound, "gate", "other_network", &gate),
            (Direction::Inbound, "far", "other_node", &far),
        ] {
            let entry = line(&log, direction, workload, ports::ECHO)?;
            ensure!(entry.path.as_deref() == Some(path), "{entry:?}");
            ensure!(entry.source_identity.as_deref() == Some(&client), "{entry:?}");
            ensure!(entry.destination_identity.as_deref() == Some(server), "{entry:?}");
            ensure!(entry.error.is_none(), "{entry:?}");
        }
    }
    world.ensure_no_marker()
}

fn judged(world: &mut World) -> anyhow::Result<()> {
    let policy = |principal: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: only, namespace: shop}}\n\
             spec:\n  selector: {{matchLabels: {{app: far}}}}\n  \
             rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/{principal}]}}}}]}}]\n"
        )
    };
    world.write("only.yaml", &policy("gate"))?;
    world.until_in_effect("only-the-gate")?;
    let log = world.mesh.access_log().from_now();
    let reply = Fetch::new(format!("http://{}/", SERVICE[0])).from_pod(world.sandbox.pod(pods::CLIENT)?)?;
    ensure!(reply.reset(), "{}", reply.outcome());
    log.find(
        SETTLE,
        || "a refusal at the far end".to_owned(),
        |entry| {
            entry.direction == Some(Direction::Inbound)
                && entry.destination_workload.as_deref() == Some("far")
                && entry.policy.as_deref() == Some("shop/only")
        },
    )?;
    world.write("only.yaml", &policy("client"))?;
    world.until_in_effect("only-the-client")?;
    SERVICE.iter().try_for_each(|host| answered(world, host)).context("the client is allowed")
}
