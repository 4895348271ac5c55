//! What a pod can do by itself: set marks, take addresses, make cgroups.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use sandbox::{Direction, Family};

use super::{AGENT, Count, Log, ZTUNNEL};
use crate::world::{SETTLE, STRICT, World, identity, pods, ports};

/// Marks of the mesh, alone and under bits of others.
const MARKS: [u32; 7] = [0x539, 0x53a, 0x111, 0x7539, 0xf0_053a, 0x1_0111, 0x539 | 0x53a];

/// How a socket differs from others.
#[derive(Clone, Copy, Default)]
struct Own {
    mark: Option<u32>,
    source: Option<SocketAddr>,
}

/// A connection from inside of a pod by a socket that is prepared as it says.
fn dial(world: &World, pod: &str, own: Own, to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = world.sandbox.pod(pod)?.net().run(|| -> nix::Result<TcpStream> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if let Some(mark) = own.mark {
            setsockopt(&fd, sockopt::Mark, &mark)?;
        }
        let patience = TimeVal::seconds(10);
        // `connect` waits as long as a send may.
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        if let Some(source) = own.source {
            bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
        }
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(TcpStream::from(fd))
    })?;
    stream.with_context(|| format!("connecting to {to} from {pod}"))
}

/// The body of the answer to a request without a marker.
fn ask(stream: &mut TcpStream) -> anyhow::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub(super) fn marks(world: &mut World) -> anyhow::Result<()> {
    let counted = Count::from_now(world, AGENT, "culvert_bpf_packets_total", &["reason=\"forged_mark\""])?;
    let agent = Log::whole(world, "agent-east");
    let mut dialled = 0;
    for family in Family::BOTH {
        for mark in MARKS {
            for (to, answers, path) in [
                (pods::FAR, "pod=far\n", "other_node"),
                (pods::OUTSIDER_WEST, "pod=outsider-west\n", "passthrough"),
            ] {
                let what = || format!("{family}, mark {mark:#x}, to {to}");
                // Without a source of its own such a socket does not even get a route by the marks that lead to `lo`.
                let source = SocketAddr::new(world.sandbox.pod(pods::CLIENT)?.address(family)?, 0);
                let own = Own { mark: Some(mark), source: Some(source) };
                let address = world.address(to, family, ports::HTTP)?;
                // The kernel may choose the port of the last one, which was to somebody else.
                let log = world.mesh.access_log().from_now();
                let mut stream = dial(world, pods::CLIENT, own, address).with_context(what)?;
                let local = stream.local_addr()?;
                let answer = ask(&mut stream).with_context(what)?;
                // The entry is written when the connection has ended.
                drop(stream);
                ensure!(answer.contains(answers), "{}: {answer}", what());
                let entry = log.of(local, Direction::Outbound, SETTLE).with_context(what)?;
                ensure!(entry.path.as_deref() == Some(path), "{}: {entry:?}", what());
                let source = (path == "other_node").then(|| identity("shop", "client"));
                ensure!(entry.source_identity == source, "{}: {entry:?}", what());
                dialled += u64::from(mark & 0xfff != 0x53b);
            }
        }
    }
    counted.grows_by(world, dialled)?;
    agent.tells(&["shop/client", "exempts nothing"])?;
    Ok(())
}

pub(super) fn marked_to_itself(world: &mut World) -> anyhow::Result<()> {
    // Under STRICT what got past the mesh would be refused at its end.
    world.while_permissive(|world| gains_nothing(world))?;
    Ok(world.mesh.check_alive()?)
}

fn gains_nothing(world: &World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for mark in MARKS {
            let own = Own { mark: Some(mark), ..Own::default() };
            // On the same node the mark of the application leg leads back to the sender itself, and never to the other pod.
            let near = world.address(pods::NEAR, family, ports::HTTP)?;
            let from = dial(world, pods::CLIENT, own, near).and_then(|mut stream| {
                let local = stream.local_addr()?;
                Ok((local, ask(&mut stream)?))
            });
            if let Ok((local, answer)) = from {
                ensure!(
                    answer.contains("pod=client\n")
                        || world.mesh.access_log().of(local, Direction::Outbound, SETTLE).is_ok(),
                    "{family}, mark {mark:#x}: near answered beside the mesh: {answer}"
                );
            }
            for port in [15001, 15006, 15008] {
                let to = world.address(pods::CLIENT, family, port)?;
                let answer = dial(world, pods::CLIENT, own, to).and_then(|mut stream| ask(&mut stream));
                ensure!(
                    answer.as_ref().map_or(true, |answer| !answer.contains("HTTP")),
                    "{family}, mark {mark:#x}: port {port} answered: {answer:?}"
                );
            }
        }
    }
    Ok(())
}

pub(super) fn kubelets_namesake(world: &mut World) -> anyhow::Result<()> {
    let exempt = Count::from_now(
        world,
        AGENT,
        "culvert_bpf_packets_total",
        &["decision=\"exempt\"", "reason=\"probe\""],
    )?;
    let outsider = world.sandbox.pod(pods::OUTSIDER_EAST)?;
    for family in Family::BOTH {
        for cgroup in ["kubelet", "system.slice/kubelet.service", "kubelet/kubelet"] {
            let request = world.request(pods::NEAR, family, ports::HTTP)?;
            let place = outsider.place(cgroup)?;
            let client = outsider.address(family)?;
            world
                .ensure_refused(client, STRICT, || Ok(request.from_place(&place)?))
                .with_context(|| format!("{family}, a stranger in {cgroup}"))?;
            let reply = request.from_place(&world.sandbox.pod(pods::CLIENT)?.place(cgroup)?)?;
            ensure!(reply.ok(), "{family}, {cgroup}: {}", reply.outcome());
            let local = reply.local.context("no local address")?;
            let entry = world.mesh.access_log().of(local, Direction::Inbound, SETTLE)?;
            ensure!(
                entry.source_identity == Some(identity("shop", "client")),
                "{family}, {cgroup}: {entry:?}"
            );
        }
    }
    ensure!(exempt.grown(world)? == 0, "a connection was taken for kubelet's");
    Ok(())
}

pub(super) fn stolen_address(world: &mut World) -> anyhow::Result<()> {
    let thief = world.sandbox.pod(pods::INTRUDER)?;
    for family in Family::BOTH {
        for victim in [pods::CLIENT, pods::FAR] {
            thief.add_address(world.sandbox.pod(victim)?.address(family)?)?;
            let what = || format!("{family}, {victim}'s address");
            sends_as(world, victim, family).with_context(what)?;
            listens_as(world, victim, family).with_context(what)?;
        }
    }
    Ok(())
}

/// The thief dials from the victim's address, to a pod of its own node and to one of the other.
fn sends_as(world: &World, victim: &str, family: Family) -> anyhow::Result<()> {
    let stolen = SocketAddr::new(world.sandbox.pod(victim)?.address(family)?, 0);
    let own = Own { source: Some(stolen), ..Own::default() };
    let flags = ["response_flags=\"FOREIGN_SOURCE\"", "reporter=\"source\""];
    for to in [pods::NEAR, pods::FAR].into_iter().filter(|to| *to != victim) {
        let counted = Count::from_now(world, ZTUNNEL, "istio_tcp_connections_failed_total", &flags)?;
        let log = world.mesh.access_log().from_now();
        // The reset may come before the client knows that it is connected, and which port it has.
        let address = world.address(to, family, ports::HTTP)?;
        let answer = dial(world, pods::INTRUDER, own, address).and_then(|mut stream| ask(&mut stream));
        ensure!(answer.as_ref().map_or(true, String::is_empty), "to {to}: {answer:?}");
        let entry = log.find(
            SETTLE,
            || format!("an entry of {}", stolen.ip()),
            |entry| entry.source.ip() == stolen.ip() && entry.direction == Some(Direction::Outbound),
        )?;
        let named = entry.error.as_deref().unwrap_or_default();
        ensure!(named.contains("is no address of the pod"), "to {to}: {entry:?}");
        ensure!(entry.others["src.workload"] == "intruder", "to {to}: {entry:?}");
        ensure!(entry.path.as_deref() == Some("refused"), "to {to}: {entry:?}");
        let claimed = entry.source_identity.unwrap_or_else(|| identity("guest", "intruder"));
        ensure!(claimed == identity("guest", "intruder"), "to {to}: {claimed}");
        counted.grows_by(world, 1)?;
    }
    // To something outside of the mesh it goes from the thief's own address.
    let mut stream =
        dial(world, pods::INTRUDER, own, world.address(pods::OUTSIDER_WEST, family, ports::HTTP)?)?;
    let answer = ask(&mut stream)?;
    let seen = answer.lines().find_map(|line| line.strip_prefix("peer=")).context("no peer")?;
    let seen: SocketAddr = seen.parse()?;
    ensure!(seen.ip() == world.sandbox.pod(pods::INTRUDER)?.address(family)?, "the server saw {seen}");
    Ok(())
}

/// The thief listens on the victim's address: nobody's connection comes to it, and the mesh's port there takes none for it.
fn listens_as(world: &World, victim: &str, family: Family) -> anyhow::Result<()> {
    let stolen = SocketAddr::new(world.sandbox.pod(victim)?.address(family)?, 7_778);
    let listener = world.sandbox.pod(pods::INTRUDER)?.net().run(|| TcpListener::bind(stolen))??;
    listener.set_nonblocking(true)?;
    for from in [pods::NEAR, pods::FAR].into_iter().filter(|from| *from != victim) {
        let answer = dial(world, from, Own::default(), stolen).and_then(|mut stream| ask(&mut stream));
        ensure!(answer.as_ref().map_or(true, String::is_empty), "{from} got {answer:?}");
        let accepted = listener.accept().map_err(|error| error.kind());
        ensure!(
            accepted.as_ref().err() == Some(&ErrorKind::WouldBlock),
            "{from} came to the thief: {accepted:?}"
        );
    }
    let counted =
        Count::from_now(world, ZTUNNEL, "culvert_early_refusals_total", &["reason=\"FOREIGN_ADDRESS\""])?;
    let ztunnel = Log::from_now(world, "ztunnel-east");
    let hbone = SocketAddr::new(stolen.ip(), 15008);
    let answer = dial(world, pods::INTRUDER, Own::default(), hbone).and_then(|mut stream| ask(&mut stream));
    ensure!(answer.as_ref().map_or(true, String::is_empty), "the mesh's port answered: {answer:?}");
    counted.grows_by(world, 1)?;
    ztunnel.tells(&["FOREIGN_ADDRESS", &hbone.to_string(), "intruder"])?;
    Ok(())
}
