//! Programs of a sandbox: started in a cgroup and in namespaces, supervised, and ended with their starter.
//!
//! All of them are children of one thread that lives as long as the process does, since the kernel ties the
//! parent-death signal to the thread that forked (prctl(2), PR_SET_PDEATHSIG). So they die with us however we end.
//! Each leads a process group of its own: Ctrl-C at a terminal reaches us alone, and we end them in order.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::error::{During, Error, Result};
use crate::namespace::{MountNamespace, NetNamespace};

/// Lines of a log shown in an error.
const LOG_TAIL_LINES: usize = 15;

/// Where a program runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its network namespace.
    pub net: NetNamespace,
    /// Its mount namespace.
    pub mounts: MountNamespace,
}

/// A program with its arguments and environment; the sandbox's own environment is not inherited but for `PATH`.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    path: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Program {
    /// A program at `path`, or of that name in `PATH`.
    pub fn new(path: impl AsRef<OsStr>) -> Self {
        let path = path.as_ref().to_owned();
        let name = Path::new(&path).file_name().unwrap_or(&path).to_string_lossy().into_owned();
        Self { name, path, args: Vec::new(), env: Vec::new() }
    }

    /// The name used in errors and for its log; the file's name without this.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = Command::new(&self.path);
        command.args(&self.args).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin:/usr/sbin:/sbin".into()));
        // Without it programs ask the name services for one, which can wait for a server nobody can reach.
        command.env("HOME", "/").process_group(0).stdin(Stdio::null());
        let entrance = place.cgroup.entrance()?;
        let place = place.clone();
        let parent = nix::unistd::getpid();
        let enter = move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                // The parent died before the signal was armed.
                return Err(io::Error::from(io::ErrorKind::BrokenPipe));
            }
            (&entrance).write_all(b"0")?;
            setns(place.net.as_fd(), CloneFlags::CLONE_NEWNET)?;
            setns(place.mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes only system calls (prctl, getppid, write, setns) on
        // descriptors opened before; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Starts the program; what it writes goes to `log`, which is appended to.
    pub fn spawn(&self, place: &Place, log: &Path) -> Result<Process> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .during(|| format!("opening the log {}", log.display()))?;
        let errors = file.try_clone().during(|| format!("sharing the log {}", log.display()))?;
        let mut command = self.command(place)?;
        command.stdout(file).stderr(errors);
        let child = fork(command).map_err(|error| self.not_started(&error))?;
        let exit = pidfd(&child).during(|| format!("pidfd_open for {}", self.name))?;
        Ok(Process { name: self.name.clone(), child, exit, status: None, log: log.to_owned() })
    }

    /// Runs the program to its end and returns what it wrote; it is ended after `deadline`, which is an error.
    pub fn output(&self, place: &Place, deadline: Duration) -> Result<Output> {
        let mut command = self.command(place)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = fork(command).map_err(|error| self.not_started(&error))?;
        let exit = pidfd(&child).during(|| format!("pidfd_open for {}", self.name))?;
        let pid = pid_of(&child);
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || sender.send(child.wait_with_output()));
            match receiver.recv_timeout(deadline) {
                Ok(output) => output.during(|| format!("reading what {} wrote", self.name)),
                Err(_) => {
                    // The descriptor tells whether the pid is still this child's.
                    if !has_exited(&exit, Duration::ZERO) {
                        let _ = kill(pid, Signal::SIGKILL);
                    }
                    let what = format!("the end of {} {}", self.name, self.shown_args());
                    Err(Error::Timeout { what, after: deadline, detail: String::new() })
                }
            }
        })
    }

    fn not_started(&self, error: &io::Error) -> Error {
        let reason = format!("cannot start {}: {error}", self.path.to_string_lossy());
        Error::Program { program: self.name.clone(), reason }
    }

    fn shown_args(&self) -> String {
        self.args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// A running program. It is ended when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    exit: OwnedFd,
    status: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// The name it was started under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds what it wrote.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal; one that has ended is left alone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited(Duration::ZERO)?.is_some() {
            return Ok(());
        }
        kill(pid_of(&self.child), signal).during(|| format!("sending {signal} to {}", self.name))
    }

    /// Waits at most `deadline` for its end.
    pub fn exited(&mut self, deadline: Duration) -> Result<Option<ExitStatus>> {
        if self.status.is_none() && has_exited(&self.exit, deadline) {
            self.status = Some(self.child.wait().during(|| format!("waiting for {}", self.name))?);
        }
        Ok(self.status)
    }

    /// Asks it to end (SIGTERM) and ends it (SIGKILL) after `grace`; tells whether it went by itself.
    pub fn stop(&mut self, grace: Duration) -> Result<bool> {
        self.signal(Signal::SIGTERM)?;
        if self.exited(grace)?.is_some() {
            return Ok(true);
        }
        self.kill()?;
        Ok(false)
    }

    /// Ends it at once, as a crash would, and reaps it.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        if self.status.is_none() {
            self.status = Some(self.child.wait().during(|| format!("waiting for {}", self.name))?);
        }
        Ok(())
    }

    /// An error with the end of the log when the program has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.exited(Duration::ZERO)? {
            None => Ok(()),
            Some(status) => Err(Error::Program {
                program: self.name.clone(),
                reason: format!(
                    "ended early ({status}); its log {} ends with:\n{}",
                    self.log.display(),
                    tail(&self.log)
                ),
            }),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the cgroup's end catches what remains.
        let _ = self.kill();
    }
}

/// The last lines of a log, for people.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines[from..].iter().map(|line| format!("    {line}\n")).collect()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Forks on the one thread whose end is the process's end.
fn fork(mut command: Command) -> io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static FORKER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    });
    let (reply, answer) = mpsc::sync_channel(1);
    let job: Job = Box::new(move || {
        // The caller waits for the answer below.
        let _ = reply.send(command.spawn());
    });
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    forker.send(job).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    answer.recv().map_err(gone)?
}

/// A descriptor that becomes readable when the child ends (pidfd_open(2), kernel 5.3).
fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid_of(child).as_raw(), 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn has_exited(exit: &OwnedFd, deadline: Duration) -> bool {
    let timeout = PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut [PollFd::new(exit.as_fd(), PollFlags::POLLIN)], timeout), Ok(1))
}
