//! Nodes, pods, links and wire captures from Linux namespaces, and the supervision of the programs in them.
//!
//! A [`Sandbox`] is made from plain Kubernetes manifests: one network namespace per node, attached to a common
//! fabric; in each node the pods scheduled on it, each with namespaces, a cgroup and a hosts file of its own. [`Mesh`]
//! starts the mesh's programs on the nodes. This crate knows those programs by their command lines alone: it depends
//! on no crate of the mesh, and takes the binaries' paths.
//!
//! Everything of a run hangs on its processes and its cgroup subtree, so that it goes when they go: at the end, at a
//! panic, at Ctrl-C. Only cgroup directories and files under `target/` outlive a `kill -9`, and [`clean`] removes them.

mod access_log;
mod capture;
mod cgroup;
mod client;
mod error;
pub mod interrupt;
mod kubelet;
mod manifest;
mod mesh;
mod namespace;
mod network;
mod node;
mod pod;
mod probe;
mod process;
mod readiness;
mod run;
pub mod wait;
mod world;

pub use access_log::{AccessEntry, AccessLog, Direction};
pub use capture::{Capture, Traffic};
pub use cgroup::Cgroup;
pub use client::{Fetch, Reply};
pub use error::{Error, Result};
pub use kubelet::{Kubelet, ProbeOutcome};
pub use manifest::{ContainerSpec, Manifests, PodSpec, ServiceSpec};
pub use mesh::{Binaries, Mesh, MeshOptions, Redirection, Ztunnels};
pub use namespace::NetNamespace;
pub use node::Node;
pub use pod::{Family, Images, Pod};
pub use probe::{Call, ProbeSpec};
pub use process::{Place, Process, Program, tail};
pub use readiness::Readiness;
pub use run::{Cleaned, check_requirements, clean};
pub use world::{CONTROL_NODE, Options, Sandbox};
