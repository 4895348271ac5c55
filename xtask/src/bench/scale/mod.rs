//! `cargo xtask bench scale`: how the mesh's cost grows with connections, with services and with the pods of a node.
//!
//! A table a dimension: what should not grow (latency, the time for each pod) is to stay as it is, and what must grow (memory, the time for
//! all) to grow no faster than the dimension.

mod connections;
mod ground;
mod pods;
mod points;
mod services;

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use super::machine::Machine;
use super::report::{Row, short};
use super::rounds::Spread;
use super::sample::Figure;
use super::work::Times;
use crate::{cargo, output, progress, toolchain, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer steps and rounds.
    #[arg(long)]
    quick: bool,
    /// Only these; all without it.
    #[arg(long, value_enum, value_name = "DIMENSION", value_delimiter = ',')]
    dimension: Vec<Dimension>,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A ztunnel to measure in place of the one that is built here, as it is shipped.
    #[arg(long, value_name = "FILE")]
    ztunnel: Option<PathBuf>,
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dimension {
    /// Connections of a pod.
    Connections,
    /// Services of the mesh.
    Services,
    /// Pods of a node.
    Pods,
}

/// How thoroughly each step is measured.
#[derive(Clone, Copy)]
struct Effort {
    quick: bool,
    rounds: usize,
    times: Times,
}

/// All of a run; a dimension that was not asked for has nothing.
#[derive(Serialize)]
struct Report {
    machine: Machine,
    rounds: usize,
    measured_ms: u128,
    descriptors: u64,
    connections: Option<connections::Connections>,
    services: Vec<services::Step>,
    pods: Vec<pods::Step>,
}

/// Runs it; `false` when a load had failures.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let begin = Instant::now();
    sandbox::check_requirements()?;
    let json = args.json.as_ref();
    let json = json.map(|path| File::create(path).with_context(|| format!("making {}", path.display())));
    let json = json.transpose()?;
    let own = super::found(args.ztunnel.as_ref())?;
    toolchain::ensure(&workspace())?;
    let mut built = cargo::build()?;
    built.ztunnel = own.map_or_else(cargo::build_shipped_ztunnel, Ok)?;
    let machine = Machine::look();
    let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let effort = args.effort();
    // Which it hands on to everything it starts.
    let (_, descriptors) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = |dimension| args.dimension.is_empty() || args.dimension.contains(&dimension);
    let connections = wanted(Dimension::Connections);
    let connections =
        connections.then(|| connections::measure(&built, effort, descriptors, &log)).transpose()?;
    let services =
        wanted(Dimension::Services).then(|| services::measure(&built, effort, &log)).transpose()?;
    let pods = wanted(Dimension::Pods).then(|| pods::measure(&built, effort, &log)).transpose()?;
    let report = Report {
        machine,
        rounds: effort.rounds,
        measured_ms: effort.times.measure.as_millis(),
        descriptors,
        connections,
        services: services.unwrap_or_default(),
        pods: pods.unwrap_or_default(),
    };
    report.print();
    if let Some(file) = json {
        output::write_json(&report, file).context("writing the figures")?;
    }
    println!("Bench: {} in all, and everything is taken down again.", progress::seconds(begin.elapsed()));
    Ok(report.rows().all(|row| row.failures.is_empty()))
}

impl Args {
    fn effort(&self) -> Effort {
        let (rounds, measure) = if self.quick { (1, 200) } else { (3, 400) };
        let measure = Duration::from_millis(measure);
        Effort { quick: self.quick, rounds, times: Times { warm: measure / 5, measure } }
    }
}

impl Report {
    fn rows(&self) -> impl Iterator<Item = &Row> {
        let connections = self.connections.iter().flat_map(connections::Connections::rows);
        connections.chain(services::rows(&self.services)).chain(pods::rows(&self.pods))
    }

    fn print(&self) {
        if let Some(connections) = &self.connections {
            connections.print();
        }
        if !self.services.is_empty() {
            services::print(&self.services);
        }
        if !self.pods.is_empty() {
            pods::print(&self.pods);
        }
        println!(
            "\nMedians over {} rounds of {} ms; latencies in microseconds; CPU in seconds per 1,000 requests.\n{}; {} descriptors a process",
            self.rounds, self.measured_ms, self.machine, self.descriptors
        );
        for row in self.rows().filter(|row| !row.failures.is_empty()) {
            println!("Failures of {} on {}: {:?}", row.work, row.path, row.failures);
        }
    }
}

/// Medians of a row's figures, as tables have them.
fn columns<const N: usize>(row: &Row, figures: [Figure; N]) -> [String; N] {
    figures.map(|figure| {
        row.figures.get(figure.name(false)).map_or_else(String::new, |spread| short(spread.median))
    })
}

/// A time's median.
fn seconds(spread: Spread) -> String {
    format!("{} s", short(spread.median))
}

/// How many requests have failed; nothing if none.
fn failures(row: &Row) -> String {
    match row.failures.values().sum::<u64>() {
        0 => String::new(),
        count => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_tables_columns_are_medians_and_empty_where_nothing_was_answered() {
        let spread = |median| Spread { median, min: 0.0, max: 9.0 };
        let row = Row {
            work: String::new(),
            path: String::new(),
            rounds: 3,
            failures: BTreeMap::from([("reset".to_owned(), 2), ("refused".to_owned(), 1)]),
            figures: BTreeMap::from([(Figure::P50.name(false).to_owned(), spread(1.234))]),
            histogram: None,
        };
        assert_eq!(columns(&row, [Figure::P50, Figure::P99]), ["1.23", ""]);
        assert_eq!((failures(&row).as_str(), seconds(spread(2.0)).as_str()), ("3", "2.00 s"));
    }
}
