//! How many instructions hot functions take, and a MiB through a tunnel: counted by callgrind in tests that mark what is to be counted, and
//! compared with what is stored beside this file. Unlike times the counts are the same on a busy machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use comfy_table::CellAlignment;
use serde::{Deserialize, Serialize};

use crate::cargo::{self, TestProgram};
use crate::output;
use crate::progress::Progress;
use crate::{toolchain, workspace};

/// The program, and Debian's package of it.
const VALGRIND: (&str, &str) = ("valgrind", "valgrind");

/// The crates that have such tests, each in a module of this name.
const CRATES: [&str; 2] = ["mesh", "tunnel"];
const MODULE: &str = "instructions::";

/// What is counted: all that these functions call.
const MEASURED: &str = "*instructions::measured*";

/// Where the counts are stored, from the root of the repository.
const STORED: &str = "xtask/src/bench/instructions.json";

/// A change needs a reason that is more than so many percent: hash maps' random keys and the state of the allocator make less.
const NOTABLE: u64 = 3;

/// By names: the crate's and the test's.
type Counts = BTreeMap<String, u64>;

/// Counts, and what they depend on beside the code.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stored {
    compiler: String,
    valgrind: String,
    counts: Counts,
}

/// A row of the comparison.
#[derive(Debug, PartialEq)]
struct Row<'a> {
    name: &'a str,
    stored: Option<u64>,
    counted: Option<u64>,
}

impl Row<'_> {
    /// New by old; nothing where one is missing.
    fn ratio(&self) -> Option<f64> {
        let stored = self.stored.filter(|stored| *stored > 0)?;
        Some(self.counted? as f64 / stored as f64)
    }

    fn is_notable(&self) -> bool {
        let (Some(stored), Some(counted)) = (self.stored, self.counted) else { return true };
        counted.abs_diff(stored) * 100 > stored * NOTABLE
    }
}

/// Counts, compares and, with `bless`, stores; `false` where a change needs a reason.
pub(super) fn run(bless: bool) -> anyhow::Result<bool> {
    toolchain::ensure_programs(&workspace(), &[VALGRIND])
        .context("instructions are counted by valgrind's callgrind")?;
    // By themselves, as ztunnel is shipped: other crates of the workspace turn on what costs. With kube's `tracing/log` a small message
    // through a tunnel took two thirds more.
    let programs = cargo::build_tests_alone(&CRATES)?;
    let stored_at = workspace().join(STORED);
    let stored = read(&stored_at)?;
    let now = Stored {
        compiler: version(Command::new("rustc").current_dir(workspace()))?,
        valgrind: version(&mut Command::new(VALGRIND.0))?,
        counts: count(&programs)?,
    };
    let nothing = Counts::new();
    let rows = rows(stored.as_ref().map_or(&nothing, |stored| &stored.counts), &now.counts);
    print(&rows);
    if bless {
        let file = std::fs::File::create(&stored_at).with_context(|| format!("making {STORED}"))?;
        output::write_json(&now, file).with_context(|| format!("writing {STORED}"))?;
        println!("Stored in {STORED}.");
        return Ok(true);
    }
    let notable = rows.iter().filter(|row| row.is_notable()).count();
    if notable == 0 {
        return Ok(true);
    }
    println!(
        "{notable} of {} changed by more than {NOTABLE} %, or are new or gone. If it is meant, `cargo xtask bench --instructions --bless` stores the new counts;\n\
         state the reason in the commit's message.",
        rows.len()
    );
    if let Some(stored) =
        stored.filter(|stored| (&stored.compiler, &stored.valgrind) != (&now.compiler, &now.valgrind))
    {
        println!(
            "What is stored was counted by {} of {}; now it is {} of {}, which counts differently by itself.",
            stored.valgrind, stored.compiler, now.valgrind, now.compiler
        );
    }
    Ok(false)
}

/// What is stored; nothing if nothing is.
fn read(path: &Path) -> anyhow::Result<Option<Stored>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        Ok(text) => {
            let stored = serde_json::from_slice(&text);
            stored.with_context(|| format!("{} holds no counts", path.display())).map(Some)
        }
    }
}

/// The first line of what a program says of its version.
fn version(program: &mut Command) -> anyhow::Result<String> {
    let output = program.arg("--version").output().with_context(|| format!("asking {program:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Counts each of their tests by itself.
fn count(programs: &[TestProgram]) -> anyhow::Result<Counts> {
    let mut progress = Progress::begin("counting instructions");
    let mut counts = Counts::new();
    for program in programs {
        for test in tests(program)? {
            let name = format!("{}: {}", program.package, test.trim_start_matches(MODULE).replace('_', " "));
            progress.at(&name);
            let count = count_one(program, &test).with_context(|| format!("counting {name}"))?;
            counts.insert(name, count);
        }
    }
    if counts.is_empty() {
        bail!("none of the crates {CRATES:?} has tests in a module {MODULE}");
    }
    progress.done(&format!("{} tests", counts.len()));
    Ok(counts)
}

/// The names of a program's tests that are for counting.
fn tests(program: &TestProgram) -> anyhow::Result<Vec<String>> {
    let output = Command::new(&program.path).args([MODULE, "--list", "--format", "terse"]).output()?;
    let text = String::from_utf8(output.stdout).context("reading the names of tests")?;
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.filter(|name| name.starts_with(MODULE)).map(str::to_owned).collect())
}

fn count_one(program: &TestProgram, test: &str) -> anyhow::Result<u64> {
    let directory = tempfile::tempdir()?;
    let file: PathBuf = directory.path().join("callgrind");
    let output = Command::new(VALGRIND.0)
        .args(["--tool=callgrind", &format!("--toggle-collect={MEASURED}")])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(&program.path)
        // On the program's only thread.
        .args(["--exact", test, "--test-threads=1"])
        .current_dir(&program.directory)
        .output()?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("the test failed:\n{}", String::from_utf8_lossy(&text).trim());
    }
    let text = std::fs::read_to_string(&file)?;
    total(&text)
        .filter(|total| *total > 0)
        .context("nothing of it went through the function that is measured")
}

/// The total in a file of callgrind's.
fn total(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total?.trim().parse().ok()
}

fn rows<'a>(stored: &'a Counts, counted: &'a Counts) -> Vec<Row<'a>> {
    let names: BTreeSet<&str> = stored.keys().chain(counted.keys()).map(String::as_str).collect();
    let row = |name| Row { name, stored: stored.get(name).copied(), counted: counted.get(name).copied() };
    names.into_iter().map(row).collect()
}

fn print(rows: &[Row<'_>]) {
    let mut table = output::table();
    table.set_header(["what", "stored", "now", "ratio", ""]);
    let number = |count: Option<u64>| count.map_or_else(|| "none".to_owned(), |count| count.to_string());
    for row in rows {
        table.add_row([
            row.name.to_owned(),
            number(row.stored),
            number(row.counted),
            row.ratio().map_or_else(String::new, |ratio| format!("{ratio:.3}")),
            if row.is_notable() { "*" } else { "" }.to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\nInstructions:\n{table}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts<const N: usize>(counts: [(&str, u64); N]) -> Counts {
        counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }

    #[test]
    fn changes_of_more_than_three_percent_either_way_and_what_is_new_or_gone_need_a_reason() {
        let stored =
            counts([("equal", 1000), ("more", 1000), ("less", 1000), ("within", 1000), ("gone", 1000)]);
        let now = counts([("equal", 1000), ("more", 1031), ("less", 969), ("within", 1030), ("new", 1000)]);
        let rows = rows(&stored, &now);
        let found: Vec<_> = rows.iter().map(|row| (row.name, row.is_notable())).collect();
        assert_eq!(
            found,
            [
                ("equal", false),
                ("gone", true),
                ("less", true),
                ("more", true),
                ("new", true),
                ("within", false)
            ]
        );
    }

    #[test]
    fn a_total_is_read_from_callgrinds_file() {
        let text = "version: 1\nevents: Ir\nsummary: 12\n\nfn=(1) a\n3 12\n\ntotals: 4711\n";
        assert_eq!(total(text), Some(4711));
        assert_eq!(total("version: 1\n"), None);
    }

    #[test]
    fn what_is_stored_can_be_read_and_names_the_crates_that_count() {
        let stored = read(&workspace().join(STORED)).unwrap().unwrap();
        for name in CRATES {
            assert!(stored.counts.keys().any(|key| key.starts_with(&format!("{name}: "))), "{name}");
        }
    }
}
