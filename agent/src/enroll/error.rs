//! Why a pod is not where it should be: one error for every step, with a kind for metrics and a text for people.

use std::io;

use crate::borrowed::BorrowError;
use crate::bpf::{AttachError, MapError};
use crate::listeners::ListenError;
use crate::netns::find::FindError;
use crate::plumbing::kernel::PlumbingError;
use crate::zds::hub::AnnounceError;

use super::steps::Step;

/// A step that failed. Nothing here is final: every step is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollError {
    /// The pod's namespace.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The listeners; the application is at fault when it occupies a port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The listeners that ztunnel has made.
    #[error(transparent)]
    Borrow(#[from] BorrowError),
    /// Rules, routes and sysctls.
    #[error(transparent)]
    Plumbing(#[from] PlumbingError),
    /// ztunnel.
    #[error(transparent)]
    Announce(#[from] AnnounceError),
    /// The kernel programs.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A map of the kernel programs.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The sockets of the pod could not be listed.
    #[error("the pod's connections cannot be listed: {0}")]
    Sockets(#[source] io::Error),
    /// The namespace could not be watched or examined.
    #[error("the pod's network namespace cannot be watched: {0}")]
    Watch(#[source] io::Error),
    /// Captured connections of a leaving pod that could not be ended.
    #[error(
        "{0} captured connections are still open and cannot be cut (CONFIG_INET_DIAG_DESTROY); capture stays until they end"
    )]
    StillCaptured(usize),
    /// Something changed in the pod while ztunnel was waited for, and is seen to first.
    #[error("something changed in the pod's network namespace meanwhile")]
    Interrupted,
    /// The step succeeded, and yet is to be done again: a fault of the agent, or somebody undoes it.
    #[error("{0:?} had no effect (does something else on this node undo it?)")]
    NoEffect(Step),
    /// The thread that worked on it panicked.
    #[error("a fault of the agent: {0}")]
    Fault(#[from] tokio::task::JoinError),
}

impl EnrollError {
    /// The kind, as a label of metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Find(FindError::NoProcess) => "no_process",
            Self::Find(FindError::NoAddress | FindError::AddressesMissing(_)) => "no_address",
            Self::Find(FindError::AgentsOwn) => "host_network",
            Self::Find(FindError::Open { .. } | FindError::Examine(_)) => "netns",
            Self::Listen(ListenError::PortInUse(_)) => "port_in_use",
            Self::Listen(ListenError::Socket { .. } | ListenError::Enter(_)) => "listen",
            Self::Borrow(_) => "ztunnels_listeners",
            Self::Plumbing(_) => "plumbing",
            Self::Announce(AnnounceError::NoZtunnel) => "no_ztunnel",
            Self::Announce(AnnounceError::Unspeakable(_)) => "names_too_long",
            Self::Announce(AnnounceError::Refused(_)) => "ztunnel_refused",
            Self::Announce(AnnounceError::Ended) => "ztunnel_ended",
            Self::Attach(_) => "attach",
            Self::Map(error) if error.is_full() => "map_full",
            Self::Map(_) => "map",
            Self::Sockets(_) => "sock_diag",
            Self::Watch(_) => "watch",
            Self::StillCaptured(_) => "still_captured",
            Self::Interrupted => "interrupted",
            Self::NoEffect(_) => "no_effect",
            Self::Fault(_) => "fault",
        }
    }

    /// Whether this is only a matter of waiting, as with a pod that is still starting: no failure to count or warn of.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.reason(), "no_process" | "no_address" | "no_ztunnel" | "interrupted")
    }
}
