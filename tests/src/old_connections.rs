//! Connections that were open before their pod joined: whole while they may live on, and gone when they may not.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, bail, ensure};
use sandbox::{Direction, Family, Program, wait};

use crate::Case;
use crate::dial::exchange;
use crate::places::binaries;
use crate::talk::Talk;
use crate::world::{SETTLE, World, pods, ports};

/// What holds whichever way packets are taken.
pub const OLD_CONNECTIONS: &[Case<World>] = &[
    ("connections_in_use_when_their_pod_joins_live_on_byte_exact_and_are_listed", |world| {
        world.while_permissive(survive)
    }),
    ("they_are_cut_when_the_pod_turns_strict_whoever_opened_them", cut_by_strict),
    ("they_are_cut_when_the_pods_annotation_says_so", |world| world.while_permissive(cut_by_annotation)),
    ("they_are_cut_when_the_agent_is_told_so_unless_the_pods_annotation_keeps_them", |world| {
        world.while_permissive(cut_by_the_agent)
    }),
    ("they_live_on_when_the_agent_is_replaced_while_the_nodes_only_pod_leaves", |world| {
        world.while_permissive(replaced_while_leaving)
    }),
    ("what_uninstallation_broke_is_not_listed_as_open_before", |world| world.while_permissive(closing)),
];

/// Moved by each connection before its pod joins, and again afterwards.
const ENOUGH: u64 = 1 << 20;

/// `shop/near` in its manifest: in the mesh, and not.
const IN: &str = "labels: {app: near}";
const OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";
const KEEP: &str = "annotations: {culvert.dev/pre-mesh-connections: keep}\n  labels: {app: near}";
const CUT: &str = "annotations: {culvert.dev/pre-mesh-connections: cut}\n  labels: {app: near}";

/// The Service of `shop/far`.
const FAR: [(&str, &str); 2] = [("10.43.0.3", "10.43.0.3:9000"), ("fd43::3", "[fd43::3]:9000")];

/// Pods outside of the mesh on both nodes, each as client and as server of `near`.
const PAIRS: [(&str, &str); 4] = [
    (pods::OUTSIDER_EAST, pods::NEAR),
    (pods::NEAR, pods::OUTSIDER_EAST),
    (pods::OUTSIDER_WEST, pods::NEAR),
    (pods::NEAR, pods::OUTSIDER_WEST),
];

fn survive(world: &mut World) -> anyhow::Result<()> {
    leave(world, IN)?;
    let mut talks = Vec::new();
    for (family, from, to, stream) in open(world)? {
        talks.push((from, Talk::start(format!("{from} to {to} over {family}"), stream)?));
    }
    let mut idle = open(world)?;
    talks.iter().try_for_each(|(_, talk)| talk.goes_on(ENOUGH, SETTLE)).context("before joining")?;
    join(world, OUT, IN)?;
    talks.iter().try_for_each(|(_, talk)| talk.goes_on(ENOUGH, SETTLE)).context("after joining")?;
    let mut expected = BTreeSet::new();
    for (from, (local, remote)) in talks
        .iter()
        .map(|(from, talk)| Ok((*from, talk.ends()?)))
        .chain(
            idle.iter().map(|(_, from, _, stream)| Ok((*from, (stream.local_addr()?, stream.peer_addr()?)))),
        )
        .collect::<std::io::Result<Vec<_>>>()?
    {
        expected.insert(if from == pods::NEAR { (local, remote) } else { (remote, local) });
    }
    let listed = listed(world)?;
    ensure!(listed == expected, "listed: {listed:?}\nopen: {expected:?}");
    // What is new goes its way through the mesh.
    for family in Family::BOTH {
        let reply = world.fetch(pods::NEAR, pods::OUTSIDER_EAST, family, ports::HTTP)?;
        let local = reply.local.with_context(|| reply.outcome())?;
        world.mesh.access_log().of(local, Direction::Outbound, SETTLE)?;
    }
    idle.iter_mut()
        .enumerate()
        .try_for_each(|(number, open)| exchange(&mut open.3, number))
        .context("idle ones")?;
    for (_, talk) in talks {
        talk.finish()?;
    }
    drop(idle);
    Ok(())
}

fn cut_by_strict(world: &mut World) -> anyhow::Result<()> {
    let mut before = Vec::new();
    world.while_permissive(|world| {
        leave(world, IN)?;
        let open = open(world)?;
        join(world, OUT, IN)?;
        before = ensure_alive(open, world)?;
        Ok(())
    })?;
    ensure_cut(before, world)
}

fn cut_by_annotation(world: &mut World) -> anyhow::Result<()> {
    leave(world, IN)?;
    let before = open(world)?;
    join(world, OUT, CUT)?;
    ensure_cut(before, world).context("annotated when it joined")?;
    leave(world, CUT)?;
    let before = open(world)?;
    join(world, OUT, IN)?;
    let before = ensure_alive(before, world)?;
    world.edit("shop.yaml", IN, CUT)?;
    ensure_cut(before, world).context("annotated afterwards")?;
    world.edit("shop.yaml", CUT, IN)?;
    Ok(())
}

fn cut_by_the_agent(world: &mut World) -> anyhow::Result<()> {
    restart_agent(world, &["--pre-mesh-connections", "cut"])?;
    leave(world, IN)?;
    let before = open(world)?;
    join(world, OUT, IN)?;
    ensure_cut(before, world)?;
    leave(world, IN)?;
    let before = open(world)?;
    join(world, OUT, KEEP)?;
    ensure_alive(before, world).context("kept by the annotation")?;
    world.edit("shop.yaml", KEEP, IN)?;
    restart_agent(world, &[])?;
    Ok(())
}

/// Nobody states `shop/far` to the next agent, nor any other pod of its node; what passes in it is known from what it inherits.
fn replaced_while_leaving(world: &mut World) -> anyhow::Result<()> {
    const IN: &str = "labels: {app: far}";
    const OUT: &str = "labels: {app: far, istio.io/dataplane-mode: none}";
    world.edit("shop.yaml", IN, OUT)?;
    world.until_pod_is("west", "far", None)?;
    let connect = |to, family| world.connect(pods::FAR, world.address(to, family, ports::ECHO)?);
    let both =
        |to| Family::BOTH.into_iter().map(|family| connect(to, family)).collect::<anyhow::Result<Vec<_>>>();
    let mut before = both(pods::OUTSIDER_EAST)?;
    before.iter_mut().try_for_each(|stream| exchange(stream, 0))?;
    world.edit("shop.yaml", OUT, IN)?;
    world.until_pod_is("west", "far", Some("enrolled"))?;
    // What is captured keeps the pod from having left.
    let mut captured = both(pods::NEAR)?;
    captured.iter_mut().try_for_each(|stream| exchange(stream, 1))?;
    world.edit("shop.yaml", IN, OUT)?;
    world.until_pod_is("west", "far", Some("draining"))?;
    world.mesh.agent("west")?.kill()?;
    let node = world.sandbox.node("west")?;
    world.mesh.start_agent(node)?;
    until_west_has(world, &["draining"])?;
    before.iter_mut().try_for_each(|stream| exchange(stream, 2)).context("from before, while it leaves")?;
    captured.iter_mut().try_for_each(|stream| exchange(stream, 3)).context("captured, while it leaves")?;
    drop(captured);
    until_west_has(world, &[])?;
    before.iter_mut().try_for_each(|stream| exchange(stream, 4)).context("from before, when it has left")?;
    world.edit("shop.yaml", OUT, IN)?;
    world.until_pod_is("west", "far", Some("enrolled"))
}

/// The states of the node's pods; nobody tells its agent the name of one that leaves.
fn until_west_has(world: &World, states: &[&str]) -> anyhow::Result<()> {
    let node = world.sandbox.node("west")?;
    let look = || {
        let status = world.mesh.status(node).map_err(|error| error.to_string())?;
        let pods = status["pods"].as_object().map(|pods| pods.values().cloned().collect::<Vec<_>>());
        let found: Vec<_> = pods.iter().flatten().filter_map(|pod| pod["state"].as_str()).collect();
        if found == states { Ok(()) } else { Err(format!("{found:?}")) }
    };
    Ok(wait::try_until(SETTLE, || format!("the pods of west to be {states:?}"), look)?)
}

/// Uninstallation breaks what is captured: the applications' ends stay behind for a while, closing, with nobody at the other end.
fn closing(world: &mut World) -> anyhow::Result<()> {
    let mut captured = Vec::new();
    for (_, service) in FAR {
        let mut stream = world.connect(pods::NEAR, service.parse()?)?;
        exchange(&mut stream, 0)?;
        captured.push(stream);
    }
    let node = world.sandbox.node("east")?;
    // Without a mesh nothing is to answer at the Service's addresses, not even that they are unreachable.
    let routes = |change: &str| {
        FAR.iter().try_for_each(|(address, _)| {
            let program = Program::new("ip").args(["route", change, "blackhole", address]);
            let output = node.exec(&program, SETTLE)?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        })
    };
    routes("add")?;
    world.mesh.agent("east")?.kill()?;
    let program = Program::new(binaries()?.culvert).arg("uninstall");
    let output = node.exec(&program, SETTLE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ends: Vec<_> = captured.iter().map(TcpStream::local_addr).collect::<Result<_, _>>()?;
    drop(captured);
    let kept = open(world)?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    let listed = listed(world)?;
    ensure!(listed.len() == kept.len(), "{} are open, listed are {listed:?}", kept.len());
    ensure!(!listed.iter().any(|(local, _)| ends.contains(local)), "{ends:?} are in {listed:?}");
    ensure_alive(kept, world)?;
    routes("del")
}

type Open = (Family, &'static str, &'static str, TcpStream);

/// One connection for each of [`PAIRS`] and each family.
fn open(world: &World) -> anyhow::Result<Vec<Open>> {
    let mut open = Vec::new();
    for family in Family::BOTH {
        for (from, to) in PAIRS {
            let mut stream = world.connect(from, world.address(to, family, ports::ECHO)?)?;
            exchange(&mut stream, open.len())?;
            open.push((family, from, to, stream));
        }
    }
    Ok(open)
}

fn ensure_alive(mut open: Vec<Open>, world: &World) -> anyhow::Result<Vec<Open>> {
    for (number, (family, from, to, stream)) in open.iter_mut().enumerate() {
        exchange(stream, number).with_context(|| format!("{from} to {to} over {family}"))?;
    }
    let listed = listed(world)?;
    ensure!(listed.len() >= open.len(), "{} of {} are listed", listed.len(), open.len());
    Ok(open)
}

fn ensure_cut(open: Vec<Open>, world: &World) -> anyhow::Result<()> {
    for (family, from, to, mut stream) in open {
        match stream.read(&mut [0; 1]) {
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted) => {}
            other => bail!("{from} to {to} over {family} is not reset: {other:?}"),
        }
    }
    let none = || match listed(world) {
        Ok(listed) if listed.is_empty() => Ok(()),
        Ok(listed) => Err(format!("{listed:?}")),
        Err(error) => Err(error.to_string()),
    };
    Ok(wait::try_until(SETTLE, || "none to be listed any more".into(), none)?)
}

/// What `culvert status` lists of `near`: its own end, and the other.
fn listed(world: &World) -> anyhow::Result<BTreeSet<(SocketAddr, SocketAddr)>> {
    let status = world.mesh.status(world.sandbox.node("east")?)?;
    let pods = status["pods"].as_object().context("no pods")?;
    let near = pods.values().find(|pod| pod["name"] == "near").context("near is not listed")?;
    let listed = near["pre_mesh"].as_array().context("no list")?.iter().map(|connection| {
        let end = |name: &str| anyhow::Ok(connection[name].as_str().context("no end")?.parse()?);
        Ok((end("local")?, end("remote")?))
    });
    listed.collect()
}

fn leave(world: &World, now: &str) -> anyhow::Result<()> {
    world.edit("shop.yaml", now, OUT)?;
    world.until_pod_is("east", "near", None)
}

fn join(world: &World, now: &str, then: &str) -> anyhow::Result<()> {
    world.edit("shop.yaml", now, then)?;
    world.until_pod_is("east", "near", Some("enrolled"))
}

fn restart_agent(world: &mut World, arguments: &[&str]) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    world.mesh.agent("east")?.kill()?;
    world.mesh.set_agent_arguments(arguments);
    world.mesh.start_agent(node)?;
    Ok(world.mesh.wait_ready(node)?)
}
