//! A real Kubernetes of two nodes on this machine, without Docker: `cargo xtask cluster up`, and down again.
//!
//! A node is a set of namespaces with a containerd, a kubelet and a kube-proxy of its own; the control plane has one too. All of it
//! hangs on the first process of each, as a machine does on its power. Files are in `target/cluster`; the programs of
//! Kubernetes, built once, in `target/kubernetes`.

mod assets;
mod control_plane;
mod go;
mod helm;
mod image;
mod init;
mod layout;
mod machine;
mod mesh;
mod network;
mod pki;
mod up;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::Subcommand;

use crate::output;
use crate::{toolchain, workspace};
use assets::Assets;
use layout::{CONTROL, Layout, Machine, NODES};
use machine::Running;

/// What to do with the cluster.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where its files are; clusters of two directories run side by side. Default: target/cluster.
    #[arg(long, global = true)]
    directory: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build or find what a cluster is made of: Kubernetes and helm, which takes six minutes of two cores, once.
    Build,
    /// Start it: two nodes, the mesh installed by its chart, and an example application.
    Up {
        /// The two nodes alone.
        #[arg(long)]
        bare: bool,
    },
    /// End it, and remove everything of it but the programs that were built.
    Down,
    /// Cut a node's power and start it again.
    Reboot {
        /// The node: east or west.
        node: String,
    },
    /// Say what runs.
    Status,
    /// Run kubectl against it.
    Kubectl {
        /// Kubectl's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run helm against it.
    Helm {
        /// Helm's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a program on a machine of it: control, east or west.
    Enter {
        /// The machine.
        machine: String,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<String>,
    },
    /// Be the first process of a machine.
    #[command(hide = true)]
    Init {
        /// The machine.
        machine: String,
        /// The programs of Kubernetes.
        #[arg(long)]
        programs: PathBuf,
    },
}

/// Does it; `false` when a program that was asked for failed.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let directory = args.directory.clone().unwrap_or_else(|| workspace().join("target/cluster"));
    let layout = Layout::new(std::path::absolute(directory)?);
    match &args.action {
        Action::Init { machine, programs } => init::run(&layout, named(machine)?, programs)?,
        Action::Build => {
            check_requirements()?;
            println!("Kubernetes: {}", assets()?.directory().display());
            println!("helm: {}", helm::ensure(&built())?.display());
        }
        Action::Up { bare } => up::run(&layout, *bare)?,
        Action::Down => {
            up::down(&layout)?;
            println!("the cluster is gone");
        }
        Action::Reboot { node } => up::reboot(&layout, named(node)?)?,
        Action::Status => status(&layout)?,
        Action::Kubectl { arguments } => {
            return succeeds(kubectl(&layout, &assets()?)?.args(arguments));
        }
        Action::Helm { arguments } => {
            return succeeds(mesh::helm(&layout, &helm::ensure(&built())?)?.args(arguments));
        }
        Action::Enter { machine, program } => {
            let running = Running::find(&layout, named(machine)?).context("it does not run")?;
            return succeeds(running.command(&program[0])?.args(&program[1..]));
        }
    }
    Ok(true)
}

fn named(machine: &str) -> anyhow::Result<Machine> {
    Machine::named(machine).with_context(|| format!("`{machine}` is none of control, east and west"))
}

fn succeeds(command: &mut Command) -> anyhow::Result<bool> {
    let status = command.status().with_context(|| format!("starting {:?}", command.get_program()))?;
    Ok(status.success())
}

fn assets() -> anyhow::Result<Assets> {
    Assets::ensure(&built())
}

/// Where programs that were built for a cluster are.
fn built() -> PathBuf {
    workspace().join("target/kubernetes")
}

/// Whether everything is there that takes minutes to build.
pub(crate) fn is_built() -> bool {
    Assets::find(&built()).is_ok_and(|found| found.is_some()) && helm::find(&built()).is_some()
}

/// A program that reaches the cluster's network.
fn within(layout: &Layout, program: &Path) -> anyhow::Result<Command> {
    let control = Running::find(layout, CONTROL).context("there is no cluster: `cargo xtask cluster up`")?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", control.inner()?)).arg(program);
    Ok(command)
}

/// Kubectl, where it reaches the API server.
fn kubectl(layout: &Layout, assets: &Assets) -> anyhow::Result<Command> {
    let mut command = within(layout, &assets.program("kubectl"))?;
    command.arg("--kubeconfig").arg(layout.kubeconfig());
    Ok(command)
}

fn status(layout: &Layout) -> anyhow::Result<()> {
    let machines = std::iter::once(CONTROL).chain(NODES).map(|machine| {
        let running = Running::find(layout, machine);
        let process = running.and_then(|running| running.inner().ok());
        let process = process.map_or_else(|| "does not run".to_owned(), |pid| format!("process {pid}"));
        [machine.name.to_owned(), machine.address(), process, layout.machine(machine).display().to_string()]
    });
    println!("{}", output::rows(["machine", "address", "", "files and logs"], machines));
    if Running::find(layout, CONTROL).is_some() {
        succeeds(kubectl(layout, &assets()?)?.args([
            "get",
            "nodes,pods",
            "--all-namespaces",
            "--output=wide",
        ]))?;
    }
    Ok(())
}

/// What a cluster needs of this machine.
fn check_requirements() -> anyhow::Result<()> {
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "namespaces, mounts and cgroups need root");
    assets::ensure_packages()?;
    for program in ["containerd", "ctr", "nsenter", "unshare"] {
        toolchain::find_program(program)?;
    }
    Ok(())
}
