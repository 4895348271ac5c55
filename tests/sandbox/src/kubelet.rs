//! A node's kubelet, as far as the mesh can tell: a process in kubelet's cgroup that calls the pods' probes and hooks.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{During, Result};
use crate::node::Node;
use crate::pod::Pod;
use crate::probe::Call;
use crate::process::{Process, Program};
use crate::wait;
use crate::world::Sandbox;

/// The cgroup on every node.
const CGROUP: &str = "kubelet";

/// A running prober.
#[derive(Debug)]
pub struct Kubelet {
    program: Program,
    log: PathBuf,
    probes: Vec<String>,
    process: Process,
    starts: u32,
}

/// What came of a probe.
#[derive(Clone, Debug, Deserialize)]
pub struct ProbeOutcome {
    /// `namespace/pod container probe address`.
    pub probe: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// One line of the prober's plan.
#[derive(Serialize)]
struct Target<'a> {
    name: &'a str,
    to: std::net::SocketAddr,
    call: &'a Call,
    period_ms: Option<u64>,
    timeout_ms: u64,
}

impl Kubelet {
    /// Starts to probe the pods of `node`, each at all of its addresses, from kubelet's cgroup. `prober` is a program that takes the
    /// path of its plan as one more argument and writes a line for each outcome. Hooks are called once each time it starts.
    pub fn start(sandbox: &Sandbox, node: &Node, prober: Program) -> Result<Self> {
        let mut plan = Vec::new();
        let pods = sandbox.pods().map(Pod::spec).filter(|pod| pod.node == node.name());
        for pod in pods {
            for probe in &pod.probes {
                let addresses = probe.host.map_or_else(|| pod.addresses.clone(), |host| vec![host]);
                for address in addresses {
                    let to = std::net::SocketAddr::new(address, probe.port);
                    plan.push((format!("{}/{} {} {to}", pod.namespace, pod.name, probe.name), to, probe));
                }
            }
        }
        let targets: Vec<Target<'_>> = plan
            .iter()
            .map(|(name, to, probe)| Target {
                name,
                to: *to,
                call: &probe.call,
                period_ms: probe.period_seconds.map(|seconds| seconds * 1000),
                timeout_ms: probe.timeout_seconds * 1000,
            })
            .collect();
        let file = sandbox.directory().join(format!("kubelet-{}.json", node.name()));
        let text =
            serde_json::to_vec(&targets).map_err(std::io::Error::other).during(|| "writing a plan".into())?;
        fs::write(&file, text).during(|| format!("writing {}", file.display()))?;
        let program = prober.arg(&file).named(format!("kubelet {}", node.name()));
        let log = file.with_extension("log");
        let process = program.spawn(&node.place(CGROUP)?, &log)?;
        let probes = plan.into_iter().map(|(name, ..)| name).collect();
        Ok(Self { program, log, probes, process, starts: 1 })
    }

    /// Restarts it as its service's restart does: the process ends, its cgroup is removed, another is made, and a new process starts in
    /// it at once.
    pub fn restart(&mut self, node: &Node) -> Result<()> {
        self.process.kill()?;
        node.cgroup().child(CGROUP)?.remove()?;
        self.process = self.program.spawn(&node.place(CGROUP)?, &self.log)?;
        self.starts += 1;
        Ok(())
    }

    /// The names of all it probes.
    pub fn probes(&self) -> &[String] {
        &self.probes
    }

    /// Every outcome so far, by the probe's name.
    pub fn outcomes(&self) -> BTreeMap<String, Vec<ProbeOutcome>> {
        let mut all: BTreeMap<String, Vec<ProbeOutcome>> = BTreeMap::new();
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        for outcome in text.lines().filter_map(|line| serde_json::from_str::<ProbeOutcome>(line).ok()) {
            all.entry(outcome.probe.clone()).or_default().push(outcome);
        }
        all
    }

    /// Waits until every probe has been made `rounds` more times than by now, and every hook called at each start.
    pub fn wait(&self, rounds: usize, deadline: Duration) -> Result<()> {
        let before = self.outcomes();
        let due = |probe: &String| {
            let count =
                |outcomes: &BTreeMap<String, Vec<ProbeOutcome>>| outcomes.get(probe).map_or(0, Vec::len);
            let is_hook = probe.contains("postStart") || probe.contains("preStop");
            let wanted = if is_hook { self.starts as usize } else { count(&before) + rounds };
            (wanted, count(&self.outcomes()))
        };
        wait::try_until(
            deadline,
            || format!("{rounds} more rounds of {}", self.process.name()),
            || {
                let late = self
                    .probes
                    .iter()
                    .map(|probe| (probe, due(probe)))
                    .find(|(_, (wanted, now))| now < wanted);
                late.map_or(Ok(()), |(probe, (wanted, now))| Err(format!("{probe}: {now} of {wanted}")))
            },
        )
    }
}
