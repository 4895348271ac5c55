//! Nodes whose pods Istio's agent has made ready: rules of iptables in the pods, ZDS as Istio's agent speaks it, and a ztunnel that takes
//! its configuration and certificates from the control plane itself. No program of ours is in the kernel.
//!
//! `ZTUNNEL_BIN_EAST` and `ZTUNNEL_BIN_WEST` put another ztunnel on a node, such as Istio's.

mod agent;
mod rules;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sandbox::{
    AccessEntry, AccessLog, CONTROL_NODE, Direction, Family, Fetch, Pod, Process, Program, Reply, Sandbox,
    wait,
};

use crate::places::{binaries, options};
use crate::world::{MARKER, SETTLE, ports};

pub use agent::{Agent, Entry};

const CONTROL_PORT: u16 = 15012;
const READINESS_PORT: u16 = 15021;

/// How long a short command, and a file that is about to be written, may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// The namespaces whose pods are in the mesh.
const MESHED: [&str; 2] = ["shop", "guest"];

/// Everything that runs. Its processes end when it is dropped.
#[derive(Debug)]
pub struct IstioNodes {
    /// By node: what stands for Istio's agent.
    pub agents: BTreeMap<String, Agent>,
    ztunnels: BTreeMap<String, Process>,
    tokens: BTreeMap<String, String>,
    control: Process,
    address: SocketAddr,
    /// Nodes and pods.
    pub sandbox: Sandbox,
}

impl IstioNodes {
    /// Starts everything and waits until it is ready.
    pub fn start() -> anyhow::Result<Self> {
        let sandbox = Sandbox::start(&options("mesh")?)?;
        let address = SocketAddr::new(sandbox.node(CONTROL_NODE)?.addresses()[0], CONTROL_PORT);
        let control = start_control(&sandbox, address)?;
        let (agents, ztunnels, tokens) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut nodes = Self { agents, ztunnels, tokens, control, address, sandbox };
        for pod in nodes.sandbox.pods().filter(|pod| is_meshed(pod)) {
            rules::install(pod)?;
        }
        let names: Vec<String> = nodes.sandbox.pod_nodes().map(|node| node.name().to_owned()).collect();
        for node in &names {
            let token = nodes.create_token(node)?;
            nodes.tokens.insert(node.clone(), token);
            let agent = Agent::start(&nodes.socket(node), nodes.entries(node)?)?;
            nodes.agents.insert(node.clone(), agent);
            nodes.start_ztunnel(node)?;
        }
        names.iter().try_for_each(|node| nodes.wait_ready(node))?;
        Ok(nodes)
    }

    /// For the report of a failure: the ends of all logs, which stay.
    pub fn explain(&self) -> String {
        self.sandbox.keep_files();
        let all = std::iter::once(&self.control).chain(self.ztunnels.values());
        all.map(|process| format!("{}:\n{}", process.name(), sandbox::tail(process.log()))).collect()
    }

    /// Starts the ztunnel of a node, beside one that may still run.
    pub fn start_ztunnel(&mut self, node: &str) -> anyhow::Result<Option<Process>> {
        let place = self.sandbox.node(node)?;
        let control = format!("https://{}", self.address);
        let roots = self.state().join("root.pem");
        let program = Program::new(ztunnel(node)?)
            .named(format!("ztunnel {node}"))
            .env("NODE_NAME", node)
            .env("XDS_ADDRESS", &control)
            .env("CA_ADDRESS", &control)
            .env("XDS_ROOT_CA", &roots)
            .env("CA_ROOT_CA", &roots)
            .env("AUTH_TOKEN", self.tokens.get(node).context("no token")?)
            .env("INPOD_UDS", self.socket(node))
            // In the node's own `/run`.
            .env("ADMIN_SOCKET", "/run/ztunnel-admin.sock")
            .env("LOG_FORMAT", "json")
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()));
        let process = program.spawn(&place.place("ztunnel")?, &self.log_of(node))?;
        Ok(self.ztunnels.insert(node.to_owned(), process))
    }

    /// The ztunnel of a node.
    pub fn ztunnel(&mut self, node: &str) -> anyhow::Result<&mut Process> {
        self.ztunnels.get_mut(node).with_context(|| format!("no ztunnel on {node}"))
    }

    /// Waits until the ztunnel of a node serves all its pods.
    pub fn wait_ready(&mut self, node: &str) -> anyhow::Result<()> {
        let net = self.sandbox.node(node)?.net().clone();
        Ok(self.ztunnel(node)?.wait_until(|| net.ready(READINESS_PORT))?)
    }

    /// The access logs of all ztunnels.
    pub fn access_log(&self) -> AccessLog {
        AccessLog::new(self.ztunnels.keys().map(|node| self.log_of(node)))
    }

    /// A request with the marker from a pod to a port of another.
    pub fn fetch(&self, from: &str, to: &str, family: Family) -> anyhow::Result<Reply> {
        let to = SocketAddr::new(self.sandbox.pod(to)?.address(family)?, ports::HTTP);
        let request = Fetch::new(format!("http://{to}/")).header("x-marker", MARKER);
        Ok(request.within(Duration::from_secs(5)).from_pod(self.sandbox.pod(from)?)?)
    }

    /// Waits until such a request is answered.
    pub fn answered(&self, from: &str, to: &str, family: Family) -> anyhow::Result<Reply> {
        self.until(from, to, family, "an answer", Reply::ok)
    }

    /// Waits until such a request is refused or reset.
    pub fn refused(&self, from: &str, to: &str, family: Family) -> anyhow::Result<Reply> {
        self.until(from, to, family, "a refusal", Reply::reset)
    }

    fn until(
        &self,
        from: &str,
        to: &str,
        family: Family,
        what: &str,
        wanted: impl Fn(&Reply) -> bool,
    ) -> anyhow::Result<Reply> {
        let what = || format!("{what} of {to} to {from} over {family}");
        Ok(wait::try_until(SETTLE, what, || match self.fetch(from, to, family) {
            Ok(reply) if wanted(&reply) => Ok(reply),
            Ok(reply) => Err(reply.outcome()),
            Err(error) => Err(format!("{error:#}")),
        })?)
    }

    /// What both ends wrote of a connection that `client` made, in this order: the client's, the server's.
    pub fn both_ends(&self, log: &AccessLog, client: SocketAddr) -> anyhow::Result<[AccessEntry; 2]> {
        let outbound = log.of(client, Direction::Outbound, DEADLINE)?;
        // The other node knows the client's address, and not its port.
        let what = || format!("what the server's end wrote of {client}");
        let inbound = log.find(DEADLINE, what, |entry| {
            entry.direction == Some(Direction::Inbound) && entry.source.ip() == client.ip()
        })?;
        Ok([outbound, inbound])
    }

    /// What the agent says of a pod.
    pub fn entry(&self, pod: &str) -> anyhow::Result<Entry> {
        entry(self.sandbox.pod(pod)?)
    }

    /// The pods of a node that are in the mesh, as the agent tells of them.
    pub fn entries(&self, node: &str) -> anyhow::Result<Vec<Entry>> {
        let here = self.sandbox.pods().filter(|pod| pod.spec().node == node && is_meshed(pod));
        here.map(entry).collect()
    }

    fn create_token(&self, node: &str) -> anyhow::Result<String> {
        let program =
            Program::new(binaries()?.culvert).args(["token", "create", node, "--state"]).arg(self.state());
        let output = program.output(&self.sandbox.node(CONTROL_NODE)?.place("session")?, DEADLINE)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn state(&self) -> PathBuf {
        self.sandbox.directory().join("state")
    }

    /// Where the agent of a node listens; such a path must be short.
    pub fn socket(&self, node: &str) -> PathBuf {
        std::env::temp_dir().join(format!("zds-{}-{node}", std::process::id()))
    }

    fn log_of(&self, node: &str) -> PathBuf {
        self.sandbox.directory().join(format!("ztunnel-{node}.log"))
    }
}

fn is_meshed(pod: &Pod) -> bool {
    MESHED.contains(&pod.spec().namespace.as_str())
}

fn entry(pod: &Pod) -> anyhow::Result<Entry> {
    Ok(Entry {
        uid: pod.spec().uid.clone(),
        info: api::zds::PodInfo {
            name: pod.spec().name.clone(),
            namespace: pod.spec().namespace.clone(),
            service_account: pod.spec().service_account.clone(),
        },
        netns: pod.net().as_fd().try_clone_to_owned().context("sharing a network namespace")?,
    })
}

fn ztunnel(node: &str) -> anyhow::Result<PathBuf> {
    match std::env::var_os(format!("ZTUNNEL_BIN_{}", node.to_uppercase())) {
        Some(path) => Ok(PathBuf::from(path)),
        None => Ok(binaries()?.ztunnel),
    }
}

fn start_control(sandbox: &Sandbox, address: SocketAddr) -> anyhow::Result<Process> {
    let node = sandbox.node(CONTROL_NODE)?;
    let state = sandbox.directory().join("state");
    let program = Program::new(binaries()?.culvert)
        .named("control")
        .args(["control", "--listen", &address.to_string(), "--manifests"])
        .arg(sandbox.manifests_directory())
        .arg("--state")
        .arg(&state);
    let mut control = program.spawn(&node.place("control")?, &sandbox.directory().join("control.log"))?;
    control.wait_until(|| node.net().accepts(address))?;
    let root = state.join("root.pem");
    wait::until(DEADLINE, || root.display().to_string(), || root.exists().then_some(()))?;
    Ok(control)
}
