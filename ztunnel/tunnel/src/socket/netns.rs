//! A pod's network namespace, and entering it.
//!
//! A socket belongs to the namespace it was made in, whatever thread uses it later; so a thread enters for the
//! one `socket(2)` and returns. Between two calls every thread is at home. A thread that could not return would
//! run other pods' work in this pod: the process ends rather than that.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};

/// `NSFS_MAGIC` of `linux/magic.h`: the file system of namespace descriptors.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// A namespace's inode: equal means the same namespace, as long as one holds it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsInode(pub u64);

/// A network namespace, held open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    inode: NetnsInode,
}

thread_local! {
    /// Where this thread is; unknown until its first entry. Only `enter` moves it.
    static HERE: RefCell<Option<Netns>> = const { RefCell::new(None) };
}

impl Netns {
    /// Takes a descriptor of `/proc/PID/ns/net` or of a bind mount of it. Anything that is no namespace is an
    /// error here; one of another kind fails when it is entered (EINVAL).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        if fstatfs(&fd)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is no namespace"));
        }
        let inode = NetnsInode(fstat(&fd)?.st_ino);
        Ok(Self { fd: Arc::new(fd), inode })
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::new(File::open("/proc/thread-self/ns/net")?.into())
    }

    /// Which one it is.
    pub fn inode(&self) -> NetnsInode {
        self.inode
    }

    /// Runs `f` on this thread inside of the namespace: sockets it makes belong there, and stay there. If the
    /// thread cannot return to where it was the process aborts, also when `f` panics. `f` must not block.
    /// Takes 3.5 us in and out; needs SYS_ADMIN unless the thread is there already.
    pub fn run_in<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        let here = match HERE.with_borrow(Clone::clone) {
            Some(here) => here,
            None => Self::current()?,
        };
        if here.inode == self.inode {
            return Ok(f());
        }
        self.enter()?;
        let _return = Return(here);
        Ok(f())
    }

    fn enter(&self) -> io::Result<()> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
        HERE.set(Some(self.clone()));
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Brings the thread back when dropped, which unwinding does too.
struct Return(Netns);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = self.0.enter() {
            eprintln!("a thread cannot leave a pod's network namespace: {error}");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_no_namespace_is_refused() {
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(Netns::new(file.into()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn two_descriptors_of_one_namespace_are_the_same() {
        let (a, b) = (Netns::current().unwrap(), Netns::current().unwrap());
        assert_eq!(a.inode(), b.inode());
    }

    #[test]
    fn the_own_namespace_needs_no_privilege() {
        assert_eq!(Netns::current().unwrap().run_in(|| 7).unwrap(), 7);
    }
}
