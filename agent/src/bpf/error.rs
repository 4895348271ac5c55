//! What can go wrong with the kernel programs, by operation.
//!
//! All of these are the node's fault unless a variant says otherwise: a kernel too old, missing privileges, a full map, or somebody else in our place. A program the
//! verifier refused carries the verifier's log in its error's text.

use std::io;
use std::path::PathBuf;

use super::sys::BpfCallError;

/// The programs could not be brought into the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// A directory of the pins could not be made or read; is a bpffs mounted there?
    #[error("the directory of pins {path} cannot be used (is a BPF file system mounted where --bpffs says?)")]
    Directory { path: PathBuf, source: io::Error },
    /// The object or one of its maps was refused.
    #[error("loading the kernel programs: {0}")]
    Object(#[from] aya::EbpfError),
    /// The object is not what this version of the agent expects: a fault of the build.
    #[error("the kernel object has no usable {kind} `{name}`")]
    Missing { kind: &'static str, name: &'static str },
    /// The kernel refused a program.
    #[error("loading program `{name}`: {source}")]
    Program { name: &'static str, source: Box<aya::programs::ProgramError> },
    /// TCX was asked for and the kernel (before 6.6) has none.
    #[error("this kernel has no TCX (Linux 6.6); use clsact")]
    NoTcx,
    /// A link could not be made.
    #[error("attaching `{name}`: {source}")]
    Link { name: &'static str, source: LinkError },
    /// The log could not be set up.
    #[error("reading the programs' log: {0}")]
    Log(#[from] aya_log::Error),
    /// A map could not be read or cleaned.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The pins of another layout could not be taken over.
    #[error("taking over what another version of the agent pinned: {0}")]
    Former(#[from] AttachError),
}

/// A map could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}")]
pub(crate) struct MapError {
    /// Name of the map.
    pub(crate) map: &'static str,
    /// What the kernel said.
    pub(crate) source: aya::maps::MapError,
}

impl MapError {
    /// Whether the map has no room for another entry.
    pub(crate) fn is_full(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM))
        };
        match &self.source {
            aya::maps::MapError::SyscallError(error) => full(&error.io_error),
            _ => false,
        }
    }
}

/// A link could not be made, adopted or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The kernel refused.
    #[error(transparent)]
    Call(#[from] BpfCallError),
    /// A pin could not be removed, or what the link is for could not be looked at.
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// A pod could not be captured, or let go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// Its namespace could not be entered or looked at.
    #[error("entering the pod's network namespace: {0}")]
    Netns(#[source] io::Error),
    /// Its devices could not be listed.
    #[error("listing the pod's devices: {0}")]
    Devices(#[source] io::Error),
    /// A link could not be made or removed.
    #[error("{hook}: {source}")]
    Link { hook: String, source: LinkError },
    /// A tc filter could not be made or removed.
    #[error("clsact filter on {device}: {source}")]
    Filter { device: String, source: Box<aya::programs::ProgramError> },
    /// The tc filters of a device could not be listed.
    #[error("listing clsact filters: {0}")]
    Filters(#[source] rtnetlink::Error),
    /// A directory of the pins could not be made or removed.
    #[error("{path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    /// The program is not loaded: a fault of the agent.
    #[error("program `{0}` is not loaded")]
    NotLoaded(&'static str),
}
