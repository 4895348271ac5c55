//! Istio's ztunnel, or another one that speaks its contracts, in the place of ours: the same pods on two nodes of their own, a control
//! plane of ours that gives it its configuration and certificates, and in the pods what Istio's CNI agent would do there.
//!
//! Nodes of their own, since its readiness port cannot be changed and is that of our ztunnel.

mod redirect;
mod zds;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use sandbox::{AccessLog, CONTROL_NODE, Direction, Family, Node, Pod, Process, Program, Sandbox};
use tempfile::TempDir;

use super::manifests::{self, CLIENT, FAR, HERE, MESHED, NEAR, THERE};
use super::path::Path;
use super::stage;
use crate::cargo::Built;
use crate::progress::Progress;
use crate::{toolchain, workspace};

const CONTROL_PORT: u16 = 15012;
const READINESS_PORT: u16 = 15021;

/// How long a short command, and a file that is about to be written, may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// Everything that runs. Its processes end when it is dropped.
#[derive(Debug)]
pub(super) struct Peer {
    proxies: Vec<Proxy>,
    control: Process,
    options: Options,
    /// For sockets, whose paths must be short.
    sockets: TempDir,
    sandbox: Sandbox,
}

/// How the proxies are started.
#[derive(Debug)]
struct Options {
    ztunnel: PathBuf,
    log: String,
    control: SocketAddr,
    roots: PathBuf,
}

/// A node's proxy, and what stands for the node's agent.
#[derive(Debug)]
struct Proxy {
    node: &'static str,
    token: String,
    // Before the agent's part, which waits for its end.
    process: Process,
    agent: zds::Server,
}

impl Peer {
    /// Starts `ztunnel` on each node, and waits until it is ready.
    pub(super) fn start(built: &Built, ztunnel: &FilePath, log: &str) -> anyhow::Result<Self> {
        toolchain::ensure_programs(&workspace(), &redirect::PROGRAMS)?;
        let progress = Progress::begin("starting the other ztunnel");
        let sandbox = stage::sandbox(built, &manifests::meshed())?;
        let sockets = tempfile::tempdir().context("making a directory for sockets")?;
        let [address, _] = sandbox.node(CONTROL_NODE)?.addresses();
        let address = SocketAddr::new(address, CONTROL_PORT);
        let state = sandbox.directory().join("state");
        let control = start_control(built, &sandbox, &state, address, log)?;
        let roots = state.join("root.pem");
        sandbox::wait::until(DEADLINE, || roots.display().to_string(), || roots.exists().then_some(()))?;
        for pod in sandbox.pods() {
            redirect::install(pod, sockets.path())?;
        }
        let (ztunnel, log) = (ztunnel.to_owned(), log.to_owned());
        let options = Options { ztunnel, log, control: address, roots };
        let mut peer = Self { proxies: Vec::new(), control, options, sockets, sandbox };
        for node in [HERE, THERE] {
            let token = peer.create_token(built, &state, node)?;
            let path = peer.socket(node);
            let agent = zds::Server::start(&path, peer.entries(node)?)?;
            let process = peer.start_process(node, &token)?;
            peer.proxies.push(Proxy { node, token, process, agent });
        }
        peer.wait_ready().with_context(|| peer.keep_logs())?;
        progress.done("ready on two nodes of its own");
        Ok(peer)
    }

    /// Puts new ones in the place of those that run.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        for number in 0..self.proxies.len() {
            self.proxies[number].process.kill()?;
            let process = self.start_process(self.proxies[number].node, &self.proxies[number].token)?;
            self.proxies[number].process = process;
        }
        self.wait_ready()
    }

    /// The client, the server and the nodes whose proxies a byte passes.
    pub(super) fn ends(&self, path: Path) -> anyhow::Result<(&Pod, &Pod, Vec<&Node>)> {
        let pod = |name: &str| self.sandbox.pod(&format!("{MESHED}/{name}"));
        let (server, nodes): (_, &[&str]) =
            if path.same_node() { (NEAR, &[HERE]) } else { (FAR, &[HERE, THERE]) };
        let nodes = nodes.iter().map(|name| self.sandbox.node(name)).collect::<Result<_, _>>()?;
        Ok((pod(CLIENT)?, pod(server)?, nodes))
    }

    /// The access log, as far as it is yet to be written.
    pub(super) fn log(&self) -> AccessLog {
        AccessLog::new(self.proxies.iter().map(|proxy| proxy.process.log().to_owned())).from_now()
    }

    /// That a connection of the path was carried over HBONE between two verified ends, as `log` must tell.
    pub(super) fn check(&self, path: Path, log: &AccessLog, deadline: Duration) -> anyhow::Result<()> {
        let (client, server, _) = self.ends(path)?;
        let (client, server) = (client.address(Family::V4)?, server.address(Family::V4)?);
        for direction in [Direction::Outbound, Direction::Inbound] {
            let entry = log.find(
                deadline,
                || format!("an {direction:?} access log entry of a connection from {client}"),
                |entry| entry.direction == Some(direction) && entry.source.ip() == client,
            )?;
            let hbone = entry.others.get("dst.hbone_addr").and_then(|address| address.as_str());
            let hbone = hbone.and_then(|address| address.parse::<SocketAddr>().ok());
            let verified = entry.source_identity.is_some() && entry.destination_identity.is_some();
            if !verified || hbone.is_none_or(|address| address.ip() != server) {
                bail!("it is not what it is called: {entry:?}");
            }
        }
        Ok(())
    }

    /// Takes everything down.
    pub(super) fn end(self) -> anyhow::Result<()> {
        drop(self.proxies);
        drop(self.control);
        self.sandbox.end()?;
        Ok(())
    }

    /// Leaves the logs, and says where.
    pub(super) fn keep_logs(&self) -> String {
        self.sandbox.keep_files();
        format!("the other ztunnel's logs are in {}", self.sandbox.directory().display())
    }

    fn socket(&self, node: &str) -> PathBuf {
        self.sockets.path().join(node)
    }

    fn entries(&self, node: &str) -> anyhow::Result<Vec<zds::Entry>> {
        let entry = |pod: &Pod| {
            Ok(zds::Entry {
                uid: pod.spec().uid.clone(),
                name: pod.spec().name.clone(),
                namespace: pod.spec().namespace.clone(),
                service_account: pod.spec().service_account.clone(),
                net: pod.net().as_fd().try_clone_to_owned().context("sharing a network namespace")?,
            })
        };
        self.sandbox.pods().filter(|pod| pod.spec().node == node).map(entry).collect()
    }

    fn create_token(&self, built: &Built, state: &FilePath, node: &str) -> anyhow::Result<String> {
        let program = Program::new(&built.culvert).args(["token", "create", node, "--state"]).arg(state);
        let output = program.output(&self.sandbox.node(CONTROL_NODE)?.place("session")?, DEADLINE)?;
        if !output.status.success() {
            bail!("culvert token create {node}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn start_process(&self, node: &str, token: &str) -> anyhow::Result<Process> {
        let Options { ztunnel, log, control, roots } = &self.options;
        let control = format!("https://{control}");
        let program = Program::new(ztunnel)
            .named(format!("the other ztunnel on {node}"))
            .env("NODE_NAME", node)
            .env("XDS_ADDRESS", &control)
            .env("CA_ADDRESS", &control)
            .env("XDS_ROOT_CA", roots)
            .env("CA_ROOT_CA", roots)
            .env("AUTH_TOKEN", token)
            .env("INPOD_UDS", self.socket(node))
            .env("LOG_FORMAT", "json")
            .env("RUST_LOG", log);
        let file = self.sandbox.directory().join(format!("ztunnel-{node}.log"));
        Ok(program.spawn(&self.sandbox.node(node)?.place("ztunnel")?, &file)?)
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        for Proxy { node, process, agent, .. } in &mut self.proxies {
            let node = self.sandbox.node(node)?;
            process.wait_until(|| {
                let readiness = node.net().ready(READINESS_PORT)?;
                Ok(readiness.map_err(|reason| agent.trouble().unwrap_or(reason)))
            })?;
        }
        Ok(())
    }
}

fn start_control(
    built: &Built,
    sandbox: &Sandbox,
    state: &FilePath,
    address: SocketAddr,
    log: &str,
) -> anyhow::Result<Process> {
    let node = sandbox.node(CONTROL_NODE)?;
    let program = Program::new(&built.culvert)
        .named("control of the other ztunnel")
        .arg("control")
        .arg("--manifests")
        .arg(sandbox.manifests_directory())
        .arg("--state")
        .arg(state)
        .args(["--listen", &address.to_string()])
        .env("RUST_LOG", log);
    let mut control = program.spawn(&node.place("control")?, &sandbox.directory().join("control.log"))?;
    control.wait_until(|| node.net().accepts(address))?;
    Ok(control)
}
