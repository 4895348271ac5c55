//! Running other programs: short ones for their answer, long ones with progress and a log.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::progress::Progress;

/// Lines of a failed program that its error shows.
const LINES_SHOWN: usize = 15;

/// What `program` prints, or nothing if it is missing or fails.
pub(crate) fn output_of(program: &Path, arguments: &[&str]) -> Option<String> {
    output_with(program, arguments, |_| {})
}

/// As [`output_of`], with changes to the command.
pub(super) fn output_with(
    program: &Path,
    arguments: &[&str],
    change: impl FnOnce(&mut Command),
) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).stderr(Stdio::null());
    change(&mut command);
    let output = command.output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()
}

/// A long step.
pub(crate) struct Step {
    what: String,
    log: PathBuf,
    /// The program to run.
    pub(crate) command: Command,
}

impl Step {
    /// The step `what`, done by `program`, which logs into `directory`.
    pub(crate) fn new(what: &str, program: impl AsRef<OsStr>, directory: &Path) -> Self {
        Self { what: what.to_owned(), log: directory.join("setup.log"), command: Command::new(program) }
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let mut progress = Progress::begin(&*self.what);
        let mut log = File::options().create(true).append(true).open(&self.log)?;
        writeln!(log, "== {}: {:?}", self.what, self.command)?;
        let (reader, writer) = std::io::pipe()?;
        self.command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let mut child =
            self.command.spawn().with_context(|| format!("starting {:?}", self.command.get_program()))?;
        // The command holds the pipe's writing end; the reader below ends when the last of them is closed.
        let shown = format!("{:?}", self.command);
        drop(self.command);
        let mut last = VecDeque::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            writeln!(log, "{line}")?;
            if !line.trim().is_empty() {
                progress.at(line.trim());
                last.push_back(line);
            }
            if last.len() > LINES_SHOWN {
                last.pop_front();
            }
        }
        let status = child.wait()?;
        if !status.success() {
            let lines: Vec<String> = last.into();
            bail!(
                "{} failed ({status}; is this machine online?). It ran\n  {shown}\nand ended with\n  {}\n(all of it: {})",
                self.what,
                lines.join("\n  "),
                self.log.display()
            );
        }
        progress.done("done");
        Ok(())
    }
}
