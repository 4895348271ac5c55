//! Pods that join and leave the mesh again and again while clients connect in a tight loop, from them and to them.
//!
//! `shop/far` is strict: whoever it answers was carried by the mesh. So a client that has got its first answer may send the marker, which
//! must then not be seen on the wire, whatever becomes of its pod meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use sandbox::{Family, wait};

use crate::Case;
use crate::world::{MARKER, World, pods, ports};

/// Whichever way packets are taken.
pub const CHURN: &[Case<World>] = &[
    ("connections_made_while_pods_join_and_leave_two_hundred_times_are_whole_and_allowed_or_refused", churn),
    ("and_when_those_that_leave_are_given_no_time", churn_without_drain),
];

/// The pods.
const PODS: usize = 8;
/// How often each of them joins and leaves: together 200 times.
const ROUNDS: usize = 25;
/// And without a drain.
const ROUNDS_WITHOUT_DRAIN: usize = 6;
/// How long anything may take: longer is hanging.
const TRY: Duration = Duration::from_secs(10);
/// How long a change may take, on a busy machine.
const CHANGE: Duration = Duration::from_secs(30);
/// Connections that each client is to make between two changes.
const CONNECTIONS: u64 = 1;
/// Exchanges on a connection that the mesh carries.
const EXCHANGES: usize = 4;

const IN: &str = "labels: {app: turn}";
const OUT: &str = "labels: {app: turn, istio.io/dataplane-mode: none}";

/// What a client is, and so what must become of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From a pod that comes and goes to a strict one.
    From,
    /// From a pod of the mesh to one that comes and goes.
    Member,
    /// From outside of the mesh to one that comes and goes, and is strict while it is in.
    Outsider,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Whole,
    Refused,
    /// After some answers.
    Cut,
}

/// How long the connections of a pod that leaves may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// Longer than any of the clients' takes.
    Enough,
    /// They are cut.
    Nothing,
}

/// The phase the pods are in: its number, of which the lowest bits say what holds.
const CHANGING: u64 = 0;
const INSIDE: u64 = 1;
const OUTSIDE: u64 = 2;

struct Shared {
    drain: Drain,
    phase: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Shared {
    fn new(drain: Drain) -> Self {
        Self {
            drain,
            phase: AtomicU64::new(CHANGING),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    fn enter(&self, what: u64) {
        let number = self.phase.load(Ordering::SeqCst) / 4 + 1;
        self.phase.store(number * 4 + what, Ordering::SeqCst);
    }
}

/// A client, and how many connections it has made.
struct Client {
    kind: Kind,
    pod: String,
    to: SocketAddr,
    made: AtomicU64,
}

fn churn(world: &mut World) -> anyhow::Result<()> {
    start_pods(world)?;
    until_all(world, true)?;
    turns(world, ROUNDS, Drain::Enough)
}

/// The pods that come and go. Whichever case is the first to run makes them.
fn start_pods(world: &mut World) -> anyhow::Result<()> {
    if world.sandbox.pod("shop/turn-0").is_ok() {
        return Ok(());
    }
    world.sandbox.start_pods("turn.yaml", &(0..PODS).map(manifest).collect::<Vec<_>>().join("---\n"))?;
    Ok(())
}

fn churn_without_drain(world: &mut World) -> anyhow::Result<()> {
    start_agent_anew(world, &["--drain-seconds", "0"])?;
    start_pods(world)?;
    until_all(world, true)?;
    turns(world, ROUNDS_WITHOUT_DRAIN, Drain::Nothing)?;
    // The other case may come after this one.
    start_agent_anew(world, &[])?;
    until_all(world, true)
}

fn start_agent_anew(world: &mut World, arguments: &[&str]) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    world.mesh.agent("east")?.kill()?;
    world.mesh.set_agent_arguments(arguments);
    world.mesh.start_agent(node)?;
    Ok(world.mesh.wait_ready(node)?)
}

fn turns(world: &World, rounds: usize, drain: Drain) -> anyhow::Result<()> {
    let clients = clients(world)?;
    let shared = Shared::new(drain);
    let changed = &shared;
    let result = std::thread::scope(|scope| {
        let threads: Vec<_> =
            clients.iter().map(|client| scope.spawn(|| run(world, client, changed))).collect();
        let result = (0..rounds).try_for_each(|round| turn(world, &clients, changed, round));
        changed.stop.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        result
    });
    let failure = shared.failure.lock().map_or(None, |mut failure| failure.take());
    ensure!(failure.is_none(), "{}", failure.unwrap_or_default());
    result?;
    world.ensure_no_marker()
}

fn manifest(number: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: turn-{number}\n  namespace: shop\n  uid: 5b0f3c1e-2{number:03}-4c57-9a10-0000000001{number:02}\n  {IN}\n\
         spec:\n  nodeName: east\n  serviceAccountName: client\n  containers:\n    - name: echo\n      image: localhost/culvert-echo\n      \
         args: [\"--echo\", \"{port}\"]\n      ports: [{{name: echo, containerPort: {port}}}]\n\
         status:\n  phase: Running\n  podIPs: [{{ip: 10.42.1.{last}}}, {{ip: \"fd42:0:1::{last}\"}}]\n  conditions: [{{type: Ready, status: \"True\"}}]\n",
        port = ports::ECHO,
        last = 20 + number,
    )
}

fn clients(world: &World) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    let client = |kind, pod: &str, to| Client { kind, pod: pod.to_owned(), to, made: AtomicU64::new(0) };
    for number in 0..PODS {
        let family = if number % 2 == 0 { Family::V4 } else { Family::V6 };
        let name = format!("shop/turn-{number}");
        let to = world.address(&name, family, ports::ECHO)?;
        clients.push(match number {
            0..4 => client(Kind::From, &name, world.address(pods::FAR, family, ports::ECHO)?),
            4..6 => client(Kind::Member, pods::FAR, to),
            _ => client(Kind::Outsider, pods::OUTSIDER_WEST, to),
        });
    }
    Ok(clients)
}

/// One round: out and in. Every other time the return comes as soon as the leaving has begun.
fn turn(world: &World, clients: &[Client], shared: &Shared, round: usize) -> anyhow::Result<()> {
    world.edit("turn.yaml", IN, OUT)?;
    if round.is_multiple_of(2) {
        until_all(world, false)?;
        shared.enter(OUTSIDE);
        until_tried(clients, shared)?;
    } else {
        let node = world.sandbox.node("east")?;
        let begun = || {
            world
                .pod_state(node, "turn-0")
                .is_ok_and(|state| state.as_deref() != Some("enrolled"))
                .then_some(())
        };
        wait::until(CHANGE, || "the first to leave".into(), begun)?;
    }
    shared.enter(CHANGING);
    world.edit("turn.yaml", OUT, IN)?;
    until_all(world, true)?;
    shared.enter(INSIDE);
    until_tried(clients, shared)?;
    shared.enter(CHANGING);
    Ok(())
}

fn until_all(world: &World, inside: bool) -> anyhow::Result<()> {
    let node = world.sandbox.node("east")?;
    let look = || -> anyhow::Result<bool> {
        let status = world.mesh.status(node)?;
        let pods = status["pods"].as_object().context("the agent's status has no pods")?;
        let turning =
            pods.values().filter(|pod| pod["name"].as_str().is_some_and(|name| name.starts_with("turn-")));
        let states: Vec<_> =
            turning.map(|pod| pod["state"].as_str().unwrap_or_default() == "enrolled").collect();
        Ok(if inside {
            states.iter().filter(|enrolled| **enrolled).count() == PODS
        } else {
            states.is_empty()
        })
    };
    wait::try_until(
        CHANGE,
        || format!("all pods to be {}", if inside { "in" } else { "out" }),
        || match look() {
            Ok(true) => Ok(()),
            Ok(false) => Err("not yet".into()),
            Err(error) => Err(format!("{error:#}")),
        },
    )?;
    Ok(())
}

/// Waits until each client has made some connections.
fn until_tried(clients: &[Client], shared: &Shared) -> anyhow::Result<()> {
    let before: Vec<u64> = clients.iter().map(|client| client.made.load(Ordering::SeqCst)).collect();
    let tried = || {
        let failed = shared.failure.lock().is_ok_and(|failure| failure.is_some());
        // The first may have begun before.
        let enough =
            |(client, before): (&Client, &u64)| client.made.load(Ordering::SeqCst) > before + CONNECTIONS;
        (failed || clients.iter().zip(&before).all(enough)).then_some(())
    };
    Ok(wait::until(CHANGE, || "some connections of each client".into(), tried)?)
}

fn run(world: &World, client: &Client, shared: &Shared) -> anyhow::Result<()> {
    let net = world.sandbox.pod(&client.pod)?.net();
    let looped = net.run(|| {
        while !shared.stop.load(Ordering::SeqCst) {
            let before = shared.phase.load(Ordering::SeqCst);
            let outcome = connection(client);
            let after = shared.phase.load(Ordering::SeqCst);
            let stable = if before == after { before % 4 } else { CHANGING };
            if let Err(error) = outcome.and_then(|outcome| judge(client.kind, stable, shared.drain, outcome))
            {
                let what = format!(
                    "{:?} {} to {} in phase {before}..{after}: {error:#}",
                    client.kind, client.pod, client.to
                );
                if let Ok(mut failure) = shared.failure.lock() {
                    failure.get_or_insert(what);
                }
                return;
            }
            client.made.fetch_add(1, Ordering::SeqCst);
        }
    });
    Ok(looped?)
}

/// Whether an outcome is what the policy says while nothing changes.
fn judge(kind: Kind, phase: u64, drain: Drain, outcome: Outcome) -> anyhow::Result<()> {
    if outcome == Outcome::Cut {
        ensure!(phase == CHANGING && drain == Drain::Nothing, "cut before its end");
        return Ok(());
    }
    let wanted = match (kind, phase) {
        (Kind::From | Kind::Member, INSIDE) | (Kind::Outsider, OUTSIDE) => Outcome::Whole,
        (Kind::From, OUTSIDE) | (Kind::Outsider, INSIDE) => Outcome::Refused,
        // Its own ztunnel may hear of the leaving later than the agent there.
        _ => return Ok(()),
    };
    ensure!(outcome == wanted, "{outcome:?} in place of {wanted:?}");
    Ok(())
}

/// One connection to its end. An error is one that hangs or is not answered what it asked.
fn connection(client: &Client) -> anyhow::Result<Outcome> {
    let mut stream = match TcpStream::connect_timeout(&client.to, TRY) {
        Ok(stream) => stream,
        Err(error) if is_time_out(&error) => bail!("connecting hangs"),
        Err(_) => return Ok(Outcome::Refused),
    };
    stream.set_read_timeout(Some(TRY))?;
    stream.set_write_timeout(Some(TRY))?;
    if !answered(&mut stream, b"is anybody there?")? {
        return Ok(Outcome::Refused);
    }
    let carried = if client.kind == Kind::From { EXCHANGES } else { 0 };
    for _ in 0..carried {
        if !answered(&mut stream, MARKER.as_bytes())? {
            return Ok(Outcome::Cut);
        }
    }
    Ok(Outcome::Whole)
}

/// Whether the server sends back what it is sent; not if the connection ends before.
fn answered(stream: &mut TcpStream, text: &[u8]) -> anyhow::Result<bool> {
    let mut answer = vec![0; text.len()];
    let mut length = 0;
    let mut result = stream.write_all(text);
    while result.is_ok() && length < answer.len() {
        result = match stream.read(&mut answer[length..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                length += count;
                Ok(())
            }
            Err(error) => Err(error),
        };
    }
    match result {
        Ok(()) => ensure!(answer == text, "another answer: {answer:?}"),
        Err(error) if is_time_out(&error) => bail!("an exchange hangs"),
        Err(error) => ensure!(length == 0, "half an answer, and then {error}"),
    }
    Ok(length == text.len())
}

fn is_time_out(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
