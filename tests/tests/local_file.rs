//! ztunnels that have the mesh from a file in the form of Istio's ztunnel (contract 1.5), which says more than our control plane does: an
//! application that is told of its clients by the PROXY protocol. Pods and certificates they have from their node's agent.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use e2e::Case;
use e2e::steady::Live;
use e2e::world::{SETTLE, World, identity, pods, ports};
use sandbox::{Direction, Family, Redirection, Ztunnels, wait};

/// Of the PROXY protocol, version 2 (HAProxy, "The PROXY protocol" 2.2): the signature, then PROXY and TCP over either family.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const FAMILIES: [[u8; 2]; 2] = [[0x21, 0x11], [0x21, 0x21]];
/// Istio's extension with the client's identity.
const IDENTITY: u8 = 0xd0;

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[
        ("an_application_is_told_who_its_client_is_and_what_it_called", told),
        ("a_policy_that_is_added_to_the_file_cuts_whom_it_denies_until_it_is_gone", reloaded),
    ];
    e2e::run(start, CASES, World::explain)
}

fn start() -> anyhow::Result<World> {
    let mut world = World::start(Redirection::Auto)?;
    let told = format!("applicationTunnel: {{protocol: PROXY, port: {}}}, ", ports::ECHO);
    write(&world, &told, "[]")?;
    world.mesh.set_ztunnels(Ztunnels::OfAFile);
    for name in ["east", "west"] {
        world.mesh.kill_ztunnel(name)?;
        let node = world.sandbox.node(name)?;
        world.mesh.start_ztunnel(node)?;
        world.mesh.wait_ready(node)?;
    }
    Ok(world)
}

/// The two pods that call each other, on both nodes; `of_far` is what is said of the server alone.
fn write(world: &World, of_far: &str, policies: &str) -> anyhow::Result<()> {
    let mut text = String::from("workloads:\n");
    for (pod, node, more) in [(pods::CLIENT, "east", ""), (pods::FAR, "west", of_far)] {
        let (namespace, name) = pod.split_once('/').context("no pod's full name")?;
        let pod = world.sandbox.pod(pod)?;
        let [v4, v6] = [pod.address(Family::V4)?, pod.address(Family::V6)?];
        text.push_str(&format!(
            "- {{uid: {name}, name: {name}, namespace: {namespace}, serviceAccount: {name}, node: {node}, protocol: HBONE, {more}\
             workloadIps: [\"{v4}\", \"{v6}\"]}}\n"
        ));
    }
    text.push_str(&format!("policies: {policies}\n"));
    let file = world.mesh.local_file();
    // In one step, so that nobody reads a part of it.
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    Ok(std::fs::rename(new, file)?)
}

/// The header that an application gets, as its echo says it.
struct Header {
    source: SocketAddr,
    destination: SocketAddr,
    identity: String,
}

impl Header {
    fn read(stream: &mut impl Read, family: Family) -> anyhow::Result<Self> {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        ensure!(head.starts_with(SIGNATURE), "{head:02x?}");
        let (kind, size) = if family == Family::V4 { (FAMILIES[0], 4) } else { (FAMILIES[1], 16) };
        ensure!(head[12..14] == kind, "{head:02x?}");
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
        stream.read_exact(&mut rest)?;
        ensure!(rest.len() > size * 2 + 4, "no room for extensions: {rest:02x?}");
        let ends = rest.split_off(size * 2 + 4);
        let ip = |octets: &[u8]| -> anyhow::Result<IpAddr> {
            Ok(match family {
                Family::V4 => <[u8; 4]>::try_from(octets)?.into(),
                Family::V6 => <[u8; 16]>::try_from(octets)?.into(),
            })
        };
        let port = |at: usize| u16::from_be_bytes([rest[size * 2 + at], rest[size * 2 + at + 1]]);
        let identity = ends.get(3..).filter(|_| ends[0] == IDENTITY).context("no identity comes first")?;
        Ok(Self {
            source: SocketAddr::new(ip(&rest[..size])?, port(0)),
            destination: SocketAddr::new(ip(&rest[size..size * 2])?, port(2)),
            identity: String::from_utf8(identity.to_vec())?,
        })
    }
}

/// Whatever port is called, the tunnel's is dialled; the header says which it was.
fn told(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for port in [ports::HTTP, ports::ECHO, ports::CLOSED] {
            let to = world.address(pods::FAR, family, port)?;
            let mut stream = world.connect(pods::CLIENT, to)?;
            let client = stream.local_addr()?;
            let log = world.mesh.access_log();
            stream.write_all(b"hello")?;
            let header = Header::read(&mut stream, family).with_context(|| format!("{to}"))?;
            ensure!((header.source.ip(), header.destination) == (client.ip(), to), "{}", header.source);
            ensure!(header.identity == identity("shop", "client"), "{}", header.identity);
            let mut rest = [0; 5];
            stream.read_exact(&mut rest)?;
            ensure!(&rest == b"hello", "{rest:?}");
            drop(stream);
            let entry = log.of(client, Direction::Outbound, SETTLE)?;
            ensure!(entry.error.is_none() && entry.path.as_deref() == Some("other_node"), "{entry:?}");
        }
    }
    world.ensure_no_marker()
}

fn reloaded(world: &mut World) -> anyhow::Result<()> {
    let denied = "[{name: no-client, namespace: shop, scope: Namespace, action: Deny, \
                  rules: [[[{principals: [{Exact: cluster.local/ns/shop/sa/client}]}]]]}]";
    let opens = |world: &World, family| {
        let what = || format!("an answer over {family}");
        wait::try_until(SETTLE, what, || {
            Live::open(world, pods::CLIENT, pods::FAR, family).map_err(|error| format!("{error:#}"))
        })
    };
    write(world, "", "[]")?;
    let mut lives = Vec::new();
    for family in Family::BOTH {
        lives.push(opens(world, family)?);
    }
    let log = world.mesh.access_log().from_now();
    write(world, "", denied)?;
    for live in &mut lives {
        live.ensure_reset()?;
    }
    let refusal = |entry: &sandbox::AccessEntry| {
        entry.direction == Some(Direction::Inbound) && entry.policy.as_deref() == Some("shop/no-client")
    };
    log.find(SETTLE, || "the line of a cut".to_owned(), refusal)?;
    for family in Family::BOTH {
        let reply = world.fetch(pods::CLIENT, pods::FAR, family, ports::HTTP)?;
        ensure!(reply.reset(), "{}", reply.outcome());
    }
    // What cannot be read changes nothing.
    write(world, "", "[{name: no-client}]")?;
    let rejected = || {
        let count = world.ztunnel_metric("west", "culvert_rejected_resources_total").unwrap_or_default();
        (count > 0).then_some(())
    };
    wait::until(SETTLE, || "a file that is told of as wrong".to_owned(), rejected)?;
    let reply = world.fetch(pods::CLIENT, pods::FAR, Family::V4, ports::HTTP)?;
    ensure!(reply.reset(), "{}", reply.outcome());
    write(world, "", "[]")?;
    Family::BOTH.into_iter().try_for_each(|family| opens(world, family).map(drop))?;
    Ok(())
}
