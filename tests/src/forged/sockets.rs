//! The unix sockets of a node: who is let in, and who may be its ztunnel.

use std::net::TcpListener;
use std::process::Output;

use anyhow::{Context, ensure};
use sandbox::{Family, Place, Program, wait};

use super::{AGENT, Count, Log, ZTUNNEL, metric};
use crate::echo;
use crate::world::{SETTLE, World, pods, ports};

/// Where a node's sockets are.
const DIRECTORY: &str = "/run/culvert";
/// `nobody`, as good as any other user that is not root.
const NOBODY: &str = "65534";
/// What a ztunnel says first: `ZdsHello { version: V1 }`.
const HELLO: &str = "\\x08\\x01";
/// The map of the cgroups that are exempt from capture, as a label.
const EXEMPT: &str = "map=\"EXEMPT_CGROUPS\"";
/// A request of HTTP.
const GET: &str = "GET /status HTTP/1.0\\x0d\\x0a\\x0d\\x0a";

fn knock(path: &str) -> anyhow::Result<Program> {
    Ok(Program::new(echo()?).args(["knock", &format!("{DIRECTORY}/{path}")]))
}

/// How many bytes a visitor got before it was shown out.
fn received(output: &Output) -> anyhow::Result<u64> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

fn chmod(world: &World, mode: &str, path: &str) -> anyhow::Result<()> {
    let program = Program::new("chmod").args([mode, path]);
    let output = world.sandbox.node("east")?.exec(&program, SETTLE)?;
    ensure!(output.status.success(), "chmod {mode} {path}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn mode(world: &World, path: &str) -> anyhow::Result<String> {
    let program = Program::new("stat").args(["-c", "%a", path]);
    let output = world.sandbox.node("east")?.exec(&program, SETTLE)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(super) fn other_user(world: &mut World) -> anyhow::Result<()> {
    ensure!(mode(world, DIRECTORY)? == "700", "{DIRECTORY} has the mode {}", mode(world, DIRECTORY)?);
    let sockets = [
        ("agent.sock", GET, AGENT, "agent-east"),
        ("xds.sock", "PRI * HTTP/2.0\\x0d\\x0a\\x0d\\x0aSM\\x0d\\x0a\\x0d\\x0a", AGENT, "agent-east"),
        ("zds.sock", HELLO, AGENT, "agent-east"),
        ("ztunnel-admin.sock", GET, ZTUNNEL, "ztunnel-east"),
    ];
    chmod(world, "777", DIRECTORY)?;
    for (name, words, process, log) in sockets {
        let path = format!("{DIRECTORY}/{name}");
        ensure!(mode(world, &path)? == "600", "{name} has the mode {}", mode(world, &path)?);
        chmod(world, "777", &path)?;
        let label = format!("socket=\"{name}\"");
        let counted = Count::from_now(world, process, "culvert_local_socket_refusals_total", &[&label])?;
        let log = Log::from_now(world, log);
        let mut program = knock(name)?.args(["--user", NOBODY, "--say", words]);
        if name == "zds.sock" {
            program = program.arg("--seqpacket");
        }
        let output = world.sandbox.node("east")?.exec(&program, SETTLE)?;
        let received = received(&output).with_context(|| name.to_owned())?;
        ensure!(received == 0, "{name} told another user {received} bytes");
        counted.grows_by(world, 1)?;
        log.tells(&["was refused", name, &format!("user {NOBODY}")])?;
        chmod(world, "600", &path)?;
    }
    chmod(world, "700", DIRECTORY)?;
    // Our own user is still served.
    for (name, _, _, _) in sockets.iter().filter(|(_, words, _, _)| *words == GET) {
        let output = world.sandbox.node("east")?.exec(&knock(name)?.args(["--say", GET]), SETTLE)?;
        ensure!(received(&output)? > 0, "{name} does not answer its owner");
    }
    Ok(())
}

/// A process of root that is no ztunnel: on the node, and in a pod's cgroup with the node's namespaces.
pub(super) fn stranger(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    let in_session = node.place("session")?;
    let pod = world.sandbox.pod(pods::CLIENT)?;
    let in_pod = Place { cgroup: pod.place("exec")?.cgroup, ..in_session.clone() };
    let exempt = || metric(world, "east", AGENT.1, "culvert_bpf_map_entries", &[EXEMPT]);
    let before = exempt()?;
    for (place, reason, named) in
        [(in_session, "elsewhere", "session"), (in_pod, "pod_cgroup", pod.spec().uid.as_str())]
    {
        let label = format!("reason=\"{reason}\"");
        let counted = Count::from_now(world, AGENT, "culvert_ztunnel_refusals_total", &[&label])?;
        let log = Log::from_now(world, "agent-east");
        let output = knock("zds.sock")?.args(["--seqpacket", "--say", HELLO]).output(&place, SETTLE)?;
        ensure!(received(&output)? == 0, "{reason}: it was told something");
        counted.grows_by(world, 1)?;
        log.tells(&["a ztunnel was refused", named])?;
        ensure!(exempt()? == before, "{reason}: its cgroup is exempt from capture");
    }
    let active = active_ztunnel(world)?;
    ensure!(active == Some(u64::from(world.mesh.ztunnel("east")?.pid())), "the active ztunnel is {active:?}");
    Ok(())
}

fn active_ztunnel(world: &World) -> anyhow::Result<Option<u64>> {
    let status = world.mesh.status(world.sandbox.node("east")?)?;
    let last = status["ztunnels"].as_array().and_then(|all| all.last()).map(|last| last["pid"].clone());
    Ok(last.and_then(|pid| pid.as_u64()))
}

/// One that runs where ztunnels do takes the active one's place, as a successor must be able to; that is never silent, and when it
/// does not do a ztunnel's work the former one is active again.
pub(super) fn second(world: &mut World) -> anyhow::Result<()> {
    let own = u64::from(world.mesh.ztunnel("east")?.pid());
    let node = world.sandbox.node("east")?;
    let second = node.place("ztunnel/second")?;
    let takeovers = Count::from_now(world, AGENT, "culvert_ztunnel_takeovers_total", &[])?;
    let log = Log::from_now(world, "agent-east");
    let program = knock("zds.sock")?.args(["--seqpacket", "--say", HELLO]);
    let mut intruder = program.spawn(&second, &world.mesh.directory().join("second.log"))?;
    let named = log.tells(&["takes the place of the active one", "ztunnel/second", "echo"])?;
    ensure!(named.contains(&format!("former={own}")), "{named}");
    takeovers.grows_by(world, 1)?;
    // It answers nothing, which ends it.
    intruder.exited(SETTLE)?.context("the second ztunnel is still connected")?;
    wait::until(
        SETTLE,
        || "the former ztunnel to be active".into(),
        || (active_ztunnel(world).ok()? == Some(own)).then_some(()),
    )?;
    for family in Family::BOTH {
        ensure!(world.fetch(pods::CLIENT, pods::FAR, family, ports::HTTP)?.ok(), "{family}: no answer");
    }
    Ok(())
}

pub(super) fn pruned(world: &mut World) -> anyhow::Result<()> {
    pruned_on(world, "west", |world| Ok(world.mesh.wait_ready(world.sandbox.node("west")?)?))
}

/// Such a pod is attached inward, for as long as it is strict, and served by no ztunnel.
pub(super) fn pruned_beside_one_that_is_shut_out(world: &mut World) -> anyhow::Result<()> {
    world.leave_near()?;
    let application = world.sandbox.pod(pods::NEAR)?.net().run(|| TcpListener::bind("0.0.0.0:15001"))??;
    world.want_near()?;
    world.until_near_is(Some("preparing"))?;
    pruned_on(world, "east", |world| {
        world.until_pod_is("east", "client", Some("enrolled"))?;
        world.until_near_is(Some("preparing"))
    })?;
    drop(application);
    world.until_near_is(Some("enrolled"))
}

/// `ready` is when the agent has dealt with the pods of its node.
fn pruned_on(
    world: &mut World,
    name: &str,
    ready: impl Fn(&mut World) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // An agent's, ztunnel's, and for a minute that of a ztunnel which has ended.
    let before = metric(world, name, AGENT.1, "culvert_bpf_map_entries", &[EXEMPT])?;
    // Listeners are of the first, and so are the connections accepted from them.
    for (former, next) in [("agent", "agent-2"), ("agent-2", "agent-3")] {
        world.mesh.agent(name)?.kill()?;
        world.sandbox.node(name)?.place(former)?.cgroup.remove()?;
        world.mesh.start_agent_in(world.sandbox.node(name)?, next)?;
        ready(world)?;
    }
    let exempt = || metric(world, name, AGENT.1, "culvert_bpf_map_entries", &[EXEMPT]);
    wait::try_until(
        SETTLE,
        || format!("one exempt cgroup more than the {before} there were"),
        || match exempt() {
            Ok(now) if now == before + 1 => Ok(()),
            Ok(other) => Err(format!("there are {other}")),
            Err(error) => Err(error.to_string()),
        },
    )?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
        world.answered_within(SETTLE, pods::FAR, pods::CLIENT, family)?;
    }
    world.mesh.agent(name)?.kill()?;
    world.mesh.start_agent(world.sandbox.node(name)?)?;
    ready(world)?;
    Ok(())
}
