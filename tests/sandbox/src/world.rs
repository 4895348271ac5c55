//! The sandbox as a whole: fabric, nodes and pods of one directory of manifests, made together and taken down together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::capture::Capture;
use crate::error::{During, Error, Result};
use crate::interrupt;
use crate::manifest::{Manifests, PodSpec};
use crate::namespace::NetNamespace;
use crate::node::{self, Node};
use crate::pod::{Images, Pod, Surroundings};
use crate::process::Program;
use crate::run::{Run, check_requirements};

/// The node that runs no pods but the control plane.
pub const CONTROL_NODE: &str = "control";

/// What a sandbox is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where runs keep their files, such as `target/sandbox`.
    pub parent: PathBuf,
    /// A directory of manifests. It is copied, so that a test may change its copy.
    pub manifests: PathBuf,
    /// The binary for each image the manifests name.
    pub images: Images,
    /// A program that waits for ever, which holds a pod's namespaces.
    pub pause: Program,
}

/// Nodes and pods on one fabric. Dropping it ends every process and removes everything it made.
#[derive(Debug)]
pub struct Sandbox {
    pods: BTreeMap<String, Pod>,
    nodes: BTreeMap<String, Node>,
    fabric: NetNamespace,
    manifests: Manifests,
    options: Options,
    /// Pods ever started, so that each device of a node has a name of its own.
    started: usize,
    /// Addresses of pods that the other nodes have routes to, which outlive the pods.
    routed: BTreeSet<IpAddr>,
    // The last to be dropped: it ends what the others did not.
    run: Run,
}

impl Sandbox {
    /// Makes the nodes that the manifests' pods name and [`CONTROL_NODE`], and starts the pods; returns when
    /// their declared ports are served.
    pub fn start(options: &Options) -> Result<Self> {
        check_requirements()?;
        interrupt::watch()?;
        let templates = Manifests::read(&options.manifests)?;
        let run = Run::begin(&options.parent)?;
        let directory = run.directory().join("manifests");
        copy_manifests(&options.manifests, &directory, &templates, run.number())?;
        let manifests = Manifests::read(&directory)?;
        let fabric = node::fabric()?;
        let mut names: Vec<String> = manifests.pods.iter().map(|pod| pod.node.clone()).collect();
        names.push(CONTROL_NODE.to_owned());
        names.sort();
        names.dedup();
        let mut nodes = BTreeMap::new();
        for (order, name) in (0..).zip(names) {
            nodes.insert(name.clone(), Node::attach(&name, order, &fabric, run.cgroup())?);
        }
        let (pods, routed, options) = (BTreeMap::new(), BTreeSet::new(), options.clone());
        let mut sandbox = Self { pods, nodes, fabric, manifests, options, started: 0, routed, run };
        for spec in sandbox.manifests.pods.clone() {
            sandbox.start_pod(spec)?;
        }
        sandbox.pods.values_mut().try_for_each(Pod::wait_listening)?;
        Ok(sandbox)
    }

    /// Starts the pods of a further manifest, on nodes that exist, and then writes it to `file` in
    /// [`Sandbox::manifests_directory`], where the mesh learns of them. Returns their names when their declared ports are served.
    ///
    /// Uids become those of this run, as at the start; a pod that comes in the place of another needs a uid of its own.
    pub fn start_pods(&mut self, file: &str, text: &str) -> Result<Vec<String>> {
        let templates = Manifests::parse(Path::new(file), text)?;
        let text = with_uids_of_run(text.to_owned(), &templates, self.run.number());
        let specs = Manifests::parse(Path::new(file), &text)?.pods;
        let names: Vec<String> = specs.iter().map(PodSpec::full_name).collect();
        specs.into_iter().try_for_each(|spec| self.start_pod(spec))?;
        for name in &names {
            self.pods.get_mut(name).map_or(Ok(()), Pod::wait_listening)?;
        }
        let target = self.manifests_directory().join(file);
        fs::write(&target, text).during(|| format!("writing {}", target.display()))?;
        Ok(names)
    }

    /// Ends a pod as kubelet would: its processes, its cgroup, and with the last reference its network namespace. Its manifest
    /// stays until the caller changes it.
    pub fn stop_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(name).ok_or_else(|| Error::Unknown { what: format!("pod {name}") })?;
        pod.end()
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).ok_or_else(|| Error::Unknown { what: format!("node {name}") })
    }

    /// The nodes that run pods.
    pub fn pod_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.name() != CONTROL_NODE)
    }

    /// The pod `namespace/name`.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).ok_or_else(|| Error::Unknown { what: format!("pod {name}") })
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The run's files: logs, the control plane's state, and the copy of the manifests.
    pub fn directory(&self) -> &Path {
        self.run.directory()
    }

    /// The copy of the manifests the mesh of this sandbox is to read.
    pub fn manifests_directory(&self) -> PathBuf {
        self.run.directory().join("manifests")
    }

    /// The manifests as they were at the start.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Leaves the run's files in place at the end, for the logs in them.
    pub fn keep_files(&self) {
        self.run.keep_files();
    }

    /// Starts to record what crosses the fabric's port of `node`, looking for any of `markers`.
    pub fn capture(&self, node: &str, markers: &[&[u8]]) -> Result<Capture> {
        let here = self.node(node)?;
        let own = self.addresses_on(|name| name == here.name());
        let others = self.addresses_on(|name| name != here.name() && name != CONTROL_NODE);
        Capture::start(&self.fabric, here.name(), (own, others), markers)
    }

    /// Ends every process and removes everything, with an error when that fails. Dropping does the same, but can
    /// only print the error.
    pub fn end(self) -> Result<()> {
        self.run.end()
    }

    fn addresses_on(&self, wanted: impl Fn(&str) -> bool) -> Vec<IpAddr> {
        let nodes = self.nodes.values().filter(|node| wanted(node.name())).flat_map(|node| node.addresses());
        let pods = self.manifests.pods.iter().filter(|pod| wanted(&pod.node));
        nodes.chain(pods.flat_map(|pod| pod.addresses.clone())).collect()
    }

    /// Routes from the other nodes to the pods' addresses on `node`, as far as they are missing.
    fn route(&mut self, node: &str, addresses: &[IpAddr]) -> Result<()> {
        let there = self.nodes.get(node).ok_or_else(|| Error::Unknown { what: format!("node {node}") })?;
        let missing: Vec<IpAddr> =
            addresses.iter().copied().filter(|address| self.routed.insert(*address)).collect();
        let mut others = self.nodes.values().filter(|here| here.name() != node);
        others.try_for_each(|here| here.route_to(there, missing.iter().copied()))
    }

    fn start_pod(&mut self, spec: PodSpec) -> Result<()> {
        self.route(&spec.node, &spec.addresses)?;
        let around = Surroundings {
            node: self.node(&spec.node)?,
            number: self.started,
            hosts: self.manifests.hosts(&spec.namespace),
            directory: self.run.directory(),
            images: &self.options.images,
            pause: &self.options.pause,
        };
        let pod = Pod::start(spec, &around)?;
        self.started += 1;
        self.pods.insert(pod.name(), pod);
        Ok(())
    }
}

/// Copies the manifests and gives each pod a uid of this run, as a cluster would: agents find pods by their uids among
/// all processes of the machine, and several sandboxes of the same manifests may run at once.
fn copy_manifests(from: &Path, to: &Path, templates: &Manifests, run: u32) -> Result<()> {
    fs::create_dir_all(to).during(|| format!("making {}", to.display()))?;
    let listing = fs::read_dir(from).during(|| format!("reading {}", from.display()))?;
    for entry in listing.filter_map(|entry| entry.ok()).filter(|entry| entry.path().is_file()) {
        let text =
            fs::read_to_string(entry.path()).during(|| format!("reading {}", entry.path().display()))?;
        let text = with_uids_of_run(text, templates, run);
        let target = to.join(entry.file_name());
        fs::write(&target, text).during(|| format!("writing {}", target.display()))?;
    }
    Ok(())
}

fn with_uids_of_run(text: String, templates: &Manifests, run: u32) -> String {
    templates.pods.iter().fold(text, |text, pod| text.replace(&pod.uid, &uid_of_run(&pod.uid, run)))
}

/// A uid with its first group, of 8 digits, replaced.
fn uid_of_run(uid: &str, run: u32) -> String {
    uid.split_once('-').map_or_else(|| uid.to_owned(), |(_, others)| format!("{run:08x}-{others}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uids_of_two_runs_differ_and_stay_uids() {
        let uid = "5b0f3c1e-0001-4c57-9a10-000000000010";
        assert_eq!(uid_of_run(uid, 0x1234), "00001234-0001-4c57-9a10-000000000010");
        assert_ne!(uid_of_run(uid, 1), uid_of_run(uid, 2));
    }
}
