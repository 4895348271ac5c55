//! `cargo xtask fuzz`: the targets of `tests/fuzz` under libFuzzer, one after the other.
//!
//! They are built for themselves, below `target/fuzz`: every crate in them reports what it reaches. What the fuzzer has found of interest stays
//! there as well, and the next run begins with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::cargo;
use crate::progress::Progress;
use crate::{toolchain, workspace};

/// A single input may not take longer, seconds: what takes that long hangs, or lets a peer buy time for little.
const INPUT_TIMEOUT: u32 = 10;
/// MiB of memory that a target may take.
const MEMORY_LIMIT: u32 = 2048;

/// What cargo-fuzz asks of LLVM as well: each edge counted, each comparison told to the fuzzer. Without a sanitizer a stable compiler does
/// it. And checks that the release profile leaves out.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Cdebug-assertions",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The target to run; all of them without it.
    target: Option<String>,
    /// How long each target runs, in minutes; parts of one will do.
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,
    /// List the targets.
    #[arg(long)]
    list: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.01..=100_000.0).contains(&minutes) { Ok(minutes) } else { Err("0.01 to 100000 minutes".to_owned()) }
}

/// Builds and runs them; `false` when one found something.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let names = names()?;
    if args.list {
        names.iter().for_each(|name| println!("{name}"));
        return Ok(true);
    }
    let chosen: Vec<&String> =
        names.iter().filter(|name| args.target.as_ref().is_none_or(|wanted| wanted == *name)).collect();
    if chosen.is_empty() {
        bail!("there is no such target; there are {}", names.join(", "));
    }
    toolchain::ensure_programs(&workspace(), &[("g++", "g++")])?;
    let directory = workspace().join("target/fuzz");
    let binaries = cargo::build_fuzz_targets(&chosen, &directory, FLAGS)?;
    let seeds = directory.join("seeds");
    let wrote = Command::new(cargo::build_seeds()?).arg(&seeds).status().context("writing the seeds")?;
    if !wrote.success() {
        bail!("writing the seeds failed ({wrote})");
    }
    let mut good = true;
    for name in chosen {
        good &= fuzz(name, &binaries.join(name), &directory, args.minutes)?;
    }
    Ok(good)
}

/// The targets: the binaries' files.
fn names() -> anyhow::Result<Vec<String>> {
    let directory = workspace().join("tests/fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<PathBuf>, _>>()?;
    let mut names: Vec<String> =
        paths.iter().filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Runs one target; `false` when it found something, which is then told.
fn fuzz(name: &str, binary: &Path, directory: &Path, minutes: f64) -> anyhow::Result<bool> {
    let mut progress = Progress::begin(format!("fuzzing {name} for {minutes} min"));
    let place = |kind: &str| -> anyhow::Result<PathBuf> {
        let path = directory.join(kind).join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    };
    let (corpus, seeds, found) = (place("corpus")?, place("seeds")?, place("found")?);
    let log = directory.join(format!("{name}.log"));
    let output = fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most six million")]
    let seconds = (minutes * 60.0).ceil() as u64;
    let status = Command::new(binary)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_TIMEOUT}"))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT}"))
        .args(["-max_len=4096", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", found.display()))
        // The first is the one that is written to.
        .args([&corpus, &seeds])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .status()
        .with_context(|| format!("running {}", binary.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    progress.at("done");
    if status.success() {
        progress.done(&summary(&text));
        return Ok(true);
    }
    progress.done("found something");
    let last: Vec<&str> = text.lines().rev().take(60).collect();
    println!("---- {name} ({status}); the input is below {}", found.display());
    last.iter().rev().for_each(|line| println!("{line}"));
    println!("to see it again: {} INPUT (the whole log: {})", binary.display(), log.display());
    Ok(false)
}

/// Inputs tried and edges covered, out of libFuzzer's log.
fn summary(log: &str) -> String {
    let runs = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let covered = log.lines().rev().find_map(|line| line.split_once(" cov: ")?.1.split_whitespace().next());
    format!("{} inputs, {} edges covered", runs.map_or("?", str::trim), covered.unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_how_much_was_tried_and_covered() {
        let log = "INFO: seed corpus\n#2\tINITED cov: 12 ft: 30 corp: 1/10b exec/s: 0 rss: 40Mb\n\
            #900\tDONE   cov: 345 ft: 600 corp: 9/90b exec/s: 300 rss: 50Mb\nDone 900 runs\n\
            stat::number_of_executed_units: 900\n";
        assert_eq!(summary(log), "900 inputs, 345 edges covered");
        assert_eq!(summary(""), "? inputs, ? edges covered");
    }

    #[test]
    fn each_file_of_the_directory_is_a_target() {
        assert!(names().unwrap().contains(&"zds".to_owned()));
    }

    #[test]
    fn a_time_is_some_minutes() {
        assert_eq!(minutes("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "NaN", "x", "1e9"] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }
}
