//! Packets that are not TCP pass, in both directions and in fragments; those that may be TCP and cannot be read do not.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use sandbox::{Family, NetNamespace, Node, Program, wait};
use socket2::{Domain, Protocol, Socket, Type};

use super::Mode;
use crate::dial::exchange;
use crate::talk::Talk;
use crate::world::{MARKER, SETTLE, World, pods, ports};

/// A port of the tests' own sockets.
const PORT: u16 = 7777;

/// Payloads that fit into a packet, and that need three.
const LENGTHS: [usize; 2] = [64, 4000];

/// Pairs that send to each other: within the mesh, and to and from outside of it.
const PAIRS: [(&str, &str); 4] = [
    (pods::CLIENT, pods::FAR),
    (pods::CLIENT, pods::NEAR),
    (pods::NEAR, pods::OUTSIDER_WEST),
    (pods::OUTSIDER_WEST, pods::NEAR),
];

// Protocol numbers and next headers (IANA).
const IGMP: u8 = 2;
const TCP: u8 = 6;
const FRAGMENT: u8 = 44;
const GRE: u8 = 47;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
/// For experiments, and what may stand behind it is unknown.
const EXPERIMENT: u8 = 253;

pub(super) fn udp(world: &mut World, _: Mode) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for (client, server) in PAIRS {
            let (to, from) = (world.address(server, family, PORT)?, world.address(client, family, PORT)?);
            let server = world.sandbox.pod(server)?.net().run(|| UdpSocket::bind(to))??;
            let client = world.sandbox.pod(client)?.net().run(|| UdpSocket::bind(from))??;
            for length in LENGTHS {
                for (sender, receiver, source, target) in
                    [(&client, &server, from, to), (&server, &client, to, from)]
                {
                    receiver.set_read_timeout(Some(SETTLE))?;
                    let sent = vec![0x5a; length];
                    sender.send_to(&sent, target)?;
                    let mut received = [0; 5000];
                    let (count, peer) = receiver.recv_from(&mut received)?;
                    ensure!(
                        (&received[..count], peer) == (&sent[..], source),
                        "{source} to {target}: {count} of {length} bytes from {peer}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// By raw sockets at both ends, so that it does not matter what the kernel makes of them.
pub(super) fn other_protocols(world: &mut World, _: Mode) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for (from, to) in PAIRS {
            for protocol in [IGMP, GRE, SCTP, UDP_LITE] {
                for length in LENGTHS {
                    carried(world, (from, to), family, protocol, length)
                        .with_context(|| format!("protocol {protocol}, {length} bytes, {from} to {to}"))?;
                }
            }
        }
    }
    Ok(())
}

fn carried(
    world: &World,
    (from, to): (&str, &str),
    family: Family,
    protocol: u8,
    length: usize,
) -> anyhow::Result<()> {
    let (from, to) = (world.sandbox.pod(from)?, world.sandbox.pod(to)?);
    let (source, target) = (from.address(family)?, to.address(family)?);
    let mut receiver = raw(to.net(), family, protocol)?;
    receiver.bind(&SocketAddr::new(target, 0).into())?;
    let sender = raw(from.net(), family, protocol)?;
    sender.bind(&SocketAddr::new(source, 0).into())?;
    // The numbers of ports, if it were TCP; not zero, which some protocols take for something.
    let payload: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap_or(0) + 1).collect();
    sender.send_to(&payload, &SocketAddr::new(target, 0).into())?;
    until_received(&mut receiver, |packet| packet.ends_with(&payload))
}

fn raw(net: &NetNamespace, family: Family, protocol: u8) -> anyhow::Result<Socket> {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = net.run(|| Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol)))))??;
    socket.set_read_timeout(Some(SETTLE))?;
    Ok(socket)
}

fn until_received(socket: &mut Socket, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<()> {
    let mut packet = [0; 8192];
    loop {
        let length = socket.read(&mut packet).context("nothing of the kind is received")?;
        if wanted(&packet[..length]) {
            return Ok(());
        }
    }
}

pub(super) fn echo(world: &mut World, _: Mode) -> anyhow::Result<()> {
    for family in Family::BOTH {
        // RFC 792 and RFC 4443 4.1, 4.2: request, reply.
        let (protocol, request, reply) = if family == Family::V4 { (1, 8, 0) } else { (58, 128, 129) };
        for (from, to) in PAIRS {
            for length in LENGTHS {
                let pod = world.sandbox.pod(from)?;
                let mut socket = raw(pod.net(), family, protocol)?;
                let mut message = vec![0x61; length];
                // Type, code, checksum, identifier, sequence number.
                message[..8].copy_from_slice(&[request, 0, 0, 0, 0x12, 0x34, 0, 1]);
                if family == Family::V4 {
                    // Of ICMPv6 the kernel computes it.
                    let sum = checksum(&message).to_be_bytes();
                    message[2..4].copy_from_slice(&sum);
                }
                socket.send_to(&message, &world.address(to, family, 0)?.into())?;
                let is_reply = |packet: &[u8]| {
                    let Some(start) = packet.len().checked_sub(length) else { return false };
                    packet[start] == reply && packet[start + 4..] == message[4..]
                };
                until_received(&mut socket, is_reply)
                    .with_context(|| format!("{from} to {to} over {family}, {length} bytes"))?;
            }
        }
    }
    Ok(())
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).copied().map_or(0, u32::from));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

/// A narrower link on the way: the pod is told by ICMP, without which what it sends is dropped there for ever.
pub(super) fn path_mtu(world: &mut World, _: Mode) -> anyhow::Result<()> {
    let west = world.sandbox.node("west")?;
    let target = world.sandbox.pod(pods::OUTSIDER_WEST)?.address(Family::V4)?;
    let device = leads_to(west, target)?;
    let narrow = |mtu: &str| {
        let output =
            west.exec(&Program::new("ip").args(["link", "set", "dev", &device, "mtu", mtu]), SETTLE)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    narrow("1300")?;
    let outcome = Family::BOTH.into_iter().try_for_each(|family| over_narrow_path(world, family));
    narrow("1500")?;
    outcome
}

fn over_narrow_path(world: &World, family: Family) -> anyhow::Result<()> {
    let (to, from) = (pods::OUTSIDER_WEST, pods::NEAR);
    let (target, source) = (world.address(to, family, PORT)?, world.address(from, family, PORT)?);
    let server = world.sandbox.pod(to)?.net().run(|| UdpSocket::bind(target))??;
    let client = world.sandbox.pod(from)?.net().run(|| UdpSocket::bind(source))??;
    server.set_nonblocking(true)?;
    let what = || format!("a datagram of 1400 bytes over {family}");
    wait::try_until(SETTLE, what, || {
        // What is too large is not fragmented on the way; its sender has to know. Until it does, it may be told so here.
        let _ = client.send_to(&[0x5a; 1400], target);
        server.recv(&mut [0; 1500]).map_err(|error| error.to_string())
    })?;
    // And what is captured: the errors for ztunnel's sockets reach them.
    let mut stream = world.connect(from, world.address(to, family, ports::ECHO)?)?;
    exchange(&mut stream, 0)?;
    let talk = Talk::start(format!("over a narrow path, {family}"), stream)?;
    talk.goes_on(1 << 20, SETTLE)?;
    talk.finish()?;
    Ok(())
}

/// A pod that joins a group says so to its routers.
pub(super) fn memberships(world: &mut World, _: Mode) -> anyhow::Result<()> {
    let pod = world.sandbox.pod(pods::NEAR)?;
    // Every packet of the node (ETH_P_ALL of linux/if_ether.h), without its link-layer header.
    let every = Protocol::from(i32::from(0x0003_u16.to_be()));
    let node = world.sandbox.node("east")?.net();
    let mut wire = node.run(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(every)))??;
    wire.set_read_timeout(Some(SETTLE))?;
    let IpAddr::V4(v4) = pod.address(Family::V4)? else { bail!("no IPv4 address") };
    let member = pod.net().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let group = Ipv4Addr::new(239, 7, 7, 7);
    member.join_multicast_v4(&group, &v4)?;
    // RFC 3376 4.2: type 0x22, behind an IP header with an option.
    until_received(&mut wire, |packet| {
        packet.len() > 32 && packet[0] >> 4 == 4 && packet[9] == IGMP && packet.ends_with(&group.octets())
    })
    .context("IGMP")?;
    let member = pod.net().run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))??;
    let group = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0, 0x777);
    member.join_multicast_v6(&group, 2)?;
    // RFC 3810 5.2: ICMPv6 of type 143, behind a hop-by-hop header.
    until_received(&mut wire, |packet| {
        packet.len() > 60
            && packet[0] >> 4 == 6
            && (packet[6], packet[48]) == (0, 143)
            && packet.ends_with(&group.octets())
    })
    .context("MLD")
}

/// A router's question who is in which group reaches the pod's kernel.
pub(super) fn queries(world: &mut World, _: Mode) -> anyhow::Result<()> {
    let (node, pod) = (world.sandbox.node("east")?, world.sandbox.pod(pods::NEAR)?);
    let asked = || received_queries(pod.net());
    let before = asked()?;
    // The pod's only neighbour is its node, on the device that leads to it.
    let (source, device) = link_local(node.net(), &leads_to(node, pod.address(Family::V6)?)?)?;
    let socket = raw(node.net(), Family::V6, 255)?;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let query = listener_query(source, all_nodes);
    socket.send_to(&query, &SocketAddrV6::new(all_nodes, 0, 0, device).into())?;
    let grown = || asked().is_ok_and(|now| now > before).then_some(());
    Ok(wait::until(SETTLE, || "a listener query to be received".into(), grown)?)
}

/// `Icmp6InGroupMembQueries` of proc_net_snmp6.
fn received_queries(net: &NetNamespace) -> anyhow::Result<u64> {
    let text = net.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp6"))??;
    let line = text.lines().find(|line| line.starts_with("Icmp6InGroupMembQueries")).context("no counter")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
}

/// The link-local address of a device and the device's number: the first fields of if_inet6, whose last one is the name.
fn link_local(net: &NetNamespace, device: &str) -> anyhow::Result<(Ipv6Addr, u32)> {
    let text = net.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"))??;
    let is_its = |line: &&str| line.starts_with("fe80") && line.ends_with(&format!(" {device}"));
    let line = text.lines().find(is_its).with_context(|| format!("{device} has no link-local address"))?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [address, number, ..] = fields[..] else { bail!("{line:?}") };
    Ok((u128::from_str_radix(address, 16)?.into(), u32::from_str_radix(number, 16)?))
}

/// The device of a node over which it reaches an address.
fn leads_to(node: &Node, address: IpAddr) -> anyhow::Result<String> {
    let output = node.exec(&Program::new("ip").args(["-o", "route", "get", &address.to_string()]), SETTLE)?;
    let route = String::from_utf8_lossy(&output.stdout).into_owned();
    let device = route.split(' ').skip_while(|word| *word != "dev").nth(1).context("no device")?;
    Ok(device.to_owned())
}

/// A general query of RFC 3810 5.1, to be answered within a millisecond, behind a router alert (RFC 2711).
fn listener_query(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![0; 28];
    message[0] = 130;
    message[5] = 1;
    // RFC 8200 8.1: sums are over the addresses, the length and the next header as well.
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 0, 0, 28, 0, 0, 0, 58], &message].concat();
    message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let header = [0x60, 0, 0, 0, 0, 8 + 28, 0, 1];
    [&header[..], &from.octets(), &to.octets(), &[58, 0, 5, 2, 0, 0, 1, 0], &message].concat()
}

/// What no socket of TCP would send: a later fragment of a segment, full of plaintext, without the segment's head.
pub(super) fn fragmented_tcp(world: &mut World, _: Mode) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let fragment = match addresses(world, family)? {
            (IpAddr::V4(from), IpAddr::V4(to)) => fragment_v4(from, to)?,
            // Offset of 100 * 8 bytes, no more fragments, and an identification (RFC 8200 4.5).
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                packet_v6(from, to, FRAGMENT, &[TCP, 0, 0x03, 0x20, 1, 2, 3, 4])?
            }
            (from, to) => bail!("{from} and {to} are of different families"),
        };
        dropped(world, family, &fragment, "fragment").with_context(|| format!("{family}"))?;
    }
    Ok(())
}

/// IPv6 alone has extension headers.
pub(super) fn unknown_extension(world: &mut World, _: Mode) -> anyhow::Result<()> {
    let (IpAddr::V6(from), IpAddr::V6(to)) = addresses(world, Family::V6)? else {
        bail!("no IPv6 addresses")
    };
    let packet = packet_v6(from, to, EXPERIMENT, &[TCP, 0, 0, 0, 0, 0, 0, 0])?;
    dropped(world, Family::V6, &packet, "extension_header")
}

/// Options that begin in one fragment and end in another: neither fragment tells what stands behind them.
pub(super) fn split_extension(world: &mut World, _: Mode) -> anyhow::Result<()> {
    const DESTINATION_OPTIONS: u8 = 60;
    let (IpAddr::V6(from), IpAddr::V6(to)) = addresses(world, Family::V6)? else {
        bail!("no IPv6 addresses")
    };
    // RFC 8200 4.5: the first with more to come, and one at 100 * 8 bytes with none.
    for (name, offset) in [("first", 0x0001_u16), ("last", 0x0320)] {
        let [high, low] = offset.to_be_bytes();
        let packet = packet_v6(from, to, FRAGMENT, &[DESTINATION_OPTIONS, 0, high, low, 1, 2, 3, 4])?;
        dropped(world, Family::V6, &packet, "fragment").with_context(|| format!("the {name} fragment"))?;
    }
    Ok(())
}

fn addresses(world: &World, family: Family) -> anyhow::Result<(IpAddr, IpAddr)> {
    let (from, to) = (world.sandbox.pod(pods::CLIENT)?, world.sandbox.pod(pods::OUTSIDER_WEST)?);
    Ok((from.address(family)?, to.address(family)?))
}

/// `reason` is what the count of dropped packets grows under: of the node, and of the pod that sent them and no other.
fn dropped(world: &World, family: Family, packet: &[u8], reason: &str) -> anyhow::Result<()> {
    let reason = format!("reason=\"{reason}\"");
    let before = world.counted("east", &reason)?;
    let of = |pod: &str| world.counted_of("east", pod, &reason);
    let (own, others) = (of(pods::CLIENT)?, of(pods::NEAR)?);
    // With this protocol the header is the sender's (raw(7), IPPROTO_RAW).
    let socket = raw(world.sandbox.pod(pods::CLIENT)?.net(), family, 255)?;
    let (_, to) = addresses(world, family)?;
    match socket.send_to(packet, &SocketAddr::new(to, 0).into()) {
        Ok(_) => {}
        // What is dropped by a classifier may be told to the sender.
        Err(error)
            if error.raw_os_error() == Some(nix::libc::ENOBUFS) || error.kind() == ErrorKind::Other => {}
        Err(error) => return Err(error.into()),
    }
    let counted = || world.counted("east", &reason).is_ok_and(|now| now > before).then_some(());
    wait::until(Duration::from_secs(5), || "the count of a dropped packet".into(), counted)?;
    ensure!(of(pods::CLIENT)? > own, "it is not counted for its pod");
    ensure!(of(pods::NEAR)? == others, "it is counted for another pod");
    let markers = world.capture.as_ref().context("no capture")?.traffic().markers;
    ensure!(markers == 0, "it reached the wire");
    Ok(())
}

fn fragment_v4(from: Ipv4Addr, to: Ipv4Addr) -> anyhow::Result<Vec<u8>> {
    let total = u16::try_from(20 + MARKER.len())?.to_be_bytes();
    // RFC 791 3.1: version 4, 5 words of header; offset of 100 * 8 bytes; TTL 64.
    let mut packet = vec![0x45, 0, total[0], total[1], 0x12, 0x34, 0, 100, 64, TCP, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(MARKER.as_bytes());
    Ok(packet)
}

fn packet_v6(from: Ipv6Addr, to: Ipv6Addr, next: u8, extension: &[u8; 8]) -> anyhow::Result<Vec<u8>> {
    let payload = u16::try_from(extension.len() + MARKER.len())?.to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, payload[0], payload[1], next, 64];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(extension);
    packet.extend(MARKER.as_bytes());
    Ok(packet)
}
