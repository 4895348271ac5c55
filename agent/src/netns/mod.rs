//! Network namespaces: held open by descriptor, told apart by inode, entered only on threads that end.
//!
//! Invariant: no thread that outlives a call ever changes its namespace. [`Netns::run`] makes a thread,
//! enters, works and ends it, so a panic or a failed return cannot leave a worker in a pod.

pub(crate) mod devices;
pub(crate) mod find;
pub(crate) mod processes;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// What tells one network namespace from another: device and inode of its nsfs file. Unique only while
/// somebody holds the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NetnsId {
    device: u64,
    inode: u64,
}

impl std::fmt::Display for NetnsId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
    id: NetnsId,
}

impl Netns {
    /// Opens the namespace behind `path`, such as `/proc/PID/ns/net` or a bind mount of it.
    ///
    /// # Errors
    /// The path cannot be opened; that of another user's process needs `CAP_SYS_PTRACE`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // Paths come from annotations too: opening one must neither block (as a FIFO would) nor do anything else.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        Self::from_file(File::options().read(true).custom_flags(flags).open(path)?)
    }

    /// Takes over a descriptor received from elsewhere.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Self::from_file(File::from(fd))
    }

    /// The namespace of this process.
    pub(crate) fn own() -> io::Result<Self> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    fn from_file(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { id: NetnsId { device: metadata.dev(), inode: metadata.ino() }, file })
    }

    /// What tells it from others.
    pub(crate) fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` on a new thread inside the namespace and waits for it. Sockets it makes belong to the namespace.
    /// A panic of `work` continues in the caller.
    ///
    /// # Errors
    /// The thread could not be made, or the descriptor is no network namespace, or `CAP_SYS_ADMIN` is missing.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("in-pod".to_owned()).spawn_scoped(scope, || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// As [`Netns::run`], for work that awaits: it gets a runtime of its own for that one call.
    pub(crate) fn run_async<T: Send, F: Future<Output = T>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> io::Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            Ok(runtime.block_on(work()))
        })?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_opened_twice_is_the_same_one() {
        assert_eq!(
            Netns::own().unwrap().id(),
            Netns::open(Path::new("/proc/thread-self/ns/net")).unwrap().id()
        );
    }

    #[test]
    fn something_else_than_a_namespace_cannot_be_entered() {
        let not_a_netns = Netns::open(Path::new("/proc/self/status")).unwrap();
        assert!(not_a_netns.run(|| ()).is_err());
    }
}
