//! Network and mount namespaces, held by file descriptors alone.
//!
//! A namespace lives as long as a process in it or a descriptor of it: nothing is bind-mounted anywhere, so a
//! killed sandbox takes its namespaces, their devices, mounts and BPF pins with it.
//!
//! Only threads made for the purpose ever change their namespace, and they end with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{During, Error, Result};

/// A network namespace.
#[derive(Clone, Debug)]
pub struct NetNamespace {
    name: Arc<str>,
    file: Arc<File>,
}

impl NetNamespace {
    /// Makes an empty network namespace; `name` appears in errors only.
    pub fn new(name: &str) -> Result<Self> {
        let file = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).during(|| format!("unshare(CLONE_NEWNET) for {name}"))?;
            File::open("/proc/thread-self/ns/net")
                .during(|| format!("opening the network namespace of {name}"))
        })?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace: sockets it opens belong there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            setns(self.as_fd(), CloneFlags::CLONE_NEWNET)
                .during(|| format!("setns(net) into {}", self.name))?;
            Ok(work())
        })
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A mount that a mount namespace has beyond the machine's own.
#[derive(Clone, Debug)]
pub enum Mount {
    /// `source` appears at `target`, which exists.
    Bind {
        /// A file or directory.
        source: PathBuf,
        /// Where it appears.
        target: PathBuf,
    },
    /// An empty memory file system at `target`.
    Memory {
        /// Where it appears.
        target: PathBuf,
    },
    /// A BPF file system of its own at `target`: pins in it go when the namespace goes.
    Bpf {
        /// Where it appears.
        target: PathBuf,
    },
}

/// A mount namespace: the machine's mounts, and those it was made with.
#[derive(Clone, Debug)]
pub struct MountNamespace {
    file: Arc<File>,
}

impl MountNamespace {
    /// Makes a namespace whose mounts do not propagate to or from the machine's; `name` appears in errors only.
    pub fn new(name: &str, mounts: &[Mount]) -> Result<Self> {
        let file = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS).during(|| format!("unshare(CLONE_NEWNS) for {name}"))?;
            mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)
                .during(|| format!("making the mounts of {name} private"))?;
            for entry in mounts {
                entry.apply().during(|| format!("{entry:?} for {name}"))?;
            }
            File::open("/proc/thread-self/ns/mnt").during(|| format!("opening the mount namespace of {name}"))
        })?;
        Ok(Self { file: Arc::new(file) })
    }
}

impl AsFd for MountNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Mount {
    fn apply(&self) -> io::Result<()> {
        match self {
            Self::Bind { source, target } => mount_at(Some(source), target, None, MsFlags::MS_BIND)?,
            Self::Memory { target } => {
                mount_at(None, target, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
            }
            Self::Bpf { target } => mount_at(None, target, Some("bpf"), MsFlags::empty())?,
        }
        Ok(())
    }
}

fn mount_at(source: Option<&Path>, target: &Path, kind: Option<&str>, flags: MsFlags) -> nix::Result<()> {
    mount(source, target, kind, flags, None::<&str>)
}

/// Runs `work` on a thread of its own, which ends with it, so that a changed namespace never leaks.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Writes one of the calling thread's network namespace's settings, named as in `sysctl`.
pub(crate) fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    match std::fs::write(&path, value) {
        // A kernel without IPv6 has none of its settings; the addresses added later say so clearly.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Unsupported {
            missing: format!("this kernel has no setting {name}"),
            remedy: "use a kernel with IPv4 and IPv6".into(),
        }),
        other => other.during(|| format!("setting {name}={value}")),
    }
}
