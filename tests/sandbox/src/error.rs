//! What can go wrong while a sandbox is made, used or taken down, and whose fault it is.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the sandbox. The text names the operation, so that it can be shown as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine or the caller's rights do not suffice: nothing the sandbox could retry.
    #[error("{missing}; {remedy}")]
    Unsupported {
        /// What is missing.
        missing: String,
        /// What a person can do about it.
        remedy: String,
    },
    /// A system call failed.
    #[error("{operation}: {source}")]
    Kernel {
        /// The call and its object, such as `setns(net) into pod shop/web`.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A netlink request was refused.
    #[error("{operation}: {source}")]
    Netlink {
        /// The request and its object.
        operation: String,
        /// The kernel's answer; boxed since it holds the whole message.
        source: Box<rtnetlink::Error>,
    },
    /// A manifest cannot be used.
    #[error("{file}: {reason}", file = file.display())]
    Manifest {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A program could not be started or ended when it should not have.
    #[error("{program}: {reason}")]
    Program {
        /// The name under which it runs in the sandbox.
        program: String,
        /// What happened, with the end of its log when there is one.
        reason: String,
    },
    /// A condition did not come true in time.
    #[error("{what} did not happen within {after:?}{detail}")]
    Timeout {
        /// The condition, as a phrase.
        what: String,
        /// How long was waited.
        after: Duration,
        /// What was seen instead; empty or starting with `: `.
        detail: String,
    },
    /// There is no such pod, node or program in this sandbox.
    #[error("the sandbox has no {what}")]
    Unknown {
        /// What was asked for.
        what: String,
    },
}

/// The result of the sandbox's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds the operation's name to errors of the system.
pub(crate) trait During<T> {
    /// Names the operation that failed.
    fn during(self, operation: impl FnOnce() -> String) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Kernel { operation: operation(), source })
    }
}

impl<T> During<T> for nix::Result<T> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Kernel { operation: operation(), source: errno.into() })
    }
}

impl<T> During<T> for std::result::Result<T, rtnetlink::Error> {
    fn during(self, operation: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Netlink { operation: operation(), source: Box::new(source) })
    }
}
