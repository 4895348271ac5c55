//! Failures and ends: what one end does is what the other end sees.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use sandbox::{Family, Fetch, Node, Program, wait};

use super::ways::{Pair, Way, ensure_quiet, ensure_reset, everywhere, set_strict, time_to_reset};
use crate::world::{SETTLE, World, pods, ports};

/// Tries at a closed port.
const TRIES: usize = 5;

/// A refusal comes well under a second; on a machine that is busy with other things, at least once in some tries.
const AT_ONCE: Duration = Duration::from_millis(500);

/// ztunnel's default for a dial, and what a busy machine may add to any of these times.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MARGIN: Duration = Duration::from_secs(10);

/// A tunnel whose other end is silent is given up: a PING every 10 s, which may take 20 s.
const SILENCE: Duration = Duration::from_secs(30);

/// How long half-closed connections are left alone.
const PAUSE: Duration = Duration::from_secs(3);

/// What is sent over a half-closed connection: more than the buffers on the way hold.
const STREAMED: usize = 16 << 20;

pub(super) fn closed_ports(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, false)?;
    for (way, family) in everywhere() {
        let to = world.address(way.server(), family, ports::CLOSED)?;
        let mut quickest = Duration::MAX;
        for _ in 0..TRIES {
            let took = time_to_reset(world, way.client(), to);
            let took = took.with_context(|| format!("{way:?} over {family}"))?;
            ensure!(took < CONNECT_TIMEOUT / 2, "{way:?} over {family}: {took:?}");
            quickest = quickest.min(took);
        }
        ensure!(quickest < AT_ONCE, "{way:?} over {family}: {quickest:?} at best");
    }
    Ok(())
}

/// The ways in which a connection is broken by an application.
#[derive(Clone, Copy, Debug)]
enum Break {
    /// It closes with a linger time of zero (socket(7), `SO_LINGER`).
    Abort,
    /// It closes without having read what has arrived.
    Unread,
    /// It aborts when the other end has finished already.
    AfterEnd,
}

pub(super) fn resets(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, false)?;
    for (way, family) in everywhere() {
        for client_breaks in [true, false] {
            for manner in [Break::Abort, Break::Unread, Break::AfterEnd] {
                let (one, mut other) = Pair::open(world, way, family)?.ends(client_breaks);
                broken(one, &mut other, manner).with_context(|| {
                    format!("{way:?} over {family}, {manner:?}, by the client: {client_breaks}")
                })?;
            }
        }
    }
    Ok(())
}

fn broken(mut one: TcpStream, other: &mut TcpStream, manner: Break) -> anyhow::Result<()> {
    match manner {
        Break::Abort => abort_on_close(&one)?,
        Break::Unread => {
            other.write_all(b"never read")?;
            // Arrived, and stays where it is.
            ensure!(one.peek(&mut [0])? == 1, "nothing arrived");
        }
        Break::AfterEnd => {
            other.shutdown(Shutdown::Write)?;
            ensure!(one.read(&mut [0])? == 0, "no end");
            abort_on_close(&one)?;
        }
    }
    drop(one);
    ensure_reset(other)
}

fn abort_on_close(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
}

pub(super) fn half_closed(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, false)?;
    let mut open = Vec::new();
    for (way, family) in everywhere() {
        for client_ends in [true, false] {
            let what = format!("{way:?} over {family}, ended by the client: {client_ends}");
            let (one, mut other) = Pair::open(world, way, family)?.ends(client_ends);
            one.shutdown(Shutdown::Write)?;
            ensure!(other.read(&mut [0])? == 0, "{what}: no end");
            open.push((what, one, other));
        }
    }
    for (index, (what, one, _)) in open.iter_mut().enumerate() {
        let pause = if index == 0 { PAUSE } else { Duration::from_millis(1) };
        ensure_quiet(one, pause).with_context(|| what.clone())?;
    }
    for (what, one, other) in open {
        stream_to_end(one, other).with_context(|| what)?;
    }
    Ok(())
}

/// The end that may still send does so, and then ends.
fn stream_to_end(mut one: TcpStream, mut other: TcpStream) -> anyhow::Result<()> {
    let sent = std::thread::spawn(move || -> std::io::Result<()> {
        let piece: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
        (0..STREAMED >> 20).try_for_each(|_| other.write_all(&piece))?;
        other.shutdown(Shutdown::Write)
    });
    let mut received = Vec::with_capacity(STREAMED);
    one.read_to_end(&mut received)?;
    sent.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    ensure!(received.len() == STREAMED, "{} bytes came", received.len());
    let right = received.iter().zip((0..=u8::MAX).cycle()).all(|(byte, expected)| *byte == expected);
    ensure!(right, "other bytes came than were sent");
    Ok(())
}

/// Hosts that swallow what is sent to them, made by routing rules of the client's node.
struct Swallowed<'a> {
    node: &'a Node,
    rules: Vec<[String; 2]>,
}

impl<'a> Swallowed<'a> {
    fn new(node: &'a Node) -> Self {
        Self { node, rules: Vec::new() }
    }

    fn add(&mut self, address: std::net::IpAddr) -> anyhow::Result<()> {
        let rule = [if address.is_ipv4() { "-4" } else { "-6" }.to_owned(), address.to_string()];
        self.change("add", &rule)?;
        self.rules.push(rule);
        Ok(())
    }

    fn change(&self, verb: &str, [family, address]: &[String; 2]) -> anyhow::Result<()> {
        let rule = [family, "rule", verb, "to", address, "pref", "100", "blackhole"];
        let output = self.node.exec(&Program::new("ip").args(rule), SETTLE)?;
        ensure!(output.status.success(), "ip {rule:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Swallowed<'_> {
    fn drop(&mut self) {
        for rule in &self.rules {
            // A test that fails already is not to fail for this too.
            let _ = self.change("del", rule);
        }
    }
}

/// A pod of the mesh on the other node that is not there.
const GHOST: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: ghost, namespace: shop, uid: 5b0f3c1e-2099-4c57-9a10-000000000099}
spec: {nodeName: west, serviceAccountName: far, containers: [{name: echo, image: none}]}
status:
  phase: Running
  podIPs: [{ip: 10.42.2.99}, {ip: "fd42:0:2::99"}]
  conditions: [{type: Ready, status: "True"}]
"#;

pub(super) fn dead_hosts(world: &mut World) -> anyhow::Result<()> {
    let world = &*world;
    std::fs::write(world.sandbox.manifests_directory().join("ghost.yaml"), GHOST)?;
    let mut swallowed = Swallowed::new(world.sandbox.node("east")?);
    // Outside of the mesh, and in it.
    let targets = ["10.42.2.98:80", "[fd42:0:2::98]:80", "10.42.2.99:80", "[fd42:0:2::99]:80"];
    for target in targets {
        swallowed.add(target.parse::<SocketAddr>()?.ip())?;
    }
    known(world, "ghost", true)?;
    let mut open = Vec::new();
    for family in Family::BOTH {
        open.push((family, Pair::open(world, Way::OtherNode, family)?));
        swallowed.add(world.sandbox.pod(pods::FAR)?.address(family)?)?;
    }
    let died = Instant::now();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let dialling = targets.map(|to| {
            let to: SocketAddr = to.parse().expect("an address");
            (to, scope.spawn(move || time_to_reset(world, pods::CLIENT, to)))
        });
        for (to, dial) in dialling {
            let took =
                dial.join().map_err(|_| anyhow::anyhow!("panicked"))?.with_context(|| to.to_string())?;
            ensure!((CONNECT_TIMEOUT / 2..CONNECT_TIMEOUT + MARGIN).contains(&took), "{to}: {took:?}");
        }
        Ok(())
    })?;
    for (family, Pair { mut client, server: _server }) in open {
        client.set_read_timeout(Some((SILENCE + MARGIN).saturating_sub(died.elapsed())))?;
        ensure_reset(&mut client).with_context(|| format!("a host that died, over {family}"))?;
    }
    drop(swallowed);
    std::fs::remove_file(world.sandbox.manifests_directory().join("ghost.yaml"))?;
    known(world, "ghost", false)?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
    }
    Ok(())
}

/// Waits until the client's ztunnel knows a pod, or no longer.
fn known(world: &World, pod: &str, wanted: bool) -> anyhow::Result<()> {
    let dump = Fetch::new("http://127.0.0.1:15000/config_dump");
    let node = world.sandbox.node("east")?;
    let quoted = format!("\"{pod}\"");
    wait::try_until(
        SETTLE,
        || format!("{pod} in the state of ztunnel: {wanted}"),
        || match dump.from_node(node) {
            Ok(reply) if reply.ok() && reply.body.contains(&quoted) == wanted => Ok(()),
            Ok(reply) => Err(reply.outcome()),
            Err(error) => Err(error.to_string()),
        },
    )?;
    Ok(())
}
