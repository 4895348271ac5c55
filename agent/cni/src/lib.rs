//! The CNI plugin (CNI specification 1.1.0, and as far back as 0.3.0): chained last, it has the node's agent capture a pod's network namespace
//! before the first container starts in it.
//!
//! Who owns what: [`protocol`] reads what the container runtime says and writes what it is answered, [`members`] is what the agent
//! leaves on the disk of who is in the mesh, [`verdict`] decides with both what becomes of a pod, and [`chain`] puts the plugin into
//! the network's configuration and takes it out: all pure. [`ask`] is what plugin and agent say to each other, and [`plugin`] is the program.
//!
//! Fail closed: a pod of the mesh is refused while nobody can capture it, and the container runtime tries again. A pod outside of the mesh is
//! never held up by the mesh: neither by an agent that is away nor by one that is late.

pub mod ask;
pub mod chain;
pub mod members;
pub mod plugin;
pub mod protocol;
pub mod verdict;
