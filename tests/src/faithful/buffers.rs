//! What is buffered for readers that do not read: bounded, and measured.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sandbox::Family;

use super::ways::{Way, everywhere, set_strict};
use crate::Case;
use crate::world::{SETTLE, World, pods, ports};

/// What holds for readers that do not read.
pub const BUFFERS: &[Case<World>] = &[
    ("a_reader_that_does_not_read_holds_its_writer_back_on_every_way", one_reader),
    ("many_readers_that_do_not_read_stay_within_the_budget_that_the_metrics_state", many_readers),
];

/// A writer that has not got on for so long is held back.
const STALL: Duration = Duration::from_secs(1);

/// What a tunnel's window holds for one connection.
const WINDOW: u64 = 4 << 20;

/// The budget under test: of it, one pod gets half at most.
const BUDGET: u64 = 16 << 20;

/// Connections that nobody reads. With a full window each, they would fill several budgets.
const READERS: usize = 40;

/// The window of a stream that there is no budget for.
const SMALL_WINDOW: u64 = 64 << 10;

/// What a process needs for so many connections beside what it buffers: tasks, TLS, sockets' pieces in hand (64 KiB each way).
const PER_CONNECTION: u64 = 256 << 10;

/// And whatever the number: what it had not touched before.
const PROCESS: u64 = 32 << 20;

/// Writes to all of them in turn until none takes anything for a while; what they took.
fn fill(streams: &[TcpStream]) -> anyhow::Result<u64> {
    let chunk = vec![0x5a; 64 << 10];
    let (mut taken, mut progress) = (0, Instant::now());
    streams.iter().try_for_each(|stream| stream.set_nonblocking(true))?;
    while progress.elapsed() < STALL {
        for mut stream in streams {
            match stream.write(&chunk) {
                Ok(count) => {
                    taken += count as u64;
                    progress = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(taken)
}

/// The most that sockets and a tunnel's window hold for one connection: on the way are two sockets that receive and two
/// that send.
fn one_reader_at_most() -> anyhow::Result<u64> {
    Ok(WINDOW + 2 * socket_limit("tcp_rmem")? + 2 * socket_limit("tcp_wmem")?)
}

/// The most bytes that the kernel lets one socket hold: the third number of a triple (tcp(7)). Namespaces made later start
/// with it. Since 6.17 a receiver may grow to 32 MiB, before to 6 MiB.
fn socket_limit(name: &str) -> anyhow::Result<u64> {
    let triple = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"))?;
    Ok(triple.split_whitespace().last().with_context(|| format!("{name} is empty"))?.parse()?)
}

fn one_reader(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, false)?;
    let most = one_reader_at_most()?;
    for (way, family) in everywhere() {
        let stream = world.connect(way.client(), world.address(way.server(), family, ports::SILENT)?)?;
        let taken = fill(&[stream])?;
        println!("    {way:?} over {family}: {} KiB", taken >> 10);
        ensure!(
            (1..=most).contains(&taken),
            "{way:?} over {family}: {taken} bytes were taken, {most} at most"
        );
    }
    Ok(())
}

fn many_readers(world: &mut World) -> anyhow::Result<()> {
    world.mesh.set_ztunnel_env("BUFFER_BUDGET", format!("{}MiB", BUDGET >> 20));
    for node in ["east", "west"] {
        world.mesh.kill_ztunnel(node)?;
        let node = world.sandbox.node(node)?;
        world.mesh.start_ztunnel(node)?;
        world.mesh.wait_ready(node)?;
    }
    for way in [Way::SameNode, Way::OtherNode] {
        world.answered_within(SETTLE, way.client(), way.server(), Family::V4)?;
        let before = [memory(world, "east")?, memory(world, "west")?];
        let mut streams = Vec::new();
        for reader in 0..READERS {
            let family = Family::BOTH[reader % 2];
            streams.push(world.connect(way.client(), world.address(way.server(), family, ports::SILENT)?)?);
        }
        let taken = fill(&streams)?;
        for (node, before) in ["east", "west"].into_iter().zip(before) {
            let granted = world.ztunnel_metric(node, "culvert_buffer_granted_bytes")?;
            let budget = world.ztunnel_metric(node, "culvert_buffer_budget_bytes")?;
            let grown = memory(world, node)?.saturating_sub(before);
            println!(
                "    {way:?}, {node}: of {} MiB taken, {} KiB granted, {} KiB more memory",
                taken >> 20,
                granted >> 10,
                grown >> 10
            );
            ensure!(budget == BUDGET, "{node}: a budget of {budget}");
            // One pod's half, and a small window for each stream that finds none left.
            let bound = BUDGET / 2 + READERS as u64 * SMALL_WINDOW;
            ensure!(granted <= bound, "{way:?}, {node}: {granted} bytes granted, {bound} at most");
            ensure!((way == Way::OtherNode) == (granted > 0), "{way:?}, {node}: {granted} bytes granted");
            let bound = granted + READERS as u64 * PER_CONNECTION + PROCESS;
            ensure!(grown <= bound, "{way:?}, {node}: {grown} bytes of memory more, {bound} at most");
        }
        // Somebody who reads is served all the same.
        for family in Family::BOTH {
            world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
        }
    }
    Ok(())
}

/// The memory of a node's ztunnel that is in use: proc_pid_status(5), `RssAnon`.
fn memory(world: &mut World, node: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.mesh.ztunnel(node)?.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
