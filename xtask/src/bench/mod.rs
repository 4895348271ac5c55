//! `cargo xtask bench`: what the mesh costs, beside what the same pods do without it and what the least of proxies costs.
//!
//! Everything is measured in one run. A round measures each work on all paths, one after the other and each time beginning with
//! another one, so that whatever else the machine does meets all of them alike; figures are medians and ranges over the rounds.

mod capture;
mod compare;
mod html;
mod instructions;
pub(crate) mod machine;
mod manifests;
pub(crate) mod path;
mod peer;
mod plot;
mod report;
pub(crate) mod rounds;
mod route;
mod rules;
pub(crate) mod sample;
mod scale;
pub(crate) mod sidecars;
pub(crate) mod stage;
pub(crate) mod work;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use nix::sys::resource::{Resource, getrlimit};

use crate::cargo::{self, Built};
use crate::output;
use crate::progress::{Progress, seconds};
use crate::{toolchain, workspace};
use machine::Machine;
use path::Path;
use report::{Report, Row};
use rounds::Rounds;
use stage::Stage;
use work::{Times, Work};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    instead: Option<Instead>,
    /// Fewer works and rounds: two minutes once everything is built.
    #[arg(long)]
    quick: bool,
    /// How many rounds; 7, or 3 of the quick ones, without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// How long each load is measured; 1000, or 300 with `--quick`, without it. Of capture alone 200 at most.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=600_000))]
    measure: Option<u64>,
    /// Only these paths; all, and capture alone, without it. `sidecars` installs Debian's packages `haproxy` and `iptables` where they are
    /// missing, capture alone `iptables`.
    #[arg(long, value_enum, value_name = "PATH", value_delimiter = ',')]
    path: Vec<Path>,
    /// Only works whose names are one of these or begin with it: ping-1KiB-x16, ping-1KiB, connect, capture and so on.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    work: Vec<String>,
    /// Write the figures, and the latencies behind them, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots, for a browser, to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Show the ratios to the figures of an earlier run, from the file it wrote.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// A ztunnel to measure in place of the one that is built here, as it is shipped.
    #[arg(long, value_name = "FILE")]
    ztunnel: Option<PathBuf>,
    /// Another ztunnel to measure beside it, such as Istio's: on nodes of its own, with the rules of iptables that it needs in its pods.
    #[arg(long, value_name = "FILE")]
    peer_ztunnel: Option<PathBuf>,
    /// In place of all that, count the instructions of hot functions and of a MiB through a tunnel (by callgrind, of Debian's package
    /// `valgrind`), and fail if one of the counts is not within 3 % of what is stored.
    #[arg(long, conflicts_with_all = ["quick", "rounds", "measure", "path", "work", "json", "html", "compare", "ztunnel", "peer_ztunnel"])]
    instructions: bool,
    /// Store the counts of instructions in place of those that were stored.
    #[arg(long, requires = "instructions")]
    bless: bool,
}

/// What is measured in place of the costs.
#[derive(clap::Subcommand)]
enum Instead {
    /// How the costs grow with connections, services and the pods of a node: five minutes once everything is built.
    Scale(scale::Args),
    /// What the mesh's state costs a ztunnel: to read a whole cluster, of 100,000 workloads at most, to hold it, and to change an endpoint
    /// of it.
    State,
}

impl Args {
    fn rounds(&self) -> usize {
        self.rounds.map_or(if self.quick { 3 } else { 7 }, usize::from)
    }

    fn times(&self) -> Times {
        let default = if self.quick { 300 } else { 1000 };
        let measure = Duration::from_millis(self.measure.unwrap_or(default));
        Times { warm: measure / 5, measure }
    }

    fn paths(&self) -> Vec<Path> {
        let chosen = |path: &Path| {
            let can_be = self.peer_ztunnel.is_some() || !path.of_peer();
            if self.path.is_empty() { can_be } else { self.path.contains(path) }
        };
        Path::value_variants().iter().copied().filter(chosen).collect()
    }

    fn named(&self, name: &str) -> bool {
        self.work.iter().any(|part| name == part || name.starts_with(&format!("{part}-")))
    }

    fn works(&self, idle: u32) -> Vec<Work> {
        let chosen = |work: &Work| self.work.is_empty() || self.named(&work.name());
        // Who asks for one by name gets it, quick or not.
        work::all(self.quick && self.work.is_empty(), idle).into_iter().filter(chosen).collect()
    }

    /// The works of capture alone, which is on no path: with everything, and by name.
    fn captures(&self) -> Vec<Work> {
        let all = self.path.is_empty() && self.work.is_empty();
        capture::works(|name| all || self.named(name))
    }
}

/// Runs it; `false` when a load had failures.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    if args.instructions {
        return instructions::run(args.bless);
    }
    match &args.instead {
        Some(Instead::Scale(args)) => return scale::run(args),
        Some(Instead::State) => return cargo::bench("api", "state"),
        None => {}
    }
    let begin = Instant::now();
    sandbox::check_requirements()?;
    // Which it hands on to everything it starts.
    let (_, descriptors) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let idle = work::idle(descriptors);
    let (works, captures) = (args.works(idle), args.captures());
    let paths = if works.is_empty() { Vec::new() } else { args.paths() };
    if works.is_empty() && captures.is_empty() {
        let names = work::all(false, idle).into_iter().map(Work::name).chain(capture::names());
        bail!("no work is named so; there are {}", names.collect::<Vec<_>>().join(", "));
    }
    // Before minutes of building, not after them; and the old file before the new one, which may take its place.
    let old = args.compare.as_deref().map(earlier).transpose()?;
    let json = args.json.as_ref();
    let json = json.map(|path| File::create(path).with_context(|| format!("making {}", path.display())));
    let json = json.transpose()?;
    let (own, peer) = (found(args.ztunnel.as_ref())?, found(args.peer_ztunnel.as_ref())?);
    if peer.is_none() && paths.iter().any(|path| path.of_peer()) {
        bail!("the paths of another ztunnel need --peer-ztunnel");
    }
    toolchain::ensure(&workspace())?;
    let haproxy = paths.contains(&Path::Sidecars).then_some(sidecars::HAPROXY);
    let iptables = (haproxy.is_some() || !captures.is_empty()).then_some(rules::IPTABLES);
    // Each is named like its package.
    let programs: Vec<_> = [haproxy, iptables].into_iter().flatten().map(|name| (name, name)).collect();
    toolchain::ensure_programs(&workspace(), &programs)
        .context("HAProxy and iptables are for the path `sidecars`, iptables also for capture alone; --path leaves them out")?;
    if works.iter().any(|work| work.is_http()) {
        toolchain::ensure_programs(&workspace(), &[work::H2LOAD]).context("HTTP requests need h2load")?;
    }
    let mut built = cargo::build()?;
    built.ztunnel = own.map_or_else(cargo::build_shipped_ztunnel, Ok)?;
    let mut machine = Machine::look();
    machine.haproxy = haproxy.and_then(|_| sidecars::version());
    // What a mesh in use logs: the access log is part of what a connection costs.
    let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let mut rows = Vec::new();
    if !works.is_empty() {
        rows.extend(on_paths(&built, &paths, &works, peer.as_deref(), args, &log)?);
    }
    if !captures.is_empty() {
        rows.extend(capture::measure(&built, &captures, args.rounds(), args.times(), &log)?);
    }
    let report =
        Report { machine, rounds: args.rounds(), measured_ms: args.times().measure.as_millis(), rows };
    report.print();
    if let Some(old) = &old {
        compare::print(old, &report);
    }
    if let Some(file) = json {
        output::write_json(&report, file).context("writing the figures")?;
    }
    if let Some(path) = &args.html {
        let page = html::page(&report).context("drawing the report")?;
        std::fs::write(path, page).with_context(|| format!("writing {}", path.display()))?;
    }
    println!("Bench: {} in all, and everything is taken down again.", seconds(begin.elapsed()));
    Ok(report.ok())
}

/// Measures the works on the paths.
fn on_paths(
    built: &Built,
    paths: &[Path],
    works: &[Work],
    peer: Option<&std::path::Path>,
    args: &Args,
    log: &str,
) -> anyhow::Result<Vec<Row>> {
    let mut stage = Stage::set(built, paths, peer, log)?;
    let measured = measure(&mut stage, paths, works, args).with_context(|| stage.keep_logs())?;
    let rows = rows(paths, works, &measured)?;
    if rows.iter().any(|row| !row.failures.is_empty()) {
        println!("{}", stage.keep_logs());
    }
    stage.end()?;
    Ok(rows)
}

/// Where a program is, from the root.
pub(crate) fn found(path: Option<&PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    let look =
        |path: &PathBuf| path.canonicalize().with_context(|| format!("looking for {}", path.display()));
    path.map(look).transpose()
}

/// What an earlier run wrote.
fn earlier(path: &std::path::Path) -> anyhow::Result<Report> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no report of this benchmark", path.display()))
}

/// The rounds of a path, by the places of work and path in their lists.
type Measured = BTreeMap<(usize, usize), Rounds>;

fn measure(stage: &mut Stage, paths: &[Path], works: &[Work], args: &Args) -> anyhow::Result<Measured> {
    let mut progress = Progress::begin("measuring");
    let mut measured = Measured::new();
    let rounds = args.rounds();
    for round in 0..rounds {
        for (number, work) in works.iter().enumerate() {
            progress.at(&format!("round {} of {rounds}: {}", round + 1, work.name()));
            for turn in 0..paths.len() {
                let place = (turn + round) % paths.len();
                let sample = stage.measure(paths[place], *work, args.times())?;
                measured.entry((number, place)).or_default().add(sample)?;
            }
        }
    }
    progress.done(&format!("{} loads", rounds * works.len() * paths.len()));
    Ok(measured)
}

fn rows(paths: &[Path], works: &[Work], measured: &Measured) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for ((number, place), rounds) in measured {
        let (work, path) = (works[*number], paths[*place]);
        let baseline = path.baseline().and_then(|base| paths.iter().position(|other| *other == base));
        let baseline = baseline.and_then(|place| measured.get(&(*number, place)));
        rows.push(Row::new(work, path, rounds, baseline)?);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(text: &str) -> Args {
        Cli::try_parse_from(text.split(' ')).unwrap().args
    }

    #[test]
    fn paths_and_works_are_chosen_by_name() {
        let some =
            args("bench --quick --path direct,culvert-other --work connect,bulk-x8,ping-1B-x6,ping-1B-x64");
        assert_eq!(some.paths(), [Path::Direct, Path::CulvertOther]);
        let names: Vec<String> = some.works(10_000).into_iter().map(Work::name).collect();
        assert_eq!(names, ["ping-1B-x64", "connect-x1", "connect-x16", "bulk-x8"]);
    }

    #[test]
    fn paths_of_another_ztunnel_are_measured_where_one_is_given() {
        let peers = |text: &str| args(text).paths().into_iter().filter(|path| path.of_peer()).count();
        assert_eq!((peers("bench"), peers("bench --peer-ztunnel z")), (0, 2));
        assert_eq!(args("bench --peer-ztunnel z").paths().len(), Path::value_variants().len());
        assert_eq!(args("bench --peer-ztunnel z --path direct").paths(), [Path::Direct]);
    }

    #[test]
    fn capture_alone_is_measured_with_everything_and_by_name() {
        for (text, expected) in [
            ("bench", 2),
            ("bench --quick", 2),
            ("bench --path direct", 0),
            ("bench --work ping-1B", 0),
            ("bench --work capture", 2),
            ("bench --path direct --work capture-connect,connect", 1),
        ] {
            assert_eq!(args(text).captures().len(), expected, "{text}");
        }
    }

    #[test]
    fn the_quick_ones_end_in_two_minutes() {
        let quick = args("bench --quick");
        let loads = quick.rounds() * quick.works(10_000).len() * quick.paths().len();
        // What a load takes beyond its time: a process, and streams that drain.
        let each = quick.times().warm + quick.times().measure + Duration::from_millis(100);
        let captures = quick.rounds() * quick.captures().len() * capture::Way::ALL.len();
        let all = each * u32::try_from(loads + captures).unwrap();
        assert!(all < Duration::from_secs(100), "{all:?}");
    }
}
