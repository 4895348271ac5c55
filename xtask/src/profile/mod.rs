//! `cargo xtask profile`: where the time of a path goes: which part of its proxies, or of the relays in their places, takes how much of a
//! request's processor time, how often they are woken for it, and which system calls they make.
//!
//! Each round makes a load on every path that nobody looks at, one under `perf` and one under `strace`: looking costs time, so what is told
//! in time is of the first, and shares and counts are of the others.

mod fold;
mod parts;
mod perf;
mod report;
mod syscalls;
mod watch;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit};

use crate::bench::machine::Machine;
use crate::bench::path::Path;
use crate::bench::rounds::Rounds;
use crate::bench::stage::Stage;
use crate::bench::work::{self, Times, Work};
use crate::bench::{found, sidecars};
use crate::progress::{Progress, seconds};
use crate::{cargo, output, toolchain, workspace};
use perf::{PERF, Recording};
use report::{PathReport, Report};
use syscalls::{Counting, STRACE};
use watch::{Post, Proxy};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The paths, as `bench` names them, of those with proxies or relays.
    #[arg(required = true, value_enum, value_name = "PATH")]
    path: Vec<Path>,
    /// What is done on them, as `bench` names it.
    #[arg(long, value_name = "NAME", default_value = "ping-1KiB-x1")]
    work: String,
    /// How many rounds, each of three loads on every path.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// How long each load is.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    measure: u64,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A ztunnel to look at in place of the one that is built here.
    #[arg(long, value_name = "FILE")]
    ztunnel: Option<PathBuf>,
    /// Another ztunnel, such as Istio's, for the paths `peer-same` and `peer-other`.
    #[arg(long, value_name = "FILE")]
    peer_ztunnel: Option<PathBuf>,
}

impl Args {
    /// Each path once, and only such as have something to look at.
    fn paths(&self) -> anyhow::Result<Vec<Path>> {
        let mut paths = Vec::new();
        for path in &self.path {
            if path.hops() == 0 {
                bail!("nothing is between the pods of the path {}", path.name());
            }
            if path.of_peer() && self.peer_ztunnel.is_none() {
                bail!("the path {} needs --peer-ztunnel", path.name());
            }
            if !paths.contains(path) {
                paths.push(*path);
            }
        }
        Ok(paths)
    }

    fn work(&self, idle: u32) -> anyhow::Result<Work> {
        let mut works = work::all(false, idle).into_iter().filter(|work| !work.begins_anew());
        works.clone().find(|work| work.name() == self.work).with_context(|| {
            let names: Vec<String> = works.by_ref().map(Work::name).collect();
            format!("no work that goes on is named {}; there are {}", self.work, names.join(", "))
        })
    }
}

/// What was seen of a path.
#[derive(Default)]
struct Seen {
    /// Of loads nobody looked at.
    rounds: Rounds,
    samples: fold::Counts,
    calls: syscalls::Counts,
    /// The requests, or MiB, of the loads in which calls were counted.
    units_of_calls: f64,
}

/// The ways of looking that work here.
struct Eyes {
    perf: bool,
    strace: bool,
    /// Why one does not.
    missing: Vec<String>,
}

/// Runs it; `false` when a load had failures.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let begin = Instant::now();
    sandbox::check_requirements()?;
    let (_, descriptors) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let (paths, work) = (args.paths()?, args.work(work::idle(descriptors))?);
    let json = args.json.as_ref();
    let json = json.map(|path| File::create(path).with_context(|| format!("making {}", path.display())));
    let json = json.transpose()?;
    let (own, peer) = (found(args.ztunnel.as_ref())?, found(args.peer_ztunnel.as_ref())?);
    toolchain::ensure(&workspace())?;
    if paths.contains(&Path::Sidecars) {
        toolchain::ensure_programs(&workspace(), &sidecars::PROGRAMS)?;
    }
    let mut eyes = Eyes::open();
    let mut built = cargo::build()?;
    if let Some(ztunnel) = own {
        built.ztunnel = ztunnel;
    }
    let machine = Machine::look();
    // As a mesh in use logs.
    let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let mut stage = Stage::set(&built, &paths, peer.as_deref(), &log)?;
    let seen = look(&mut stage, &paths, work, args, &mut eyes).with_context(|| stage.keep_logs())?;
    stage.end()?;
    let report = Report {
        machine,
        work: work.name(),
        unit: if work.is_bulk() { "MiB" } else { "request" },
        rounds: args.rounds.into(),
        measured_ms: args.measure.into(),
        paths: seen,
        missing: eyes.missing,
    };
    report.print();
    if let Some(file) = json {
        output::write_json(&report, file).context("writing the figures")?;
    }
    println!("Profile: {} in all, and everything is taken down again.", seconds(begin.elapsed()));
    Ok(report.ok())
}

impl Eyes {
    /// Finds the programs, or installs them; one that cannot be had leaves the rest.
    fn open() -> Self {
        let mut eyes = Self { perf: true, strace: true, missing: Vec::new() };
        if let Err(error) = toolchain::ensure_programs(&workspace(), &[PERF]) {
            eyes.close_perf(&error);
        }
        if let Err(error) = toolchain::ensure_programs(&workspace(), &[STRACE]) {
            eyes.close_strace(&error);
        }
        eyes
    }

    fn close_perf(&mut self, error: &anyhow::Error) {
        self.perf = false;
        self.missing.push(format!("the parts of the time, since perf does not work here: {error:#}"));
    }

    fn close_strace(&mut self, error: &anyhow::Error) {
        self.strace = false;
        self.missing.push(format!("the system calls, since strace does not work here: {error:#}"));
    }
}

/// Makes all loads, the paths in turns.
fn look(
    stage: &mut Stage,
    paths: &[Path],
    work: Work,
    args: &Args,
    eyes: &mut Eyes,
) -> anyhow::Result<Vec<PathReport>> {
    let mut progress = Progress::begin("looking");
    let rounds = usize::from(args.rounds);
    let mut seen: BTreeMap<usize, Seen> = BTreeMap::new();
    let mut proxies = Vec::new();
    for path in paths {
        let places = stage.proxies(*path)?;
        let found = places.iter().map(|(name, place)| Proxy::find(name, &place.cgroup));
        proxies.push(found.collect::<anyhow::Result<Vec<Proxy>>>()?);
    }
    for round in 0..rounds {
        for turn in 0..paths.len() {
            let place = (turn + round) % paths.len();
            progress.at(&format!("round {} of {rounds}: {}", round + 1, paths[place].name()));
            let seen = seen.entry(place).or_default();
            look_once(stage, paths[place], work, args, &proxies[place], eyes, seen)?;
        }
    }
    progress.done(&format!("{} of each kind of load", rounds * paths.len()));
    let report =
        |(place, seen): (&usize, &Seen)| PathReport::new(paths[*place], work, &proxies[*place], seen);
    Ok(seen.iter().map(report).collect())
}

/// A load nobody looks at, one under `perf`, and one under `strace`.
fn look_once(
    stage: &mut Stage,
    path: Path,
    work: Work,
    args: &Args,
    proxies: &[Proxy],
    eyes: &mut Eyes,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let measure = Duration::from_millis(args.measure);
    seen.rounds.add(stage.measure(path, work, Times { warm: measure / 5, measure })?)?;
    // Proxies have nothing else to do, so that all that is seen is of the load: what comes before it is measured counts as well.
    let times = Times { warm: Duration::ZERO, measure };
    let pids: Vec<u32> = proxies.iter().flat_map(|proxy| proxy.pids.iter().copied()).collect();
    let (place, directory) = (stage.post()?, stage.directory().to_owned());
    let post = Post { place: &place, directory: &directory };
    if eyes.perf {
        match Recording::start(post, &pids) {
            Err(error) => eyes.close_perf(&error),
            Ok(recording) => {
                let sample = stage.measure(path, work, times)?;
                seen.rounds.failed(&sample.failures);
                fold::fold(&recording.finish()?, &mut seen.samples);
            }
        }
    }
    if eyes.strace {
        match Counting::start(post, &pids) {
            Err(error) => eyes.close_strace(&error),
            Ok(counting) => {
                let sample = stage.measure(path, work, times)?;
                seen.rounds.failed(&sample.failures);
                counting.finish(&mut seen.calls)?;
                seen.units_of_calls += sample.units;
            }
        }
    }
    Ok(())
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
    fn only_paths_with_something_between_the_pods_are_looked_at_and_each_once() {
        assert_eq!(
            args("profile relay culvert-same relay").paths().unwrap(),
            [Path::Relay, Path::CulvertSame]
        );
        for text in ["profile relay direct", "profile direct-other", "profile peer-same"] {
            assert!(args(text).paths().is_err(), "{text}");
        }
        assert_eq!(args("profile peer-same --peer-ztunnel z").paths().unwrap(), [Path::PeerSame]);
    }

    #[test]
    fn only_work_that_goes_on_is_looked_at() {
        let ping = Work::Ping { size: 1024, connections: 1, rate: None };
        assert_eq!(args("profile relay").work(10_000).unwrap(), ping);
        assert!(args("profile relay --work connect-x16").work(10_000).is_ok());
        for work in ["first", "idle-x10000", "ping"] {
            let error = args(&format!("profile relay --work {work}")).work(10_000).unwrap_err().to_string();
            assert!(error.contains("bulk-x1") && !error.contains("second"), "{error}");
        }
    }
}
