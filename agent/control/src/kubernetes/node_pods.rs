//! The pods of one node, for its agent: from the API server itself, so that pods join and leave the mesh while control is away.

use api::convert::pod_resource;
use prost_types::Any;

use super::{Cluster, Scope, Watches};
use crate::translate::{Settings, translate};

/// A node's pods that are in the mesh.
pub struct NodePods {
    watches: Watches,
    node: String,
    settings: Settings,
}

impl NodePods {
    /// Begins to watch when it is asked for the first state. Policies of `root_namespace` hold for the whole mesh.
    pub fn new(cluster: &Cluster, node: &str, root_namespace: &str) -> Self {
        let settings = Settings { root_namespace: root_namespace.to_owned(), ..Settings::default() };
        Self {
            watches: Watches::new(cluster, &Scope::Node(node.to_owned())),
            node: node.to_owned(),
            settings,
        }
    }

    /// Waits for the next state that differs from the last one returned: all pods, as control would describe them, by their uids.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Vec<(String, Any)> {
        let objects = self.watches.next().await;
        let pods = translate(&objects, &self.settings).pods;
        let here = pods.iter().filter(|enrolled| enrolled.node == self.node);
        here.map(|enrolled| pod_resource(&enrolled.pod)).collect()
    }
}
