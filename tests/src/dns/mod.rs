//! DNS: names of the mesh from its state, all others from the servers of the pod itself, and neither by any other way.

mod client;
mod server;

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use api::dns::{Code, Kind, Message};
use sandbox::{Family, wait};

use self::client::{Over, addresses, ask, ask_in, question, socket};
use self::server::Server;
use crate::Case;
use crate::istio::IstioNodes;
use crate::world::{SETTLE, World, echoes, pods, ports};

/// How packets of DNS are led, which depends on the way they are taken.
pub const DNS_LED: &[Case<World>] = &[
    ("a_services_name_leads_to_its_addresses_and_they_through_the_mesh", services),
    ("other_names_are_asked_of_the_server_that_the_pod_asked_in_its_own_name", others),
    ("a_resolver_within_the_pod_is_left_alone", within),
    ("our_own_port_is_refused_from_inside_and_from_outside", own_port),
    ("queries_wait_for_a_ztunnel_that_is_replaced", ztunnel),
    ("an_agent_that_is_replaced_changes_nothing", agent),
    ("a_pod_that_wants_its_dns_left_alone_has_it_left_alone", left_alone),
];

/// How queries are answered once they are there. The last one leaves the pod's own `resolv.conf` as it has changed it.
pub const DNS_ANSWERED: &[Case<World>] = &[
    ("a_server_of_the_pod_that_is_silent_gives_way_and_is_not_waited_for_again", silent),
    ("an_answer_that_was_cut_is_had_whole_by_who_can_take_it", cut),
    ("a_name_that_does_not_exist_is_asked_for_once", negative),
    ("a_pod_that_resolves_names_in_another_way_from_now_on_is_followed", changed),
];

/// Looks at the whole run.
pub const DNS_SEALED: &[Case<World>] =
    &[("no_plaintext_crossed_the_link_between_the_nodes_meanwhile", World::ensure_sealed)];

/// Where rules of iptables lead DNS to ztunnel, as under Istio's agent.
pub const DNS_UNDER_RULES: Case<IstioNodes> =
    ("names_of_the_mesh_are_answered_where_rules_lead_questions_and_others_are_passed_on", under_rules);

const NAME: &str = "far.shop.svc.cluster.local.";
const KINDS: [Kind; 2] = [Kind::A, Kind::AAAA];

/// The first server of the client's `resolv.conf`, by either family, is in the outsider on its node; the second in the other one.
fn server_of(world: &World, pod: &str, family: Family) -> anyhow::Result<SocketAddr> {
    world.address(pod, family, 53)
}

fn start(world: &World, pod: &str, number: u8) -> anyhow::Result<Server> {
    Server::start(world.sandbox.pod(pod)?.net(), number, None)
}

/// The addresses the client is told for a name by the first server of its own.
fn told(world: &World, name: &str, kind: Kind, over: Over) -> anyhow::Result<Vec<IpAddr>> {
    let server = server_of(world, pods::OUTSIDER_EAST, Family::V4)?;
    Ok(addresses(&ask(world, pods::CLIENT, server, &question(name, kind, over), over)?))
}

fn v4(number: u8) -> Vec<IpAddr> {
    vec![Ipv4Addr::new(192, 0, 2, number).into()]
}

pub(crate) fn services(world: &mut World) -> anyhow::Result<()> {
    let server = start(world, pods::OUTSIDER_EAST, 1)?;
    for family in Family::BOTH {
        let to = server_of(world, pods::OUTSIDER_EAST, family)?;
        for over in [Over::Udp, Over::Edns, Over::Tcp] {
            for (kind, expected) in KINDS.into_iter().zip(["10.43.0.3", "fd43::3"]) {
                let answer = ask(world, pods::CLIENT, to, &question(NAME, kind, over), over)?;
                let expected: IpAddr = expected.parse()?;
                ensure!(addresses(&answer) == [expected], "{family}, {over:?}, {kind}: {answer:?}");
                let mut stream = world.connect(pods::CLIENT, SocketAddr::new(expected, ports::ECHO))?;
                echoes(&mut stream)?;
            }
        }
    }
    let asked = server.take_asked();
    ensure!(asked.is_empty(), "somebody else was asked: {asked:?}");
    let counted = world.ztunnel_metric("east", "istio_dns_requests_total")?;
    ensure!(counted >= 12, "{counted} queries are counted");
    ensure!(world.counted("east", "reason=\"dns\"")? >= 8, "they were captured as what they are");
    Ok(())
}

fn under_rules(nodes: &mut IstioNodes) -> anyhow::Result<()> {
    let (client, asked) = (nodes.sandbox.pod(pods::CLIENT)?, nodes.sandbox.pod(pods::OUTSIDER_EAST)?);
    let server = Server::start(asked.net(), 1, None)?;
    for family in Family::BOTH {
        let to = SocketAddr::new(asked.address(family)?, 53);
        for over in [Over::Udp, Over::Edns, Over::Tcp] {
            for (kind, expected) in KINDS.into_iter().zip(["10.43.0.3", "fd43::3"]) {
                let answer = ask_in(client, to, &question(NAME, kind, over), over)?;
                let expected: IpAddr = expected.parse()?;
                ensure!(addresses(&answer) == [expected], "{family}, {over:?}, {kind}: {answer:?}");
            }
        }
        ensure!(server.take_asked().is_empty(), "somebody else was asked for a name of the mesh");
        // Of a datagram the rules do not leave known whom it was for.
        let answer = ask_in(client, to, &question("example.com.", Kind::A, Over::Tcp), Over::Tcp)?;
        ensure!(addresses(&answer) == v4(1), "{family}: {answer:?}");
        ensure!(server.take_asked().len() == 1, "{family}: the server that was meant is not asked once");
    }
    Ok(())
}

pub(crate) fn others(world: &mut World) -> anyhow::Result<()> {
    let (one, two) = (start(world, pods::OUTSIDER_EAST, 1)?, start(world, pods::OUTSIDER_WEST, 2)?);
    // The second server is no server of the pod's over IPv6: then it is asked all the same.
    for (pod, server, number) in [(pods::OUTSIDER_EAST, &one, 1), (pods::OUTSIDER_WEST, &two, 2)] {
        for family in Family::BOTH {
            let to = server_of(world, pod, family)?;
            let own = world.sandbox.pod(pods::CLIENT)?.address(family)?;
            for over in [Over::Udp, Over::Edns, Over::Tcp] {
                let answer = ask(world, pods::CLIENT, to, &question("example.com.", Kind::A, over), over)?;
                ensure!(addresses(&answer) == v4(number), "{pod}, {family}, {over:?}: {answer:?}");
                let asked = server.take_asked();
                let as_asked =
                    asked.iter().all(|asked| asked.over_tcp == (over == Over::Tcp) && asked.from == own);
                ensure!(asked.len() == 1 && as_asked, "{pod}, {family}, {over:?}: {asked:?}");
            }
        }
    }
    Ok(())
}

fn silent(world: &mut World) -> anyhow::Result<()> {
    let (one, two) = (start(world, pods::OUTSIDER_EAST, 1)?, start(world, pods::OUTSIDER_WEST, 2)?);
    one.mute(true);
    ensure!(told(world, "a.example.", Kind::A, Over::Udp)? == v4(2));
    let waited = one.take_asked().len();
    ensure!((1..=2).contains(&waited), "asked {waited} times");
    for number in 0..10 {
        let name = format!("b{number}.example.");
        ensure!(told(world, &name, Kind::A, Over::Udp)? == v4(2), "{name}");
    }
    // But for one that tries whether it is back, nobody has asked it since.
    let tried = one.take_asked();
    ensure!(tried.len() <= 2, "{tried:?}");
    ensure!(two.take_asked().len() == 11);
    one.mute(false);
    wait::try_until(
        Duration::from_secs(90),
        || "the server that is back to be asked".to_owned(),
        || match told(world, "c.example.", Kind::A, Over::Udp) {
            Ok(found) if found == v4(1) => Ok(()),
            Ok(found) => Err(format!("{found:?}")),
            Err(error) => Err(format!("{error:#}")),
        },
    )?;
    Ok(())
}

fn cut(world: &mut World) -> anyhow::Result<()> {
    let _server = start(world, pods::OUTSIDER_EAST, 1)?;
    let to = server_of(world, pods::OUTSIDER_EAST, Family::V4)?;
    for (over, expected, truncated) in [(Over::Edns, 60, false), (Over::Udp, 0, true), (Over::Tcp, 60, false)]
    {
        let answer = ask(world, pods::CLIENT, to, &question("big.example.", Kind::A, over), over)?;
        let found = addresses(&answer).len();
        ensure!(found == expected, "{over:?}: {found} addresses");
        ensure!(answer.flags.is_truncated() == truncated, "{over:?}");
    }
    Ok(())
}

fn negative(world: &mut World) -> anyhow::Result<()> {
    let server = start(world, pods::OUTSIDER_EAST, 1)?;
    let to = server_of(world, pods::OUTSIDER_EAST, Family::V4)?;
    for _ in 0..5 {
        let answer = ask(world, pods::CLIENT, to, &question("nope.example.", Kind::A, Over::Udp), Over::Udp)?;
        ensure!(answer.flags.code() == Code::NO_NAME, "{answer:?}");
    }
    let asked = server.take_asked();
    ensure!(asked.len() == 1 && asked[0].name == "nope.example", "{asked:?}");
    Ok(())
}

pub(crate) fn within(world: &mut World) -> anyhow::Result<()> {
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let server = Server::start(world.sandbox.pod(pods::CLIENT)?.net(), 9, Some(loopback))?;
    let to = SocketAddr::new(loopback, 53);
    for over in [Over::Udp, Over::Tcp] {
        let answer = ask(world, pods::CLIENT, to, &question(NAME, Kind::A, over), over)?;
        ensure!(addresses(&answer) == v4(9), "{over:?}: {answer:?}");
    }
    ensure!(server.take_asked().len() == 2);
    Ok(())
}

fn own_port(world: &mut World) -> anyhow::Result<()> {
    let port = 15053;
    for family in Family::BOTH {
        let to = world.address(pods::CLIENT, family, port)?;
        for from in [pods::OUTSIDER_EAST, pods::OUTSIDER_WEST, pods::CLIENT] {
            let socket = socket(world, from, to)?;
            socket.send(&question(NAME, Kind::A, Over::Udp).encode())?;
            let error = socket.recv(&mut [0; 512]).err().context("it was answered")?;
            ensure!(error.kind() == ErrorKind::ConnectionRefused, "{from} over {family}: {error}");
            let connect = || TcpStream::connect_timeout(&to, SETTLE);
            let outcome = world.sandbox.pod(from)?.net().run(connect)?.and_then(|mut stream| {
                stream.set_read_timeout(Some(SETTLE))?;
                stream.read(&mut [0; 1])
            });
            let refused = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
            ensure!(
                outcome.as_ref().is_err_and(|error| refused.contains(&error.kind())),
                "{from}: {outcome:?}"
            );
        }
    }
    Ok(())
}

fn changed(world: &mut World) -> anyhow::Result<()> {
    let _servers = (start(world, pods::OUTSIDER_EAST, 1)?, start(world, pods::OUTSIDER_WEST, 2)?);
    // With the search list of another namespace, a short name is another Service's.
    ensure!(told(world, "near.", Kind::A, Over::Udp)? == ["10.43.0.2".parse::<IpAddr>()?]);
    let pod = world.sandbox.pod(pods::CLIENT)?;
    pod.write_resolv_conf("nameserver 10.42.1.5\nsearch example\noptions ndots:1\n")?;
    Ok(wait::try_until(
        Duration::from_secs(60),
        || "`near` to be another server's".to_owned(),
        || match told(world, "near.", Kind::A, Over::Udp) {
            Ok(found) if found == v4(1) => Ok(()),
            Ok(found) => Err(format!("{found:?}")),
            Err(error) => Err(format!("{error:#}")),
        },
    )?)
}

fn ztunnel(world: &mut World) -> anyhow::Result<()> {
    let to = server_of(world, pods::OUTSIDER_EAST, Family::V4)?;
    world.mesh.kill_ztunnel("east")?;
    let query = question(NAME, Kind::A, Over::Udp);
    let waiting = socket(world, pods::CLIENT, to)?;
    waiting.set_read_timeout(Some(SETTLE))?;
    let sent = waiting.send(&query.encode());
    world.mesh.start_ztunnel(world.sandbox.node("east")?)?;
    sent?;
    let mut buffer = [0; 512];
    let length = waiting.recv(&mut buffer).context("a query that was sent while no ztunnel ran")?;
    let answer = Message::decode(&buffer[..length])?;
    ensure!(addresses(&answer) == ["10.43.0.3".parse::<IpAddr>()?], "{answer:?}");
    world.mesh.wait_ready(world.sandbox.node("east")?)?;
    ensure!(told(world, NAME, Kind::A, Over::Tcp)? == ["10.43.0.3".parse::<IpAddr>()?]);
    Ok(())
}

fn agent(world: &mut World) -> anyhow::Result<()> {
    let expected: IpAddr = "10.43.0.3".parse()?;
    let answered = |world: &World| -> anyhow::Result<()> {
        for over in [Over::Udp, Over::Tcp] {
            ensure!(told(world, NAME, Kind::A, over)? == [expected], "{over:?}");
        }
        Ok(())
    };
    world.mesh.agent("east")?.kill()?;
    answered(world).context("without an agent")?;
    world.mesh.start_agent(world.sandbox.node("east")?)?;
    (0..20).try_for_each(|_| answered(world)).context("while it starts")?;
    world.mesh.wait_ready(world.sandbox.node("east")?)?;
    answered(world).context("with the next one")
}

fn left_alone(world: &mut World) -> anyhow::Result<()> {
    const IN: &str = "labels: {app: client}";
    const ALONE: &str = "labels: {app: client}\n  annotations: {ambient.istio.io/dns-capture: \"false\"}";
    let server = start(world, pods::OUTSIDER_EAST, 1)?;
    let until = |world: &World, expected: &[IpAddr]| {
        wait::try_until(
            SETTLE,
            || format!("{NAME} to be {expected:?}"),
            || match told(world, NAME, Kind::A, Over::Udp) {
                Ok(found) if found == expected => Ok(()),
                Ok(found) => Err(format!("{found:?}")),
                Err(error) => Err(format!("{error:#}")),
            },
        )
    };
    world.edit("shop.yaml", IN, ALONE)?;
    let alone = until(world, &v4(1));
    server.take_asked();
    let over_tcp = told(world, NAME, Kind::A, Over::Tcp);
    world.edit("shop.yaml", ALONE, IN)?;
    alone?;
    ensure!(over_tcp? == v4(1), "over TCP it goes to the server as any connection does");
    Ok(until(world, &["10.43.0.3".parse()?])?)
}
