//! Ways round capture: devices that come late, packets that hide what they are, and what an earlier agent, or something else, left in
//! the kernel.

use std::io::{Read, Write};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use sandbox::{Direction, Family, Fetch, Program, wait};

use crate::Case;
use crate::packets;
use crate::stranger::Stranger;
use crate::world::{MARKER, SETTLE, STRICT, World, echoes, identity, pods, ports};

/// What holds whichever way packets are taken. The last one looks at the whole run.
pub const BYPASS: &[Case<World>] = &[
    ("a_device_that_appears_carries_nothing_until_it_is_captured", late_device),
    ("a_device_that_has_an_address_of_the_pod_as_well_is_captured_in_both_directions", same_address),
    ("packets_that_are_or_may_be_tcp_are_captured_or_dropped_for_a_reason_of_their_own", tricks),
    ("pins_that_name_another_pods_links_or_none_are_not_trusted", foreign_pins),
    ("pins_that_name_a_strangers_namespace_cut_nothing_of_the_strangers", stranger),
    ("pins_of_nobody_that_name_a_pods_namespace_do_not_touch_the_pod", ghost),
    ("rules_routes_and_settings_that_lead_elsewhere_are_put_right", strays),
    ("a_pod_with_the_address_of_one_that_has_just_ended_takes_its_place", heir),
    ("no_plaintext_crossed_the_link_between_the_nodes_meanwhile", World::ensure_sealed),
];

/// The pods' next hop in the sandbox, of either family.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];

/// The agent stands still while the device appears, so that it is certain what holds until it is captured.
fn late_device(world: &mut World) -> anyhow::Result<()> {
    let targets = [
        world.address(pods::FAR, Family::V4, ports::ECHO)?,
        world.address(pods::FAR, Family::V6, ports::ECHO)?,
    ];
    let connect = |to| world.connect(pods::CLIENT, to);
    let mut open = targets.into_iter().map(connect).collect::<anyhow::Result<Vec<_>>>()?;
    open.iter_mut().try_for_each(echoes)?;
    world.mesh.agent("east")?.signal(Signal::SIGSTOP)?;
    let added = world.sandbox.pod(pods::CLIENT)?.add_device("net1", &targets.map(|to| to.ip()));
    let tried = targets.map(|to| match world.connect(pods::CLIENT, to) {
        Ok(mut stream) => format!("connected to {to}, and then {:?}", echoes(&mut stream)),
        Err(_) => String::new(),
    });
    // What goes on from before would go over the new device.
    let written = open.iter_mut().try_for_each(|stream| stream.write_all(MARKER.as_bytes()));
    world.mesh.agent("east")?.signal(Signal::SIGCONT)?;
    added?;
    written?;
    ensure!(tried.iter().all(String::is_empty), "{tried:?}");
    for to in targets {
        echoes(&mut world.connect_within(SETTLE, pods::CLIENT, to)?)?;
    }
    for stream in &mut open {
        stream.read_exact(&mut vec![0; MARKER.len()]).context("what was written in between")?;
        (0..10).try_for_each(|_| echoes(stream)).context("a connection from before")?;
    }
    let pod = world.sandbox.pod(pods::CLIENT)?;
    let sent = pod.net().run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let sent = sent
        .lines()
        .find_map(|line| line.trim().strip_prefix("net1:")?.split_whitespace().nth(9)?.parse().ok());
    ensure!(sent.is_some_and(|sent: u64| sent > 20), "hardly anything left over the new device: {sent:?}");
    world.ensure_no_marker()?;
    pod.remove_device("net1")?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
    }
    Ok(())
}

/// Whatever leaves over the second device does so in the pod's only name, and what comes for that name is for the pod.
fn same_address(world: &mut World) -> anyhow::Result<()> {
    let targets = [
        world.address(pods::FAR, Family::V4, ports::ECHO)?,
        world.address(pods::FAR, Family::V6, ports::ECHO)?,
    ];
    let pod = world.sandbox.pod(pods::CLIENT)?;
    pod.add_device("net1", &targets.map(|to| to.ip()))?;
    for family in Family::BOTH {
        // Duplicate address detection would keep one of IPv6 unusable for a second.
        let (width, more): (_, &[&str]) = if family == Family::V4 { (32, &[]) } else { (128, &["nodad"]) };
        let address = format!("{}/{width}", pod.address(family)?);
        let program = Program::new("ip").args(["address", "add", &address, "dev", "net1"]).args(more);
        let output = pod.exec(&program, SETTLE)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for to in targets {
        echoes(&mut world.connect_within(SETTLE, pods::CLIENT, to)?)?;
    }
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::FAR, pods::CLIENT, family)?;
        world.refused_within(SETTLE, pods::OUTSIDER_EAST, pods::CLIENT, family)?;
    }
    pod.remove_device("net1")?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, pods::CLIENT, pods::FAR, family)?;
        world.answered_within(SETTLE, pods::FAR, pods::CLIENT, family)?;
    }
    world.ensure_no_marker()
}

fn tricks(world: &mut World) -> anyhow::Result<()> {
    let pod = world.sandbox.pod(pods::CLIENT)?;
    for family in Family::BOTH {
        let (from, to) = (pod.address(family)?, world.sandbox.pod(pods::FAR)?.address(family)?);
        for trick in packets::tricks(from, to) {
            let what = || format!("{family}, {}", trick.name);
            let label = format!("reason=\"{}\"", trick.reason);
            let before = world.counted("east", &label)?;
            pod.net().run(|| packets::send(&trick.packet, to))?.with_context(what)?;
            wait::try_until(
                SETTLE,
                || format!("{} counted as {}", what(), trick.reason),
                || match world.counted("east", &label) {
                    Ok(now) if now > before => Ok(()),
                    Ok(now) => Err(now.to_string()),
                    Err(error) => Err(error.to_string()),
                },
            )?;
            world.ensure_no_marker().with_context(what)?;
        }
    }
    // What is offloaded: segments of up to 64 KiB, and the data of a whole window.
    for family in Family::BOTH {
        let target = world.address(pods::FAR, family, ports::SINK)?;
        let mut stream = world.connect(pods::CLIENT, target)?;
        let text = MARKER.repeat(100_000);
        stream.write_all(text.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with(&format!("{} ", text.len())), "{family}: {answer:?}");
    }
    world.ensure_no_marker()
}

/// Runs a script where the agent of `east` has its pins, while no agent is there, and starts one.
fn tamper(world: &mut World, script: &str) -> anyhow::Result<()> {
    world.mesh.agent("east")?.kill()?;
    let node = world.sandbox.node("east")?;
    let script = format!("set -e; cd /sys/fs/bpf/culvert/v*/pods; {script}");
    let output = node.exec(&Program::new("sh").args(["-c", &script]), SETTLE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    Ok(())
}

fn whole(world: &World) -> anyhow::Result<()> {
    for family in Family::BOTH {
        for (from, to) in [
            (pods::CLIENT, pods::FAR),
            (pods::NEAR, pods::FAR),
            (pods::FAR, pods::NEAR),
            (pods::FAR, pods::CLIENT),
        ] {
            for _ in 0..3 {
                let reply = world.fetch(from, to, family, ports::HTTP)?;
                ensure!(reply.ok(), "{family} {from} to {to}: {}", reply.outcome());
            }
        }
    }
    world.ensure_no_marker()
}

fn foreign_pins(world: &mut World) -> anyhow::Result<()> {
    let uid = |pod: &str| anyhow::Ok(world.sandbox.pod(pod)?.spec().uid.clone());
    let (client, near) = (uid(pods::CLIENT)?, uid(pods::NEAR)?);
    // The client's own links end with their only pins.
    tamper(
        world,
        &format!(
            "for pin in egress-2 ingress-2; do mv -f {near}/net-*/*$pin {client}/net-*/; done; ln -f ../maps/COUNTERS {near}/net-*/lookup"
        ),
    )?;
    whole(world)
}

fn stranger(world: &mut World) -> anyhow::Result<()> {
    world.mesh.agent("east")?.kill()?;
    let mut stranger = Stranger::named_by_the_pins_of_near(world)?;
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    stranger.ensure_alive()?;
    whole(world)
}

/// As when the inode of a namespace that is gone is used again: pins of a pod that nobody knows name the namespace of another one, whose
/// own pins are not there yet.
fn ghost(world: &mut World) -> anyhow::Result<()> {
    let uid = |pod: &str| anyhow::Ok(world.sandbox.pod(pod)?.spec().uid.clone());
    let (client, near) = (uid(pods::CLIENT)?, uid(pods::NEAR)?);
    let log = world.mesh.directory().join("agent-east.log");
    let length = std::fs::read(&log)?.len();
    tamper(
        world,
        &format!(
            "net=$(basename {client}/net-*); rm -r {client}; mkdir -p ghost/$net {near}/net-1; \
             for pin in {near}/net-*/*; do test -d $pin || ln $pin ghost/$net/; done; ln {near}/net-*/*egress-2 {near}/net-1/"
        ),
    )?;
    let node = world.sandbox.node("east")?;
    let gone = || {
        let there = Program::new("sh").args(["-c", "test -e /sys/fs/bpf/culvert/v*/pods/ghost"]);
        node.exec(&there, SETTLE).is_ok_and(|output| !output.status.success()).then_some(())
    };
    wait::until(SETTLE, || "the end of the ghost".into(), gone)?;
    // What stood in the client's namespace has stood all the time; else it would have been put there again.
    let log = std::fs::read_to_string(&log)?;
    let again = log
        .get(length..)
        .unwrap_or_default()
        .lines()
        .find(|line| line.contains("routes and sysctls are set"));
    ensure!(again.is_none(), "the ghost was taken for a pod, and the pod's rules with it: {again:?}");
    whole(world)
}

fn strays(world: &mut World) -> anyhow::Result<()> {
    let [v4, v6] = GATEWAYS;
    let mut script = String::from("set -e; ");
    for (ip, everything, gateway) in [("ip -4", "10.42.0.0/16", v4), ("ip -6", "fd42::/16", v6)] {
        script += &format!(
            "{ip} rule del pref 32764; {ip} rule del pref 32764; {ip} route flush table 100; \
             {ip} route add {everything} via {gateway} dev eth0 onlink table 100; \
             {ip} rule add pref 100 fwmark 0x111/0xfff lookup main; {ip} rule del pref 32765 || true; "
        );
    }
    for setting in
        ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv4/conf/lo/accept_local", "ipv6/fwmark_reflect"]
    {
        script += &format!("echo 0 > /proc/sys/net/{setting}; ");
    }
    world.mesh.agent("east")?.kill()?;
    let output = world.sandbox.pod(pods::CLIENT)?.exec(&Program::new("sh").args(["-c", &script]), SETTLE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let node = world.sandbox.node("east")?;
    world.mesh.start_agent(node)?;
    world.mesh.wait_ready(node)?;
    whole(world)
}

/// The old pod's sockets live on in the test, and with them its namespace.
fn heir(world: &mut World) -> anyhow::Result<()> {
    let mut open = Vec::new();
    for family in Family::BOTH {
        let mut stream = world.connect(pods::NEAR, world.address(pods::FAR, family, ports::ECHO)?)?;
        echoes(&mut stream)?;
        open.push(stream);
    }
    let path = world.sandbox.manifests_directory().join("shop.yaml");
    let text = std::fs::read_to_string(&path)?;
    let (pod, others): (Vec<&str>, Vec<&str>) = text
        .split("---\n")
        .partition(|object| object.contains("kind: Pod\n") && object.contains("name: near\n"));
    let [pod] = pod[..] else { anyhow::bail!("{} pods named near", pod.len()) };
    let uid = world.sandbox.pod(pods::NEAR)?.spec().uid.clone();
    let heir = pod
        .replace("name: near\n", "name: heir\n")
        .replace("serviceAccountName: near", "serviceAccountName: heir")
        .replace(&uid, "5b0f3c1e-2099-4c57-9a10-000000000099");
    world.sandbox.stop_pod(pods::NEAR)?;
    std::fs::write(&path, others.join("---\n"))?;
    world.sandbox.start_pods("heir.yaml", &heir)?;
    let node = world.sandbox.node("east")?;
    let enrolled = || {
        world.pod_state(node, "heir").is_ok_and(|state| state.as_deref() == Some("enrolled")).then_some(())
    };
    wait::until(SETTLE, || "the heir to join".into(), enrolled)?;
    // Without the marker until the other node knows as well.
    for family in Family::BOTH {
        let url = format!("http://{}/", world.address(HEIR, family, ports::HTTP)?);
        let known = || Fetch::new(url.clone()).from_pod(world.sandbox.pod(pods::FAR)?);
        wait::until(
            SETTLE,
            || "an answer of the heir".into(),
            || known().is_ok_and(|reply| reply.ok()).then_some(()),
        )?;
    }
    for moment in ["at once", "when the old one is forgotten"] {
        for family in Family::BOTH {
            let reply = world.answered_within(SETTLE, pods::CLIENT, HEIR, family)?;
            ensure!(reply.body.contains("pod=heir\n"), "{moment}, {family}: {}", reply.body);
            world.answered_within(SETTLE, pods::FAR, HEIR, family)?;
            let reply = world.answered_within(SETTLE, HEIR, pods::FAR, family)?;
            let local = reply.local.context("no local address")?;
            let entry = world.mesh.access_log().of(local, Direction::Outbound, SETTLE)?;
            let source = entry.source_identity.as_deref();
            ensure!(source == Some(&identity("shop", "heir")), "{moment}, {family}: {entry:?}");
            let client = world.sandbox.pod(pods::OUTSIDER_EAST)?.address(family)?;
            let outside = || world.fetch(pods::OUTSIDER_EAST, HEIR, family, ports::HTTP);
            world.ensure_refused(client, STRICT, outside)?;
            let url = format!("http://{}/healthz", world.address(HEIR, family, ports::HTTP)?);
            let reply = Fetch::new(url).from_kubelet(world.sandbox.node("east")?)?;
            ensure!(reply.ok(), "{moment}, {family} probe: {}", reply.outcome());
        }
        world.until_near_is(None)?;
    }
    drop(open);
    world.ensure_no_marker()?;
    // For whatever test comes next, `shop/near` is there again.
    world.sandbox.stop_pod(HEIR)?;
    std::fs::remove_file(world.sandbox.manifests_directory().join("heir.yaml"))?;
    world.sandbox.start_pods("near.yaml", &pod.replace(&uid, "5b0f3c1e-2098-4c57-9a10-000000000098"))?;
    world.until_near_is(Some("enrolled"))?;
    whole(world)
}

/// The pod in the place of `shop/near`.
const HEIR: &str = "shop/heir";
