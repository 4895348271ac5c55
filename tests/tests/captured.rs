//! What is captured and what is not: the rows of the README's table under STRICT and PERMISSIVE, and what comes of it when the mesh's
//! programs are away.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use e2e::world::{SETTLE, World, pods, ports};
use e2e::{CAPTURED_UNDER_PERMISSIVE, CAPTURED_UNDER_STRICT, Case};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, socket,
};
use sandbox::{Family, Redirection, wait};

/// Next header of TCP (IANA).
const TCP: u8 = 6;

fn main() -> ExitCode {
    const OTHERS: &[Case<World>] = &[
        ("packets_from_outside_in_the_pods_own_name_are_dropped_and_counted", own_name),
        ("with_agent_and_ztunnel_dead_connections_are_refused", both_dead),
        ("the_last_state_stays_in_force_while_control_is_away", control_away),
    ];
    let cases = [CAPTURED_UNDER_STRICT, OTHERS, CAPTURED_UNDER_PERMISSIVE].concat();
    e2e::run(|| World::start(Redirection::Auto), &cases, World::explain)
}

/// A connection that opens with the pod's address at both ends: taken for the pod's own, it would pass STRICT. Of IPv4 the kernel
/// drops such packets by itself.
fn own_name(world: &mut World) -> anyhow::Result<()> {
    let counted = || world.counted("east", "reason=\"own_source\"");
    let before = counted()?;
    let IpAddr::V6(victim) = world.sandbox.pod(pods::CLIENT)?.address(Family::V6)? else {
        bail!("not an IPv6 address");
    };
    world.sandbox.pod(pods::OUTSIDER_WEST)?.net().run(|| send_syn_to_itself(victim))??;
    wait::until(
        SETTLE,
        || "the count of a dropped packet".into(),
        || counted().is_ok_and(|now| now > before).then_some(()),
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
