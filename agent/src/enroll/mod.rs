//! Enrolment: pods join the mesh, stay whole while they are in it, and leave drained.
//!
//! `manager` has a task for each pod; the task (`task`) looks at what stands (kernel and ztunnel, never a label), asks `steps`
//! what is next, and does it. It looks again when control changes its mind, when ztunnel comes or goes, when something in
//! the pod's namespace changes (`watch`), and every 30 s.

mod backoff;
mod connections;
mod destroy;
pub(crate) mod error;
mod look;
mod make;
pub(crate) mod manager;
pub(crate) mod pod;
mod prune;
pub(crate) mod steps;
mod sweep;
mod task;
mod turns;
mod watch;

pub(crate) use destroy::end_captured;
pub(crate) use sweep::Sweep;
pub(crate) use turns::Turns;

use std::sync::Arc;
use std::time::Duration;

use self::pod::PreMesh;
use crate::kernel::Kernel;
use crate::netns::NetnsId;
use crate::netns::processes::Processes;
use crate::status::Board;
use crate::telemetry::Telemetry;
use crate::zds::hub::Hub;

/// What all pods' tasks share.
#[derive(Debug)]
pub(crate) struct Context {
    /// The kernel programs.
    pub(crate) kernel: Kernel,
    /// ztunnel.
    pub(crate) hub: Arc<Hub>,
    /// Where statuses are posted.
    pub(crate) board: Arc<Board>,
    /// What is counted.
    pub(crate) telemetry: Telemetry,
    /// Turns at work that blocks.
    pub(crate) turns: Turns,
    /// What is done once all pods have been taken over.
    pub(crate) sweep: Sweep,
    /// The agent's own namespace, which is never a pod's.
    pub(crate) own_netns: NetnsId,
    /// The processes of this node.
    pub(crate) processes: Processes,
    /// How long captured connections of a leaving pod may last.
    pub(crate) drain_deadline: Duration,
    /// What becomes of connections from before a pod joined, where the pod does not say.
    pub(crate) pre_mesh: PreMesh,
    /// Whether pods' DNS is captured, where the pod does not say.
    pub(crate) dns: bool,
}
