//! Identities and exemptions that somebody tries to borrow: by marks, addresses, cgroups, sockets, tokens and certificates. Each
//! attempt is refused or without effect, counted, and named in a line of a log.

mod authority;
mod certificates;
mod pods;
mod sockets;

use std::path::PathBuf;

use anyhow::ensure;
use sandbox::{CONTROL_NODE, Fetch, wait};

use crate::Case;
use crate::world::{SETTLE, World};

/// What must hold; the order matters only in that some leave a pod with an address that is not its own.
pub const FORGED: &[Case<World>] = &[
    ("the_marks_of_the_mesh_on_a_pods_own_sockets_exempt_nothing", pods::marks),
    ("a_marked_connection_to_the_pod_itself_gains_nothing", pods::marked_to_itself),
    ("a_process_of_a_pod_in_a_cgroup_named_like_kubelets_is_proxied", pods::kubelets_namesake),
    ("a_pod_that_takes_another_pods_address_does_not_get_its_identity", pods::stolen_address),
    ("a_client_certificate_with_a_fault_is_refused_for_that_fault", certificates::clients),
    ("a_server_that_is_somebody_else_is_refused", certificates::servers),
    ("a_node_gets_no_certificate_of_another_nodes_pod", authority::other_node),
    ("a_token_that_is_no_nodes_opens_nothing", authority::no_token),
    ("other_users_are_refused_at_every_socket_even_when_its_modes_are_loosened", sockets::other_user),
    ("a_stranger_at_the_zds_socket_is_told_nothing_and_exempted_from_nothing", sockets::stranger),
    ("a_second_ztunnel_is_named_and_counted", sockets::second),
    ("exemptions_of_agents_that_are_gone_are_removed_when_no_socket_has_them", sockets::pruned),
    (
        "and_beside_a_pod_that_is_shut_out_for_its_application_holds_a_port_of_the_mesh",
        sockets::pruned_beside_one_that_is_shut_out,
    ),
];

/// Ports on which the processes of a node serve their metrics.
mod metrics_of {
    pub(super) const CONTROL: u16 = 15010;
    pub(super) const AGENT: u16 = 15011;
    pub(super) const ZTUNNEL: u16 = 15020;
}

/// The sum of the metrics of that name which have all of these labels; 0 where there is none.
fn metric(world: &World, node: &str, port: u16, name: &str, labels: &[&str]) -> anyhow::Result<u64> {
    let node = world.sandbox.node(node)?;
    let reply = Fetch::new(format!("http://127.0.0.1:{port}/metrics")).from_node(node)?;
    ensure!(reply.ok(), "metrics of port {port}: {}", reply.outcome());
    let wanted = |line: &&str| {
        let (own, rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
        own == name && labels.iter().all(|label| rest.contains(label))
    };
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok());
    Ok(reply.body.lines().filter(wanted).filter_map(value).sum())
}

/// A count and what it was.
struct Count<'a> {
    node: &'a str,
    port: u16,
    name: &'a str,
    labels: Vec<&'a str>,
    before: u64,
}

impl<'a> Count<'a> {
    fn from_now(
        world: &World,
        (node, port): (&'a str, u16),
        name: &'a str,
        labels: &[&'a str],
    ) -> anyhow::Result<Self> {
        let before = metric(world, node, port, name, labels)?;
        Ok(Self { node, port, name, labels: labels.to_vec(), before })
    }

    fn grown(&self, world: &World) -> anyhow::Result<u64> {
        Ok(metric(world, self.node, self.port, self.name, &self.labels)? - self.before)
    }

    /// Waits until it has grown by that much at least.
    fn grows_by(&self, world: &World, least: u64) -> anyhow::Result<()> {
        let what = || format!("{} {:?} of {} to grow by {least}", self.name, self.labels, self.node);
        wait::try_until(SETTLE, what, || match self.grown(world) {
            Ok(grown) if grown >= least => Ok(()),
            Ok(grown) => Err(format!("it grew by {grown}")),
            Err(error) => Err(error.to_string()),
        })?;
        Ok(())
    }
}

/// The log of a process from now on.
struct Log {
    file: PathBuf,
    start: usize,
}

impl Log {
    /// `process` such as `agent-east`.
    fn from_now(world: &World, process: &str) -> Self {
        let file = world.mesh.directory().join(format!("{process}.log"));
        let start = std::fs::read(&file).unwrap_or_default().len();
        Self { file, start }
    }

    /// All of it: of what is not said twice within a while.
    fn whole(world: &World, process: &str) -> Self {
        Self { start: 0, ..Self::from_now(world, process) }
    }

    /// Waits for a line that has all of these texts in it.
    fn tells(&self, texts: &[&str]) -> anyhow::Result<String> {
        let what = || format!("a line of {} with {texts:?}", self.file.display());
        let line = wait::until(SETTLE, what, || {
            let text = std::fs::read(&self.file).unwrap_or_default();
            let text = String::from_utf8_lossy(text.get(self.start..).unwrap_or_default()).into_owned();
            text.lines().find(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned)
        })?;
        Ok(line)
    }
}

/// Control's place for [`metric`].
const CONTROL: (&str, u16) = (CONTROL_NODE, metrics_of::CONTROL);
/// The agent's of the clients' node.
const AGENT: (&str, u16) = ("east", metrics_of::AGENT);
/// The ztunnel's of the clients' node.
const ZTUNNEL: (&str, u16) = ("east", metrics_of::ZTUNNEL);
