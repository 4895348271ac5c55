//! The pods of one node, for its agent: from the API server itself, so that pods join and leave the mesh while control is away.

use std::collections::BTreeSet;

use api::convert::pod_resource;
use prost_types::Any;
use tokio::sync::watch;

use super::{Cluster, Scope, Watches};
use crate::manifests::{Objects, Pod};
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
    /// The uids of those that are not. One whose namespace is not known yet is in neither, unless its own label takes it in.
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

    /// Whether the API server is heard: the last that it was asked, it has answered.
    pub fn heard(&self) -> watch::Receiver<bool> {
        self.watches.heard()
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
    let namespaces: BTreeSet<&str> =
        objects.namespaces.iter().map(|namespace| namespace.metadata.name.as_str()).collect();
    // Namespaces and pods come by separate watches: of a pod whose namespace is still to come, nobody knows what its namespace says.
    let told = |pod: &&Pod| pod.node == node && namespaces.contains(pod.metadata.namespace.as_str());
    let all = objects.pods.iter().filter(told).map(kubernetes_uid);
    let outside = all.filter(|uid| !inside.contains(uid.as_str())).collect();
    NodeState { outside, namespaces: namespaces_of_the_mesh(objects), pods }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_node_its_pods_are_told_inside_and_outside_and_neither_while_their_namespace_is_to_come() {
        let namespace = |name: &str, mode: &str| {
            format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{istio.io/dataplane-mode: {mode}}}}}\n---\n"
            )
        };
        let pod = |uid: &str, namespace: &str, node: &str, label: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p-{uid}, namespace: {namespace}, uid: {uid}, labels: {{{label}}}}}\n\
                 spec: {{nodeName: {node}}}\n\
                 status: {{podIPs: [{{ip: 10.0.0.1}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n---\n"
            )
        };
        let text = [
            namespace("shop", "ambient"),
            namespace("plain", "none"),
            pod("a", "shop", "east", ""),
            pod("b", "shop", "east", "istio.io/dataplane-mode: none"),
            pod("c", "plain", "east", "istio.io/dataplane-mode: ambient"),
            pod("d", "plain", "east", ""),
            pod("e", "shop", "west", ""),
            pod("f", "still-to-come", "east", ""),
            pod("g", "still-to-come", "east", "istio.io/dataplane-mode: ambient"),
        ];
        let objects = Objects::read(std::path::Path::new("a.yaml"), &text.concat()).unwrap();
        let state = state(&objects, "east", &Settings::default());
        let inside: Vec<&str> = state.pods.iter().map(|(uid, _)| uid.as_str()).collect();
        assert_eq!(inside, ["a", "c", "g"]);
        assert_eq!(state.outside, ["b", "d"].map(str::to_owned).into());
        assert_eq!(state.namespaces, ["shop".to_owned()].into());
    }
}
