//! Which system calls running processes make, by `strace`. It slows them, so that its counts are of use and its times are not.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use sandbox::{Process, Program};

use super::watch::{self, Post};

/// The program and Debian's package of it.
pub(super) const STRACE: (&str, &str) = ("strace", "strace");

/// The columns it is asked for; [`read`] reads just these.
const COLUMNS: &str = "calls,errors,name";

/// Calls by their names, and how many of them failed; most of those had nothing to read, or no room to write.
pub(super) type Counts = BTreeMap<String, Calls>;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Calls {
    pub(super) all: u64,
    pub(super) failed: u64,
}

/// Calls that are being counted.
pub(super) struct Counting {
    process: Process,
    summary: PathBuf,
}

impl Counting {
    /// Begins; when this returns, each thread of these processes is attached.
    pub(super) fn start(post: Post<'_>, pids: &[u32]) -> anyhow::Result<Self> {
        let summary = post.file("strace.summary")?;
        let log = post.file("strace.log")?;
        let program = Program::new(STRACE.0).args(["-f", "-c", "-U", COLUMNS, "-o"]).arg(&summary);
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let program = pids.iter().fold(program, |program, pid| program.args(["-p", pid]));
        let mut process = program.spawn(post.place, &log)?;
        sandbox::wait::try_until(
            watch::DEADLINE,
            || "the attachment of strace".to_owned(),
            || {
                process.check_alive().map_err(|error| error.to_string())?;
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                if pids.iter().all(|pid| is_attached(&text, pid)) { Ok(()) } else { Err(text) }
            },
        )?;
        Ok(Self { process, summary })
    }

    /// Ends, and adds what was counted.
    pub(super) fn finish(self, counts: &mut Counts) -> anyhow::Result<()> {
        watch::stop(self.process)?;
        let text = std::fs::read_to_string(&self.summary)
            .with_context(|| format!("reading {}", self.summary.display()))?;
        for (name, calls) in read(&text) {
            let sum = counts.entry(name.to_owned()).or_default();
            sum.all += calls.all;
            sum.failed += calls.failed;
        }
        Ok(())
    }
}

/// `strace: Process 7 attached`, to which it adds with how many threads.
fn is_attached(log: &str, pid: &str) -> bool {
    log.lines().any(|line| {
        let rest = line.split_once("Process ").and_then(|(_, rest)| rest.strip_prefix(pid));
        rest.is_some_and(|rest| rest.starts_with(" attached"))
    })
}

/// The lines of a summary; its head, its rulers and its sum are none of a call.
fn read(text: &str) -> impl Iterator<Item = (&str, Calls)> {
    text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (all, failed, name) = match words[..] {
            [all, name] => (all, "0", name),
            [all, failed, name] => (all, failed, name),
            _ => return None,
        };
        let calls = Calls { all: all.parse().ok()?, failed: failed.parse().ok()? };
        (name != "total").then_some((name, calls))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read_without_its_head_and_its_sum() {
        let text = "\
    calls    errors syscall
--------- --------- ----------------
     4711      1200 recvfrom
     1200           epoll_wait
--------- --------- ----------------
     5911      1200 total
";
        let found: Vec<_> = read(text).collect();
        let calls = |all, failed| Calls { all, failed };
        assert_eq!(found, [("recvfrom", calls(4711, 1200)), ("epoll_wait", calls(1200, 0))]);
    }

    #[test]
    fn a_process_is_attached_once_its_line_is_whole() {
        let log = "strace: Process 71 attached with 3 threads\nstrace: Process 8 attached\nstrace: Process 9";
        for (pid, expected) in [("71", true), ("8", true), ("7", false), ("9", false)] {
            assert_eq!(is_attached(log, pid), expected, "{pid}");
        }
    }
}
