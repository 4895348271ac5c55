//! The pods of the benchmark: the same three in the mesh and outside of it, a client and a server on one node and a server on another;
//! and the client and the other node's server once more, for sidecars.

use std::net::Ipv4Addr;

use super::capture::Way;
use super::work::{ECHO, HTTP1, HTTP2, ONCE, PORTS, SINK};

/// The image the manifests name.
pub(crate) const IMAGE: &str = "localhost/culvert-echo";

/// The namespace outside the mesh.
pub(crate) const PLAIN: &str = "plain";
/// The namespace in the mesh.
pub(crate) const MESHED: &str = "meshed";
/// The namespace whose pods have sidecars.
pub(crate) const SIDECARS: &str = "sidecars";

/// Where the client and one server run.
pub(crate) const HERE: &str = "east";
/// Where the other server runs.
pub(crate) const THERE: &str = "west";

/// The client.
pub(crate) const CLIENT: &str = "client";
/// The server on the client's node.
pub(crate) const NEAR: &str = "near";
/// The server on the other node.
pub(crate) const FAR: &str = "far";

/// The pods of a namespace, and their nodes.
const PODS: &[(&str, &str)] = &[(CLIENT, HERE), (FAR, THERE), (NEAR, HERE)];

/// All of them, as one text.
pub(crate) fn all() -> String {
    text([
        Namespace { name: PLAIN, meshed: false, pods: PODS },
        Namespace { name: MESHED, meshed: true, pods: PODS },
        Namespace { name: SIDECARS, meshed: false, pods: &PODS[..2] },
    ])
}

/// The namespace in the mesh alone.
pub(crate) fn meshed() -> String {
    text([Namespace { name: MESHED, meshed: true, pods: PODS }])
}

struct Namespace {
    name: &'static str,
    meshed: bool,
    pods: &'static [(&'static str, &'static str)],
}

fn text(namespaces: impl IntoIterator<Item = Namespace>) -> String {
    let mut text = String::new();
    for (number, Namespace { name: namespace, meshed, pods }) in (1_u8..).zip(namespaces) {
        text.push_str(&self::namespace(namespace, meshed));
        for (place, (name, node)) in (1_u8..).zip(pods) {
            let subnet = if *node == HERE { 1 } else { 2 };
            let address = Ipv4Addr::new(10, 42, subnet, 10 * number + place);
            text.push_str(&pod(namespace, name, node, address, *name != CLIENT));
        }
    }
    text
}

/// A pod on one node for each way to be captured, in a namespace that is called like it.
pub(crate) fn capture() -> String {
    let mut text = String::new();
    for (place, way) in (1_u8..).zip(Way::ALL) {
        text.push_str(&namespace(way.name(), way == Way::Culvert));
        text.push_str(&pod(way.name(), CLIENT, HERE, Ipv4Addr::new(10, 42, 1, place), false));
    }
    text
}

fn namespace(name: &str, meshed: bool) -> String {
    let labels = if meshed { "\n  labels:\n    istio.io/dataplane-mode: ambient" } else { "" };
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}{labels}\n---\n")
}

/// A pod with an account of its own; one that does not serve waits to be told what to do.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, address: Ipv4Addr, serves: bool) -> String {
    let [_, network, subnet, host] = address.octets();
    let uid = format!("5b0f3c1e-0000-4c57-9a10-{network:04x}{subnet:04x}{host:04x}");
    let container = if serves {
        let ports: String = PORTS.map(|port| format!("\n        - containerPort: {port}")).concat();
        format!(
            "args: [answer, --echo, \"{ECHO}\", --once, \"{ONCE}\", --sink, \"{SINK}\", --http1, \"{HTTP1}\", --http2, \"{HTTP2}\"]\n      ports:{ports}"
        )
    } else {
        r#"args: ["pause"]"#.to_owned()
    };
    format!(
        r#"apiVersion: v1
kind: ServiceAccount
metadata:
  name: {name}
  namespace: {namespace}
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  uid: {uid}
  labels:
    app: {name}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers:
    - name: echo
      image: {IMAGE}
      {container}
status:
  phase: Running
  podIP: {address}
  podIPs:
    - ip: {address}
  conditions:
    - type: Ready
      status: "True"
---
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_namespace_has_a_client_and_a_server_on_each_node() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("all.yaml"), all()).unwrap();
        let pods = sandbox::Manifests::read(directory.path()).unwrap().pods;
        let places: Vec<_> = pods.iter().map(|pod| (pod.full_name(), pod.node.as_str())).collect();
        for namespace in [PLAIN, MESHED] {
            for (name, node) in [(CLIENT, HERE), (NEAR, HERE), (FAR, THERE)] {
                assert!(places.contains(&(format!("{namespace}/{name}"), node)), "{places:?}");
            }
        }
        for (name, node) in [(CLIENT, HERE), (FAR, THERE)] {
            assert!(places.contains(&(format!("{SIDECARS}/{name}"), node)), "{places:?}");
        }
        let mut uids: Vec<_> = pods.iter().map(|pod| &pod.uid).collect();
        uids.sort();
        uids.dedup();
        assert_eq!(uids.len(), 8);
    }
}
