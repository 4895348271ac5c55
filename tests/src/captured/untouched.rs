//! TCP that is left alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, ensure};
use sandbox::{Family, Fetch};

use super::Mode;
use crate::world::{SETTLE, World, pods, ports};

/// A port of the tests' own sockets.
const PORT: u16 = 7777;

pub(super) fn loopback(world: &mut World, _: Mode) -> anyhow::Result<()> {
    within(world, &[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

pub(super) fn own_address(world: &mut World, _: Mode) -> anyhow::Result<()> {
    let addresses = world.sandbox.pod(pods::CLIENT)?.spec().addresses.clone();
    within(world, &addresses)
}

fn within(world: &World, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let pod = world.sandbox.pod(pods::CLIENT)?;
    for address in addresses {
        let address = SocketAddr::new(*address, PORT);
        let log = world.mesh.access_log().from_now();
        let (listener, client) = pod.net().run(|| -> std::io::Result<_> {
            let listener = TcpListener::bind(address)?;
            Ok((listener, TcpStream::connect_timeout(&address, SETTLE)?))
        })??;
        let (_, peer) = listener.accept()?;
        let local = client.local_addr()?;
        ensure!(peer == local, "{address}: accepted {peer} in place of {local}");
        drop(client);
        world.ensure_unseen(&log, local)?;
    }
    Ok(())
}

/// A pod on the host's network is to the kernel a process of the node in a cgroup of its own.
pub(super) fn node_clients(world: &mut World, _: Mode) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    for family in Family::BOTH {
        let log = world.mesh.access_log().from_now();
        let url = format!("http://{}/", world.address(pods::OUTSIDER_WEST, family, ports::HTTP)?);
        let reply = Fetch::new(url).from_node(node)?;
        ensure!(reply.ok(), "{family}: {}", reply.outcome());
        world.ensure_unseen(&log, reply.local.context("no local address")?)?;
    }
    Ok(())
}

pub(super) fn node_servers(world: &mut World, _: Mode) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    for address in node.addresses() {
        let address = SocketAddr::new(address, PORT);
        let log = world.mesh.access_log().from_now();
        let listener = node.net().run(|| TcpListener::bind(address))??;
        let client = world.connect(pods::OUTSIDER_WEST, address)?;
        let (_, peer) = listener.accept()?;
        let local = client.local_addr()?;
        ensure!(peer == local, "{address}: accepted {peer} in place of {local}");
        drop(client);
        world.ensure_unseen(&log, local)?;
    }
    Ok(())
}
