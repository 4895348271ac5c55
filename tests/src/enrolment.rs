//! Joining and leaving that is interrupted or turned round: what ran past the mesh meanwhile is neither lost nor forgotten.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::Case;
use crate::places::binaries;
use crate::stranger::Stranger;
use crate::world::{MARKER, SETTLE, World, pods, ports};
use anyhow::{Context, bail, ensure};
use sandbox::{Family, Program, wait};
use socket2::SockRef;

/// The label by which `shop/near` is in the mesh.
const IN: &str = "labels: {app: near}";
/// And by which it is not.
const OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";

/// What holds whichever way packets are taken.
pub const ENROLMENT: &[Case<World>] = &[
    ("a_strict_pod_that_joins_again_while_draining_cuts_what_connected_meanwhile", rejoin),
    ("so_does_one_whose_agent_was_replaced_meanwhile", rejoin_with_another_agent),
    ("a_pod_whose_agent_is_killed_while_it_joins_is_captured_by_the_next", killed_while_joining),
    ("a_pod_that_leaves_while_no_agent_is_there_is_let_go_by_the_next", left_behind),
    (
        "connections_that_come_and_go_while_their_pod_joins_and_leaves_a_hundred_times_are_all_forgotten",
        hasty,
    ),
    ("uninstallation_leaves_pods_as_if_they_had_never_been_in_the_mesh", uninstall),
];

/// How often the pod of [`hasty`] joins and leaves.
const ROUNDS: usize = 100;

fn exchange(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(b"still here")?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"still here", "{answer:?}");
    Ok(())
}

/// A captured connection, and, while it keeps `near` draining, one in plaintext of each family.
fn plaintext_while_draining(world: &World) -> anyhow::Result<(TcpStream, Vec<TcpStream>)> {
    let mut captured = world.connect(pods::NEAR, world.address(pods::FAR, Family::V4, ports::ECHO)?)?;
    exchange(&mut captured).context("captured")?;
    world.edit("shop.yaml", IN, OUT)?;
    world.until_near_is(Some("draining"))?;
    let mut open = Vec::new();
    for family in Family::BOTH {
        let mut stream =
            world.connect(pods::OUTSIDER_EAST, world.address(pods::NEAR, family, ports::ECHO)?)?;
        exchange(&mut stream).with_context(|| format!("plaintext while draining, {family}"))?;
        open.push(stream);
    }
    exchange(&mut captured).context("captured, while draining")?;
    Ok((captured, open))
}

fn ensure_cut(open: &mut [TcpStream]) -> anyhow::Result<()> {
    for stream in open {
        match stream.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("a connection in plaintext outlived the return to STRICT: {other:?}"),
        }
    }
    Ok(())
}

fn rejoin(world: &mut World) -> anyhow::Result<()> {
    let (mut captured, mut open) = plaintext_while_draining(world)?;
    world.edit("shop.yaml", OUT, IN)?;
    ensure_cut(&mut open)?;
    world.until_near_is(Some("enrolled"))?;
    exchange(&mut captured).context("captured, after the return")
}

fn rejoin_with_another_agent(world: &mut World) -> anyhow::Result<()> {
    let (mut captured, mut open) = plaintext_while_draining(world)?;
    world.mesh.agent("east")?.kill()?;
    world.edit("shop.yaml", OUT, IN)?;
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    ensure_cut(&mut open)?;
    world.mesh.wait_ready(node)?;
    exchange(&mut captured).context("captured, after the return")
}

/// The agent dies after one and another step of joining.
fn killed_while_joining(world: &mut World) -> anyhow::Result<()> {
    let log = world.mesh.directory().join("agent-east.log");
    let written = || std::fs::read(&log).unwrap_or_default();
    for event in ["joins the mesh", "network namespace", "routes and sysctls are set", "links"] {
        world.edit("shop.yaml", IN, OUT)?;
        world.until_near_is(None)?;
        let address = world.address(pods::NEAR, Family::V4, ports::ECHO)?;
        let mut before = world.connect(pods::OUTSIDER_EAST, address)?;
        exchange(&mut before).context("not in the mesh")?;
        let length = written().len();
        world.edit("shop.yaml", OUT, IN)?;
        let happened = || {
            let text = written();
            String::from_utf8_lossy(text.get(length..).unwrap_or_default()).contains(event).then_some(())
        };
        wait::until(SETTLE, || event.into(), happened)?;
        world.mesh.agent("east")?.kill()?;
        // Whatever it connects to now, and whether or not it is let: it does not go on.
        let during = world.connect(pods::OUTSIDER_EAST, address).ok();
        let node = world.sandbox.node("east")?;
        world.mesh.start_agent(node)?;
        world.mesh.wait_ready(node)?;
        let mut open: Vec<_> = [Some(before), during].into_iter().flatten().collect();
        ensure_cut(&mut open).with_context(|| format!("killed at {event:?}"))?;
        let outside = world.request(pods::NEAR, Family::V4, ports::HTTP)?.within(Duration::from_secs(1));
        let reply = outside.from_pod(world.sandbox.pod(pods::OUTSIDER_EAST)?)?;
        ensure!(!reply.ok(), "killed at {event:?}: plaintext is taken");
        world.answered_within(SETTLE, pods::NEAR, pods::FAR, Family::V4)?;
        world.answered_within(SETTLE, pods::FAR, pods::NEAR, Family::V6)?;
    }
    Ok(())
}

/// Connects, asks and resets, again and again: of such a connection nothing is left a moment later, not even in TIME_WAIT. Without
/// the answer the server's queue would be full soon, and the client wait for its next try. Returns how many were answered.
fn hurry(to: SocketAddr, stop: &AtomicBool) -> anyhow::Result<u64> {
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        // While its pod changes sides it may be refused or cut: it has sent something, which is enough.
        let Ok(mut stream) = TcpStream::connect_timeout(&to, SETTLE) else { continue };
        stream.set_read_timeout(Some(SETTLE))?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        answered += u64::from(exchange(&mut stream).is_ok());
    }
    Ok(answered)
}

/// Clients that make connections and drop them at once, before and after they are listed.
fn hasty(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    let passing = |line: &str| line.starts_with("culvert_bpf_map_entries{map=\"PRE_MESH\"}");
    let joining = || world.counted("east", "reason=\"pre_mesh\"");
    world.leave_near()?;
    let entries: u64 = world.agent_samples(node, passing)?;
    let before = joining()?;
    let stop = AtomicBool::new(false);
    let (net, stopped) = (world.sandbox.pod(pods::NEAR)?.net(), &stop);
    let to = Family::BOTH.map(|family| world.address(pods::OUTSIDER_EAST, family, ports::ECHO));
    let answered = std::thread::scope(|scope| {
        let clients: Vec<_> = to
            .into_iter()
            .map(|to| to.map(|to| scope.spawn(move || net.run(|| hurry(to, stopped)))))
            .collect::<Result<_, _>>()?;
        let turns = (0..ROUNDS).try_for_each(|round| {
            world.join_near().and_then(|()| world.leave_near()).with_context(|| format!("round {round}"))
        });
        stop.store(true, Ordering::SeqCst);
        let mut answered = 0;
        for client in clients {
            answered += client.join().map_err(|_| anyhow::anyhow!("a client panicked"))???;
        }
        turns.map(|()| answered)
    })?;
    let sent = joining()? - before;
    ensure!(sent > ROUNDS as u64, "{sent} packets were sent while the pod joined, of {answered} connections");
    let after: u64 = world.agent_samples(node, passing)?;
    ensure!(after == entries, "{after} sockets pass in place of {entries}, of {answered} connections");
    world.join_near()
}

fn left_behind(world: &mut World) -> anyhow::Result<()> {
    world.mesh.agent("east")?.kill()?;
    world.edit("shop.yaml", IN, OUT)?;
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    world.until_near_is(None)?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::OUTSIDER_EAST, pods::NEAR, family)?;
        world.answered_within(SETTLE, pods::NEAR, pods::OUTSIDER_EAST, family)?;
    }
    world.edit("shop.yaml", OUT, IN)?;
    world.until_near_is(Some("enrolled"))?;
    world.answered_within(SETTLE, pods::FAR, pods::NEAR, Family::V4)?;
    Ok(())
}

fn uninstall(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    let mut captured = Vec::new();
    for family in Family::BOTH {
        let mut stream = world.connect(pods::NEAR, world.address(pods::FAR, family, ports::ECHO)?)?;
        exchange(&mut stream).context("captured")?;
        captured.push(stream);
    }
    world.mesh.agent("east")?.kill()?;
    let mut stranger = Stranger::named_by_the_pins_of_near(world)?;
    let program = Program::new(binaries()?.culvert).args(["uninstall", "--bpffs", "/sys/fs/bpf"]);
    let output = node.exec(&program, SETTLE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stranger.ensure_alive()?;
    for stream in &mut captured {
        // What was captured does not go on in plaintext: it is cut, and its next bytes stay here.
        let end = stream.write_all(MARKER.as_bytes()).and_then(|()| stream.read(&mut [0; 1]).map(drop));
        let kind = end.err().map(|error| error.kind());
        ensure!(
            matches!(
                kind,
                Some(ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
            ),
            "a captured connection outlived the uninstallation: {kind:?}"
        );
    }
    let markers = world.capture.as_ref().context("no capture")?.traffic().markers;
    ensure!(markers == 0, "its bytes left in plaintext: {markers}");
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::OUTSIDER_EAST, pods::NEAR, family)?;
        world.answered_within(SETTLE, pods::NEAR, pods::OUTSIDER_EAST, family)?;
    }
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    world.answered_within(SETTLE, pods::FAR, pods::NEAR, Family::V4)?;
    Ok(())
}
