//! Pods whose ztunnel makes its listeners by itself and has one mark for all its sockets, as Istio's: the agent leads connections to those
//! listeners, to the next ztunnel's once there is one, and to nobody while there is none.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use sandbox::{AccessLog, Direction, Family, Reply};

use crate::Case;
use crate::world::{SETTLE, World, identity, pods, ports};

/// How long a request may go without an answer that is refused.
const NO_ANSWER: Duration = Duration::from_secs(2);

/// The cases; they look at what Istio's ztunnel writes too.
pub const OWN_LISTENERS: &[Case<World>] = &[
    ("pods_reach_each_other_with_proved_identities_and_their_own_addresses", reach),
    ("an_identity_that_a_policy_refuses_is_refused", refused),
    ("what_comes_without_identity_is_refused_under_strict_and_seen_as_it_is_under_permissive", plaintext),
    ("what_is_outside_the_mesh_is_called_as_it_is", outside),
    ("a_pod_that_leaves_is_called_as_it_is_and_is_captured_again_when_it_is_back", leave),
    ("a_successor_takes_over_while_the_old_one_drains", successor),
    ("without_a_ztunnel_connections_are_refused_until_there_is_another", killed),
    ("pods_go_on_while_the_agent_is_away_and_a_ztunnel_that_came_meanwhile_is_found", agent_away),
];

fn ensure_seen(reply: &Reply, world: &World, client: &str, family: Family) -> anyhow::Result<()> {
    let line = reply.body.lines().find_map(|line| line.strip_prefix("peer="));
    let peer: std::net::SocketAddr = line.with_context(|| reply.outcome())?.parse()?;
    let expected = world.sandbox.pod(client)?.address(family)?;
    ensure!(peer.ip() == expected, "the server saw {peer}, not {expected}");
    Ok(())
}

/// A request that is answered, seen from the client's own address, and led by both ends' identities.
fn ensure_carried(world: &World, client: &str, server: &str, family: Family) -> anyhow::Result<()> {
    let log: AccessLog = world.mesh.access_log().from_now();
    let reply = world.answered_within(SETTLE, client, server, family)?;
    ensure_seen(&reply, world, client, family)?;
    let local = reply.local.context("no connection")?;
    let entry = log.of(local, Direction::Outbound, SETTLE)?;
    let account = |pod: &str| pod.split_once('/').map(|(namespace, name)| identity(namespace, name));
    ensure!(entry.source_identity == account(client), "{entry:?}");
    ensure!(entry.destination_identity == account(server), "{entry:?}");
    ensure!(entry.error.is_none(), "{entry:?}");
    Ok(())
}

fn ensure_all_carried(world: &World) -> anyhow::Result<()> {
    for (client, server) in [(pods::CLIENT, pods::NEAR), (pods::CLIENT, pods::FAR), (pods::FAR, pods::NEAR)] {
        for family in Family::BOTH {
            ensure_carried(world, client, server, family)
                .with_context(|| format!("{client} to {server} over {family}"))?;
        }
    }
    Ok(())
}

fn reach(world: &mut World) -> anyhow::Result<()> {
    // Often enough that ports of all kinds come up.
    (0..50).try_for_each(|_| ensure_all_carried(world))
}

fn refused(world: &mut World) -> anyhow::Result<()> {
    for server in [pods::NEAR, pods::FAR] {
        for family in Family::BOTH {
            let request = world.request(server, family, ports::HTTP)?.within(NO_ANSWER);
            let reply = request.from_pod(world.sandbox.pod(pods::INTRUDER)?)?;
            ensure!(!reply.ok() && reply.exit != 28, "{server} {family}: {}", reply.outcome());
        }
    }
    Ok(())
}

fn plaintext(world: &mut World) -> anyhow::Result<()> {
    // On one node, since the marker is not to cross the link in plaintext.
    let client = pods::OUTSIDER_EAST;
    let each = |check: &dyn Fn(Family) -> anyhow::Result<()>| Family::BOTH.into_iter().try_for_each(check);
    each(&|family| world.refused_within(SETTLE, client, pods::NEAR, family))?;
    world.take_plaintext(true)?;
    let seen = each(&|family| {
        let reply = world.answered_within(SETTLE, client, pods::NEAR, family)?;
        ensure_seen(&reply, world, client, family)
    });
    world.take_plaintext(false)?;
    seen?;
    each(&|family| world.refused_within(SETTLE, client, pods::NEAR, family))
}

fn outside(world: &mut World) -> anyhow::Result<()> {
    // Without the marker, which is not to cross the link in plaintext.
    for server in [pods::OUTSIDER_EAST, pods::OUTSIDER_WEST] {
        for family in Family::BOTH {
            let url = format!("http://{}/", world.address(server, family, ports::HTTP)?);
            let reply = sandbox::Fetch::new(url).from_pod(world.sandbox.pod(pods::CLIENT)?)?;
            ensure!(reply.ok(), "{server} {family}: {}", reply.outcome());
            ensure_seen(&reply, world, pods::CLIENT, family)?;
        }
    }
    Ok(())
}

fn leave(world: &mut World) -> anyhow::Result<()> {
    world.leave_near()?;
    for family in Family::BOTH {
        let reply = world.answered_within(SETTLE, pods::OUTSIDER_EAST, pods::NEAR, family)?;
        ensure_seen(&reply, world, pods::OUTSIDER_EAST, family)?;
    }
    world.join_near()?;
    for family in Family::BOTH {
        world.refused_within(SETTLE, pods::OUTSIDER_EAST, pods::NEAR, family)?;
    }
    ensure_all_carried(world)
}

fn successor(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("west")?;
    let mut old = world.mesh.replace_ztunnel(node)?;
    world.mesh.wait_ready(node)?;
    ensure_all_carried(world)?;
    ensure!(old.exited(Duration::from_secs(40))?.is_some(), "the old one does not end");
    ensure_all_carried(world)
}

fn ensure_nothing_passes(world: &World) -> anyhow::Result<()> {
    for (client, server) in
        [(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::OUTSIDER_EAST), (pods::OUTSIDER_EAST, pods::NEAR)]
    {
        for family in Family::BOTH {
            let request = world.request(server, family, ports::HTTP)?.within(NO_ANSWER);
            let reply = request.from_pod(world.sandbox.pod(client)?)?;
            ensure!(!reply.ok(), "{client} to {server} over {family}: {}", reply.outcome());
        }
    }
    Ok(())
}

fn killed(world: &mut World) -> anyhow::Result<()> {
    world.mesh.kill_ztunnel("east")?;
    ensure_nothing_passes(world)?;
    let node = world.sandbox.node("east")?;
    world.mesh.start_ztunnel(node)?;
    world.mesh.wait_ready(node)?;
    ensure_all_carried(world)
}

fn agent_away(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    world.mesh.agent("east")?.signal(Signal::SIGTERM)?;
    ensure!(world.mesh.agent("east")?.exited(Duration::from_secs(20))?.is_some(), "the agent does not end");
    ensure_all_carried(world)?;
    world.mesh.kill_ztunnel("east")?;
    ensure_nothing_passes(world)?;
    world.mesh.start_ztunnel(node)?;
    ensure_nothing_passes(world)?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    ensure_all_carried(world)
}
