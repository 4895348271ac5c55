//! Where it is measured: a sandbox with the benchmark's pods, the mesh on it, the bare relays, and where each path begins.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use sandbox::{
    Binaries, Direction, Family, Mesh, MeshOptions, Options, Place, Pod, Process, Program, Redirection,
    Sandbox, Ztunnels,
};

use super::manifests::{self, CLIENT, FAR, HERE, MESHED, NEAR, PLAIN, SIDECARS, THERE};
use super::path::Path;
use super::peer::Peer;
use super::route::{self, Route};
use super::sample::{self, Sample};
use super::sidecars::{self, Sidecars};
use super::work::{PORTS, Times, Work};
use crate::cargo::Built;
use crate::progress::Progress;

/// Where the relay of the same-node path listens, and the first one of the other-node path: both are in the client's pod.
const RELAY_AT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const FIRST_RELAY_AT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The second relay of the other-node path has its ports at the server's pod so much above the server's.
const SECOND_RELAY_OFFSET: u16 = 100;

/// How long ztunnel may take to write of a connection that has ended.
const LOG_DEADLINE: Duration = Duration::from_secs(5);

/// Everything that runs. Its processes end when it is dropped.
#[derive(Debug)]
pub(crate) struct Stage {
    relays: BTreeMap<Path, Vec<Process>>,
    sidecars: Option<Sidecars>,
    mesh: Option<Mesh>,
    peer: Option<Peer>,
    sandbox: Sandbox,
    echo: PathBuf,
}

/// Nodes with the pods of some manifests.
pub(super) fn sandbox(built: &Built, text: &str) -> anyhow::Result<Sandbox> {
    let directory = tempfile::tempdir().context("making a directory for the manifests")?;
    std::fs::write(directory.path().join("bench.yaml"), text)?;
    let options = Options {
        parent: crate::sandboxes(),
        manifests: directory.path().to_owned(),
        images: [(manifests::IMAGE.to_owned(), built.echo.clone())].into(),
        pause: Program::new(&built.echo).arg("pause"),
    };
    Ok(Sandbox::start(&options)?)
}

/// The mesh on a sandbox, ready.
pub(super) fn start_mesh(
    sandbox: &Sandbox,
    built: &Built,
    log: &str,
    progress: &mut Progress,
) -> anyhow::Result<Mesh> {
    let options = MeshOptions {
        binaries: Binaries { culvert: built.culvert.clone(), ztunnel: built.ztunnel.clone() },
        redirection: Redirection::Auto,
        ztunnels: Ztunnels::Ours,
        log: log.to_owned(),
        control: Vec::new(),
    };
    Ok(Mesh::start(sandbox, options, |step| progress.at(step))?)
}

impl Stage {
    /// Makes what these paths need.
    pub(crate) fn set(
        built: &Built,
        paths: &[Path],
        peer: Option<&std::path::Path>,
        log: &str,
    ) -> anyhow::Result<Self> {
        let progress = Progress::begin("making two nodes and their pods");
        let sandbox = sandbox(built, &manifests::all())?;
        progress.done(&format!("{} pods", sandbox.pods().count()));
        let (relays, echo) = (BTreeMap::new(), built.echo.clone());
        let mut stage = Self { relays, sidecars: None, mesh: None, peer: None, sandbox, echo };
        if paths.iter().any(|path| path.meshed()) {
            let mut progress = Progress::begin("starting the mesh");
            let mesh = start_mesh(&stage.sandbox, built, log, &mut progress);
            stage.mesh = Some(mesh.with_context(|| stage.keep_logs())?);
            progress.done("control plane, two agents and two ztunnels are ready");
        }
        for path in paths.iter().filter(|path| matches!(path, Path::Relay | Path::TwoRelays)) {
            stage.start_relays(*path)?;
        }
        if paths.contains(&Path::Sidecars) {
            stage.sidecars = Some(Sidecars::start(&stage.sandbox, &stage.echo)?);
        }
        if let (Some(ztunnel), true) = (peer, paths.iter().any(|path| path.of_peer())) {
            stage.peer = Some(Peer::start(built, ztunnel, log)?);
        }
        for path in paths {
            stage.check(*path).with_context(|| format!("looking at the path {}", path.name()))?;
        }
        Ok(stage)
    }

    /// Makes one load on a path, first putting new proxies in the place of those that run if the work is to meet such.
    pub(crate) fn measure(&mut self, path: Path, work: Work, times: Times) -> anyhow::Result<Sample> {
        if work.begins_anew() {
            self.renew(path)?;
        }
        self.load(path, work, times)
    }

    /// Puts new proxies in the place of a path's.
    pub(crate) fn renew(&mut self, path: Path) -> anyhow::Result<()> {
        if self.relays.remove(&path).is_some() {
            self.start_relays(path)?;
        }
        if let (Some(sidecars), true) = (&mut self.sidecars, path == Path::Sidecars) {
            sidecars.restart(&self.sandbox)?;
        }
        if let (Some(mesh), true) = (&mut self.mesh, path.meshed()) {
            for name in [HERE, THERE] {
                let node = self.sandbox.node(name)?;
                mesh.kill_ztunnel(name)?;
                mesh.start_ztunnel(node)?;
                mesh.wait_ready(node)?;
            }
        }
        if let (Some(peer), true) = (&mut self.peer, path.of_peer()) {
            peer.restart()?;
        }
        Ok(())
    }

    /// Holds connections of a path beside the loads that are made on it until the process ends, and says what they cost.
    pub(crate) fn hold(&self, path: Path, connections: u32) -> anyhow::Result<(Process, Sample)> {
        let name = format!("{connections} held on {}", path.name());
        let log = self.sandbox.directory().join(format!("{name}.log"));
        self.route(path)?.hold(&self.echo, &name, connections, &log)
    }

    pub(crate) fn load(&self, path: Path, work: Work, times: Times) -> anyhow::Result<Sample> {
        let name = format!("{} on {}", work.name(), path.name());
        self.route(path)?.load(&self.echo, &name, work, times, &[])
    }

    /// What is between the pods of a path, by name, and where it runs.
    pub(crate) fn proxies(&self, path: Path) -> anyhow::Result<Vec<(String, Place)>> {
        let accounts = self.route(path)?.accounts;
        Ok(accounts.into_iter().filter(|(name, _)| name != sample::SERVER).collect())
    }

    /// A place for programs that look at others.
    pub(crate) fn post(&self) -> anyhow::Result<Place> {
        Ok(self.sandbox.node(HERE)?.place("post")?)
    }

    /// Where files are that go with the stage.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.sandbox.directory()
    }

    /// Takes everything down.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        drop(self.relays);
        drop(self.sidecars);
        drop(self.mesh);
        self.peer.map_or(Ok(()), Peer::end)?;
        self.sandbox.end()?;
        Ok(())
    }

    /// Leaves the logs, and says where.
    pub(crate) fn keep_logs(&self) -> String {
        self.sandbox.keep_files();
        let peer = self.peer.as_ref().map(|peer| format!("; {}", peer.keep_logs())).unwrap_or_default();
        format!("the logs are in {}{peer}", self.sandbox.directory().display())
    }

    fn pod(&self, namespace: &str, name: &str) -> anyhow::Result<&Pod> {
        Ok(self.sandbox.pod(&format!("{namespace}/{name}"))?)
    }

    fn start_relays(&mut self, path: Path) -> anyhow::Result<()> {
        let relays = if path == Path::Relay { self.start_relay()? } else { self.start_two_relays()? };
        self.relays.insert(path, relays);
        Ok(())
    }

    /// One process with a socket in each pod, as a node's proxy has them.
    fn start_relay(&self) -> anyhow::Result<Vec<Process>> {
        let (client, server) = (self.pod(PLAIN, CLIENT)?, self.pod(PLAIN, NEAR)?);
        let from = format!("/proc/{}/ns/net", server.pid());
        let address = server.address(Family::V4)?;
        let relay = self.relay(client, "relay", RELAY_AT.into(), 0, address, 0, &["--dial-from", &from])?;
        Ok(vec![relay])
    }

    /// A process at each pod.
    fn start_two_relays(&self) -> anyhow::Result<Vec<Process>> {
        let (client, server) = (self.pod(PLAIN, CLIENT)?, self.pod(PLAIN, FAR)?);
        let address = server.address(Family::V4)?;
        let second = self.relay(server, "second-relay", address, SECOND_RELAY_OFFSET, address, 0, &[])?;
        let first =
            self.relay(client, "first-relay", FIRST_RELAY_AT.into(), 0, address, SECOND_RELAY_OFFSET, &[])?;
        Ok(vec![first, second])
    }

    #[expect(clippy::too_many_arguments, reason = "two addresses, each with what is added to its ports")]
    fn relay(
        &self,
        pod: &Pod,
        name: &str,
        listen: IpAddr,
        listen_offset: u16,
        to: IpAddr,
        to_offset: u16,
        more: &[&str],
    ) -> anyhow::Result<Process> {
        let mut program = Program::new(&self.echo).named(name).arg("relay").args(more);
        for port in PORTS {
            let route = format!("{listen}:{}={to}:{}", port + listen_offset, port + to_offset);
            program = program.args(["--route", &route]);
        }
        let log = self.sandbox.directory().join(format!("{name}.log"));
        route::start(&program, &pod.place(name)?, &log, "relaying")
    }

    fn peer(&self) -> anyhow::Result<&Peer> {
        self.peer.as_ref().context("there is no other ztunnel")
    }

    fn route(&self, path: Path) -> anyhow::Result<Route<'_>> {
        if path.of_peer() {
            return self.route_of_peer(path);
        }
        let namespace = match path {
            Path::Sidecars => SIDECARS,
            path if path.meshed() => MESHED,
            _ => PLAIN,
        };
        let client = self.pod(namespace, CLIENT)?;
        let server = self.pod(namespace, if path.same_node() { NEAR } else { FAR })?;
        let to = match path {
            Path::Relay => RELAY_AT.into(),
            Path::TwoRelays => FIRST_RELAY_AT.into(),
            _ => server.address(Family::V4)?,
        };
        let mut places = vec![(sample::SERVER, server.place("echo")?)];
        match path {
            Path::Direct | Path::DirectOther | Path::PeerSame | Path::PeerOther => {}
            Path::Relay => places.push(("relay", client.place("relay")?)),
            Path::TwoRelays => {
                places.push(("first relay", client.place("first-relay")?));
                places.push(("second relay", server.place("second-relay")?));
            }
            Path::Sidecars => {
                places.push(("client's sidecar", client.place(sidecars::CGROUP)?));
                places.push(("server's sidecar", server.place(sidecars::CGROUP)?));
            }
            Path::CulvertSame | Path::CulvertOther => {
                places.push(("ztunnel here", self.sandbox.node(HERE)?.place("ztunnel")?));
                if path == Path::CulvertOther {
                    places.push(("ztunnel there", self.sandbox.node(THERE)?.place("ztunnel")?));
                }
            }
        }
        let accounts = places.into_iter().map(|(name, place)| (name.to_owned(), place)).collect();
        Ok(Route { client, to, accounts })
    }

    fn route_of_peer(&self, path: Path) -> anyhow::Result<Route<'_>> {
        let (client, server, nodes) = self.peer()?.ends(path)?;
        let mut accounts = vec![(sample::SERVER.to_owned(), server.place("echo")?)];
        for node in nodes {
            let name = format!("other ztunnel {}", node.name());
            accounts.push((name, node.place("ztunnel")?));
        }
        Ok(Route { client, to: server.address(Family::V4)?, accounts })
    }

    /// That a path is the one it is called: both ends must be able to talk, and the proxies must say the same: ztunnels by their logs,
    /// sidecars by their counts.
    fn check(&self, path: Path) -> anyhow::Result<()> {
        let log = self.mesh.as_ref().map(|mesh| mesh.access_log().from_now());
        let log_of_peer = self.peer.as_ref().map(Peer::log);
        let times = Times { warm: Duration::ZERO, measure: Duration::ZERO };
        let sample = self.load(path, Work::First, times)?;
        if sample.histogram.is_empty() {
            bail!("nobody answers: {:?}", sample.failures);
        }
        if path == Path::Sidecars {
            let carried = Sidecars::carried(&self.sandbox)?;
            if carried != [1, 1] {
                bail!("the sidecars have carried {carried:?} connections, not one each");
            }
        }
        if let (Some(log), true) = (log_of_peer, path.of_peer()) {
            return self.peer()?.check(path, &log, LOG_DEADLINE);
        }
        let (Some(log), true) = (log, path.meshed()) else { return Ok(()) };
        let client = self.pod(MESHED, CLIENT)?.address(Family::V4)?;
        let entry = log.find(
            LOG_DEADLINE,
            || format!("an access log entry of a connection from {client}"),
            |entry| entry.direction == Some(Direction::Outbound) && entry.source.ip() == client,
        )?;
        let expected = if path.same_node() { "same_node" } else { "other_node" };
        let sealed = entry.tls_version.is_some();
        if entry.path.as_deref() != Some(expected) || sealed == path.same_node() {
            bail!("ztunnel calls it {:?}, with TLS {:?}", entry.path, entry.tls_version);
        }
        Ok(())
    }
}
