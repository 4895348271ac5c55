//! The soak: everything that can happen to a mesh, at random times, while connections and probes go on.
//!
//! Each turn starts streams of connections, lets one event happen among them, ends them, and holds what became of them against what
//! the event may cost. A seed gives the same turns again; how far each stream had come when its event happened is up to the machine.

mod event;
mod happen;
mod plan;
mod traffic;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use sandbox::{Kubelet, Program, Redirection};

pub use self::plan::Plan;

use self::event::{Event, Events};
use self::traffic::{Outcome, Streams};
use crate::echo;
use crate::world::World;

/// Something that must not be.
#[derive(Clone, Debug)]
struct Finding {
    turn: u32,
    what: String,
}

/// A soak that goes on.
struct Soak {
    world: World,
    kubelets: BTreeMap<String, Kubelet>,
    /// How many outcomes of each probe have been looked at.
    probes_seen: BTreeMap<String, usize>,
    probes: usize,
    turns: u32,
    crowds: u32,
    /// Packets with the marker that have been told.
    markers: u64,
    traffic: Outcome,
    happened: BTreeMap<&'static str, u32>,
    findings: Vec<Finding>,
}

/// Runs a soak and prints each turn, and at the end what was done and found; true if nothing was found.
///
/// # Errors
/// The mesh, or the sandbox, can no longer be worked with; what was found until then has been printed.
pub fn run(plan: &Plan) -> anyhow::Result<bool> {
    println!("soak: seed {}, {} s, {}", plan.seed, plan.time.as_secs(), plan.redirection.as_str());
    let begin = Instant::now();
    let mut soak = Soak::start(plan.redirection)?;
    for event in Events::of(plan.seed) {
        if begin.elapsed() >= plan.time {
            break;
        }
        let turn = soak.turn(event).with_context(|| format!("turn {}: {event}", soak.turns));
        if let Err(error) = turn {
            soak.print_findings();
            println!("{}", soak.world.explain());
            return Err(error.context(format!("seed {}", plan.seed)));
        }
        if !soak.findings.is_empty() {
            soak.world.sandbox.keep_files();
        }
    }
    soak.finish(plan, begin.elapsed())
}

impl Soak {
    fn start(redirection: Redirection) -> anyhow::Result<Self> {
        let world = World::start(redirection)?;
        let mut kubelets = BTreeMap::new();
        for node in world.sandbox.pod_nodes() {
            // As in the test of probes: a service needs that long from its cgroup to its first probe.
            let prober = Program::new(echo()?).args(["probe"]);
            kubelets.insert(node.name().to_owned(), Kubelet::start(&world.sandbox, node, prober)?);
        }
        Ok(Self {
            world,
            kubelets,
            probes_seen: BTreeMap::new(),
            probes: 0,
            turns: 0,
            crowds: 0,
            markers: 0,
            traffic: Outcome::default(),
            happened: BTreeMap::new(),
            findings: Vec::new(),
        })
    }

    fn turn(&mut self, event: Event) -> anyhow::Result<()> {
        self.turns += 1;
        let begin = Instant::now();
        let streams = Streams::start(&self.world, self.turns)?;
        let happened = self.happen(event);
        let (outcome, mut found) = streams.end(event.toll())?;
        happened?;
        found.extend(self.look_at_probes());
        found.extend(self.look_at_wire()?);
        *self.happened.entry(event.kind()).or_default() += 1;
        println!(
            "{:>4}  {event}: {} connections, {} answered, {} reset, {} refused; {:.1} s",
            self.turns,
            outcome.begun,
            outcome.ok,
            outcome.reset,
            outcome.refused(),
            begin.elapsed().as_secs_f64()
        );
        self.traffic.add(&outcome);
        found.into_iter().for_each(|what| self.find(what));
        self.world.mesh.check_alive()?;
        Ok(())
    }

    fn find(&mut self, what: String) {
        println!("      FOUND {what}");
        self.findings.push(Finding { turn: self.turns, what });
    }

    /// The probes that failed since the last look. None may, whatever happens.
    fn look_at_probes(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        for kubelet in self.kubelets.values() {
            for (probe, outcomes) in kubelet.outcomes() {
                let seen = self.probes_seen.entry(probe).or_default();
                self.probes += outcomes.len().saturating_sub(*seen);
                for outcome in outcomes.iter().skip(*seen).filter(|outcome| !outcome.ok) {
                    failed.push(format!(
                        "probe {}: {}",
                        outcome.probe,
                        outcome.error.as_deref().unwrap_or("?")
                    ));
                }
                *seen = outcomes.len();
            }
        }
        failed
    }

    /// What crossed the link in plaintext since the last look.
    fn look_at_wire(&mut self) -> anyhow::Result<Option<String>> {
        let markers = self.world.capture.as_ref().context("the capture has ended before")?.traffic().markers;
        let new = markers - std::mem::replace(&mut self.markers, markers);
        Ok((new > 0).then(|| format!("{new} packets between the nodes held the plaintext marker")))
    }

    fn print_findings(&self) {
        for Finding { turn, what } in &self.findings {
            println!("  turn {turn}: {what}");
        }
    }

    fn finish(mut self, plan: &Plan, took: Duration) -> anyhow::Result<bool> {
        let wire = self.world.capture.take().context("the capture has ended before")?.finish()?;
        if wire.markers > self.markers {
            self.find("at the end, packets between the nodes held the plaintext marker".into());
        }
        if wire.missed > 0 {
            self.find(format!("{} packets between the nodes could not be looked at", wire.missed));
        }
        println!("\nWhat happened, in {} turns and {:.0} s:", self.turns, took.as_secs_f64());
        for (kind, count) in &self.happened {
            println!("  {count:>5}  {kind}");
        }
        let Outcome { begun, ok, reset, .. } = self.traffic;
        println!(
            "Connections: {begun} begun, {ok} answered with every byte right, {reset} reset, {} refused.",
            self.traffic.refused()
        );
        println!(
            "Probes: {}. Packets between the nodes: {}, {} with the marker.",
            self.probes, wire.packets, wire.markers
        );
        println!(
            "Found: {}.",
            if self.findings.is_empty() { "nothing".into() } else { self.findings.len().to_string() }
        );
        self.print_findings();
        println!(
            "To repeat it: cargo xtask soak --seed {} --minutes {}",
            plan.seed,
            plan.time.as_secs().div_ceil(60)
        );
        if !self.findings.is_empty() {
            println!("{}", self.world.explain());
        }
        Ok(self.findings.is_empty())
    }
}
