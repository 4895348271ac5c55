//! Programs of the mesh that die and come back, one by one and together: what waits, what is lost, and what is refused.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use e2e::Case;
use e2e::connects::Connects;
use e2e::world::{SETTLE, World, echoes, pods, ports};
use sandbox::{Family, Node, Program, Redirection, wait};

/// How long the ends of a connection may take to learn that a ztunnel which carried it was killed, and how long a refusal may take.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Where the test's own servers listen in pods.
const OWN_PORT: u16 = 9100;

/// Where agents pin what they make.
const PINS: &str = "/sys/fs/bpf/culvert";

/// The pods of the node whose programs are killed.
const EAST: [&str; 3] = [pods::CLIENT, pods::NEAR, pods::INTRUDER];

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[
        ("an_agents_successor_gets_back_the_very_sockets_that_wait_in_the_pods", same_sockets),
        ("both_ends_of_what_a_killed_ztunnel_carried_are_reset_within_a_second", in_flight),
        ("no_connect_fails_while_agent_and_ztunnel_are_killed_one_after_the_other", no_connect_fails),
        ("with_agent_and_ztunnel_dead_connections_are_refused_at_once", both_dead),
        ("with_control_away_agent_and_ztunnel_come_back_to_the_traffic_and_policy_of_before", control_away),
        ("an_agent_takes_over_from_an_older_and_a_newer_layout_without_a_failed_connection", other_layouts),
        ("a_socket_that_connects_anew_while_another_layout_is_taken_over_is_captured_ever_after", |world| {
            world.while_permissive(anew_meanwhile)
        }),
        ("no_plaintext_crossed_the_link_between_the_nodes_meanwhile", sealed),
    ];
    e2e::run(|| World::start(Redirection::Auto), CASES, World::explain)
}

/// Requests within the node and to and from the other one, as the policy has it.
fn as_ever(world: &World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let calls = [(pods::CLIENT, pods::NEAR), (pods::CLIENT, pods::FAR), (pods::FAR, pods::CLIENT)];
        for (from, to) in calls {
            world.answered_within(SETTLE, from, to, family)?;
        }
        for to in [pods::NEAR, pods::FAR] {
            let reply = world.fetch(pods::INTRUDER, to, family, ports::HTTP)?;
            ensure!(reply.reset(), "{} from the intruder's call to {to} over {family}", reply.outcome());
        }
    }
    Ok(())
}

/// The mesh's listeners in a pod: the kernel's number of the socket for each port.
fn listeners(world: &World, pod: &str) -> anyhow::Result<BTreeMap<u16, u64>> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp6", world.sandbox.pod(pod)?.pid()))?;
    let mut found = BTreeMap::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // proc(5): local address and port in hexadecimal, state (0A: LISTEN), and the inode in the tenth field.
        let [_, local, _, "0A", _, _, _, _, _, inode, ..] = fields[..] else { continue };
        let port = local.rsplit(':').next().context("no port")?;
        found.insert(u16::from_str_radix(port, 16)?, inode.parse()?);
    }
    found.retain(|port, _| [15001, 15006, 15008].contains(port));
    ensure!(found.len() == 3, "{pod} has not the mesh's three listeners: {table}");
    Ok(found)
}

fn same_sockets(world: &mut World) -> anyhow::Result<()> {
    let all = |world: &World| EAST.iter().map(|pod| listeners(world, pod)).collect::<Result<Vec<_>, _>>();
    let before = all(world)?;
    world.mesh.agent("east")?.kill()?;
    as_ever(world)?;
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    as_ever(world)?;
    // That the agent holds them shows when it is alone: another ztunnel gets them from it.
    world.mesh.kill_ztunnel("east")?;
    ensure!(all(world)? == before, "{before:?} before, {:?} without a ztunnel", all(world)?);
    world.mesh.start_ztunnel(node)?;
    world.mesh.wait_ready(node)?;
    ensure!(all(world)? == before, "{before:?} before, {:?} after", all(world)?);
    as_ever(world)
}

/// What such a connection carries; not the marker, for one of them leaves the mesh.
const TEXT: &[u8] = b"in flight";

/// A connection with both ends in this process's hands, over which bytes have gone both ways.
struct Link {
    name: String,
    ends: [(&'static str, TcpStream); 2],
}

impl Link {
    fn open(world: &World, from: &str, to: &str, family: Family) -> anyhow::Result<Self> {
        let name = format!("{from} to {to} over {family}");
        let address = world.address(to, family, OWN_PORT)?;
        let listener = world.sandbox.pod(to)?.net().run(|| TcpListener::bind(address))??;
        let mut client = world.connect(from, address)?;
        client.write_all(TEXT)?;
        listener.set_nonblocking(true)?;
        let (mut server, _) = wait::try_until(
            SETTLE,
            || format!("{name} to arrive"),
            || listener.accept().map_err(|e| e.to_string()),
        )?;
        server.set_nonblocking(false)?;
        server.set_read_timeout(Some(SETTLE))?;
        let mut received = [0; TEXT.len()];
        server.read_exact(&mut received).with_context(|| name.clone())?;
        server.write_all(&received)?;
        client.read_exact(&mut received).with_context(|| name.clone())?;
        Ok(Self { name, ends: [("the client", client), ("the server", server)] })
    }

    /// That both ends are told of the break, by a reset and before `deadline`.
    fn ensure_reset(&mut self, deadline: Instant) -> anyhow::Result<()> {
        for (end, stream) in &mut self.ends {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut [0; 1]) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                other => bail!("{}: {end} saw {other:?} in place of a reset within a second", self.name),
            }
        }
        Ok(())
    }
}

fn in_flight(world: &mut World) -> anyhow::Result<()> {
    let mut links = Vec::new();
    for family in Family::BOTH {
        for (from, to) in [
            (pods::CLIENT, pods::NEAR),
            (pods::CLIENT, pods::FAR),
            (pods::FAR, pods::CLIENT),
            (pods::CLIENT, pods::OUTSIDER_WEST),
        ] {
            links.push(Link::open(world, from, to, family)?);
        }
    }
    let killed = Instant::now();
    world.mesh.kill_ztunnel("east")?;
    let outcome = links.iter_mut().try_for_each(|link| link.ensure_reset(killed + AT_ONCE));
    let node = world.sandbox.node("east")?;
    world.mesh.start_ztunnel(node)?;
    world.mesh.wait_ready(node)?;
    outcome?;
    as_ever(world)
}

fn no_connect_fails(world: &mut World) -> anyhow::Result<()> {
    let stream = Connects::begin(world)?;
    let node = world.sandbox.node("east")?;
    world.mesh.agent("east")?.kill()?;
    world.answered_within(SETTLE, pods::CLIENT, pods::FAR, Family::V4)?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    world.mesh.kill_ztunnel("east")?;
    let killed = SystemTime::now();
    world.mesh.start_ztunnel(node)?;
    world.mesh.wait_ready(node)?;
    world.answered_within(SETTLE, pods::CLIENT, pods::FAR, Family::V6)?;
    stream.end(killed)
}

/// That a connect is refused, and at once.
fn ensure_refused(world: &World, from: &str, to: SocketAddr) -> anyhow::Result<()> {
    let begin = Instant::now();
    let tried = world.sandbox.pod(from)?.net().run(|| TcpStream::connect_timeout(&to, SETTLE))?;
    let outcome = tried.map(drop).map_err(|error| error.kind());
    ensure!(
        outcome == Err(ErrorKind::ConnectionRefused),
        "{from} to {to}: {outcome:?} in place of a refusal"
    );
    ensure!(begin.elapsed() < AT_ONCE, "{from} to {to}: refused after {:?}", begin.elapsed());
    Ok(())
}

/// Sets how strictly a pod validates where IPv4 packets come from (1: by the reverse route, 0: not).
fn validate_sources(world: &World, pod: &str, strictness: &str) -> anyhow::Result<()> {
    let set = || std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", strictness);
    Ok(world.sandbox.pod(pod)?.net().run(set)??)
}

fn both_dead(world: &mut World) -> anyhow::Result<()> {
    validate_sources(world, pods::CLIENT, "1")?;
    world.mesh.agent("east")?.kill()?;
    world.mesh.kill_ztunnel("east")?;
    let check = |world: &World| -> anyhow::Result<()> {
        for family in Family::BOTH {
            let near = world.address(pods::NEAR, family, ports::HTTP)?;
            // To a port on which the client itself listens as well: it must not be its own application that answers.
            for to in [near, world.address(pods::FAR, family, ports::CLOSED)?] {
                ensure_refused(world, pods::CLIENT, to)?;
            }
            ensure_refused(world, pods::OUTSIDER_EAST, near)?;
            ensure_refused(world, pods::OUTSIDER_WEST, near)?;
        }
        Ok(())
    };
    let outcome = check(world);
    validate_sources(world, pods::CLIENT, "0")?;
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    world.mesh.start_ztunnel(node)?;
    world.mesh.wait_ready(node)?;
    outcome?;
    as_ever(world)
}

fn control_away(world: &mut World) -> anyhow::Result<()> {
    const REFUSED: &str = "namespaces: [guest]";
    const ALLOWED: &str = "namespaces: [nobody]";
    as_ever(world)?;
    world.mesh.kill_control()?;
    let node = world.sandbox.node("east")?;
    // The second ztunnel gets from an agent that has never heard of control what the first left with the agent before.
    for again in ["ztunnel", "agent", "ztunnel"] {
        match again {
            "agent" => {
                world.mesh.agent("east")?.kill()?;
                world.mesh.start_agent(node)?;
            }
            _ => {
                world.mesh.kill_ztunnel("east")?;
                world.mesh.start_ztunnel(node)?;
            }
        }
        world.mesh.wait_ready(node)?;
        as_ever(world).with_context(|| format!("after the {again}'s restart without control"))?;
    }
    // What has changed meanwhile comes with control.
    world.edit("policies.yaml", REFUSED, ALLOWED)?;
    world.mesh.start_control(&world.sandbox)?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::INTRUDER, pods::NEAR, family)?;
    }
    world.edit("policies.yaml", ALLOWED, REFUSED)?;
    let refused = || {
        let reply =
            world.fetch(pods::INTRUDER, pods::NEAR, Family::V4, ports::HTTP).map_err(|e| e.to_string())?;
        if reply.reset() { Ok(()) } else { Err(reply.outcome()) }
    };
    wait::try_until(SETTLE, || "the policy as before".into(), refused)?;
    Ok(())
}

/// The layouts that have pins on a node.
fn layouts(node: &Node) -> anyhow::Result<Vec<String>> {
    let listed = node.exec(&Program::new("ls").arg(PINS), SETTLE)?;
    Ok(String::from_utf8_lossy(&listed.stdout).split_whitespace().map(str::to_owned).collect())
}

/// Pins under the name of another layout are what an agent of that layout leaves: links that hold programs with maps of their own.
fn other_layouts(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    let own = layouts(node)?;
    let [name] = own.as_slice() else { bail!("{own:?}") };
    // The newer one keeps something else under the name of a map: of that one nothing can be carried over.
    for (other, reshaped) in [("v0", None), ("v4000000", Some(("OUTSIDE", "COUNTERS")))] {
        let stream = Connects::begin(world)?;
        world.mesh.agent("east")?.kill()?;
        let (from, to) = (format!("{PINS}/{name}"), format!("{PINS}/{other}"));
        let moved = node.exec(&Program::new("mv").args(["-T", &from, &to]), SETTLE)?;
        ensure!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
        let log = world.mesh.directory().join("agent-east.log");
        let start = std::fs::read(&log)?.len();
        if let Some((map, of_another_shape)) = reshaped {
            let (from, to) = (format!("{to}/maps/{of_another_shape}"), format!("{to}/maps/{map}"));
            let moved = node.exec(&Program::new("mv").args(["-T", &from, &to]), SETTLE)?;
            ensure!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
        }
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, Family::V6)?;
        world.mesh.start_agent(node)?;
        world.mesh.wait_ready(node)?;
        let alone = || match layouts(node) {
            Ok(found) if found == own => Ok(()),
            found => Err(format!("{found:?}")),
        };
        wait::try_until(SETTLE, || format!("the end of {other}"), alone)?;
        let said = String::from_utf8_lossy(&std::fs::read(&log)?[start..]).into_owned();
        let lost: Vec<_> = said.lines().filter(|line| line.contains("not carried over")).collect();
        ensure!(lost.len() == usize::from(reshaped.is_some()), "{other}: {lost:?}");
        ensure!(lost.iter().all(|line| line.contains("OUTSIDE")), "{other}: {lost:?}");
        as_ever(world)?;
        // No ztunnel was killed: nothing may have been reset.
        stream.end_whole()?;
    }
    Ok(())
}

/// A connection from before its pod joined passes by its socket; what the socket opens later is captured, and stays so when other programs
/// take over, which know of it from the former ones' maps.
fn anew_meanwhile(world: &mut World) -> anyhow::Result<()> {
    world.leave_near()?;
    let mut streams = Vec::new();
    for family in Family::BOTH {
        let mut stream =
            world.connect(pods::NEAR, world.address(pods::OUTSIDER_WEST, family, ports::ECHO)?)?;
        stream.write_all(b"from before")?;
        stream.read_exact(&mut [0; 11])?;
        streams.push((family, stream));
    }
    world.join_near()?;
    let node = world.sandbox.node("east")?;
    let layouts = layouts(node)?;
    let [name] = layouts.as_slice() else { bail!("{layouts:?}") };
    world.mesh.agent("east")?.kill()?;
    world.mesh.kill_control()?;
    let script = format!("mv -T {PINS}/{name} {PINS}/v0 && rm /run/culvert/last-state");
    let moved = node.exec(&Program::new("sh").args(["-c", &script]), SETTLE)?;
    ensure!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    let log = world.mesh.directory().join("agent-east.log");
    let start = std::fs::read(&log)?.len();
    // Nobody tells it of any pod, so that it has taken over and replaced no pod's programs.
    world.mesh.start_agent(node)?;
    let loaded = || {
        let log = std::fs::read(&log).unwrap_or_default();
        let said = String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned();
        said.contains("the kernel programs are loaded").then_some(())
    };
    wait::until(SETTLE, || "the programs of the next agent".into(), loaded)?;
    for (family, stream) in &mut streams {
        rustix::net::connect_unspec(&stream)?;
        rustix::net::connect(&stream, &world.address(pods::FAR, *family, ports::ECHO)?)?;
        echoes(stream).context("through the former programs")?;
    }
    world.mesh.start_control(&world.sandbox)?;
    world.mesh.wait_ready(node)?;
    for (_, stream) in &mut streams {
        echoes(stream).context("through the next ones")?;
    }
    world.ensure_no_marker()
}

fn sealed(world: &mut World) -> anyhow::Result<()> {
    let traffic = world.capture.take().context("the capture has ended before")?.finish()?;
    ensure!(traffic.missed == 0 && traffic.packets > 100 && traffic.markers == 0, "{traffic:?}");
    Ok(())
}
