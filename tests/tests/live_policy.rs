//! Policy changes while connections live: those that are no longer allowed are cut within a second of the change reaching
//! their node, and the others go on without a byte lost.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::Case;
use e2e::steady::{Live, Steady};
use e2e::stories::{
    FROM_CLIENT, FROM_GUEST, FROM_SHOP, Lag, MESH, NOBODY, PERMISSIVE, Story, apply, is, lag_p99, open, play,
    policy, revision,
};
use e2e::world::{SETTLE, STRICT, World, pods, ports};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sandbox::{AccessLog, Direction, Family, Redirection, wait};

/// Connections of the crowd: to each of two servers, over each family.
const CROWD: usize = 500;

fn main() -> ExitCode {
    const CASES: &[Case<World>] = &[
        ("a_deny_that_is_added_cuts_whom_it_names_and_nobody_else", deny_added),
        ("an_allow_that_is_removed_cuts_whom_no_other_allows", allow_removed),
        ("a_change_from_permissive_to_strict_cuts_plaintext_alone", strict),
        ("labels_that_bring_a_pod_under_a_policy_cut_what_that_denies", labels_selected),
        ("labels_that_take_a_pod_out_of_a_policy_cut_what_only_that_allowed", labels_deselected),
        ("a_changed_selector_cuts_at_the_pods_it_selects_now", selector),
        ("a_policy_deleted_and_another_put_in_its_place_cut_by_the_new_one_alone", replaced),
        ("a_policy_replaced_by_its_like_cuts_nobody", replaced_by_its_like),
        ("a_policy_of_the_namespace_cuts_at_all_its_pods", namespace_wide),
        ("a_policy_of_the_root_namespace_cuts_in_the_whole_mesh", mesh_wide),
        ("a_policy_of_the_root_namespace_with_a_selector_cuts_at_what_it_selects", root_selector),
        ("a_deny_by_address_cuts_plaintext_from_there_alone", by_address),
        ("an_endpoint_that_leaves_its_service_keeps_its_connections_and_gets_no_new_ones", endpoint),
        ("a_cut_hands_on_a_prefix_of_what_was_sent_and_ends_in_a_reset_at_both_ends", in_flight),
        ("a_connection_that_is_held_back_is_cut_all_the_same", held_back),
        ("two_thousand_live_connections_are_cut_within_the_second", crowd),
    ];
    e2e::run(start, CASES, World::explain)
}

fn start() -> anyhow::Result<World> {
    let world = World::start(Redirection::Auto)?;
    world.write("policies.yaml", MESH)?;
    Ok(world)
}

fn deny_added(world: &mut World) -> anyhow::Result<()> {
    let story = Story {
        before: PERMISSIVE.into(),
        after: [PERMISSIVE, &policy("not-from-here", "app: far", "DENY", FROM_SHOP)].concat(),
        cut: &[(pods::CLIENT, pods::FAR)],
        kept: &[(pods::CLIENT, pods::NEAR), (pods::INTRUDER, pods::FAR), (pods::OUTSIDER_EAST, pods::FAR)],
        policy: "shop/not-from-here",
        ..Story::default()
    };
    play(world, &story)
}

fn allow_removed(world: &mut World) -> anyhow::Result<()> {
    let guests = policy("guests", "", "ALLOW", FROM_GUEST);
    let story = Story {
        before: [&policy("customers", "", "ALLOW", FROM_CLIENT), &*guests].concat(),
        after: guests,
        cut: &[(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::NEAR)],
        kept: &[(pods::INTRUDER, pods::FAR), (pods::INTRUDER, pods::NEAR)],
        policy: "shop/guests",
        ..Story::default()
    };
    play(world, &story)
}

fn strict(world: &mut World) -> anyhow::Result<()> {
    let story = Story {
        before: PERMISSIVE.into(),
        after: PERMISSIVE.replace("PERMISSIVE", "STRICT"),
        cut: &[
            (pods::OUTSIDER_EAST, pods::NEAR),
            (pods::OUTSIDER_WEST, pods::NEAR),
            (pods::OUTSIDER_EAST, pods::FAR),
        ],
        kept: &[(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::NEAR), (pods::FAR, pods::NEAR)],
        policy: STRICT,
        ..Story::default()
    };
    play(world, &story)
}

fn labels_selected(world: &mut World) -> anyhow::Result<()> {
    let locked = policy("locked", "tier: locked", "DENY", FROM_SHOP);
    let story = Story {
        before: locked.clone(),
        after: locked,
        labels: Some(("labels: {app: far}", "labels: {app: far, tier: locked}")),
        cut: &[(pods::CLIENT, pods::FAR)],
        kept: &[(pods::CLIENT, pods::NEAR), (pods::INTRUDER, pods::FAR)],
        policy: "shop/locked",
    };
    play(world, &story)
}

fn labels_deselected(world: &mut World) -> anyhow::Result<()> {
    let policies = [
        policy("guests", "", "ALLOW", FROM_GUEST),
        policy("for-the-shop", "tier: front", "ALLOW", FROM_SHOP),
    ]
    .concat();
    let story = Story {
        before: policies.clone(),
        after: policies,
        labels: Some(("labels: {app: far, tier: front}", "labels: {app: far}")),
        cut: &[(pods::CLIENT, pods::FAR)],
        kept: &[(pods::INTRUDER, pods::FAR), (pods::INTRUDER, pods::NEAR)],
        policy: "shop/guests",
    };
    play(world, &story)
}

fn selector(world: &mut World) -> anyhow::Result<()> {
    let story = Story {
        before: [PERMISSIVE, &policy("chosen", "app: far", "DENY", FROM_SHOP)].concat(),
        after: [PERMISSIVE, &policy("chosen", "app: near", "DENY", FROM_SHOP)].concat(),
        cut: &[(pods::CLIENT, pods::NEAR), (pods::FAR, pods::NEAR)],
        kept: &[(pods::INTRUDER, pods::NEAR), (pods::INTRUDER, pods::FAR), (pods::OUTSIDER_WEST, pods::NEAR)],
        policy: "shop/chosen",
        ..Story::default()
    };
    play(world, &story)
}

fn replaced(world: &mut World) -> anyhow::Result<()> {
    let story = Story {
        before: policy("first", "", "DENY", FROM_GUEST),
        after: policy("second", "", "DENY", FROM_CLIENT),
        cut: &[(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::NEAR)],
        kept: &[(pods::FAR, pods::NEAR), (pods::NEAR, pods::FAR)],
        policy: "shop/second",
        ..Story::default()
    };
    play(world, &story)
}

fn replaced_by_its_like(world: &mut World) -> anyhow::Result<()> {
    let kept = &[(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::NEAR)];
    let with = |name: &str, selector: &str| {
        [policy("near", "app: near", "ALLOW", FROM_SHOP), policy(name, selector, "ALLOW", FROM_CLIENT)]
            .concat()
    };
    // Wide by wide, selecting by selecting, and each by the other.
    let ways = [
        with("one", ""),
        with("two", ""),
        with("three", "app: far"),
        with("four", "app: far"),
        with("one", ""),
    ];
    for pair in ways.windows(2) {
        let [before, after] = pair else { continue };
        let story = Story { before: before.clone(), after: after.clone(), kept, ..Story::default() };
        play(world, &story).with_context(|| format!("{before} to {after}"))?;
    }
    Ok(())
}

fn namespace_wide(world: &mut World) -> anyhow::Result<()> {
    let story = Story {
        before: policy("no-guests", "", "DENY", NOBODY),
        after: policy("no-guests", "", "DENY", FROM_GUEST),
        cut: &[(pods::INTRUDER, pods::FAR), (pods::INTRUDER, pods::NEAR)],
        kept: &[(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::INTRUDER)],
        policy: "shop/no-guests",
        ..Story::default()
    };
    play(world, &story)
}

fn mesh_wide(world: &mut World) -> anyhow::Result<()> {
    let story = Story {
        after: policy("istio-system/no-clients", "", "DENY", FROM_CLIENT),
        cut: &[(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::NEAR), (pods::CLIENT, pods::INTRUDER)],
        kept: &[(pods::INTRUDER, pods::FAR), (pods::FAR, pods::NEAR)],
        policy: "istio-system/no-clients",
        ..Story::default()
    };
    play(world, &story)
}

fn root_selector(world: &mut World) -> anyhow::Result<()> {
    let story = Story {
        after: policy("istio-system/quiet", "app: intruder", "DENY", FROM_SHOP),
        cut: &[(pods::CLIENT, pods::INTRUDER), (pods::FAR, pods::INTRUDER)],
        kept: &[(pods::CLIENT, pods::FAR), (pods::CLIENT, pods::NEAR)],
        policy: "istio-system/quiet",
        ..Story::default()
    };
    play(world, &story)
}

fn by_address(world: &mut World) -> anyhow::Result<()> {
    let source = "ipBlocks: [10.42.1.5/32, \"fd42:0:1::5/128\"]";
    let story = Story {
        before: PERMISSIVE.into(),
        after: [PERMISSIVE, &policy("not-him", "", "DENY", source)].concat(),
        cut: &[(pods::OUTSIDER_EAST, pods::NEAR), (pods::OUTSIDER_EAST, pods::FAR)],
        kept: &[(pods::OUTSIDER_WEST, pods::NEAR), (pods::CLIENT, pods::NEAR), (pods::CLIENT, pods::FAR)],
        policy: "shop/not-him",
        ..Story::default()
    };
    play(world, &story)
}

fn endpoint(world: &mut World) -> anyhow::Result<()> {
    const SELECTED: &str = "selector: {app: far}";
    const NOBODY: &str = "selector: {app: nobody}";
    const SERVICE: [&str; 2] = ["10.43.0.3", "fd43::3"];
    apply(world, "")?;
    let call = |address: &str| {
        let to = SocketAddr::new(address.parse()?, ports::ECHO);
        Live::to(world, pods::CLIENT, to, &format!("{} to {to}", pods::CLIENT))
    };
    let steady = Steady::start(SERVICE.iter().map(|address| call(address)).collect::<anyhow::Result<_>>()?);
    world.edit("shop.yaml", SELECTED, NOBODY)?;
    world.until_in_effect(&revision())?;
    let new = SERVICE.map(call);
    let kept = steady.stop();
    world.edit("shop.yaml", NOBODY, SELECTED)?;
    ensure!(new.iter().all(Result::is_err), "a Service without endpoints answers: {new:?}");
    kept?.iter_mut().try_for_each(Live::exchange)
}

/// Denies the client at both servers.
fn deny_client(world: &World) -> anyhow::Result<()> {
    world.write("live.yaml", &policy("not-him", "", "DENY", FROM_CLIENT))
}

fn in_flight(world: &mut World) -> anyhow::Result<()> {
    apply(world, "")?;
    for server in [pods::FAR, pods::NEAR] {
        for family in Family::BOTH {
            apply(world, "")?;
            let mut live = Live::open(world, pods::CLIENT, server, family)?;
            let client = live.local.ip();
            let before = resets_seen(world, server, client);
            let (reader, writer) = (live.stream().try_clone()?, live.stream().try_clone()?);
            let sending = std::thread::spawn(move || send_numbers(writer));
            let name = live.name.clone();
            let receiving = std::thread::spawn(move || receive_numbers(reader, &name));
            deny_client(world)?;
            let (received, read) = receiving.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
            let (sent, write) = sending.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
            ensure!(received > 0 && received <= sent, "{received} of {sent} came back");
            // The kernel tells a reset once, to whoever comes first; to the other all is over.
            let reset = [read, Some(write)].contains(&Some(ErrorKind::ConnectionReset));
            ensure!(reset, "{}: no reset, but {read:?} and {write:?}", live.name);
            ensure!(live.exchange().is_err(), "it goes on");
            let seen = || (resets_seen(world, server, client) > before).then_some(());
            wait::until(SETTLE, || format!("{server} to see a reset of {client}"), seen)?;
        }
    }
    Ok(())
}

/// Sends the numbers from 0 on until the connection breaks. Returns how many bytes may have been taken, and how it broke.
fn send_numbers(mut stream: TcpStream) -> (u64, ErrorKind) {
    let mut sent = 0;
    loop {
        let chunk: Vec<u8> = (sent / 8..sent / 8 + 512).flat_map(u64::to_le_bytes).collect();
        sent += chunk.len() as u64;
        if let Err(error) = stream.write_all(&chunk) {
            return (sent, error.kind());
        }
    }
}

/// Reads numbers until the connection breaks. Returns how many bytes came, and how it broke; none: it ended.
fn receive_numbers(mut stream: TcpStream, name: &str) -> anyhow::Result<(u64, Option<ErrorKind>)> {
    let mut buffer = vec![0; 64 << 10];
    let mut received = 0_u64;
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok((received, None)),
            Ok(count) => count,
            Err(error) => return Ok((received, Some(error.kind()))),
        };
        for byte in buffer.get(..count).unwrap_or_default() {
            let expected = (received / 8).to_le_bytes()[usize::try_from(received % 8)?];
            ensure!(*byte == expected, "{name}: byte {received} is {byte} in place of {expected}");
            received += 1;
        }
    }
}

/// How many resets by this client the echo of a pod has told of.
fn resets_seen(world: &World, server: &str, client: IpAddr) -> usize {
    let log = world.sandbox.directory().join("pods").join(server.replace('/', "_")).join("echo.log");
    // As a dual-stack socket shows it. The port is another one: it is the proxy that connects.
    let shown = match client {
        IpAddr::V4(v4) => format!("[{}]", v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|line| line.contains(&shown) && line.contains("reset by peer")).count()
}

fn held_back(world: &mut World) -> anyhow::Result<()> {
    apply(world, "")?;
    let mut stuck = Vec::new();
    for server in [pods::FAR, pods::NEAR] {
        for family in Family::BOTH {
            let mut stream = world.connect(pods::CLIENT, world.address(server, family, ports::SILENT)?)?;
            stream.set_write_timeout(Some(Duration::from_millis(500)))?;
            let chunk = vec![0x5a; 256 << 10];
            let full = loop {
                if let Err(error) = stream.write_all(&chunk) {
                    break error;
                }
            };
            ensure!(full.kind() == ErrorKind::WouldBlock, "{server} over {family}: {full}");
            stuck.push((format!("{server} over {family}"), stream));
        }
    }
    let counted = Lag::now(world)?;
    deny_client(world)?;
    for (name, stream) in &mut stuck {
        let end = stream.read(&mut [0; 1]);
        ensure!(
            end.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
            "{name}: {end:?} in place of a reset"
        );
    }
    counted.ensure_cut(world, stuck.len())
}

fn crowd(world: &mut World) -> anyhow::Result<()> {
    apply(world, "")?;
    let mut live = Vec::new();
    for server in [pods::FAR, pods::NEAR] {
        for family in Family::BOTH {
            for _ in 0..CROWD {
                live.push(Live::open(world, pods::CLIENT, server, family)?);
            }
        }
    }
    let kept = Steady::start(open(world, &[(pods::INTRUDER, pods::FAR), (pods::INTRUDER, pods::NEAR)])?);
    let (log, counted) = (world.mesh.access_log().from_now(), Lag::now(world)?);
    let begin = Instant::now();
    deny_client(world)?;
    let mut times = ends(&live, begin)?;
    live.iter_mut().try_for_each(Live::ensure_reset)?;
    counted.ensure_cut(world, live.len())?;
    kept.stop()?;
    times.sort();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    println!(
        "    {} cut; from the manifest's change: first {:?}, median {:?}, p99 {:?}, last {:?}; p99 from the change's arrival: within {} s",
        times.len(),
        at(0),
        at(50),
        at(99),
        times.last().copied().unwrap_or_default(),
        lag_p99(world)?
    );
    let named = policies_of(&log);
    for one in &live {
        let policy = named.get(&one.local).with_context(|| format!("no line about {}", one.name))?;
        ensure!(policy == "shop/not-him", "{}: cut by {policy}", one.name);
    }
    Ok(())
}

/// When each of them was over.
fn ends(live: &[Live], begin: Instant) -> anyhow::Result<Vec<Duration>> {
    let mut waiting: Vec<&Live> = live.iter().collect();
    let mut times = Vec::new();
    while !waiting.is_empty() {
        let mut fds: Vec<PollFd<'_>> =
            waiting.iter().map(|live| PollFd::new(live.stream().as_fd(), PollFlags::POLLIN)).collect();
        let ready = poll(&mut fds, PollTimeout::try_from(SETTLE)?)?;
        ensure!(ready > 0, "{} of {} still live after {SETTLE:?}", waiting.len(), live.len());
        let now = begin.elapsed();
        let still: Vec<bool> =
            fds.iter().map(|fd| fd.revents().is_none_or(|events| events.is_empty())).collect();
        times.extend(still.iter().filter(|still| !**still).map(|_| now));
        let mut still = still.into_iter();
        waiting.retain(|_| still.next() == Some(true));
    }
    Ok(times)
}

/// The client of each connection to what policy the server's end says it was cut by.
fn policies_of(log: &AccessLog) -> HashMap<SocketAddr, String> {
    let entries = log.entries();
    let cut = entries.iter().filter(|entry| is(entry, Direction::Inbound));
    let by_trace: HashMap<_, _> =
        cut.filter_map(|entry| Some((entry.trace_id.clone()?, entry.policy.clone()?))).collect();
    let outbound = entries.iter().filter(|entry| is(entry, Direction::Outbound));
    outbound
        .filter_map(|entry| Some((entry.source, by_trace.get(entry.trace_id.as_ref()?)?.clone())))
        .collect()
}
