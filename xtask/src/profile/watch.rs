//! Programs that look at others: which ones, and where they run themselves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use sandbox::{Cgroup, Place, Process};

/// How long a program may take to begin to look, and to write what it saw.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// A proxy: the name it is told under, and its processes.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    pub(super) name: String,
    pub(super) pids: Vec<u32>,
}

impl Proxy {
    /// The processes of a control group. Others of the same name may run on this machine.
    pub(super) fn find(name: &str, cgroup: &Cgroup) -> anyhow::Result<Self> {
        let pids = cgroup.processes()?;
        if pids.is_empty() {
            bail!("{name} does not run");
        }
        Ok(Self { name: name.to_owned(), pids })
    }
}

/// Where programs that look at others run, and their files are.
#[derive(Clone, Copy)]
pub(super) struct Post<'a> {
    pub(super) place: &'a Place,
    pub(super) directory: &'a Path,
}

impl Post<'_> {
    /// A file that is not there yet.
    pub(super) fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(path),
        }
    }
}

/// Has a program stop looking, and waits until it has written what it saw.
pub(super) fn stop(mut process: Process) -> anyhow::Result<()> {
    process.check_alive()?;
    process.signal(Signal::SIGINT)?;
    if process.exited(DEADLINE)?.is_none() {
        bail!("{} does not end", process.name());
    }
    Ok(())
}
