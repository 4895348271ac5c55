//! Changes while the mesh runs: of the manifests, of its programs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::Case;
use e2e::world::{MARKER, SETTLE, STRICT, World, pods, ports};
use sandbox::{Family, Redirection, wait};

/// What the control plane promises for a changed file.
const RELOAD: Duration = Duration::from_secs(1);

/// One try at a request must not use up the second.
const TRY: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[
        ("a_changed_policy_is_in_effect_within_a_second", reload),
        ("a_manifest_that_cannot_be_read_leaves_the_last_good_state", bad_manifest),
        ("a_pod_that_leaves_the_mesh_takes_plaintext_and_one_that_joins_refuses_it", leave_and_join),
        ("traffic_goes_on_while_the_agent_is_dead_and_after_its_restart", agent_restart),
        ("a_connection_made_while_ztunnel_restarts_is_answered_by_its_successor", ztunnel_restart),
        ("ztunnel_drains_what_is_open_while_its_successor_serves_what_is_new", drain),
        ("no_plaintext_crossed_the_link_between_the_nodes_meanwhile", sealed),
    ];
    e2e::run(|| World::start(Redirection::Auto), CASES, World::explain)
}

/// Waits until a request from the pod comes out as wanted.
fn until_answered(
    world: &World,
    from: &str,
    to: &str,
    wanted: bool,
    deadline: Duration,
) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    for family in Family::BOTH {
        let request = world.request(to, family, ports::HTTP)?.within(TRY);
        let client = world.sandbox.pod(from)?;
        let what = || format!("{from} {} by {to} over {family}", if wanted { "answered" } else { "refused" });
        wait::try_until(deadline, what, || match request.from_pod(client) {
            Ok(reply) if reply.ok() == wanted => Ok(()),
            Ok(reply) => Err(reply.outcome()),
            Err(error) => Err(error.to_string()),
        })?;
    }
    Ok(begin.elapsed())
}

fn reload(world: &mut World) -> anyhow::Result<()> {
    until_answered(world, pods::INTRUDER, pods::FAR, false, SETTLE)?;
    world.edit("policies.yaml", "namespaces: [guest]", "namespaces: [nobody]")?;
    until_answered(world, pods::INTRUDER, pods::FAR, true, RELOAD)?;
    world.edit("policies.yaml", "namespaces: [nobody]", "namespaces: [guest]")?;
    until_answered(world, pods::INTRUDER, pods::FAR, false, RELOAD)?;
    Ok(())
}

fn bad_manifest(world: &mut World) -> anyhow::Result<()> {
    world.edit("policies.yaml", "action: DENY", "action: [DENY")?;
    // The change has been seen when it is complained about.
    let log = world.mesh.directory().join("control.log");
    let complained =
        || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("policies.yaml")).then_some(());
    wait::until(SETTLE, || "a complaint about policies.yaml".into(), complained)?;
    until_answered(world, pods::INTRUDER, pods::FAR, false, TRY)?;
    until_answered(world, pods::CLIENT, pods::FAR, true, TRY)?;
    world.edit("policies.yaml", "action: [DENY", "action: DENY")?;
    Ok(())
}

fn leave_and_join(world: &mut World) -> anyhow::Result<()> {
    const IN: &str = "labels: {app: near}";
    const OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";
    world.edit("shop.yaml", IN, OUT)?;
    until_answered(world, pods::OUTSIDER_EAST, pods::NEAR, true, SETTLE)?;
    until_answered(world, pods::CLIENT, pods::NEAR, true, SETTLE)?;
    world.edit("shop.yaml", OUT, IN)?;
    until_answered(world, pods::OUTSIDER_EAST, pods::NEAR, false, SETTLE)?;
    until_answered(world, pods::CLIENT, pods::NEAR, true, SETTLE)?;
    let client = world.sandbox.pod(pods::OUTSIDER_EAST)?.address(Family::V4)?;
    world.ensure_refused(client, STRICT, || {
        world.fetch(pods::OUTSIDER_EAST, pods::NEAR, Family::V4, ports::HTTP)
    })?;
    Ok(())
}

fn exchange(stream: &mut TcpStream, text: &str) -> anyhow::Result<()> {
    let sent = format!("{text} {MARKER}");
    stream.write_all(sent.as_bytes())?;
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).with_context(|| format!("waiting for {text:?}"))?;
    ensure!(received == sent.as_bytes(), "{}", String::from_utf8_lossy(&received));
    Ok(())
}

fn agent_restart(world: &mut World) -> anyhow::Result<()> {
    let mut open = world.connect(pods::CLIENT, world.address(pods::FAR, Family::V4, ports::ECHO)?)?;
    exchange(&mut open, "before")?;
    world.mesh.agent("east")?.kill()?;
    exchange(&mut open, "without an agent")?;
    until_answered(world, pods::CLIENT, pods::FAR, true, TRY)?;
    until_answered(world, pods::OUTSIDER_EAST, pods::NEAR, false, TRY)?;
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    exchange(&mut open, "with a new agent")?;
    until_answered(world, pods::CLIENT, pods::FAR, true, TRY)?;
    until_answered(world, pods::FAR, pods::NEAR, true, TRY)?;
    until_answered(world, pods::OUTSIDER_EAST, pods::NEAR, false, TRY)?;
    until_answered(world, pods::INTRUDER, pods::FAR, false, TRY)?;
    Ok(())
}

fn ztunnel_restart(world: &mut World) -> anyhow::Result<()> {
    world.mesh.kill_ztunnel("east")?;
    let mut waiting = Vec::new();
    for family in Family::BOTH {
        let mut stream = world.connect(pods::CLIENT, world.address(pods::FAR, family, ports::ECHO)?)?;
        stream.write_all(b"patient")?;
        waiting.push(stream);
    }
    let node = world.sandbox.node("east")?;
    world.mesh.start_ztunnel(node)?;
    for stream in &mut waiting {
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).context("the connection that waited")?;
        ensure!(&answer == b"patient", "{answer:?}");
    }
    world.mesh.wait_ready(node)?;
    Ok(())
}

fn drain(world: &mut World) -> anyhow::Result<()> {
    let mut open = world.connect(pods::CLIENT, world.address(pods::FAR, Family::V6, ports::ECHO)?)?;
    exchange(&mut open, "before")?;
    let mut old = world.mesh.replace_ztunnel(world.sandbox.node("east")?)?;
    exchange(&mut open, "while draining")?;
    until_answered(world, pods::CLIENT, pods::FAR, true, SETTLE)?;
    exchange(&mut open, "beside the successor")?;
    drop(open);
    let status = old.exited(SETTLE)?.context("the drained ztunnel does not end")?;
    ensure!(status.success(), "the drained ztunnel ended with {status}");
    until_answered(world, pods::CLIENT, pods::FAR, true, TRY)?;
    Ok(())
}

fn sealed(world: &mut World) -> anyhow::Result<()> {
    let traffic = world.capture.take().context("the capture has ended before")?.finish()?;
    ensure!(traffic.missed == 0 && traffic.packets > 100 && traffic.markers == 0, "{traffic:?}");
    Ok(())
}
