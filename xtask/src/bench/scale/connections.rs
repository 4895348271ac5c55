//! What open connections cost those that are used: requests over 16 of them while the others say nothing.

use anyhow::Context;
use serde::Serialize;

use super::super::path::Path;
use super::super::report::Row;
use super::super::rounds::Rounds;
use super::super::sample::Figure;
use super::super::stage::Stage;
use super::super::work::Work;
use super::points::{self, Limit};
use super::{Effort, columns, failures};
use crate::cargo::Built;
use crate::output;
use crate::progress::Progress;

const PATHS: [Path; 3] = [Path::CulvertSame, Path::CulvertOther, Path::TwoRelays];

/// How many are used at most.
const USED: u32 = 16;

/// So many on a path.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    connections: u32,
    /// Of these.
    held_idle: u32,
    /// What each that is held beyond those of the step before added to the proxies' memory.
    proxies_resident_kib_per_connection: Option<f64>,
    #[serde(flatten)]
    requests: Row,
}

/// Steps that could not be, and why.
#[derive(Debug, Serialize)]
pub(super) struct Cut {
    path: String,
    wanted: u32,
    most: u32,
    why: &'static str,
}

/// Everything of this dimension.
#[derive(Debug, Serialize)]
pub(super) struct Connections {
    steps: Vec<Step>,
    cut: Vec<Cut>,
}

pub(super) fn measure(
    built: &Built,
    effort: Effort,
    descriptors: u64,
    log: &str,
) -> anyhow::Result<Connections> {
    let mut stage = Stage::set(built, &PATHS, None, log)?;
    let measured = on_paths(&mut stage, effort, descriptors).with_context(|| stage.keep_logs())?;
    stage.end()?;
    Ok(measured)
}

fn on_paths(stage: &mut Stage, effort: Effort, descriptors: u64) -> anyhow::Result<Connections> {
    let wanted = points::choose(&points::CONNECTIONS, effort.quick);
    let mut progress = Progress::begin("measuring connections");
    let mut all = Connections { steps: Vec::new(), cut: Vec::new() };
    for path in PATHS {
        let limit = Limit::of(path, descriptors);
        let of_path =
            |wanted: &u32| Cut { path: path.name(), wanted: *wanted, most: limit.most, why: limit.why };
        all.cut.extend(wanted.iter().filter(|wanted| **wanted > limit.most).map(of_path));
        stage.renew(path)?;
        // Whatever the first connections bring about is no cost of those that follow.
        stage.load(path, ping(USED), effort.times)?;
        let mut held = Vec::new();
        let mut held_so_far = 0;
        for connections in limit.cut(&wanted) {
            progress.at(&format!("{connections} on {}", path.name()));
            let used = connections.min(USED);
            let idle = connections - used;
            let mut rounds = Rounds::default();
            let mut resident = None;
            if idle > held_so_far {
                let (process, sample) = stage.hold(path, idle - held_so_far)?;
                resident = sample.figures.get(&Figure::MemoryOfConnection).copied();
                rounds.failed(&sample.failures);
                held.push(process);
                held_so_far = idle;
            }
            for _ in 0..effort.rounds {
                rounds.add(stage.load(path, ping(used), effort.times)?)?;
            }
            let requests = Row::named(ping(used).name(), path.name(), false, &rounds, None)?;
            all.steps.push(Step {
                connections,
                held_idle: idle,
                proxies_resident_kib_per_connection: resident,
                requests,
            });
        }
    }
    progress.done(&format!("{} steps on {} paths", all.steps.len(), PATHS.len()));
    Ok(all)
}

fn ping(connections: u32) -> Work {
    Work::Ping { size: 1024, connections, rate: None }
}

impl Connections {
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.steps.iter().map(|step| &step.requests)
    }

    pub(super) fn print(&self) {
        let heads = [
            "path",
            "connections",
            "used",
            "requests/s",
            "p50",
            "p99",
            "proxies' CPU",
            "memory of each held",
            "failed",
        ];
        let rows = self.steps.iter().map(|step| {
            let figures = [Figure::RequestsPerSecond, Figure::P50, Figure::P99, Figure::CpuOfProxies];
            let [rate, p50, p99, cpu] = columns(&step.requests, figures);
            let memory = step.proxies_resident_kib_per_connection;
            let memory = memory.map(|kib| format!("{} KiB", super::short(kib)));
            let (all, used) = (step.connections, step.connections - step.held_idle);
            let path = step.requests.path.clone();
            let memory = memory.unwrap_or_default();
            [path, all.to_string(), used.to_string(), rate, p50, p99, cpu, memory, failures(&step.requests)]
        });
        println!(
            "\nConnections: 1 KiB there and back over those that are used, while the others are held.\n{}",
            output::rows(heads, rows)
        );
        for Cut { path, wanted, most, why } in &self.cut {
            println!("Cut: {wanted} on {path}; {most} is the most here ({why}).");
        }
    }
}
