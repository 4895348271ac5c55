//! A machine from outside: a set of namespaces (network, mount, PID, UTS) whose first process is [`init`](super::init). It ends as
//! a machine does whose power is cut: with its first process.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use sandbox::wait;

use super::layout::{Layout, Machine};
use super::network;

/// How long a machine may take to be there, and to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// A machine that runs, by its first process and by the time that began, since ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Running {
    /// The process outside of the namespaces, whose only child is the first inside.
    outer: i32,
    started: u64,
}

impl Running {
    /// What is recorded of the machine, if that is still so.
    pub(super) fn find(layout: &Layout, machine: Machine) -> Option<Self> {
        let text = fs::read_to_string(record(layout, machine)).ok()?;
        let (outer, started) = text.trim().split_once(' ')?;
        let (outer, started) = (outer.parse().ok()?, started.parse().ok()?);
        (start_of(outer) == Some(started)).then_some(Self { outer, started })
    }

    /// The first process inside.
    pub(super) fn inner(self) -> anyhow::Result<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.outer);
        let children = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let first = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        first.context("the machine has no process")
    }

    /// A command inside of the machine.
    pub(super) fn command(self, program: impl AsRef<std::ffi::OsStr>) -> anyhow::Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.inner()?.to_string()).arg("--all").arg("--").arg(program);
        Ok(command)
    }

    /// Cuts its power, and waits until it is gone.
    fn cut(self) -> anyhow::Result<()> {
        let _ = kill(Pid::from_raw(self.outer), Signal::SIGKILL);
        let ended = || {
            // Only if it is a child of ours; else somebody else reaps it.
            let _ = waitpid(Pid::from_raw(self.outer), Some(WaitPidFlag::WNOHANG));
            (start_of(self.outer) != Some(self.started)).then_some(())
        };
        Ok(wait::until(PATIENCE, || format!("the end of process {}", self.outer), ended)?)
    }
}

fn record(layout: &Layout, machine: Machine) -> PathBuf {
    layout.directory().join(format!("{}.process", machine.name))
}

/// When a process began, in ticks since the machine's start (proc(5), field 22); none of one that has ended.
fn start_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// Starts a machine and connects it; its programs begin once it has a network.
///
/// # Errors
/// It runs already, or something it needs is missing.
pub(super) fn start(layout: &Layout, machine: Machine, programs: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(Running::find(layout, machine).is_none(), "{} runs already", machine.name);
    make_cgroups(&layout.cgroup(machine))?;
    let files = layout.machine(machine);
    fs::create_dir_all(&files)?;
    let log = File::create(files.join("init.log"))?;
    let own = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private"])
        .arg(own)
        .args(["cluster", "init", machine.name, "--directory"])
        .arg(layout.directory())
        .arg("--programs")
        .arg(programs)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting unshare")?;
    let outer = i32::try_from(child.id())?;
    let started = start_of(outer).context("the machine ended at once")?;
    fs::write(record(layout, machine), format!("{outer} {started}\n"))?;
    let running = Running { outer, started };
    let inner = || match running.inner() {
        Ok(inner) if is_apart(inner) => Ok(inner),
        _ => Err(tail(&files.join("init.log"))),
    };
    let inner = wait::try_until(PATIENCE, || format!("the start of {}", machine.name), inner)?;
    let control = if machine.index == 0 { inner } else { control_of(layout)? };
    network::connect(machine, inner, control)?;
    // It waits for the end of its input.
    drop(child.stdin.take());
    Ok(())
}

/// Whether a process is in a network namespace of its own by now.
fn is_apart(pid: i32) -> bool {
    let net = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    net(&pid.to_string()).is_some_and(|there| Some(there) != net("self"))
}

fn control_of(layout: &Layout) -> anyhow::Result<i32> {
    Running::find(layout, super::layout::CONTROL).context("the control plane does not run")?.inner()
}

/// Cuts a machine's power and removes what outlives that.
///
/// # Errors
/// A process does not end, or a cgroup stays.
pub(super) fn stop(layout: &Layout, machine: Machine) -> anyhow::Result<()> {
    if let Some(running) = Running::find(layout, machine) {
        running.cut()?;
    }
    let _ = fs::remove_file(record(layout, machine));
    remove_cgroups(&layout.cgroup(machine))
}

/// The roots of the hierarchies, whichever way they are mounted: one of version 2, or several.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_root = |path: &PathBuf| path.join("cgroup.procs").is_file() && !path.is_symlink();
    if is_root(&root.to_owned()) { vec![root.to_owned()] } else { below.filter(is_root).collect() }
}

fn make_cgroups(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies() {
        let path = hierarchy.join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        // In version 1 a new group has no processors and no memory before it is given some.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(path.join(file), all)?;
            }
        }
    }
    Ok(())
}

fn remove_cgroups(name: &str) -> anyhow::Result<()> {
    for path in hierarchies().into_iter().map(|hierarchy| hierarchy.join(name)) {
        // Processes that were killed leave theirs a moment later.
        let what = || format!("the end of the cgroup {}", path.display());
        wait::try_until(PATIENCE, what, || remove_tree(&path).map_err(|error| error.to_string()))?;
    }
    Ok(())
}

/// Removes a cgroup and all below it; their files are not files.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The last lines of a log.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_process_that_has_ended_or_whose_id_is_anothers_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let machine = super::super::layout::NODES[0];
        let own = i32::try_from(std::process::id()).unwrap();
        let started = start_of(own).unwrap();
        let write = |pid: i32, started: u64| {
            fs::write(record(&layout, machine), format!("{pid} {started}\n")).unwrap();
        };
        assert_eq!(Running::find(&layout, machine), None);
        write(own, started);
        assert_eq!(Running::find(&layout, machine), Some(Running { outer: own, started }));
        write(own, started + 1);
        assert_eq!(Running::find(&layout, machine), None);
    }
}
