//! `cargo xtask test`: runs every test program itself, counts, and says in one line what came of it.
//!
//! With `--repeat` the programs run again and again, and with them the end-to-end tests of each, in an order drawn from a seed: what fails
//! only now and then, or only after something else, shows.
//!
//! A test that was skipped fails the run, unless what it needs is missing and nobody is to be made to have it: a kernel feature, or the programs of
//! Kubernetes, which take minutes to build. Each of those is named.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::cargo::{self, Built, TestProgram};
use crate::progress::{Progress, seconds};
use crate::{cluster, toolchain, workspace};

/// What the pods of `istio_agent` are made ready with, and the packages it is in.
const RULES: [(&str, &str); 2] = [("iptables-restore", "iptables"), ("ip", "iproute2")];

/// The end-to-end tests on a real Kubernetes, and what they need.
const ON_KUBERNETES: (&str, &str) =
    ("cluster", "Kubernetes and helm, which `cargo xtask cluster build` builds once in six minutes");

/// What the harness of the end-to-end tests prints for a test that this kernel cannot run.
const MISSING_FEATURE: &str = "kernel feature missing: ";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the unit tests alone, which need no privileges.
    #[arg(long)]
    unit: bool,
    /// Leave out the tests that take long because they do something thousands of times.
    #[arg(long)]
    fast: bool,
    /// Run everything that many times, each time in another random order; ends with the first run that fails.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// What the orders are drawn from, to have those of an earlier run again; by itself it shuffles a single run.
    #[arg(long)]
    seed: Option<u64>,
    /// Run only tests whose name contains this text.
    filter: Option<String>,
}

impl Args {
    /// The seed of the orders; none for the order of the manifest.
    fn orders(&self) -> Option<u64> {
        self.seed.or_else(|| (self.repeat > 1).then(rand::random))
    }
}

/// Runs the tests; `false` when any failed, or was skipped for another reason than the kernel.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let begin = Instant::now();
    if !args.unit {
        sandbox::check_requirements()
            .context("the end-to-end tests cannot run here (`cargo xtask test --unit` runs the others)")?;
    }
    toolchain::ensure(&workspace())?;
    if !args.unit {
        toolchain::ensure_programs(&workspace(), &RULES)?;
    }
    let built = if args.unit { None } else { Some(cargo::build()?) };
    let mut programs = cargo::build_tests(built.is_some())?;
    programs
        .sort_by(|a, b| (a.end_to_end, &a.package, &a.target).cmp(&(b.end_to_end, &b.package, &b.target)));
    let mut total = Tally::default();
    let seed = args.orders();
    for run in 0..args.repeat {
        let order = seed.map(|seed| seed.wrapping_add(u64::from(run)));
        if let Some(order) = order {
            eprintln!("run {} of {}, in the order of --seed {order}", run + 1, args.repeat);
            programs.shuffle(&mut StdRng::seed_from_u64(order));
        }
        let how = How { built: built.as_ref(), fast: args.fast, order, filter: args.filter.as_deref() };
        let count = programs.len();
        for (number, program) in programs.iter().enumerate() {
            total.add(run_program(program, &how, (number + 1, count))?);
        }
        if total.failed > 0 {
            println!("run {} of {} failed", run + 1, args.repeat);
            break;
        }
    }
    Ok(total.report(begin.elapsed(), args))
}

/// How the programs of a run are started.
struct How<'a> {
    built: Option<&'a Built>,
    fast: bool,
    /// The seed of the order of tests within an end-to-end program.
    order: Option<u64>,
    filter: Option<&'a str>,
}

impl How<'_> {
    /// The arguments of a test program. The standard harness knows neither orders nor what takes long.
    fn arguments(&self, program: &TestProgram) -> Vec<String> {
        let filter = self.filter.map(str::to_owned);
        if !program.end_to_end {
            return filter.into_iter().collect();
        }
        let fast = self.fast.then(|| "--fast".to_owned());
        let order = self.order.map(|seed| format!("--shuffle={seed}"));
        filter.into_iter().chain(fast).chain(order).collect()
    }
}

/// Outcomes of tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    /// What is missing without being anybody's fault, with the number of tests each thing cost.
    missing: BTreeMap<String, usize>,
    /// Tests skipped for any other reason.
    unexcused: Vec<String>,
    /// Names of the tests that failed.
    failures: Vec<String>,
}

impl Tally {
    /// Reads the output of a test program; `ended_well` is what its exit status says.
    fn read(name: &str, output: &str, ended_well: bool) -> Self {
        let mut tally = Self::default();
        for line in output.lines() {
            let Some((test, outcome)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... "))
            else {
                continue;
            };
            let full = format!("{name}: {test}");
            match outcome.trim() {
                "ok" => tally.passed += 1,
                outcome if outcome.starts_with("FAILED") => {
                    tally.failed += 1;
                    tally.failures.push(full);
                }
                outcome if outcome.starts_with("ignored") => match outcome.split_once(MISSING_FEATURE) {
                    Some((_, feature)) => {
                        *tally.missing.entry(format!("a kernel feature: {feature}")).or_default() += 1;
                    }
                    None => tally.unexcused.push(full),
                },
                _ => {}
            }
        }
        if !ended_well && tally.failed == 0 {
            // It crashed, or did not get as far as its tests.
            tally.failed += 1;
            tally.failures.push(name.to_owned());
        }
        tally
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.unexcused.extend(other.unexcused);
        self.failures.extend(other.failures);
        for (missing, count) in other.missing {
            *self.missing.entry(missing).or_default() += count;
        }
    }

    fn skipped(&self) -> usize {
        self.missing.values().sum::<usize>() + self.unexcused.len()
    }

    fn good(&self) -> bool {
        self.failed == 0 && self.unexcused.is_empty() && self.passed > 0
    }

    /// Prints the closing lines; tells whether the run is a success.
    fn report(&self, took: Duration, args: &Args) -> bool {
        println!();
        for name in &self.failures {
            println!("failed: {name}");
        }
        for name in &self.unexcused {
            println!("skipped without an excuse, which counts as failed: {name}");
        }
        for (missing, count) in &self.missing {
            println!("skipped {count} for want of {missing}");
        }
        let what = if args.unit { "unit tests" } else { "unit and end-to-end tests" };
        let took = seconds(took);
        match (self.good(), self.passed) {
            (true, _) => println!("All {what} passed in {took}."),
            (false, 0) if self.failed == 0 => println!("No test ran."),
            (false, _) => println!("Not all {what} passed ({took}); the failures' output is above."),
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped());
        self.good()
    }
}

/// Runs one program and reads its outcome. The output is shown only if something went wrong.
fn run_program(
    program: &TestProgram,
    how: &How<'_>,
    (number, count): (usize, usize),
) -> anyhow::Result<Tally> {
    let kind = if program.end_to_end { "end to end" } else { "unit" };
    let name = format!("{} {}", program.package, program.target);
    if program.end_to_end && program.target == ON_KUBERNETES.0 && !cluster::is_built() {
        return skipped(program, how);
    }
    let mut progress = Progress::begin(format!("test program {number} of {count}, {kind}, {name}"));
    let mut command = Command::new(&program.path);
    command.args(how.arguments(program)).current_dir(&program.directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(built) = how.built {
        built.tell(&mut command);
    }
    // SAFETY: between fork and exec only prctl is called, which takes integers.
    unsafe {
        // A test program that outlived us would keep its sandbox; at SIGTERM it takes it down.
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(io::Error::from));
    }
    let mut child = command.spawn().with_context(|| format!("running {}", program.path.display()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (output, errors) = std::thread::scope(|scope| {
        let errors = scope.spawn(|| lines(stderr, |_| ()));
        let mut done = 0;
        let output = lines(stdout, |line| {
            if let Some((test, _)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
                done += 1;
                progress.at(&format!("{done} tests done, last {test}"));
            }
        });
        (output, errors.join().unwrap_or_default())
    });
    let status = child.wait()?;
    let tally = Tally::read(&name, &output, status.success());
    progress.done(&format!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped()));
    if tally.failed > 0 {
        println!("---- {name} ({status})\n{output}{errors}");
    }
    Ok(tally)
}

/// The tests of a program that cannot run for want of Kubernetes.
fn skipped(program: &TestProgram, how: &How<'_>) -> anyhow::Result<Tally> {
    let mut list = Command::new(&program.path);
    let output = list.arg("--list").stdin(Stdio::null()).output().context("listing tests")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let filter = how.filter.unwrap_or_default();
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    let count = names.filter(|name| name.contains(filter)).count();
    let missing = if count == 0 { BTreeMap::new() } else { [(ON_KUBERNETES.1.to_owned(), count)].into() };
    Ok(Tally { missing, ..Tally::default() })
}

/// Reads a program's output to its end, and shows each line to `see`.
fn lines(output: Option<impl io::Read>, mut see: impl FnMut(&str)) -> String {
    let mut text = String::new();
    let Some(output) = output else { return text };
    for line in io::BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        see(&line);
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_from_both_harnesses_output() {
        let output = "running 5 tests\ntest a::b ... ok\ntest c - should panic ... ok\ntest d ... FAILED\n\
            test e ... ignored, kernel feature missing: TCX (6.6)\ntest f ... ignored, no binary\n";
        let tally = Tally::read("mesh", output, false);
        assert_eq!((tally.passed, tally.failed, tally.skipped()), (2, 1, 2));
        assert_eq!(tally.failures, ["mesh: d"]);
        assert_eq!(tally.unexcused, ["mesh: f"]);
        assert_eq!(tally.missing, BTreeMap::from([("a kernel feature: TCX (6.6)".to_owned(), 1)]));
        assert!(!tally.good());
    }

    #[test]
    fn a_program_that_crashed_before_its_first_test_is_a_failure() {
        assert_eq!(Tally::read("mesh", "", false).failures, ["mesh"]);
    }

    #[test]
    fn only_features_of_the_kernel_excuse_a_skipped_test() {
        let excused =
            Tally::read("e2e", "test a ... ok\ntest b ... ignored, kernel feature missing: TCX", true);
        assert!(excused.good());
        assert!(!Tally::read("e2e", "test a ... ok\ntest b ... ignored", true).good());
        assert!(!Tally::read("e2e", "", true).good(), "no test at all is no success");
    }
}
