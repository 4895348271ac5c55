//! A thousand pods come and go: descriptors, memory, pins and map entries of agent and ztunnel are then as before.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use e2e::Case;
use e2e::world::{SETTLE, World, pods, ports};
use sandbox::{Family, Fetch, Program, Redirection, wait};

/// Pods in all, and of them at the same time.
const PODS: u32 = 1000;
const CROWD: u32 = 50;

/// The file that describes those that are there.
const FILE: &str = "crowd.yaml";

/// Crowds that fill what is kept on purpose: threads' stacks, pools, the allocator's arenas.
const WARM_UP: u32 = 5;

/// What the allocators' arenas may still grow by then: up to 3.7 MiB were seen, less with each crowd. A leak of 10 KiB a pod would be
/// 7.3 MiB.
const MEMORY_SLACK_KIB: u64 = 6 << 10;

fn main() -> ExitCode {
    const CASES: &[Case<World>] =
        &[("a_thousand_pods_that_joined_and_left_leave_nothing_in_agent_ztunnel_or_kernel", thousand)];
    e2e::run(|| World::start(Redirection::Auto), CASES, World::explain)
}

/// What a node's programs hold.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    /// Descriptors of agent and ztunnel by what they are: `agent socket`, `ztunnel net`, ...
    descriptors: BTreeMap<String, usize>,
    /// Entries of the kernel programs' maps.
    maps: Vec<String>,
    /// Files below the BPF file system: links and maps.
    pins: usize,
    /// Pods that the agent knows.
    pods: usize,
}

/// The manifest of a crowd: `generation` makes the uids those of other pods.
fn crowd(generation: u32) -> String {
    let pod = |number: u32| {
        let uid = generation * CROWD + number;
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: crowd-{number}, namespace: shop, labels: {{app: crowd}}, \
             uid: 5b0f3c1e-3000-4c57-9a10-{uid:012}}}, \
             spec: {{nodeName: east, serviceAccountName: client, containers: []}}, \
             status: {{phase: Running, podIPs: [{{ip: 10.42.3.{number}}}, {{ip: 'fd42:0:3::{number:x}'}}], \
             conditions: [{{type: Ready, status: 'True'}}]}}}}\n---\n"
        )
    };
    (1..=CROWD).map(pod).collect()
}

/// Pods of a generation join, one of them calls, and all leave.
fn come_and_go(world: &mut World, generation: u32) -> anyhow::Result<()> {
    let names = world.sandbox.start_pods(FILE, &crowd(generation))?;
    let first = names.first().context("no pods")?;
    let enrolled = |world: &World| -> anyhow::Result<usize> {
        let status = world.mesh.status(world.sandbox.node("east")?)?;
        let pods = status["pods"].as_object().context("no pods")?;
        let crowd = |pod: &&serde_json::Value| {
            pod["name"].as_str().is_some_and(|name| name.starts_with("crowd-")) && pod["state"] == "enrolled"
        };
        Ok(pods.values().filter(crowd).count())
    };
    wait::try_until(
        SETTLE,
        || format!("enrolment of crowd {generation}"),
        || match enrolled(world) {
            Ok(count) if count == names.len() => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )?;
    for family in Family::BOTH {
        world.answered_within(SETTLE, first, pods::FAR, family)?;
    }
    // As kubelet and control would: the object goes when the sandbox has gone.
    for name in &names {
        world.sandbox.stop_pod(name)?;
    }
    fs::write(world.sandbox.manifests_directory().join(FILE), "")?;
    let empty = |world: &World| -> anyhow::Result<usize> {
        let status = world.mesh.status(world.sandbox.node("east")?)?;
        let pods = status["pods"].as_object().context("no pods")?;
        let crowd = |pod: &&serde_json::Value| {
            pod["name"].as_str().is_none_or(|name| name.is_empty() || name.starts_with("crowd-"))
        };
        Ok(pods.values().filter(crowd).count())
    };
    wait::try_until(
        SETTLE,
        || format!("the end of crowd {generation}"),
        || match empty(world) {
            Ok(0) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )?;
    Ok(())
}

/// A process's descriptors by kind. Those of its own network namespace are left out: each thread that enters pods keeps one.
fn descriptors(program: &str, pid: u32) -> anyhow::Result<BTreeMap<String, usize>> {
    let own = fs::read_link(format!("/proc/{pid}/ns/net"))?;
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(Result::ok) {
        // A descriptor may be closed while they are listed.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        if target == own {
            continue;
        }
        let target = target.to_string_lossy();
        let kind = target.split([':', '[']).next().unwrap_or_default();
        let kind = if kind == "anon_inode" { target.as_ref() } else { kind };
        *kinds.entry(format!("{program} {kind}")).or_default() += 1;
    }
    Ok(kinds)
}

fn holdings(world: &mut World) -> anyhow::Result<Holdings> {
    let (agent, ztunnel) = (world.mesh.agent("east")?.pid(), world.mesh.ztunnel("east")?.pid());
    let mut all = descriptors("agent", agent)?;
    all.extend(descriptors("ztunnel", ztunnel)?);
    let node = world.sandbox.node("east")?;
    let metrics = Fetch::new("http://127.0.0.1:15011/metrics").from_node(node)?;
    ensure!(metrics.ok(), "{}", metrics.outcome());
    let maps: Vec<_> = metrics
        .body
        .lines()
        .filter(|line| line.starts_with("culvert_bpf_map_entries{"))
        .map(str::to_owned)
        .collect();
    ensure!(maps.len() > 3, "no map's entries are in the metrics");
    let pins = node.exec(&Program::new("find").args(["/sys/fs/bpf", "-type", "f"]), SETTLE)?;
    let status = world.mesh.status(node)?;
    Ok(Holdings {
        descriptors: all,
        maps,
        pins: String::from_utf8_lossy(&pins.stdout).lines().count(),
        pods: status["pods"].as_object().context("no pods")?.len(),
    })
}

/// Anonymous memory of a process in KiB (proc_pid_status(5)).
fn memory(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn memories(world: &mut World) -> anyhow::Result<[u64; 2]> {
    Ok([memory(world.mesh.agent("east")?.pid())?, memory(world.mesh.ztunnel("east")?.pid())?])
}

fn thousand(world: &mut World) -> anyhow::Result<()> {
    let visit = |world: &mut World, generation| {
        come_and_go(world, generation).with_context(|| format!("crowd {generation}"))
    };
    (0..WARM_UP).try_for_each(|generation| visit(world, generation))?;
    let (before, used) = (holdings(world)?, memories(world)?);
    (WARM_UP..PODS / CROWD).try_for_each(|generation| visit(world, generation))?;
    wait::try_until(
        SETTLE,
        || "descriptors, maps and pins as before".into(),
        || match holdings(world) {
            Ok(after) if after == before => Ok(()),
            Ok(after) => Err(format!("\nbefore: {before:#?}\nafter: {after:#?}")),
            Err(error) => Err(error.to_string()),
        },
    )?;
    let now = memories(world)?;
    println!(
        "    KiB of agent and ztunnel after {} pods {used:?}, after {PODS} pods {now:?}",
        WARM_UP * CROWD
    );
    for ((before, after), program) in used.into_iter().zip(now).zip(["agent", "ztunnel"]) {
        ensure!(after <= before + MEMORY_SLACK_KIB, "{program} grew from {before} to {after} KiB");
    }
    // And the pods that stayed are served as ever.
    for family in Family::BOTH {
        let reply = world.fetch(pods::CLIENT, pods::NEAR, family, ports::HTTP)?;
        ensure!(reply.ok(), "{family}: {}", reply.outcome());
    }
    Ok(())
}
