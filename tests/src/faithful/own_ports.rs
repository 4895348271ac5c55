//! The mesh's own ports in a pod: nobody is served on them, and an application that was there first keeps its pod out.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen as start_listening, setsockopt,
    socket, sockopt,
};
use sandbox::{Family, Fetch, NetNamespace, wait};

use super::ways::{listen, set_strict};
use crate::Case;
use crate::world::{SETTLE, STRICT, World, pods, ports};

/// Outbound, inbound plaintext, HBONE, DNS.
const PORTS: [u16; 4] = [15001, 15006, 15008, 15053];

/// A refusal is no time-out: those take 10 s.
const REFUSAL: Duration = Duration::from_secs(5);

/// One try at a request.
const TRY: Duration = Duration::from_secs(2);

/// What is counted of refused connections: before their parties are known, and after.
const REFUSED: [&str; 2] = ["culvert_early_refusals_total", "istio_tcp_connections_failed_total"];

/// One more than a connection that is refused at both ends is counted would be a loop.
const COUNTED_AT_MOST: u64 = 2;

/// An application on a port of the mesh when its pod joins.
pub const OCCUPIED: &[Case<World>] = &[(
    "a_pod_whose_application_holds_a_port_of_the_mesh_stays_out_says_so_and_joins_once_it_is_free",
    occupied,
)];

/// Who calls, by what name, and under which addresses the pod's ports are reached from there.
fn callers(world: &World, family: Family) -> anyhow::Result<Vec<(&'static str, &NetNamespace, IpAddr)>> {
    let near = world.sandbox.pod(pods::NEAR)?.address(family)?;
    let loopback = if family == Family::V4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let from = |pod| Ok::<_, sandbox::Error>(world.sandbox.pod(pod)?.net());
    Ok(vec![
        ("a pod outside of the mesh on the node", from(pods::OUTSIDER_EAST)?, near),
        ("a pod outside of the mesh on the other node", from(pods::OUTSIDER_WEST)?, near),
        ("a pod of the mesh on the node", from(pods::CLIENT)?, near),
        ("a pod of the mesh on the other node", from(pods::FAR)?, near),
        ("the node", world.sandbox.node("east")?.net(), near),
        ("the pod itself", from(pods::NEAR)?, near),
        ("the pod itself over loopback", from(pods::NEAR)?, loopback),
    ])
}

fn refusals(world: &World) -> anyhow::Result<u64> {
    let mut sum = 0;
    for node in ["east", "west"] {
        for name in REFUSED {
            sum += world.ztunnel_metric(node, name)?;
        }
    }
    Ok(sum)
}

/// A call in plaintext; whether somebody accepted it before it was refused.
fn call(net: &NetNamespace, to: SocketAddr) -> anyhow::Result<bool> {
    let mut stream = match net.run(|| TcpStream::connect_timeout(&to, REFUSAL))? {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    stream.set_read_timeout(Some(REFUSAL))?;
    match stream.write_all(b"GET / HTTP/1.1\r\nhost: near\r\n\r\n") {
        // The kernel tells of a reset once.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
        written => written?,
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        // RFC 8446 5.1 and 6: an alert, of TLS's record type 21, is what speaks of no TLS are told on 15008.
        Ok(_) if to.port() == 15008 && answer.first() == Some(&21) => {}
        other => bail!("{other:?} {:?}", String::from_utf8_lossy(&answer)),
    }
    ensure!(!answer.starts_with(b"HTTP"), "an answer: {:?}", String::from_utf8_lossy(&answer));
    Ok(true)
}

pub(super) fn refused(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, true)?;
    for family in Family::BOTH {
        for (who, net, address) in callers(world, family)? {
            for port in PORTS {
                let what = format!("{who}, port {port} over {family}");
                let before = refusals(world)?;
                let accepted = call(net, SocketAddr::new(address, port)).with_context(|| what.clone())?;
                // What nothing listens for is refused by the kernel, to the pod itself only.
                ensure!(accepted || (port == 15053 && who.contains("itself")), "{what}: nobody accepted it");
                let counted = if accepted {
                    wait::until(
                        SETTLE,
                        || format!("a count of {what}"),
                        || refusals(world).ok().filter(|now| *now > before),
                    )?
                } else {
                    refusals(world)?
                };
                ensure!(counted - before <= COUNTED_AT_MOST, "{what}: counted {} times", counted - before);
            }
        }
        world.answered_within(SETTLE, pods::CLIENT, pods::NEAR, family)?;
    }
    world.mesh.check_alive()?;
    Ok(())
}

/// An attempt to listen, with every option that lets others share a port.
fn take(net: &NetNamespace, address: SocketAddr) -> anyhow::Result<nix::Result<()>> {
    Ok(net.run(|| {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        start_listening(&fd, Backlog::MAXCONN)
    })?)
}

pub(super) fn held(world: &mut World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let net = world.sandbox.pod(pods::NEAR)?.net();
        let near = world.sandbox.pod(pods::NEAR)?.address(family)?;
        let everywhere: [IpAddr; 2] = match family {
            Family::V4 => [Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()],
            Family::V6 => [Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()],
        };
        for address in everywhere.into_iter().chain([near]) {
            for port in &PORTS[..3] {
                let taken = take(net, SocketAddr::new(address, *port))?;
                ensure!(taken == Err(Errno::EADDRINUSE), "{address} {port}: {taken:?}");
            }
        }
    }
    Ok(())
}

/// The label by which `shop/near` is in the mesh, and by which it is not.
const IN: &str = "labels: {app: near}";
const OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";

fn occupied(world: &mut World) -> anyhow::Result<()> {
    set_strict(world, true)?;
    let [v4, v6] =
        Family::BOTH.map(|family| world.sandbox.pod(pods::NEAR).and_then(|pod| pod.address(family)));
    for (address, port) in [
        (IpAddr::from(Ipv4Addr::UNSPECIFIED), 15001),
        (Ipv6Addr::UNSPECIFIED.into(), 15006),
        (Ipv4Addr::LOCALHOST.into(), 15008),
        (v4?, 15006),
        (v6?, 15008),
    ] {
        let what = || format!("{address} port {port}");
        world.edit("shop.yaml", IN, OUT)?;
        until_near(world, |status| status.is_none())?;
        let application = listen(world, pods::NEAR, SocketAddr::new(address, port))?;
        let log = world.mesh.directory().join("agent-east.log");
        let length = std::fs::read(&log)?.len();
        world.edit("shop.yaml", OUT, IN)?;
        until_near(world, |status| {
            status.is_some_and(|near| {
                let message = near["last_error"]["message"].as_str().unwrap_or_default();
                near["state"] == "preparing"
                    && near["last_error"]["reason"] == "port_in_use"
                    && message.contains(&port.to_string())
            })
        })
        .with_context(what)?;
        let said = format!("port {port} is in use by the application");
        let line = || -> Option<()> {
            let text = std::fs::read(&log).ok()?;
            let text = String::from_utf8_lossy(text.get(length..)?).into_owned();
            text.lines().any(|line| line.contains("\twarn\t") && line.contains(&said)).then_some(())
        };
        wait::until(SETTLE, || format!("a line of the log, {said:?}"), line)?;
        meanwhile(world, port).with_context(what)?;
        if port == 15001 {
            world.edit("policies.yaml", "mode: STRICT", "mode: PERMISSIVE")?;
            permissive_meanwhile(world).with_context(what)?;
        }
        drop(application);
        until_near(world, |status| status.is_some_and(|near| near["state"] == "enrolled"))
            .with_context(what)?;
        for family in Family::BOTH {
            world.answered_within(SETTLE, pods::CLIENT, pods::NEAR, family)?;
            world.answered_within(SETTLE, pods::NEAR, pods::FAR, family)?;
        }
    }
    Ok(())
}

/// Neither takes a pod of the mesh plaintext from it, nor sends it any; and as it is strict, it takes plaintext from nobody.
fn meanwhile(world: &World, taken: u16) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    for family in Family::BOTH {
        let near = world.sandbox.pod(pods::NEAR)?.address(family)?;
        for peer in [pods::CLIENT, pods::FAR] {
            let call = || world.fetch(pods::NEAR, peer, family, ports::HTTP);
            world.ensure_refused(near, STRICT, call).with_context(|| format!("to {peer} over {family}"))?;
            let reply = world.fetch(peer, pods::NEAR, family, ports::HTTP)?;
            // The application that holds 15008 is asked for TLS, and has no word to say here.
            let is_silent = taken == 15008 && reply.exit == 28;
            ensure!(reply.reset() || is_silent, "from {peer} over {family}: {}", reply.outcome());
        }
        // Between nodes without the marker, which is not to be seen there.
        let url = format!("http://{}/healthz", world.address(pods::NEAR, family, ports::HTTP)?);
        for outsider in [pods::OUTSIDER_EAST, pods::OUTSIDER_WEST] {
            let reply = Fetch::new(&url).from_pod(world.sandbox.pod(outsider)?)?;
            ensure!(reply.reset(), "from {outsider} over {family}: {}", reply.outcome());
        }
        let reply = Fetch::new(&url).from_kubelet(node)?;
        ensure!(reply.ok(), "a probe over {family}: {}", reply.outcome());
    }
    Ok(())
}

/// A pod that takes plaintext goes on doing so while it cannot join.
fn permissive_meanwhile(world: &World) -> anyhow::Result<()> {
    for strict in [false, true] {
        for family in Family::BOTH {
            let url = format!("http://{}/healthz", world.address(pods::NEAR, family, ports::HTTP)?);
            let request = Fetch::new(&url).within(TRY);
            let outsider = world.sandbox.pod(pods::OUTSIDER_WEST)?;
            wait::try_until(
                SETTLE,
                || format!("plaintext over {family} with strict {strict}"),
                || match request.from_pod(outsider) {
                    Ok(reply) if reply.ok() != strict => Ok(()),
                    Ok(reply) => Err(reply.outcome()),
                    Err(error) => Err(error.to_string()),
                },
            )?;
        }
        if !strict {
            world.edit("policies.yaml", "mode: PERMISSIVE", "mode: STRICT")?;
        }
    }
    Ok(())
}

fn until_near(world: &World, wanted: impl Fn(Option<&serde_json::Value>) -> bool) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    wait::try_until(
        SETTLE,
        || "near's state".into(),
        || {
            let status = world.mesh.status(node).map_err(|error| error.to_string())?;
            let near =
                status["pods"].as_object().and_then(|pods| pods.values().find(|pod| pod["name"] == "near"));
            if wanted(near) { Ok(()) } else { Err(format!("{near:?}")) }
        },
    )?;
    Ok(())
}
