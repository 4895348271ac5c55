//! Objects to mesh state: what the manifests mean. Pure: the same objects give the same state, in the same order.
//!
//! Whatever a manifest asks for and this build does not do becomes a [`Warning`]. Policies mean what they mean in Istio's
//! ambient mode. Where a rule can be judged in part, that is to the stricter side: an ALLOW rule that needs a request is
//! left out, a DENY rule holds for more than it asks. What cannot be judged at all is not enforced, and then something
//! stays open that the manifest would close: a DENY rule of nothing but requests' fields, the action CUSTOM, policies
//! with `targetRefs`, a `RequestAuthentication`, a STRICT `PeerAuthentication` with a selector in the root namespace.
//! Their warnings say so by [`Warning::unenforced`].

mod authorization;
mod endpoints;
mod networks;
mod peer_authentication;
mod service;
mod waypoint;
mod workload;

pub(crate) use workload::{kubernetes_uid, namespaces_of_the_mesh};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use api::proto::node::{DnsCapture, Pod as NodePod, PreMesh};
use mesh::{Authorization, Service, TrustDomain, Workload};

use crate::manifests::{Instead, Metadata, ObjectName, Objects, Origin, Pod, Unreadable};
use peer_authentication::PlaintextRefusal;

/// The annotation that says what becomes of a pod's connections from before it joined: `keep` or `cut`.
const PRE_MESH: &str = "culvert.dev/pre-mesh-connections";

/// On a pod: whether its DNS is captured. Istio's name.
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";

/// What the mesh is called.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The trust domain of its identities.
    pub trust_domain: TrustDomain,
    /// The cluster's name, first part of workload uids.
    pub cluster_id: String,
    /// The namespace whose policies hold for the whole mesh.
    pub root_namespace: String,
    /// The last part of Services' host names.
    pub cluster_domain: String,
}

impl Default for Settings {
    /// Istio's defaults: `cluster.local`, `Kubernetes`, `istio-system`.
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            cluster_id: "Kubernetes".to_owned(),
            root_namespace: "istio-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

/// Something a manifest asks for that it does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where the object stands.
    pub origin: Origin,
    /// The object.
    pub object: ObjectName,
    /// What it does not get, and what happens instead.
    pub message: String,
    /// Something stays open that the object would close.
    pub unenforced: bool,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.origin, self.object, self.message)
    }
}

/// A pod for its node's agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Enrolled {
    /// The node it runs on.
    pub node: String,
    /// What the agent is told.
    pub pod: NodePod,
}

/// The mesh state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translation {
    /// Every pod that has not ended, of those without an address only the ones that are in the mesh, and endpoints of Services that are no pods.
    pub workloads: Vec<Workload>,
    /// Every Service.
    pub services: Vec<Service>,
    /// L4 policies.
    pub policies: Vec<Authorization>,
    /// Pods that are in the mesh.
    pub pods: Vec<Enrolled>,
    /// What was asked for in vain.
    pub warnings: Vec<Warning>,
}

/// Warnings as they come up.
#[derive(Debug, Default)]
struct Warnings(Vec<Warning>);

impl Warnings {
    /// What is left out leaves nothing open.
    fn add(&mut self, kind: &str, metadata: &Metadata, message: impl Into<String>) {
        self.push(kind, metadata, message.into(), false);
    }

    /// What is left out leaves something open.
    fn unenforced(&mut self, kind: &str, metadata: &Metadata, message: impl Into<String>) {
        self.push(kind, metadata, message.into(), true);
    }

    /// What could not even be read.
    fn unreadable(&mut self, unreadable: &Unreadable) {
        let Unreadable { error, instead } = unreadable;
        let object = error.object.clone();
        let field = if error.field.is_empty() { String::new() } else { format!("{} ", error.field) };
        let (instead, unenforced) = match instead {
            Instead::Closed => ("until it is mended it refuses all that it could", false),
            Instead::LeftOut => ("it is as if it were not there", true),
        };
        let message = format!("{field}{}; {instead}", error.problem);
        self.0.push(Warning {
            origin: error.origin.clone(),
            object: object.unwrap_or_default(),
            message,
            unenforced,
        });
    }

    fn push(&mut self, kind: &str, metadata: &Metadata, message: String, unenforced: bool) {
        let object = ObjectName {
            kind: kind.to_owned(),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        };
        self.0.push(Warning { origin: metadata.origin.clone(), object, message, unenforced });
    }
}

/// Namespaces and nodes by name, for looking up their labels. What has no manifest has no labels.
struct Surroundings<'a> {
    namespaces: HashMap<&'a str, &'a Metadata>,
    nodes: HashMap<&'a str, &'a Metadata>,
}

impl<'a> Surroundings<'a> {
    fn of(objects: &'a Objects) -> Self {
        let by_name = |list: &'a [crate::manifests::Plain]| {
            list.iter().map(|object| (object.metadata.name.as_str(), &object.metadata)).collect()
        };
        Self { namespaces: by_name(&objects.namespaces), nodes: by_name(&objects.nodes) }
    }

    fn namespace_label(&self, namespace: &str, key: &str) -> Option<&'a str> {
        self.namespaces.get(namespace).and_then(|metadata| metadata.label(key))
    }

    fn node_label(&self, node: &str, key: &str) -> Option<&'a str> {
        self.nodes.get(node).and_then(|metadata| metadata.label(key))
    }
}

/// Whether every label of `selector` is among `labels`. An empty selector selects everything.
fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What `objects` mean.
pub fn translate(objects: &Objects, settings: &Settings) -> Translation {
    let mut warnings = Warnings::default();
    let surroundings = Surroundings::of(objects);
    let services = service::services(objects, &surroundings, settings, &mut warnings);
    let authorizations = authorization::convert(objects, settings, &mut warnings);
    let modes = peer_authentication::Modes::of(objects, settings, &mut warnings);
    let selectors = service::Selectors::of(&services);
    let mut policies: Vec<Authorization> =
        authorizations.iter().map(|converted| converted.policy.clone()).collect();
    let mut workloads = Vec::new();
    let mut pods = Vec::new();
    let mut strict_policies = BTreeMap::new();
    for pod in objects.pods.iter().filter(|pod| !pod.ended) {
        // One whose network is being made can be called by nobody; its own node's proxy has to know it before it calls others.
        let starts = pod.addresses.is_empty();
        if starts && !workload::is_enrolled(pod, &surroundings) {
            continue;
        }
        let mut workload = workload::workload(pod, &surroundings, settings, &mut warnings);
        if !starts {
            workload.services = service::memberships(pod, &selectors, &mut warnings);
        }
        workload.authorization_policies = authorization::selecting(pod, &authorizations);
        let effective = modes.of_pod(pod);
        if let Some(policy) = effective.policy() {
            workload.authorization_policies.push(policy.name.clone());
            strict_policies.insert(policy.name.clone(), policy);
        }
        if workload::is_enrolled(pod, &surroundings) {
            pods.push(enrolled(pod, effective.refusal(), &mut warnings));
        }
        workloads.push(workload);
    }
    endpoints::add(objects, &services, &surroundings, settings, &mut workloads, &mut warnings);
    policies.extend(strict_policies.into_values());
    unknown_accounts(objects, &mut warnings);
    objects.unreadable.iter().for_each(|unreadable| warnings.unreadable(unreadable));
    for object in &objects.request_authentications {
        let message = "is for waypoints, which this build does not have: tokens of requests are not checked";
        warnings.unenforced("RequestAuthentication", &object.metadata, message);
    }
    let gateways = networks::gateways(&services, &mut warnings);
    let mut services: Vec<Service> = services.into_iter().map(|service| service.service).collect();
    networks::connect(&gateways, &mut workloads, &mut services);
    Translation { workloads, services, policies, pods, warnings: warnings.0 }
}

fn enrolled(pod: &Pod, refusal: PlaintextRefusal, warnings: &mut Warnings) -> Enrolled {
    let numbers = |ports: BTreeSet<u16>| ports.into_iter().map(u32::from).collect();
    let (strict, strict_ports, permissive_ports) = match refusal {
        PlaintextRefusal::Everywhere => (true, Vec::new(), Vec::new()),
        PlaintextRefusal::OnlyOn(ports) => (false, numbers(ports), Vec::new()),
        PlaintextRefusal::AllBut(ports) => (false, Vec::new(), numbers(ports)),
    };
    let pod_for_agent = NodePod {
        uid: kubernetes_uid(pod),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        service_account: pod.service_account.clone(),
        addresses: pod.addresses.iter().copied().map(api::convert::address_to_bytes).collect(),
        probe_ports: pod.probe_ports.iter().copied().map(u32::from).collect(),
        netns_path: pod.metadata.annotation("culvert.dev/netns").unwrap_or_default().to_owned(),
        strict,
        strict_ports,
        permissive_ports,
        pre_mesh: pre_mesh(pod, warnings).into(),
        dns_capture: dns_capture(pod, warnings).into(),
    };
    Enrolled { node: pod.node.clone(), pod: pod_for_agent }
}

/// What a pod wants done with its connections from before it joined.
fn pre_mesh(pod: &Pod, warnings: &mut Warnings) -> PreMesh {
    match pod.metadata.annotation(PRE_MESH) {
        None => PreMesh::Unspecified,
        Some("keep") => PreMesh::Keep,
        Some("cut") => PreMesh::Cut,
        Some(other) => {
            let message =
                format!("annotation {PRE_MESH}: `{other}` is neither keep nor cut; the connections are cut");
            warnings.add("Pod", &pod.metadata, message);
            PreMesh::Cut
        }
    }
}

/// Whether a pod wants its DNS captured.
fn dns_capture(pod: &Pod, warnings: &mut Warnings) -> DnsCapture {
    match pod.metadata.annotation(DNS_CAPTURE) {
        None => DnsCapture::Unspecified,
        Some("true") => DnsCapture::On,
        Some("false") => DnsCapture::Off,
        Some(other) => {
            let message = format!(
                "annotation {DNS_CAPTURE}: `{other}` is neither true nor false; it is as if there were none"
            );
            warnings.add("Pod", &pod.metadata, message);
            DnsCapture::Unspecified
        }
    }
}

/// An identity is made of the account's name, so that a misspelt one goes unnoticed until a policy refuses it. An API server admits no pod
/// whose account it does not have.
fn unknown_accounts(objects: &Objects, warnings: &mut Warnings) {
    let accounts = objects.service_accounts.iter().map(|account| &account.metadata);
    let known: BTreeSet<(&str, &str)> =
        accounts.map(|account| (account.namespace.as_str(), account.name.as_str())).collect();
    let from_file = |pod: &&Pod| matches!(pod.metadata.origin, Origin::File { .. });
    for pod in
        objects.pods.iter().filter(from_file).filter(|pod| !pod.ended && pod.service_account != "default")
    {
        if !known.contains(&(pod.metadata.namespace.as_str(), pod.service_account.as_str())) {
            let message = format!(
                "its ServiceAccount `{}` is not among the manifests; it is taken as it stands",
                pod.service_account
            );
            warnings.add("Pod", &pod.metadata, message);
        }
    }
}
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;
