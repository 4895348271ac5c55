//! Where services and pods are measured: the mesh on two nodes with a client, a server on its node and one on the other.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sandbox::{Family, Mesh, Sandbox};

use super::super::machine;
use super::super::manifests::{self, CLIENT, FAR, HERE, MESHED, NEAR};
use super::super::report::Row;
use super::super::rounds::{Rounds, Spread};
use super::super::route::Route;
use super::super::sample;
use super::super::stage;
use super::super::work::{Times, Work};
use super::Effort;
use crate::cargo::Built;
use crate::progress::Progress;

/// How long it may take until the mesh knows what it has been told.
const DEADLINE: Duration = Duration::from_secs(120);

/// How long an answer may take, once there is somebody to give one. An address that nobody has yet is not always refused at once: the kernel
/// may miss the word of it (`LockDroppedIcmps`), and then asks again for many seconds.
const PATIENCE: Duration = Duration::from_millis(250);

/// Everything that runs. Its processes end when it is dropped.
pub(super) struct Ground {
    mesh: Mesh,
    sandbox: Sandbox,
    echo: PathBuf,
}

/// One of the mesh's processes; agent and ztunnel are those of the client's node.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Control,
    Agent,
    Ztunnel,
}

impl Ground {
    pub(super) fn set(built: &Built, log: &str) -> anyhow::Result<Self> {
        let mut progress = Progress::begin("starting a mesh");
        let sandbox = stage::sandbox(built, &manifests::meshed())?;
        let mesh =
            stage::start_mesh(&sandbox, built, log, &mut progress).inspect_err(|_| sandbox.keep_files())?;
        progress.done("ready on two nodes");
        Ok(Self { mesh, sandbox, echo: built.echo.clone() })
    }

    pub(super) fn end(self) -> anyhow::Result<()> {
        drop(self.mesh);
        self.sandbox.end()?;
        Ok(())
    }

    pub(super) fn keep_logs(&self) -> String {
        self.sandbox.keep_files();
        format!("the logs are in {}", self.sandbox.directory().display())
    }

    /// Writes a manifest that the sandbox has no part in.
    pub(super) fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let target = self.sandbox.manifests_directory().join(file);
        std::fs::write(&target, text).with_context(|| format!("writing {}", target.display()))
    }

    /// Starts pods on the client's node, and returns how long it took from then until all are in the mesh.
    pub(super) fn add_pods(&mut self, file: &str, text: &str) -> anyhow::Result<Duration> {
        let expected = self.enrolled()?.0 + self.sandbox.start_pods(file, text)?.len();
        let begin = Instant::now();
        sandbox::wait::try_until(
            DEADLINE,
            || "enrolment of all pods".to_owned(),
            || match self.enrolled() {
                Ok((enrolled, all)) if enrolled == expected && all == expected => Ok(()),
                Ok((enrolled, all)) => {
                    Err(format!("{enrolled} of {all} that are known and {expected} that there are"))
                }
                Err(error) => Err(format!("{error:#}")),
            },
        )?;
        Ok(begin.elapsed())
    }

    /// How many pods of the client's node are in the mesh, and how many its agent knows of.
    fn enrolled(&self) -> anyhow::Result<(usize, usize)> {
        let status = self.mesh.status(self.sandbox.node(HERE)?)?;
        let pods = status["pods"].as_object().context("the agent's status has no pods")?;
        Ok((pods.values().filter(|pod| pod["state"] == "enrolled").count(), pods.len()))
    }

    /// How long it takes until a new ztunnel, or a new agent, has everything that its predecessor had.
    pub(super) fn restart(&mut self, part: Part, rounds: usize) -> anyhow::Result<Spread> {
        let node = self.sandbox.node(HERE)?;
        let mut seconds = Vec::new();
        for _ in 0..rounds {
            let begin = match part {
                Part::Ztunnel => {
                    self.mesh.kill_ztunnel(HERE)?;
                    let begin = Instant::now();
                    self.mesh.start_ztunnel(node)?;
                    begin
                }
                Part::Agent => {
                    self.mesh.agent(HERE)?.kill()?;
                    let begin = Instant::now();
                    self.mesh.start_agent(node)?;
                    begin
                }
                Part::Control => bail!("control is no program of a node"),
            };
            self.mesh.wait_ready(node)?;
            seconds.push(begin.elapsed().as_secs_f64());
        }
        Ok(Spread::of(&seconds))
    }

    /// What is resident of a process, in MiB.
    pub(super) fn resident(&mut self, part: Part) -> anyhow::Result<f64> {
        let pid = match part {
            Part::Control => self.mesh.control().pid(),
            Part::Agent => self.mesh.agent(HERE)?.pid(),
            Part::Ztunnel => self.mesh.ztunnel(HERE)?.pid(),
        };
        let path = format!("/proc/{pid}/status");
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let kib = machine::value(&status, "VmRSS");
        let kib = kib.as_deref().and_then(|text| text.strip_suffix(" kB")?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("{path} has no VmRSS"))? / 1024.0)
    }

    /// How long it takes from here until the client is answered at an address.
    pub(super) fn answered(&self, to: SocketAddr) -> anyhow::Result<Duration> {
        let net = self.sandbox.pod(&format!("{MESHED}/{CLIENT}"))?.net();
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0])
        };
        let begin = Instant::now();
        sandbox::wait::try_until(
            DEADLINE,
            || format!("an answer at {to}"),
            || match net.run(ask) {
                Ok(asked) => asked.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            },
        )?;
        Ok(begin.elapsed())
    }

    /// Connections of the client to an address, one after the other.
    pub(super) fn connects(&self, name: &str, to: IpAddr, effort: Effort) -> anyhow::Result<Row> {
        let work = Work::Connects { connections: 1 };
        let mut rounds = Rounds::default();
        for _ in 0..effort.rounds {
            rounds.add(self.load(to, work, effort.times)?)?;
        }
        Row::named(work.name(), name.to_owned(), false, &rounds, None)
    }

    pub(super) fn near(&self) -> anyhow::Result<IpAddr> {
        Ok(self.sandbox.pod(&format!("{MESHED}/{NEAR}"))?.address(Family::V4)?)
    }

    fn load(&self, to: IpAddr, work: Work, times: Times) -> anyhow::Result<sample::Sample> {
        let client = self.sandbox.pod(&format!("{MESHED}/{CLIENT}"))?;
        let account = |name: &str, place| (name.to_owned(), place);
        let server = if to == self.near()? { NEAR } else { FAR };
        let server = self.sandbox.pod(&format!("{MESHED}/{server}"))?.place("echo")?;
        let ztunnel = self.sandbox.node(HERE)?.place("ztunnel")?;
        let accounts = vec![account(sample::SERVER, server), account("ztunnel here", ztunnel)];
        Route { client, to, accounts }.load(&self.echo, &format!("{} to {to}", work.name()), work, times, &[])
    }
}
