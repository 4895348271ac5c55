//! The pods of one node, for its agent: from the API server itself, so that pods join and leave the mesh while control is away.

use std::collections::BTreeSet;

use api::convert::pod_resource;
use prost_types::Any;

use super::{Cluster, Scope, Watches};
use crate::manifests::Objects;
use crate::translate::{Settings, kubernetes_uid, namespaces_of_the_mesh, translate};

/// A node's pods, watched.
pub struct NodePods {
    watches: Watches,
    node: String,
    settings: Settings,
}

/// A node's pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// Those that are in the mesh, as control would describe them, by their uids. One whose network is still being made has no address.
    pub pods: Vec<(String, Any)>,
    /// The uids of those that are not.
    pub outside: BTreeSet<String>,
    /// The namespaces, anywhere, whose pods are in the mesh unless they say otherwise.
    pub namespaces: BTreeSet<String>,
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

    /// Waits for the next state that differs from the last one returned.
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> NodeState {
        let objects = self.watches.next().await;
        state(&objects, &self.node, &self.settings)
    }
}

fn state(objects: &Objects, node: &str, settings: &Settings) -> NodeState {
    let translated = translate(objects, settings).pods;
    let here = translated.iter().filter(|enrolled| enrolled.node == node);
    let pods: Vec<_> = here.map(|enrolled| pod_resource(&enrolled.pod)).collect();
    let inside: BTreeSet<&str> = pods.iter().map(|(uid, _)| uid.as_str()).collect();
    let all = objects.pods.iter().filter(|pod| pod.node == node).map(kubernetes_uid);
    let outside = all.filter(|uid| !inside.contains(uid.as_str())).collect();
    NodeState { outside, namespaces: namespaces_of_the_mesh(objects), pods }
}
