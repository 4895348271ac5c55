//! The names of resource types on an xDS stream.

/// Workloads and services: [`Address`](crate::proto::workload::Address).
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Policies: [`Authorization`](crate::proto::security::Authorization).
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// A node's own pods: [`Pod`](crate::proto::node::Pod). Culvert's extension, for agents.
pub const NODE_POD: &str = "type.googleapis.com/culvert.node.Pod";
