//! What is captured and what is not: the rows of the README's table, under STRICT and PERMISSIVE.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use e2e::Case;
use e2e::world::{MARKER, SETTLE, STRICT, World, pods, ports};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};
use sandbox::{Direction, Family, Fetch, Redirection, wait};

/// A port of the tests' own sockets.
const PORT: u16 = 7777;

/// Next header and protocol number of TCP (IANA).
const TCP: u8 = 6;

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[
        ("tcp_to_something_outside_the_mesh_is_passed_through_and_logged", passthrough),
        ("tcp_over_loopback_and_to_the_pods_own_address_is_untouched", own),
        ("udp_is_untouched", udp),
        ("processes_of_the_node_are_not_captured", node_processes),
        ("fragments_that_are_tcp_are_dropped_and_counted", fragments),
        ("packets_from_outside_in_the_pods_own_name_are_dropped_and_counted", own_name),
        ("with_agent_and_ztunnel_dead_connections_are_refused", both_dead),
        ("the_last_state_stays_in_force_while_control_is_away", control_away),
        ("permissive_pods_take_plaintext_without_an_identity_and_strict_ones_refuse_it_again", permissive),
        ("connections_from_before_a_pod_joined_live_on_under_permissive_and_are_cut_under_strict", pre_mesh),
    ];
    e2e::run(|| World::start(Redirection::Auto), CASES, World::explain)
}

fn set_mode(world: &World, from: &str, to: &str) -> anyhow::Result<()> {
    world.edit("policies.yaml", &format!("mode: {from}"), &format!("mode: {to}"))
}

fn passthrough(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        // Between nodes it is plaintext on the wire, so that it must not hold the marker.
        let url = format!("http://{}/", world.address(pods::OUTSIDER_WEST, family, ports::HTTP)?);
        let reply = Fetch::new(url).from_pod(world.sandbox.pod(pods::CLIENT)?)?;
        ensure!(reply.ok() && reply.body.contains("pod=outsider-west\n"), "{family}: {}", reply.outcome());
        let local = reply.local.context("no local address")?;
        let entry = world.mesh.access_log().of(local, Direction::Outbound, SETTLE)?;
        ensure!(entry.path.as_deref() == Some("passthrough"), "{family}: {entry:?}");
        ensure!(entry.destination_identity.is_none() && entry.tls_version.is_none(), "{family}: {entry:?}");
    }
    Ok(())
}

fn own(world: &mut World) -> anyhow::Result<()> {
    let pod = world.sandbox.pod(pods::CLIENT)?;
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    addresses.extend(&pod.spec().addresses);
    for address in addresses {
        let address = SocketAddr::new(address, PORT);
        let log = world.mesh.access_log().from_now();
        let (listener, client) = pod.net().run(|| -> std::io::Result<_> {
            let listener = TcpListener::bind(address)?;
            Ok((listener, TcpStream::connect_timeout(&address, SETTLE)?))
        })??;
        let (_, peer) = listener.accept()?;
        ensure!(
            peer == client.local_addr()?,
            "{address}: accepted {peer} in place of {:?}",
            client.local_addr()
        );
        drop(client);
        ensure!(log.entries().is_empty(), "{address}: {:?}", log.entries());
    }
    Ok(())
}

fn udp(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let to = world.address(pods::FAR, family, PORT)?;
        let from = world.address(pods::CLIENT, family, PORT)?;
        let server = world.sandbox.pod(pods::FAR)?.net().run(|| UdpSocket::bind(to))??;
        let client = world.sandbox.pod(pods::CLIENT)?.net().run(|| UdpSocket::bind(from))??;
        server.set_read_timeout(Some(SETTLE))?;
        // Larger than the MTU: it travels in fragments.
        let sent = [0x5a; 4000];
        client.send_to(&sent, to)?;
        let mut received = [0; 5000];
        let (length, source) = server.recv_from(&mut received)?;
        ensure!((&received[..length], source) == (&sent[..], from), "{family}: {length} bytes from {source}");
    }
    Ok(())
}

fn node_processes(world: &mut World) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    for family in Family::BOTH {
        let log = world.mesh.access_log().from_now();
        let url = format!("http://{}/", world.address(pods::OUTSIDER_WEST, family, ports::HTTP)?);
        let reply = Fetch::new(url).from_node(node)?;
        ensure!(reply.ok(), "{family}: {}", reply.outcome());
        ensure!(log.entries().is_empty(), "{family}: {:?}", log.entries());
    }
    Ok(())
}

/// Sends what no socket of TCP would: a later fragment of a segment, full of plaintext, without the segment's head.
fn fragments(world: &mut World) -> anyhow::Result<()> {
    let before = world.dropped("east")?;
    for family in Family::BOTH {
        let from = world.sandbox.pod(pods::CLIENT)?.address(family)?;
        let to = world.sandbox.pod(pods::OUTSIDER_WEST)?.address(family)?;
        world.sandbox.pod(pods::CLIENT)?.net().run(|| match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => send_fragment_v4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => send_fragment_v6(from, to),
            _ => bail!("{from} and {to} are of different families"),
        })??;
    }
    wait::until(
        SETTLE,
        || "the count of two dropped packets".into(),
        || world.dropped("east").is_ok_and(|now| now >= before + 2).then_some(()),
    )?;
    let markers = world.capture.as_ref().context("no capture")?.traffic().markers;
    ensure!(markers == 0, "a fragment reached the wire");
    Ok(())
}

fn send_fragment_v4(from: Ipv4Addr, to: Ipv4Addr) -> anyhow::Result<()> {
    let total = u16::try_from(20 + MARKER.len())?.to_be_bytes();
    // RFC 791 3.1: version 4, 5 words of header; offset of 100 * 8 bytes; TTL 64.
    let mut packet = vec![0x45, 0, total[0], total[1], 0x12, 0x34, 0, 100, 64, TCP, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(MARKER.as_bytes());
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let [a, b, c, d] = to.octets();
    sendto(raw.as_raw_fd(), &packet, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty())?;
    Ok(())
}

fn send_fragment_v6(from: Ipv6Addr, to: Ipv6Addr) -> anyhow::Result<()> {
    /// RFC 8200 4.5.
    const FRAGMENT: u8 = 44;
    let payload = u16::try_from(8 + MARKER.len())?.to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, payload[0], payload[1], FRAGMENT, 64];
    packet.extend(from.octets());
    packet.extend(to.octets());
    // Offset of 100 * 8 bytes, no more fragments, and an identification.
    packet.extend([TCP, 0, 0x03, 0x20, 1, 2, 3, 4]);
    packet.extend(MARKER.as_bytes());
    let raw = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let to = SockaddrIn6::from(std::net::SocketAddrV6::new(to, 0, 0, 0));
    sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
    Ok(())
}

/// A connection that opens with the pod's address at both ends: taken for the pod's own, it would pass STRICT. Of IPv4 the kernel
/// drops such packets by itself.
fn own_name(world: &mut World) -> anyhow::Result<()> {
    let before = world.dropped("east")?;
    let IpAddr::V6(victim) = world.sandbox.pod(pods::CLIENT)?.address(Family::V6)? else {
        bail!("not an IPv6 address");
    };
    world.sandbox.pod(pods::OUTSIDER_WEST)?.net().run(|| send_syn_to_itself(victim))??;
    wait::until(
        SETTLE,
        || "the count of a dropped packet".into(),
        || world.dropped("east").is_ok_and(|now| now > before).then_some(()),
    )?;
    Ok(())
}

fn send_syn_to_itself(victim: Ipv6Addr) -> anyhow::Result<()> {
    // RFC 8200 3: version 6, 20 bytes of payload, hop limit 64.
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, TCP, 64];
    packet.extend(victim.octets());
    packet.extend(victim.octets());
    packet.extend(4445_u16.to_be_bytes());
    packet.extend(ports::HTTP.to_be_bytes());
    // RFC 9293 3.1: sequence, acknowledgement, 5 words of header and SYN, window; the checksum matters to nobody who drops it.
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let raw = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let to = SockaddrIn6::from(std::net::SocketAddrV6::new(victim, 0, 0, 0));
    sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
    Ok(())
}

fn both_dead(world: &mut World) -> anyhow::Result<()> {
    world.mesh.agent("east")?.kill()?;
    world.mesh.kill_ztunnel("east")?;
    for family in Family::BOTH {
        for to in [pods::FAR, pods::NEAR, pods::OUTSIDER_EAST] {
            let request = world.request(to, family, ports::HTTP)?.within(Duration::from_secs(1));
            let reply = request.from_pod(world.sandbox.pod(pods::CLIENT)?)?;
            ensure!(reply.exit != 0 && reply.status == 0, "{family} to {to}: {}", reply.outcome());
        }
        let request = world.request(pods::NEAR, family, ports::HTTP)?.within(Duration::from_secs(1));
        let reply = request.from_pod(world.sandbox.pod(pods::OUTSIDER_EAST)?)?;
        ensure!(reply.exit != 0 && reply.status == 0, "{family} inbound: {}", reply.outcome());
    }
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    world.mesh.start_ztunnel(node)?;
    world.mesh.wait_ready(node)?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
        world.answered_within(SETTLE, pods::FAR, pods::NEAR, family)?;
    }
    Ok(())
}

fn control_away(world: &mut World) -> anyhow::Result<()> {
    world.mesh.kill_control()?;
    for family in Family::BOTH {
        let reply = world.fetch(pods::CLIENT, pods::FAR, family, ports::HTTP)?;
        ensure!(reply.ok(), "{family}: {}", reply.outcome());
        let intruder = world.sandbox.pod(pods::INTRUDER)?.address(family)?;
        let send = || world.fetch(pods::INTRUDER, pods::FAR, family, ports::HTTP);
        world.ensure_refused(intruder, "shop/no-guests", send)?;
    }
    world.mesh.start_control(&world.sandbox)?;
    // The agents find it again by themselves: a change gets through.
    world.edit("policies.yaml", "namespaces: [guest]", "namespaces: [nobody]")?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::INTRUDER, pods::FAR, family)?;
    }
    world.edit("policies.yaml", "namespaces: [nobody]", "namespaces: [guest]")
}

fn permissive(world: &mut World) -> anyhow::Result<()> {
    set_mode(world, "STRICT", "PERMISSIVE")?;
    for family in Family::BOTH {
        let reply = world.answered_within(SETTLE, pods::OUTSIDER_EAST, pods::NEAR, family)?;
        let local = reply.local.context("no local address")?;
        let entry = world.mesh.access_log().of(local, Direction::Inbound, SETTLE)?;
        ensure!(entry.path.as_deref() == Some("passthrough"), "{family}: {entry:?}");
        ensure!(entry.source_identity.is_none(), "{family}: {entry:?}");
        let seen = reply.body.lines().find_map(|line| line.strip_prefix("peer=")).unwrap_or_default();
        let seen: SocketAddr = seen.parse()?;
        ensure!(seen.ip() == local.ip(), "{family}: the server saw {seen}");
    }
    set_mode(world, "PERMISSIVE", "STRICT")?;
    for family in Family::BOTH {
        let client = world.sandbox.pod(pods::OUTSIDER_EAST)?.address(family)?;
        let refused = || {
            world.ensure_refused(client, STRICT, || {
                world.fetch(pods::OUTSIDER_EAST, pods::NEAR, family, ports::HTTP)
            })
        };
        wait::try_until(
            SETTLE,
            || "STRICT in force".into(),
            || refused().map_err(|error| error.to_string()),
        )?;
    }
    Ok(())
}

fn pre_mesh(world: &mut World) -> anyhow::Result<()> {
    const IN: &str = "labels: {app: near}";
    const OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";
    set_mode(world, "STRICT", "PERMISSIVE")?;
    world.edit("shop.yaml", IN, OUT)?;
    let node = world.sandbox.node("east")?;
    let left = || world.pod_state(node, "near").is_ok_and(|state| state.is_none()).then_some(());
    wait::until(SETTLE, || "near has left the mesh".into(), left)?;
    let mut open = Vec::new();
    for family in Family::BOTH {
        let mut stream =
            world.connect(pods::OUTSIDER_EAST, world.address(pods::NEAR, family, ports::ECHO)?)?;
        exchange(&mut stream)?;
        open.push(stream);
    }
    world.edit("shop.yaml", OUT, IN)?;
    let enrolled =
        || world.pod_state(node, "near").ok().flatten().filter(|state| state == "enrolled").map(|_| ());
    wait::until(SETTLE, || "near has joined the mesh".into(), enrolled)?;
    open.iter_mut().try_for_each(exchange).context("after joining")?;
    set_mode(world, "PERMISSIVE", "STRICT")?;
    for stream in &mut open {
        stream.set_read_timeout(Some(SETTLE))?;
        match stream.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("a connection in plaintext outlived STRICT: {other:?}"),
        }
    }
    Ok(())
}

fn exchange(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(b"still here")?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"still here", "{answer:?}");
    Ok(())
}
