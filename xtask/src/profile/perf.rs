//! A profile of running processes, by `perf record`.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sandbox::{Process, Program};

use super::fold::FIELDS;
use super::watch::{self, Post};

/// The program and Debian's package of it.
pub(super) const PERF: (&str, &str) = ("perf", "linux-perf");

/// Samples in a second of each processor: no divisor of the timer's frequency, with which they would otherwise fall together.
const FREQUENCY: &str = "1999";

/// A profile that is being recorded.
pub(super) struct Recording<'a> {
    post: Post<'a>,
    process: Process,
    data: PathBuf,
}

impl<'a> Recording<'a> {
    /// Begins; when this returns, nothing of these processes goes unseen.
    pub(super) fn start(post: Post<'a>, pids: &[u32]) -> anyhow::Result<Self> {
        let (control, answers) = (post.file("perf.control")?, post.file("perf.answers")?);
        let (mut control_end, mut answers_end) = (pipe(&control)?, pipe(&answers)?);
        let data = post.file("perf.data")?;
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let program = Program::new(PERF.0)
            // Not into the user's cache of build ids.
            .args(["record", "--quiet", "-N", "-g", "-F", FREQUENCY, "-D", "-1", "-p", &pids.join(",")])
            .arg("--control")
            .arg(format!("fifo:{},{}", control.display(), answers.display()))
            .arg("-o")
            .arg(&data);
        let mut process = program.spawn(post.place, &post.file("perf.log")?)?;
        control_end.write_all(b"enable\n").context("telling perf to begin")?;
        let mut answer = Vec::new();
        sandbox::wait::try_until(
            watch::DEADLINE,
            || "the answer of perf that it records".to_owned(),
            || {
                process.check_alive().map_err(|error| error.to_string())?;
                // Nothing to be read yet is an error as well.
                let _ = answers_end.read_to_end(&mut answer);
                if answer.starts_with(b"ack\n") { Ok(()) } else { Err(String::new()) }
            },
        )?;
        Ok(Self { post, process, data })
    }

    /// Ends, and tells the samples as `perf script` writes them.
    pub(super) fn finish(self) -> anyhow::Result<String> {
        watch::stop(self.process)?;
        let data = self.data.display().to_string();
        // Functions that were inlined would be looked up one by one, for minutes.
        let program = Program::new(PERF.0).args(["script", "--no-inline", "-F", FIELDS, "-i", &data]);
        let output = program.output(self.post.place, watch::DEADLINE)?;
        if !output.status.success() {
            bail!("perf script: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).context("reading the samples")
    }
}

/// A pipe with a name. Open for both directions, so that neither waits for the other's end.
fn pipe(path: &Path) -> anyhow::Result<File> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).with_context(|| format!("making {}", path.display()))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open(path).with_context(|| format!("opening {}", path.display()))
}
