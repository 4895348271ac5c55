//! The mesh's programs on a sandbox: one control plane, and on each node with pods an agent and a ztunnel.
//!
//! They are started as an operator would start them: with their documented flags, a bootstrap token per node, and
//! default paths, which each node's own `/run` and BPF file system make possible.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::access_log::AccessLog;
use crate::error::{During, Error, Result};
use crate::node::Node;
use crate::process::{Process, Program, tail};
use crate::readiness::READY_DEADLINE;
use crate::wait;
use crate::world::{CONTROL_NODE, Sandbox};

const CONTROL_PORT: u16 = 15012;
const AGENT_READINESS_PORT: u16 = 15012;
const ZTUNNEL_READINESS_PORT: u16 = 15021;

/// The file of the roots that agents are given.
const GIVEN_ROOTS: &str = "control-ca.pem";

/// How long a short-lived command may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(15);

/// The mesh's binaries.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `culvert`: control plane, agent and command line.
    pub culvert: PathBuf,
    /// `ztunnel`.
    pub ztunnel: PathBuf,
}

/// How the agents take packets at the pods' devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirection {
    /// The best the kernel has.
    #[default]
    Auto,
    /// TCX links (kernel 6.6).
    Tcx,
    /// Classifiers on a clsact queueing discipline.
    Clsact,
}

impl Redirection {
    /// As the agent's option spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What ztunnels are told by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ztunnels {
    /// Everything by their node's agent.
    #[default]
    Ours,
    /// As Istio's: of pods, and nothing but them, by their node's agent, so that they make the listeners there by themselves;
    /// configuration and certificates they have from the control plane.
    AsIstios,
    /// Of pods and certificates by their node's agent, and what the mesh is by [`Mesh::local_file`].
    OfAFile,
}

/// How a mesh is started.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// The binaries.
    pub binaries: Binaries,
    /// How packets are taken.
    pub redirection: Redirection,
    /// What ztunnels are told by whom.
    pub ztunnels: Ztunnels,
    /// `RUST_LOG` of all programs.
    pub log: String,
    /// Further arguments of the control plane.
    pub control: Vec<String>,
}

/// A running mesh. Its programs end when it is dropped.
#[derive(Debug)]
pub struct Mesh {
    options: MeshOptions,
    directory: PathBuf,
    control: Process,
    control_address: SocketAddr,
    agents: BTreeMap<String, Process>,
    ztunnels: BTreeMap<String, Process>,
    ztunnel_env: BTreeMap<String, String>,
    agent_arguments: Vec<String>,
}

impl Mesh {
    /// Starts the control plane, then an agent and a ztunnel on each node with pods, and waits until all are ready.
    /// `progress` is told each step.
    pub fn start(sandbox: &Sandbox, options: MeshOptions, mut progress: impl FnMut(&str)) -> Result<Self> {
        let directory = sandbox.directory().join("mesh");
        fs::create_dir_all(&directory).during(|| format!("making {}", directory.display()))?;
        progress("control plane");
        let [v4, _] = sandbox.node(CONTROL_NODE)?.addresses();
        let control_address = SocketAddr::new(v4, CONTROL_PORT);
        let control = start_control(sandbox, &options, &directory, control_address)?;
        // As nodes are given it: a copy, which no change at the control plane's reaches. It is there soon after the port.
        let (root, given) = (directory.join("state/root.pem"), directory.join(GIVEN_ROOTS));
        wait::until(READY_DEADLINE, || root.display().to_string(), || root.exists().then_some(()))?;
        fs::copy(&root, &given).during(|| format!("copying {}", root.display()))?;
        let (agents, ztunnels) = (BTreeMap::new(), BTreeMap::new());
        let mut mesh = Self {
            options,
            directory,
            control,
            control_address,
            agents,
            ztunnels,
            ztunnel_env: BTreeMap::new(),
            agent_arguments: Vec::new(),
        };
        for node in sandbox.pod_nodes() {
            mesh.issue_token(sandbox, node.name())?;
            progress(&format!("agent on {}", node.name()));
            mesh.start_agent(node)?;
        }
        for node in sandbox.pod_nodes() {
            progress(&format!("ztunnel on {}", node.name()));
            mesh.start_ztunnel(node)?;
        }
        for node in sandbox.pod_nodes() {
            progress(&format!("readiness of {}", node.name()));
            mesh.wait_ready(node)?;
        }
        Ok(mesh)
    }

    /// Waits until agent and ztunnel of a node are ready, and every pod of the node that belongs into the mesh is in it.
    pub fn wait_ready(&mut self, node: &Node) -> Result<()> {
        self.ztunnel(node.name())?.wait_until(|| node.net().ready(ZTUNNEL_READINESS_PORT))?;
        self.agent(node.name())?.wait_until(|| node.net().ready(AGENT_READINESS_PORT))?;
        let what = || format!("enrolment of the pods on {}", node.name());
        wait::try_until(READY_DEADLINE, what, || {
            let status = self.status(node).map_err(|error| error.to_string())?;
            let pods = status["pods"].as_object().ok_or("the agent's status has no pods")?;
            let late = pods.values().find(|pod| pod["state"] != "enrolled");
            late.map_or(Ok(()), |pod| Err(pod.to_string()))
        })
    }

    /// What the agent of a node says of itself and its pods: `culvert status --json`.
    pub fn status(&self, node: &Node) -> Result<Value> {
        let program =
            Program::new(&self.options.binaries.culvert).named("culvert status").args(["status", "--json"]);
        let output = node.exec(&program, COMMAND_DEADLINE)?;
        let unusable = |reason: String| Error::Program { program: "culvert status".into(), reason };
        if !output.status.success() {
            return Err(unusable(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| unusable(error.to_string()))
    }

    /// Ends the control plane as a crash would.
    pub fn kill_control(&mut self) -> Result<()> {
        self.control.kill()
    }

    /// Starts the control plane again and waits until it accepts connections.
    pub fn start_control(&mut self, sandbox: &Sandbox) -> Result<()> {
        self.control = start_control(sandbox, &self.options, &self.directory, self.control_address)?;
        Ok(())
    }

    /// Ends the control plane as a crash would, and starts it again with these further arguments.
    pub fn restart_control(&mut self, sandbox: &Sandbox, arguments: Vec<String>) -> Result<()> {
        self.options.control = arguments;
        self.kill_control()?;
        self.start_control(sandbox)
    }

    /// Runs a command of `culvert` on the control plane's state directory.
    pub fn on_state(&self, sandbox: &Sandbox, command: &[&str]) -> Result<Output> {
        let program = Program::new(&self.options.binaries.culvert)
            .named(format!("culvert {}", command.join(" ")))
            .args(command)
            .arg("--state")
            .arg(self.directory.join("state"));
        program.output(&sandbox.node(CONTROL_NODE)?.place("session")?, COMMAND_DEADLINE)
    }

    /// Further arguments of every agent that is started from here on.
    pub fn set_agent_arguments(&mut self, arguments: &[&str]) {
        self.agent_arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    }

    /// The file of the roots that agents are given: a copy of the control plane's from its first start.
    pub fn given_roots(&self) -> PathBuf {
        self.directory.join(GIVEN_ROOTS)
    }

    /// Starts the agent of a node, without waiting for it; a running one must have been ended before.
    pub fn start_agent(&mut self, node: &Node) -> Result<()> {
        self.start_agent_in(node, "agent")
    }

    /// The same, in a cgroup of that name: container runtimes make a new one at every start.
    pub fn start_agent_in(&mut self, node: &Node, cgroup: &str) -> Result<()> {
        let (kubelet, ztunnel) = (node.place("kubelet")?, node.place("ztunnel")?);
        let program = Program::new(&self.options.binaries.culvert)
            .named(format!("agent {}", node.name()))
            .args(["agent", "--node", node.name()])
            .args(["--control", &format!("https://{}", self.control_address)])
            .arg("--control-ca")
            .arg(self.given_roots())
            .arg("--token")
            .arg(self.token_file(node.name()))
            .args(["--run-dir", "/run/culvert", "--bpffs", "/sys/fs/bpf"])
            .arg("--cgroup-root")
            .arg(node.cgroup().path())
            .arg("--kubelet-cgroup")
            .arg(kubelet.cgroup.path())
            .arg("--ztunnel-cgroup")
            .arg(ztunnel.cgroup.path())
            .args(["--redirection", self.options.redirection.as_str()])
            .args(&self.agent_arguments)
            .env("RUST_LOG", &self.options.log);
        let log = self.directory.join(format!("agent-{}.log", node.name()));
        let process = program.spawn(&node.place(cgroup)?, &log)?;
        self.agents.insert(node.name().to_owned(), process);
        Ok(())
    }

    /// Starts the ztunnel of a node, without waiting for it; a running one is replaced only if it has ended.
    pub fn start_ztunnel(&mut self, node: &Node) -> Result<()> {
        let mut program = Program::new(&self.options.binaries.ztunnel)
            .named(format!("ztunnel {}", node.name()))
            .env("NODE_NAME", node.name())
            .env("INPOD_UDS", "/run/culvert/zds.sock")
            .env("LOG_FORMAT", "json")
            .env("RUST_LOG", &self.options.log);
        program = match self.options.ztunnels {
            Ztunnels::Ours => program
                .env("XDS_ADDRESS", "unix:///run/culvert/xds.sock")
                .env("CA_ADDRESS", "unix:///run/culvert/xds.sock"),
            Ztunnels::OfAFile => program
                .env("LOCAL_XDS_PATH", self.local_file())
                .env("CA_ADDRESS", "unix:///run/culvert/xds.sock"),
            Ztunnels::AsIstios => {
                let control = format!("https://{}", self.control_address);
                program
                    .env("XDS_ADDRESS", &control)
                    .env("CA_ADDRESS", &control)
                    .env("XDS_ROOT_CA", self.given_roots())
                    .env("CA_ROOT_CA", self.given_roots())
                    .env("AUTH_TOKEN", self.token_file(node.name()))
                    .env("ZDS_EXTENSIONS", "false")
            }
        };
        for (name, value) in &self.ztunnel_env {
            program = program.env(name, value);
        }
        let process = program.spawn(&node.place("ztunnel")?, &self.ztunnel_log(node.name()))?;
        self.ztunnels.insert(node.name().to_owned(), process);
        Ok(())
    }

    /// By whom the ztunnels that are started from now on are told of the mesh.
    pub fn set_ztunnels(&mut self, ztunnels: Ztunnels) {
        self.options.ztunnels = ztunnels;
    }

    /// What ztunnels are told the mesh is, where that is not the control plane's to say.
    pub fn local_file(&self) -> PathBuf {
        self.directory.join("local.yaml")
    }

    /// Sets a variable for the ztunnels that are started from now on.
    pub fn set_ztunnel_env(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.ztunnel_env.insert(name.into(), value.into());
    }

    /// The control plane.
    pub fn control(&self) -> &Process {
        &self.control
    }

    /// The agent of a node.
    pub fn agent(&mut self, node: &str) -> Result<&mut Process> {
        process(&mut self.agents, node)
    }

    /// The ztunnel of a node.
    pub fn ztunnel(&mut self, node: &str) -> Result<&mut Process> {
        process(&mut self.ztunnels, node)
    }

    /// Ends the ztunnel of a node as a crash would.
    pub fn kill_ztunnel(&mut self, node: &str) -> Result<()> {
        self.ztunnel(node)?.kill()
    }

    /// Asks the ztunnel of a node to drain and end, and starts its successor. Returns the draining one.
    pub fn replace_ztunnel(&mut self, node: &Node) -> Result<Process> {
        self.ztunnel(node.name())?.signal(Signal::SIGTERM)?;
        let what = || Error::Unknown { what: format!("ztunnel on node {}", node.name()) };
        let old = self.ztunnels.remove(node.name()).ok_or_else(what)?;
        self.start_ztunnel(node)?;
        Ok(old)
    }

    /// The access logs of all ztunnels.
    pub fn access_log(&self) -> AccessLog {
        AccessLog::new(self.ztunnels.keys().map(|node| self.ztunnel_log(node)))
    }

    /// An error, with the end of its log, when any program has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        let all = self.agents.values_mut().chain(self.ztunnels.values_mut());
        std::iter::once(&mut self.control).chain(all).try_for_each(Process::check_alive)
    }

    /// Starts again whatever has ended, as the mesh's Deployment and DaemonSets would. Returns what ended, and the new process.
    pub fn restart_ended(&mut self, sandbox: &Sandbox) -> Result<Vec<String>> {
        let mut again = Vec::new();
        if let Some(status) = self.control.exited(Duration::ZERO)? {
            self.start_control(sandbox)?;
            again.push(restarted(&self.control, status));
        }
        for node in sandbox.pod_nodes() {
            if let Some(status) = self.agent(node.name())?.exited(Duration::ZERO)? {
                self.start_agent(node)?;
                again.push(restarted(self.agent(node.name())?, status));
            }
            if let Some(status) = self.ztunnel(node.name())?.exited(Duration::ZERO)? {
                self.start_ztunnel(node)?;
                again.push(restarted(self.ztunnel(node.name())?, status));
            }
        }
        Ok(again)
    }

    /// The end of every program's log, for a report of a failure.
    pub fn log_tails(&self) -> String {
        let all = std::iter::once(&self.control).chain(self.agents.values()).chain(self.ztunnels.values());
        all.map(|process| {
            format!("{} ({}):\n{}", process.name(), process.log().display(), tail(process.log()))
        })
        .collect()
    }

    fn issue_token(&self, sandbox: &Sandbox, node: &str) -> Result<()> {
        let output = self.on_state(sandbox, &["token", "create", node])?;
        if !output.status.success() {
            let reason = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
            return Err(Error::Program { program: format!("culvert token create {node}"), reason });
        }
        let file = self.token_file(node);
        let mut target = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&file)
            .during(|| format!("opening {}", file.display()))?;
        target.write_all(output.stdout.trim_ascii_end()).during(|| format!("writing {}", file.display()))
    }

    fn token_file(&self, node: &str) -> PathBuf {
        self.directory.join(format!("token-{node}"))
    }

    fn ztunnel_log(&self, node: &str) -> PathBuf {
        self.directory.join(format!("ztunnel-{node}.log"))
    }

    /// The directory with the programs' logs and the control plane's state.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

fn restarted(process: &Process, status: ExitStatus) -> String {
    format!("{} has ended ({status}) and is started again: process {}", process.name(), process.pid())
}

fn start_control(
    sandbox: &Sandbox,
    options: &MeshOptions,
    directory: &Path,
    address: SocketAddr,
) -> Result<Process> {
    let node = sandbox.node(CONTROL_NODE)?;
    let program = Program::new(&options.binaries.culvert)
        .named("control")
        .arg("control")
        .arg("--manifests")
        .arg(sandbox.manifests_directory())
        .arg("--state")
        .arg(directory.join("state"))
        .args(["--listen", &address.to_string()])
        .args(&options.control)
        .env("RUST_LOG", &options.log);
    let mut control = program.spawn(&node.place("control")?, &directory.join("control.log"))?;
    control.wait_until(|| node.net().accepts(address))?;
    Ok(control)
}

fn process<'a>(processes: &'a mut BTreeMap<String, Process>, node: &str) -> Result<&'a mut Process> {
    processes
        .get_mut(node)
        .ok_or_else(|| Error::Unknown { what: format!("program of the mesh on node {node}") })
}
