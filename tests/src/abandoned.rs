//! What applications send when nobody carries it any more: it comes to nothing, and never leaves the pod in plaintext.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{bail, ensure};
use nix::sys::signal::Signal;
use sandbox::{Family, Fetch, wait};

use crate::Case;
use crate::world::{MARKER, SETTLE, World, echoes, pods, ports};

/// What holds whichever way packets are taken. The last one looks at the whole run.
pub const ABANDONED: &[Case<World>] = &[
    ("what_is_written_after_the_proxys_end_was_forgotten_by_the_kernel_stays_in_the_pod", forgotten),
    ("what_applications_go_on_writing_after_ztunnel_was_killed_stays_in_their_pods", killed),
    ("a_connection_that_lost_its_ztunnel_does_not_go_on_in_plaintext_when_its_pod_leaves", left_over),
    ("connections_are_captured_and_refused_alike_with_syn_cookies", syn_cookies),
    ("a_full_accept_queue_lets_nothing_past", full_queue),
    ("no_plaintext_crossed_the_link_between_the_nodes_meanwhile", World::ensure_sealed),
];

/// A port of the tests' own servers.
const PORT: u16 = 7777;
/// Backlog of the listeners in the test of the full queue.
const BACKLOG: usize = 8;
/// Connections that are tried then, for each family: several times what fits.
const CROWD: usize = 40;

/// Writes the marker until the connection is broken: what could leave has left then.
fn write_until_broken(stream: &mut TcpStream) -> anyhow::Result<()> {
    wait::until(
        SETTLE,
        || "the end of the connection".into(),
        || match stream.write_all(MARKER.as_bytes()) {
            Ok(()) => None,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Some(Err(anyhow::anyhow!("it neither goes on nor ends")))
            }
            Err(_) => Some(Ok(())),
        },
    )?
}

/// The TCP sockets of a pod with this local and remote end, by `/proc/net/tcp*`, whose lines hold ports as hexadecimal numbers.
fn is_known(world: &World, pod: &str, local: u16, remote: u16) -> anyhow::Result<bool> {
    let read = || -> std::io::Result<String> {
        let table = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        Ok(table("tcp")? + &table("tcp6")?)
    };
    let tables = world.sandbox.pod(pod)?.net().run(read)??;
    let port = |field: &str| u16::from_str_radix(field.rsplit(':').next()?, 16).ok();
    Ok(tables.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next().and_then(port), fields.next().and_then(port)) == (Some(local), Some(remote))
    }))
}

fn restart_ztunnel(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    world.mesh.start_ztunnel(node)?;
    Ok(world.mesh.wait_ready(node)?)
}

fn forgotten(world: &mut World) -> anyhow::Result<()> {
    world.set(pods::CLIENT, "net/ipv4/tcp_fin_timeout", "1")?;
    let mut open = Vec::new();
    for family in Family::BOTH {
        for to in [pods::FAR, pods::NEAR] {
            let mut stream = world.connect(pods::CLIENT, world.address(to, family, ports::ECHO)?)?;
            echoes(&mut stream)?;
            open.push(stream);
        }
    }
    let mut ends = Vec::new();
    for stream in &open {
        ends.push((stream.local_addr()?.port(), stream.peer_addr()?.port()));
    }
    world.mesh.kill_ztunnel("east")?;
    for (stream, (local, remote)) in open.iter_mut().zip(ends) {
        // The proxy's end is gone: by a reset of ours, by an orderly end of another ztunnel's. The application does not mind.
        match stream.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("no end of the proxy's side: {other:?}"),
        }
        let forgotten =
            || is_known(world, pods::CLIENT, remote, local).is_ok_and(|known| !known).then_some(());
        wait::until(SETTLE, || "the kernel to forget the proxy's end".into(), forgotten)?;
        write_until_broken(stream)?;
    }
    world.ensure_no_marker()?;
    restart_ztunnel(world)
}

/// Connections in both directions, whose applications in the pod go on writing while ztunnel dies.
fn killed(world: &mut World) -> anyhow::Result<()> {
    let mut open = Vec::new();
    for family in Family::BOTH {
        let mut stream = world.connect(pods::CLIENT, world.address(pods::FAR, family, ports::ECHO)?)?;
        echoes(&mut stream)?;
        open.push(stream);
        let address = world.address(pods::NEAR, family, PORT)?;
        let listener = world.sandbox.pod(pods::NEAR)?.net().run(|| TcpListener::bind(address))??;
        let mut peer = world.connect(pods::FAR, address)?;
        let (mut accepted, _) = listener.accept()?;
        accepted.set_write_timeout(Some(SETTLE))?;
        peer.write_all(MARKER.as_bytes())?;
        accepted.read_exact(&mut vec![0; MARKER.len()])?;
        open.push(accepted);
        // The peer reads nothing any more, so that there are bytes on all ways.
        open.push(peer);
    }
    let broken = std::thread::scope(|scope| {
        let writers: Vec<_> =
            open.iter_mut().map(|stream| scope.spawn(|| write_until_broken(stream))).collect();
        let killed = world.mesh.kill_ztunnel("east");
        let broken = writers.into_iter().map(|writer| match writer.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        broken
            .collect::<Vec<_>>()
            .into_iter()
            .chain([killed.map_err(Into::into)])
            .collect::<anyhow::Result<()>>()
    });
    broken?;
    world.ensure_no_marker()?;
    restart_ztunnel(world)
}

fn left_over(world: &mut World) -> anyhow::Result<()> {
    let (mut open, mut peers) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        let mut stream = world.connect(pods::NEAR, world.address(pods::FAR, family, ports::ECHO)?)?;
        echoes(&mut stream)?;
        open.push(stream);
        let address = world.address(pods::NEAR, family, PORT)?;
        let listener = world.sandbox.pod(pods::NEAR)?.net().run(|| TcpListener::bind(address))??;
        peers.push(world.connect(pods::FAR, address)?);
        open.push(listener.accept()?.0);
    }
    world.mesh.kill_ztunnel("east")?;
    restart_ztunnel(world)?;
    world.leave_near()?;
    for stream in &mut open {
        write_until_broken(stream)?;
    }
    world.ensure_no_marker()?;
    world.join_near()
}

fn syn_cookies(world: &mut World) -> anyhow::Result<()> {
    const SETTING: &str = "net/ipv4/tcp_syncookies";
    let clients = [pods::CLIENT, pods::NEAR];
    clients.iter().try_for_each(|pod| world.set(pod, SETTING, "2"))?;
    let before = clients.map(|pod| world.netstat(pod, "SyncookiesRecv").unwrap_or_default());
    for family in Family::BOTH {
        for (from, to) in [(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::NEAR), (pods::FAR, pods::NEAR)] {
            let reply = world.fetch(from, to, family, ports::HTTP)?;
            ensure!(reply.ok(), "{family} {from} to {to}: {}", reply.outcome());
        }
        let client = world.sandbox.pod(pods::OUTSIDER_EAST)?.address(family)?;
        let outside = || world.fetch(pods::OUTSIDER_EAST, pods::NEAR, family, ports::HTTP);
        world.ensure_refused(client, crate::world::STRICT, outside)?;
        let url = format!("http://{}/healthz", world.address(pods::NEAR, family, ports::HTTP)?);
        let reply = Fetch::new(url).from_kubelet(world.sandbox.node("east")?)?;
        ensure!(reply.ok(), "{family} probe: {}", reply.outcome());
    }
    for (pod, before) in clients.into_iter().zip(before) {
        ensure!(world.netstat(pod, "SyncookiesRecv")? > before, "{pod} answered with no cookie");
        world.set(pod, SETTING, "1")?;
    }
    world.ensure_no_marker()
}

/// More connections than the listener of a ztunnel that stands still can hold; each of them says what it has to say.
fn full_queue(world: &mut World) -> anyhow::Result<()> {
    const SETTING: &str = "net/core/somaxconn";
    world.leave_near()?;
    world.set(pods::NEAR, SETTING, &BACKLOG.to_string())?;
    world.join_near()?;
    let before = world.netstat(pods::NEAR, "ListenOverflows")?;
    world.mesh.ztunnel("east")?.signal(Signal::SIGSTOP)?;
    let crowd = std::thread::scope(|scope| -> anyhow::Result<Vec<Option<TcpStream>>> {
        let mut crowd = Vec::new();
        for family in Family::BOTH {
            let to = world.address(pods::FAR, family, ports::ECHO)?;
            let net = world.sandbox.pod(pods::NEAR)?.net();
            crowd.extend((0..CROWD).map(|_| scope.spawn(move || net.run(|| say(to)))));
        }
        crowd.into_iter().map(|thread| Ok(thread.join().map_err(|_| anyhow::anyhow!("a panic"))??)).collect()
    });
    world.mesh.ztunnel("east")?.signal(Signal::SIGCONT)?;
    let after = world.netstat(pods::NEAR, "ListenOverflows")?;
    ensure!(after > before, "the queue was never full");
    let crowd = crowd?;
    ensure!(crowd.iter().flatten().count() >= BACKLOG, "hardly anybody connected");
    for mut stream in crowd.into_iter().flatten() {
        let mut answer = vec![0; MARKER.len()];
        match stream.read_exact(&mut answer) {
            Ok(()) => ensure!(answer == MARKER.as_bytes(), "{answer:?}"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => bail!("neither answered nor refused: {error}"),
        }
    }
    world.ensure_no_marker()
}

/// Connects and speaks at once, if that is possible soon.
fn say(to: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(SETTLE)).ok()?;
    stream.write_all(MARKER.as_bytes()).ok()?;
    Some(stream)
}
