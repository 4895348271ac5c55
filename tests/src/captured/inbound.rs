//! What comes from outside the mesh.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, bail, ensure};
use sandbox::{Direction, Family, Fetch, Node, Reply};

use super::Mode;
use crate::world::{SETTLE, STRICT, World, pods, ports};

/// Where the node forwards from.
const NODE_PORT: u16 = 30_080;

/// A NodePort as a process on the node serves it that forwards (kube-proxy did so itself once, and load balancers on nodes do): the pod's
/// peer is the node. With a rewriting rule (DNAT) in its place it is the node too, or, with `externalTrafficPolicy: Local`, the client as
/// in [`scrapes`].
pub(super) fn node_port(world: &mut World, mode: Mode) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    for family in Family::BOTH {
        let to = world.address(pods::NEAR, family, ports::HTTP)?;
        let public = SocketAddr::new(address(node, family), NODE_PORT);
        let listener = node.net().run(|| TcpListener::bind(public))??;
        let mut client = world.connect(pods::OUTSIDER_WEST, public)?;
        let (mut from_client, _) = listener.accept()?;
        let log = world.mesh.access_log().from_now();
        let request = b"GET / HTTP/1.0\r\n\r\n";
        client.write_all(request)?;
        let mut forwarded = vec![0; request.len()];
        from_client.read_exact(&mut forwarded)?;
        match (mode, forward(node, to, &forwarded)) {
            (Mode::Permissive, Ok((local, answer))) => {
                from_client.write_all(answer.as_bytes())?;
                drop(from_client);
                let mut received = String::new();
                client.read_to_string(&mut received)?;
                ensure!(received.contains("pod=near\n"), "{family}: {received:?}");
                let entry = log.of(local, Direction::Inbound, SETTLE)?;
                ensure!(entry.path.as_deref() == Some("passthrough"), "{family}: {entry:?}");
                ensure!(entry.source_identity.is_none(), "{family}: {entry:?}");
            }
            (Mode::Strict, Err(error)) if is_reset(&error) => {
                let entry = log.refusal_of(address(node, family), SETTLE)?;
                ensure!(entry.policy.as_deref() == Some(STRICT), "{family}: {entry:?}");
            }
            (_, outcome) => bail!("{family}: {outcome:?}"),
        }
    }
    Ok(())
}

/// Asks a pod from its node; the node's end, and the answer. A reset may come at any point.
fn forward(node: &Node, to: SocketAddr, request: &[u8]) -> std::io::Result<(SocketAddr, String)> {
    let connect = || TcpStream::connect_timeout(&to, SETTLE);
    let mut stream = node.net().run(connect).map_err(std::io::Error::other)??;
    stream.set_read_timeout(Some(SETTLE))?;
    let local = stream.local_addr()?;
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((local, answer))
}

/// A collector of metrics outside of the mesh, on either node.
pub(super) fn scrapes(world: &mut World, mode: Mode) -> anyhow::Result<()> {
    for from in [pods::OUTSIDER_EAST, pods::OUTSIDER_WEST] {
        let pod = world.sandbox.pod(from)?;
        for family in Family::BOTH {
            let url = format!("http://{}/", world.address(pods::NEAR, family, ports::HTTP)?);
            let client = pod.address(family)?;
            judge(world, mode, client, || Ok(Fetch::new(&url).from_pod(pod)?))
                .with_context(|| format!("{from} over {family}"))?;
        }
    }
    if mode == Mode::Permissive {
        return world.while_sink_is_denied(|world| {
            for family in Family::BOTH {
                let client = world.sandbox.pod(pods::OUTSIDER_EAST)?.address(family)?;
                world.ensure_refused(client, "shop/no-guests", || {
                    world.fetch(pods::OUTSIDER_EAST, pods::NEAR, family, ports::SINK)
                })?;
            }
            Ok(())
        });
    }
    Ok(())
}

/// The API server is a process of a node, on the host's network; of the pod's node or of another.
pub(super) fn webhooks(world: &mut World, mode: Mode) -> anyhow::Result<()> {
    for name in ["east", "west"] {
        let node = world.sandbox.node(name)?;
        for family in Family::BOTH {
            // A port that is probed, too: what is no probe is not taken for one.
            let url = format!("http://{}/", world.address(pods::NEAR, family, ports::HTTP)?);
            judge(world, mode, address(node, family), || Ok(Fetch::new(&url).from_node(node)?))
                .with_context(|| format!("node {name} over {family}"))?;
        }
    }
    Ok(())
}

/// Whether a request came out as the mode wants it.
fn judge(
    world: &World,
    mode: Mode,
    client: IpAddr,
    send: impl FnOnce() -> anyhow::Result<Reply>,
) -> anyhow::Result<()> {
    if mode == Mode::Strict {
        world.ensure_refused(client, STRICT, send)?;
        return Ok(());
    }
    let log = world.mesh.access_log().from_now();
    let reply = send()?;
    ensure!(reply.ok(), "{}", reply.outcome());
    let local = reply.local.context("no local address")?;
    let entry = log.of(local, Direction::Inbound, SETTLE)?;
    ensure!(entry.path.as_deref() == Some("passthrough"), "{entry:?}");
    ensure!(entry.source_identity.is_none() && entry.tls_version.is_none(), "{entry:?}");
    let seen = reply.body.lines().find_map(|line| line.strip_prefix("peer=")).unwrap_or_default();
    ensure!(seen.parse::<SocketAddr>()?.ip() == client, "the server saw {seen}");
    Ok(())
}

pub(super) fn probes(world: &mut World, _: Mode) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for (node, pod) in [("east", pods::NEAR), ("west", pods::FAR)] {
            let log = world.mesh.access_log().from_now();
            let url = format!("http://{}/healthz", world.address(pod, family, ports::HTTP)?);
            let reply = Fetch::new(url).from_kubelet(world.sandbox.node(node)?)?;
            ensure!(reply.ok(), "{family} to {pod}: {}", reply.outcome());
            world.ensure_unseen(&log, reply.local.context("no local address")?)?;
        }
    }
    Ok(())
}

/// More about them is in `old_connections`.
pub(super) fn old_connections(world: &mut World, mode: Mode) -> anyhow::Result<()> {
    const IN: &str = "labels: {app: near}";
    const OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";
    world.edit("shop.yaml", IN, OUT)?;
    world.until_pod_is("east", "near", None)?;
    let mut open = Vec::new();
    for family in Family::BOTH {
        for (from, to) in [(pods::OUTSIDER_EAST, pods::NEAR), (pods::NEAR, pods::OUTSIDER_EAST)] {
            let mut stream = world.connect(from, world.address(to, family, ports::ECHO)?)?;
            exchange(&mut stream)?;
            open.push(stream);
        }
    }
    world.edit("shop.yaml", OUT, IN)?;
    world.until_pod_is("east", "near", Some("enrolled"))?;
    for stream in &mut open {
        match (mode, exchange(stream)) {
            (Mode::Permissive, Ok(())) => {}
            (Mode::Strict, Err(error)) if is_reset(&error) => {}
            (_, outcome) => bail!("{outcome:?}"),
        }
    }
    if mode == Mode::Permissive {
        let text = world.mesh.status(world.sandbox.node("east")?)?;
        let near = text["pods"].as_object().and_then(|pods| pods.values().find(|pod| pod["name"] == "near"));
        let listed = near.and_then(|near| near["pre_mesh"].as_array()).map_or(0, Vec::len);
        ensure!(listed == open.len(), "{listed} of {} are listed", open.len());
    }
    Ok(())
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"still here")?;
    let mut answer = [0; 10];
    stream.read_exact(&mut answer)?;
    if &answer == b"still here" { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn is_reset(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe)
}

fn address(node: &Node, family: Family) -> IpAddr {
    let [v4, v6] = node.addresses();
    if family == Family::V4 { v4 } else { v6 }
}
