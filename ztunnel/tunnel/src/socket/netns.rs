//! A pod's network namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A namespace's inode: equal means the same namespace, as long as one holds it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsInode(pub u64);

/// A network namespace, held open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    inode: NetnsInode,
}

impl Netns {
    /// Takes a descriptor of `/proc/PID/ns/net` or of a bind mount of it. Anything else is an error.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        todo!()
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        todo!()
    }

    /// Which one it is.
    pub fn inode(&self) -> NetnsInode {
        self.inode
    }

    /// Runs `f` on this thread inside of the namespace: sockets it makes belong there, and stay there. If the thread
    /// cannot return to its own namespace the process aborts, also when `f` panics. `f` must not block nor await.
    pub fn run_in<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        todo!()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
