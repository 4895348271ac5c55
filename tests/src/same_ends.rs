//! Connections whose ends are, or were, another connection's: neither waits for the other, is taken for it, or gets its bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context, ensure};
use sandbox::{Direction, Family, NetNamespace, Program};
use tunnel::socket::LEG_PORTS;

use crate::dial::{End, at, dial, exchange};
use crate::world::{SETTLE, STRICT, World, pods, ports};
use crate::{Case, echo};

/// What holds whichever way packets are taken.
pub const SAME_ENDS: &[Case<World>] = &[
    ("connections_to_applications_keep_clear_of_the_ends_of_clients", live_clients),
    ("and_of_clients_from_before_the_pod_joined", old_clients),
    ("a_port_that_kubelet_has_left_leads_nobody_past_the_mesh", stale_probes),
    ("a_pod_that_uses_a_port_again_at_once_gets_a_fresh_connection", reuse_outbound),
    ("so_does_a_client_from_outside_the_mesh", reuse_inbound),
];

/// Of 12,768 ports: with so many at each side, some 14 of one side meet each other, and none of a run in a million.
const CLIENTS: u16 = 600;

/// How often a port is used again.
const AGAIN: usize = 50;

/// The port that is used again. The kernel draws none up here for other connections of the pod, of which one could be in its way.
const PORT: u16 = 61_500;

const IN: &str = "labels: {app: near}";
const OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";

fn live_clients(world: &mut World) -> anyhow::Result<()> {
    world.while_permissive(|world| {
        for family in Family::BOTH {
            ends_taken(world, family).with_context(|| format!("{family}"))?;
            let (mut open, _) = clients(world, family, *LEG_PORTS.start())?;
            all_whole(&mut open).with_context(|| format!("{family}"))?;
            // The second time from ports in TIME_WAIT: what such a SYN says of the former connection must not make a refusal unreadable.
            drop(open);
            let (mut open, refused) = clients(world, family, *LEG_PORTS.start())?;
            all_whole(&mut open).with_context(|| format!("{family}, again"))?;
            // The kernel knows no way to serve both of two connections with the same ends; the newer one is told at once.
            ensure!(refused < usize::from(CLIENTS) / 10, "{family}: {refused} of {CLIENTS} were refused");
            println!("    {family}: {} whole, {refused} refused", open.len());
        }
        Ok(())
    })
}

/// A client that takes the very port which ztunnel took, under its address, for another connection of it: refused at once, and counted.
fn ends_taken(world: &World, family: Family) -> anyhow::Result<()> {
    const COUNTED: &str = "reason=\"ends_taken\"";
    let pod = world.sandbox.pod(pods::OUTSIDER_EAST)?;
    let (ip, to) = (pod.address(family)?, world.address(pods::NEAR, family, ports::ECHO)?);
    let mut first = dial(pod.net(), at(ip, PORT), to)?;
    exchange(&mut first, 0)?;
    let leg = leg_of(world, at(ip, PORT))?;
    let before = world.counted("east", COUNTED)?;
    let second = dial(pod.net(), at(ip, leg), to);
    ensure!(second.as_ref().is_err_and(is_refusal), "port {leg} is taken, and the client saw {second:?}");
    ensure!(world.counted("east", COUNTED)? > before, "the refusal was not counted");
    exchange(&mut first, 1).context("the connection whose ends they are")
}

/// The port under the client's address from which ztunnel has dialled the application for this client: the only other one that is
/// connected from there.
fn leg_of(world: &World, client: SocketAddr) -> anyhow::Result<u16> {
    let program = ["-H", "-t", "-n", "state", "established", "sport", "=", ":9000"];
    let near = world.sandbox.pod(pods::NEAR)?;
    let output = near.net().run(|| std::process::Command::new("ss").args(program).output())??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let peer = |line: &str| {
        let (ip, port) = line.split_whitespace().nth(3)?.rsplit_once(':')?;
        let ip: IpAddr = ip.trim_matches(['[', ']']).parse().ok()?;
        let port = port.parse::<u16>().ok()?;
        (ip.to_canonical() == client.ip() && port != client.port()).then_some(port)
    };
    let mut ports = text.lines().filter_map(peer);
    let port = ports.next().with_context(|| format!("ztunnel has no connection for {client}: {text}"))?;
    ensure!(ports.next().is_none(), "{client} has more than one connection: {text}");
    Ok(port)
}

fn old_clients(world: &mut World) -> anyhow::Result<()> {
    world.while_permissive(|world| {
        for family in Family::BOTH {
            world.edit("shop.yaml", IN, OUT)?;
            world.until_pod_is("east", "near", None)?;
            let (mut open, before) = clients(world, family, *LEG_PORTS.start())?;
            world.edit("shop.yaml", OUT, IN)?;
            world.until_pod_is("east", "near", Some("enrolled"))?;
            let (new, refused) = clients(world, family, 10_000)?;
            open.extend(new);
            all_whole(&mut open).with_context(|| format!("{family}"))?;
            ensure!((before, refused) == (0, 0), "{family}: {before} and {refused} were refused");
        }
        Ok(())
    })
}

/// Connections from one address to one port of `near`, from `first` on, all of them open; and how many were refused.
fn clients(world: &World, family: Family, first: u16) -> anyhow::Result<(Vec<TcpStream>, usize)> {
    let pod = world.sandbox.pod(pods::OUTSIDER_EAST)?;
    let (from, to) = (pod.address(family)?, world.address(pods::NEAR, family, ports::ECHO)?);
    let (mut open, mut refused) = (Vec::new(), 0);
    for port in first..first + CLIENTS {
        let mut stream = match dial(pod.net(), at(from, port), to) {
            Err(error) if is_refusal(&error) => {
                refused += 1;
                continue;
            }
            stream => stream?,
        };
        exchange(&mut stream, open.len())?;
        open.push(stream);
    }
    Ok((open, refused))
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn all_whole(open: &mut [TcpStream]) -> anyhow::Result<()> {
    // All of them ask before any is answered to.
    for round in 0..2 {
        open.iter_mut().enumerate().try_for_each(|(number, stream)| exchange(stream, number * 2 + round))?;
    }
    Ok(())
}

fn stale_probes(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    for family in Family::BOTH {
        let [v4, v6] = node.addresses();
        let from = at(if family == Family::V4 { v4 } else { v6 }, PORT);
        let to = world.address(pods::NEAR, family, ports::HTTP)?;
        for round in 0..AGAIN {
            let mut program =
                Program::new(echo()?).args(["dial", "--from", &from.to_string(), &to.to_string()]);
            if round % 2 == 0 {
                program = program.arg("--reset");
            }
            let probe = node.as_kubelet(&program, SETTLE)?;
            let said = String::from_utf8_lossy(&probe.stderr).into_owned();
            ensure!(probe.status.success(), "{family}, round {round}: a probe failed: {said}");
            let log = world.mesh.access_log().from_now();
            let other = node.exec(&program, SETTLE)?;
            let said = String::from_utf8_lossy(&other.stderr).into_owned();
            ensure!(!other.status.success(), "{family}, round {round}: another's connection passed the mesh");
            ensure!(said.contains("reset"), "{family}, round {round}: {said}");
            let entry = log.refusal_of(from.ip(), SETTLE)?;
            ensure!(entry.policy.as_deref() == Some(STRICT), "{family}, round {round}: {entry:?}");
        }
    }
    Ok(())
}

fn reuse_outbound(world: &mut World) -> anyhow::Result<()> {
    let pod = world.sandbox.pod(pods::CLIENT)?;
    for to in [pods::NEAR, pods::FAR, pods::OUTSIDER_EAST, pods::OUTSIDER_WEST] {
        for family in Family::BOTH {
            let from = at(pod.address(family)?, PORT);
            use_again(pod.net(), from, world.address(to, family, ports::HTTP)?)
                .with_context(|| format!("to {to} over {family}"))?;
        }
    }
    Ok(())
}

fn reuse_inbound(world: &mut World) -> anyhow::Result<()> {
    world.while_permissive(|world| {
        for client in [pods::OUTSIDER_EAST, pods::OUTSIDER_WEST] {
            let pod = world.sandbox.pod(client)?;
            for family in Family::BOTH {
                let from = at(pod.address(family)?, PORT);
                let log = world.mesh.access_log().from_now();
                use_again(pod.net(), from, world.address(pods::NEAR, family, ports::HTTP)?)
                    .with_context(|| format!("from {client} over {family}"))?;
                log.of(from, Direction::Inbound, SETTLE)?;
            }
        }
        Ok(())
    })
}

/// Many connections one after the other with the same two ends, some ended by a reset of the client, most by the server first: then it is
/// the server's end that is in TIME_WAIT.
fn use_again(net: &NetNamespace, from: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    for round in 0..AGAIN {
        let end = if round % 3 == 0 { End::Reset } else { End::Server };
        request(net, from, to, round, end).with_context(|| format!("round {round}, ended by {end:?}"))?;
    }
    Ok(())
}

fn request(
    net: &NetNamespace,
    from: SocketAddr,
    to: SocketAddr,
    round: usize,
    end: End,
) -> anyhow::Result<()> {
    let mut stream = dial(net, from, to)?;
    let version = if matches!(end, End::Server) { "1.0" } else { "1.1" };
    write!(stream, "GET / HTTP/{version}\r\nhost: {to}\r\nx-marker: round-{round}\r\n\r\n")?;
    let mut answer = String::new();
    let expected = format!("marker=round-{round}\n");
    match end {
        End::Server => {
            stream.read_to_string(&mut answer)?;
        }
        End::Reset => {
            let mut buffer = [0; 4096];
            while !answer.contains(&expected) {
                let length = stream.read(&mut buffer)?;
                ensure!(length > 0, "the server ended early: {answer}");
                answer.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            end.make(&stream)?;
        }
    }
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&expected), "{answer}");
    Ok(())
}
