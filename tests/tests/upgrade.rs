//! Upgrades of ztunnel: a new process takes the place of one that drains, and nobody notices.

use std::io::Read;
use std::net::Shutdown;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::connects::Connects;
use e2e::steady::Live;
use e2e::world::{SETTLE, World, pods};
use e2e::{Case, echo};
use sandbox::{Family, Process, Program, Redirection};

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[
        ("twenty_upgrades_under_load_fail_no_connect_and_lose_no_byte_of_long_streams", twenty),
        ("a_draining_process_is_told_at_a_socket_of_its_own_to_end_sooner", sooner),
        ("no_plaintext_crossed_the_link_between_the_nodes_meanwhile", sealed),
    ];
    e2e::run(|| World::start(Redirection::Auto), CASES, World::explain)
}

const UPGRADES: usize = 20;

/// Held at once.
const STREAMS: usize = 200;

/// How many upgrades each of them sees. As many processes drain beside the one that serves.
const SEEN: usize = 5;

/// The ways they go: from the node that is upgraded, into it, and within it.
const WAYS: [(&str, &str); 3] =
    [(pods::CLIENT, pods::FAR), (pods::FAR, pods::CLIENT), (pods::CLIENT, pods::NEAR)];

fn open(world: &World, number: usize) -> anyhow::Result<Live> {
    let (from, to) = WAYS[number % WAYS.len()];
    Live::open(world, from, to, Family::BOTH[number / WAYS.len() % 2])
}

/// Ends one in order: its echo ends after it, and was whole until then.
fn close(live: &Live) -> anyhow::Result<()> {
    let mut stream = live.stream();
    stream.shutdown(Shutdown::Write)?;
    let rest = stream.read(&mut [0; 16]).with_context(|| format!("{}: its end", live.name))?;
    ensure!(rest == 0, "{}: {rest} bytes that nobody sent", live.name);
    Ok(())
}

fn twenty(world: &mut World) -> anyhow::Result<()> {
    let connects = Connects::begin(world)?;
    let mut streams = (0..STREAMS).map(|number| open(world, number)).collect::<Result<Vec<_>, _>>()?;
    let mut draining = Vec::new();
    for upgrade in 0..UPGRADES {
        let node = world.sandbox.node("east")?;
        draining.push(world.mesh.replace_ztunnel(node)?);
        streams.iter_mut().try_for_each(Live::exchange).with_context(|| format!("upgrade {upgrade}"))?;
        world.mesh.wait_ready(node)?;
        streams.iter_mut().try_for_each(Live::exchange).with_context(|| format!("upgrade {upgrade}"))?;
        for (number, stream) in streams.iter_mut().enumerate().skip(upgrade % SEEN).step_by(SEEN) {
            close(stream)?;
            *stream = open(world, number)?;
        }
    }
    streams.iter().try_for_each(close)?;
    drop(streams);
    connects.end_whole()?;
    draining.iter_mut().try_for_each(|old| ended(old, SETTLE))
}

fn ended(old: &mut Process, deadline: Duration) -> anyhow::Result<()> {
    let status = old.exited(deadline)?.context("a drained ztunnel does not end")?;
    ensure!(status.success(), "a drained ztunnel ended with {status}");
    Ok(())
}

fn sooner(world: &mut World) -> anyhow::Result<()> {
    let mut live = (0..2 * WAYS.len()).map(|number| open(world, number)).collect::<Result<Vec<_>, _>>()?;
    let mut old = world.mesh.replace_ztunnel(world.sandbox.node("east")?)?;
    world.mesh.wait_ready(world.sandbox.node("east")?)?;
    live.iter_mut().try_for_each(Live::exchange)?;
    let socket = format!("/run/culvert/ztunnel-admin-draining-{}.sock", old.pid());
    let request = r"POST /drain?deadline=0s HTTP/1.1\x0d\x0ahost: x\x0d\x0aconnection: close\x0d\x0a\x0d\x0a";
    let told = Program::new(echo()?).args(["knock", &socket, "--say", request]);
    let told = world.sandbox.node("east")?.exec(&told, SETTLE)?;
    ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    live.iter_mut().try_for_each(Live::ensure_reset)?;
    // Its own deadline is 25 s.
    ended(&mut old, SETTLE)
}

fn sealed(world: &mut World) -> anyhow::Result<()> {
    world.ensure_sealed()
}
