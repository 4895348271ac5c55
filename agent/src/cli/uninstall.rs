//! `culvert uninstall`: takes capture and the CNI plugin off the node, for when no agent is to run here any more.
//!
//! Pods are entered, since filters of clsact, rules and routes are in their namespaces and in no pin. The values that sysctls had
//! before are not known any more; ours stay until their pods end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use control::kubernetes::{Cluster, Retirement};
use daemon::admin::{Address, Admin, Routes};
use daemon::readiness::Readiness;

use super::plugin::PluginArgs;
use crate::bpf;
use crate::enroll::end_captured;
use crate::netns::{Netns, find};
use crate::plumbing::{self, Before, kernel as plumber};

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the BPF file system is mounted that the agent used.
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    #[command(flatten)]
    plugin: PluginArgs,
    /// Remove what is in the agent's directory of sockets, too.
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// When all is done, say so at /healthz/ready on this address, and stay until a signal comes.
    #[arg(long)]
    stay: Option<SocketAddr>,
    /// Do not touch this node, but do a step of leaving a cluster, from a pod of it.
    #[arg(long, value_enum, requires = "namespace")]
    cluster: Option<ClusterStep>,
    /// With --cluster: the namespace of the agents.
    #[arg(long, requires = "cluster")]
    namespace: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClusterStep {
    /// End the agents, and wait until they have ended.
    EndAgents,
    /// Wait until the pods that clear the nodes have done so.
    AwaitNodes,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    if let (Some(step), Some(namespace)) = (args.cluster, &args.namespace) {
        return leave(step, namespace).await;
    }
    tokio::task::block_in_place(|| clear(&args))?;
    let Some(address) = args.stay else { return Ok(()) };
    let endpoint = Admin::bind(&Address::Tcp(address), "--stay")?;
    let stop = async {
        let _ = daemon::drain::signalled().await;
    };
    endpoint.serve(Readiness::new().routes(Routes::new()), stop).await;
    Ok(())
}

async fn leave(step: ClusterStep, namespace: &str) -> anyhow::Result<()> {
    let retirement = Retirement::new(&Cluster::find(None).await?, namespace);
    match step {
        ClusterStep::EndAgents => {
            retirement.end_agents().await?;
            println!("No agent runs any more.");
        }
        ClusterStep::AwaitNodes => println!("{} nodes are clear.", retirement.await_nodes().await?),
    }
    Ok(())
}

/// Clears this node.
fn clear(args: &Args) -> anyhow::Result<()> {
    // First: with capture gone, nobody could have a new pod captured.
    if args.plugin.places().remove().context("taking the CNI plugin away")? {
        println!("The CNI plugin is gone.");
    }
    let own = Netns::own()?.id();
    let mut missed = 0;
    for (directory, inode) in bpf::pinned(&args.bpffs)? {
        let Some(found) = find::pinned(&[inode].into(), own, Path::new("/proc"))? else {
            missed += 1;
            continue;
        };
        // Else its inode is another pod's by now, which has nothing of ours.
        if !bpf::stands(&directory, &found.netns)? {
            continue;
        }
        release(&directory, &found.netns).with_context(|| format!("in {}", found.netns.id()))?;
    }
    bpf::remove_pins(&args.bpffs)?;
    println!("Nothing is captured on this node any more.");
    if missed > 0 {
        println!(
            "{missed} network namespaces without a process were not entered; filters of clsact, rules and routes stay in those."
        );
    }
    for entry in args.run_dir.iter().flat_map(std::fs::read_dir).flatten().flatten() {
        let path = entry.path();
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Takes capture off one namespace. Captured connections are cut while their resets still find ztunnel. What is captured leads nowhere
/// once the rules and routes are gone, so that none begins after the second cut, which ends those that began after the first; what
/// tries meanwhile goes out, as everything from then on, when the programs are gone.
fn release(directory: &Path, netns: &Netns) -> anyhow::Result<()> {
    let left_alone = bpf::LeftAlone::of(directory).unwrap_or_else(|error| {
        eprintln!("culvert: {error}; every connection of {} is cut", netns.id());
        bpf::LeftAlone::default()
    });
    let cut = || end_captured(netns, &left_alone.cgroups, |_| Ok(left_alone.sockets.clone()));
    cut()?;
    let left = plumbing::to_left(&plumber::read(netns)?, &Before::default());
    plumber::apply(netns, &left)?;
    cut()?;
    Ok(bpf::take_down(directory, netns)?)
}
