//! TCP that is left alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, ensure};
use sandbox::{Family, Fetch, NetNamespace};

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
    let net = world.sandbox.pod(pods::CLIENT)?.net();
    addresses.iter().try_for_each(|address| passes(world, net, net, *address))
}

/// A connection is accepted under its client's own name, and no ztunnel sees it.
fn passes(
    world: &World,
    client: &NetNamespace,
    server: &NetNamespace,
    address: IpAddr,
) -> anyhow::Result<()> {
    let address = SocketAddr::new(address, PORT);
    let log = world.mesh.access_log().from_now();
    let listener = server.run(|| TcpListener::bind(address))??;
    let client = client.run(|| TcpStream::connect_timeout(&address, SETTLE))??;
    let (_, peer) = listener.accept()?;
    let local = client.local_addr()?;
    ensure!(peer == local, "{address}: accepted {peer} in place of {local}");
    drop(client);
    world.ensure_unseen(&log, local)
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
    let (node, pod) = (world.sandbox.node("east")?, world.sandbox.pod(pods::OUTSIDER_WEST)?);
    node.addresses().into_iter().try_for_each(|address| passes(world, pod.net(), node.net(), address))
}
