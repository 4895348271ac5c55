//! Kubelet's probes and hooks under STRICT: every one past the mesh, and nothing else with them.

use std::time::Duration;

use anyhow::ensure;
use sandbox::{Direction, Family, Fetch, Kubelet, Node, Program, wait};

use crate::Case;
use crate::places::echo;
use crate::world::{SETTLE, STRICT, World};

/// What holds whichever way packets are taken.
pub const PROBES: &[Case<World>] = &[
    ("every_kind_of_probe_and_hook_succeeds_under_strict_and_through_kubelets_restarts", through_restarts),
    ("a_kubelet_that_restarts_while_there_is_no_agent_probes_past_the_mesh_at_once", without_agents),
    ("what_a_probe_names_another_host_for_is_open_to_nobody", other_hosts),
    ("another_process_of_the_node_and_other_ports_stay_in_the_mesh", nobody_else),
    ("an_init_containers_port_and_an_exec_probe_open_nothing", init_containers),
];

/// Ports of `shop/web` that are probed or hooked.
const PROBED: [u16; 6] = [8080, 8081, 8082, 8443, 9000, 9090];

/// And one that is not.
const NOT_PROBED: u16 = 9001;

const WEB: &str = "shop/web";
const HOSTS: &str = "shop/hosts";

/// Probes of hosts that are not the pod: kubelet calls them as anybody would.
const FOREIGN: &str = "foreign livenessProbe";

/// How often kubelet is restarted.
const RESTARTS: usize = 3;

/// Every probe is made so often between restarts: at failureThreshold 1, any that fails would restart a container or take it out of its
/// Services.
const ROUNDS: usize = 2;

/// One try at a request that is to be refused.
const TRY: Duration = Duration::from_secs(5);

fn through_restarts(world: &mut World) -> anyhow::Result<()> {
    restarted(world)
}

/// The kernel knows the new cgroup by itself.
fn without_agents(world: &mut World) -> anyhow::Result<()> {
    let nodes: Vec<String> = world.sandbox.pod_nodes().map(|node| node.name().to_owned()).collect();
    for node in &nodes {
        world.mesh.agent(node)?.kill()?;
    }
    restarted(world)?;
    for node in &nodes {
        let node = world.sandbox.node(node)?;
        world.mesh.start_agent(node)?;
        world.mesh.wait_ready(node)?;
    }
    Ok(())
}

/// Probes from before the first restart of the kubelets, which probe as soon as they run, until after the last.
fn restarted(world: &World) -> anyhow::Result<()> {
    let nodes: Vec<&Node> = world.sandbox.pod_nodes().collect();
    let mut kubelets = Vec::new();
    for node in &nodes {
        kubelets.push(Kubelet::start(&world.sandbox, node, Program::new(echo()?).arg("probe"))?);
    }
    for restart in 0..=RESTARTS {
        for (kubelet, node) in kubelets.iter_mut().zip(&nodes) {
            if restart > 0 {
                kubelet.restart(node)?;
            }
        }
        kubelets.iter().try_for_each(|kubelet| kubelet.wait(ROUNDS, SETTLE))?;
    }
    let mut made = 0;
    for kubelet in &kubelets {
        for (probe, outcomes) in kubelet.outcomes() {
            let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.ok).collect();
            if probe.contains(FOREIGN) {
                ensure!(failed.len() == outcomes.len(), "{probe}: passed by the mesh");
            } else {
                ensure!(
                    failed.is_empty(),
                    "{probe}: {} of {} failed: {failed:?}",
                    failed.len(),
                    outcomes.len()
                );
                made += outcomes.len();
            }
        }
    }
    let kinds: usize = kubelets.iter().map(|kubelet| kubelet.probes().len()).sum();
    println!("    {made} probes of {kinds} kinds, none failed");
    Ok(())
}

/// That a call in plaintext is refused by STRICT, and the application never sees it.
fn ensure_proxied(
    world: &World,
    what: &str,
    node: &Node,
    pod: &str,
    port: u16,
    as_kubelet: bool,
) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let what = format!("{what}, {pod} port {port} over {family}");
        let address = world.address(pod, family, port)?;
        let log = world.mesh.access_log().from_now();
        let request = Fetch::new(format!("http://{address}/healthz")).within(TRY);
        let reply = if as_kubelet { request.from_kubelet(node)? } else { request.from_node(node)? };
        ensure!(reply.reset(), "{what}: {}", reply.outcome());
        let entry = log.find(
            SETTLE,
            || format!("an entry for {what}"),
            |entry| {
                entry.direction == Some(Direction::Inbound) && entry.others["dst.addr"] == address.to_string()
            },
        )?;
        ensure!(entry.policy.as_deref() == Some(STRICT), "{what}: {entry:?}");
    }
    Ok(())
}

fn other_hosts(world: &mut World) -> anyhow::Result<()> {
    // The container names 8083, on another pod's address: neither pod's port is opened by that.
    let west = world.sandbox.node("west")?;
    ensure_proxied(world, "kubelet, named with a host", west, HOSTS, 8083, true)?;
    let east = world.sandbox.node("east")?;
    ensure_proxied(world, "kubelet of the host that is named", east, WEB, 8083, true)
}

fn nobody_else(world: &mut World) -> anyhow::Result<()> {
    let [east, west] = ["east", "west"].map(|node| world.sandbox.node(node));
    let (east, west) = (east?, west?);
    for port in PROBED {
        ensure_proxied(world, "another process of the node", east, WEB, port, false)?;
        ensure_proxied(world, "kubelet of another node", west, WEB, port, true)?;
        let client = world.sandbox.pod("plain/outsider")?;
        for family in Family::BOTH {
            let url = format!("http://{}/healthz", world.address(WEB, family, port)?);
            let reply = Fetch::new(url).within(TRY).from_pod(client)?;
            ensure!(
                reply.reset(),
                "a pod outside of the mesh, port {port} over {family}: {}",
                reply.outcome()
            );
        }
    }
    ensure_proxied(world, "kubelet, a port that is not probed", east, WEB, NOT_PROBED, true)
}

fn init_containers(world: &mut World) -> anyhow::Result<()> {
    let east = world.sandbox.node("east")?;
    // Nobody listens on it any more; it is refused by policy before that matters.
    ensure_proxied(world, "kubelet, a port of an init container that is done", east, WEB, 7070, true)?;
    // A port becomes one that is probed as soon as a manifest says so, and is one no longer when it says no more.
    let probe = "readinessProbe: {tcpSocket: {port: echo}";
    let other = "readinessProbe: {tcpSocket: {port: other}";
    world.edit("shop.yaml", probe, other)?;
    until_open(world, east, NOT_PROBED)?;
    ensure_proxied(world, "kubelet, a port that is probed no more", east, WEB, 9000, true)?;
    world.edit("shop.yaml", other, probe)?;
    until_open(world, east, 9000)
}

/// Waits until kubelet reaches an echo of `shop/web`.
fn until_open(world: &World, node: &Node, port: u16) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let url = format!("http://{}/", world.address(WEB, family, port)?);
        // An echo answers with the request, which is no HTTP: curl's error 1, and a connection that was not reset.
        let open = || match Fetch::new(&url).within(TRY).from_kubelet(node) {
            Ok(reply) if !reply.reset() => Ok(()),
            Ok(reply) => Err(reply.outcome()),
            Err(error) => Err(error.to_string()),
        };
        wait::try_until(SETTLE, || format!("port {port} open to kubelet over {family}"), open)?;
    }
    Ok(())
}
