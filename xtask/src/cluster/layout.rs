//! Where everything of the cluster is: its files, its addresses and its cgroups.

use std::path::{Path, PathBuf};

/// Address of the API server, on the bridge that joins the nodes.
pub(crate) const API_ADDRESS: &str = "10.89.0.1";
/// Addresses of Services.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// The first of them, which is the API server's.
pub(crate) const API_SERVICE: &str = "10.96.0.1";
/// Addresses of all pods.
pub(crate) const PODS: &str = "10.244.0.0/16";

/// A machine of the cluster: the one of the control plane, or a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Its name.
    pub(crate) name: &'static str,
    /// 0 for the control plane, else the node's number.
    pub(crate) index: u8,
}

/// Where the control plane runs.
pub(crate) const CONTROL: Machine = Machine { name: "control", index: 0 };
/// The nodes.
pub(crate) const NODES: [Machine; 2] =
    [Machine { name: "east", index: 1 }, Machine { name: "west", index: 2 }];

impl Machine {
    /// The machine of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        std::iter::once(CONTROL).chain(NODES).find(|machine| machine.name == name)
    }

    /// Its address on the bridge.
    pub(crate) fn address(self) -> String {
        if self.index == 0 { API_ADDRESS.to_owned() } else { format!("10.89.0.1{}", self.index) }
    }

    /// The addresses of its pods.
    pub(crate) fn pods(self) -> String {
        format!("10.244.{}.0/24", self.index)
    }
}

/// The cluster's directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout(PathBuf);

impl Layout {
    /// The cluster in this directory.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// All of it.
    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    /// A machine's files.
    pub(crate) fn machine(&self, machine: Machine) -> PathBuf {
        self.0.join(machine.name)
    }

    /// Keys and certificates.
    pub(crate) fn pki(&self, name: &str) -> PathBuf {
        self.0.join("pki").join(name)
    }

    /// How to reach the API server as its administrator.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.0.join("admin.kubeconfig")
    }

    /// Container images that every node has from its start.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// The name of a machine's cgroup in every hierarchy; another directory's cluster has another.
    pub(crate) fn cgroup(&self, machine: Machine) -> String {
        // FNV-1a.
        let hash = self
            .0
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        format!("culvert-{hash:08x}-{}", machine.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_two_directories_have_cgroups_of_their_own() {
        let cgroup = |directory: &str, machine| Layout::new(directory.into()).cgroup(machine);
        assert_eq!(cgroup("/a", NODES[0]), cgroup("/a", NODES[0]));
        assert_ne!(cgroup("/a", NODES[0]), cgroup("/b", NODES[0]));
        assert_ne!(cgroup("/a", NODES[0]), cgroup("/a", NODES[1]));
    }
}
