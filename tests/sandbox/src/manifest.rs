//! What a sandbox needs of the Kubernetes manifests: the pods to start, and the Services' names and addresses.
//!
//! Other kinds, and fields that have no meaning here, are left to the mesh under test.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::error::{During, Error, Result};
use crate::probe::{ProbeSpec, RawProbes};

/// The pods and Services of a directory of manifests.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// Every Pod, in the order of the files' names.
    pub pods: Vec<PodSpec>,
    /// Every Service with at least one address of its own.
    pub services: Vec<ServiceSpec>,
}

/// A pod to be started.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`, by which kubelet names the pod's cgroup.
    pub uid: String,
    /// `spec.nodeName`.
    pub node: String,
    /// `spec.serviceAccountName`; `default` without one.
    pub service_account: String,
    /// `status.podIPs`; at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// `spec.initContainers` that run to their end before the others start.
    pub init_containers: Vec<ContainerSpec>,
    /// `spec.containers`, after those of `spec.initContainers` that stay (`restartPolicy: Always`).
    pub containers: Vec<ContainerSpec>,
    /// The probes and hooks of these.
    pub probes: Vec<ProbeSpec>,
    /// `spec.dnsConfig.nameservers`; none: the pod resolves names as the machine does.
    pub nameservers: Vec<IpAddr>,
    labels: BTreeMap<String, String>,
}

/// A program of a pod.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// `name`.
    pub name: String,
    /// `image`, which the sandbox maps to a binary.
    pub image: String,
    /// `command` followed by `args`.
    pub args: Vec<String>,
    /// `env`, plain values and `fieldRef`s to the pod's own fields.
    pub env: Vec<(String, String)>,
    /// `ports[].containerPort`.
    pub ports: Vec<u16>,
}

/// A Service's names and addresses.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `spec.clusterIPs`, or for a headless Service the addresses of the pods it selects.
    pub addresses: Vec<IpAddr>,
}

impl PodSpec {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its `resolv.conf` as kubelet writes it, if it has nameservers of its own.
    pub(crate) fn resolv_conf(&self) -> Option<String> {
        if self.nameservers.is_empty() {
            return None;
        }
        let servers = self.nameservers.iter().map(|server| format!("nameserver {server}\n"));
        let search = format!("search {}.svc.cluster.local svc.cluster.local cluster.local\n", self.namespace);
        Some(servers.chain([search, "options ndots:5\n".to_owned()]).collect())
    }
}

impl Manifests {
    /// Reads every `*.yaml` and `*.yml` of `directory`.
    pub fn read(directory: &Path) -> Result<Self> {
        let listing = std::fs::read_dir(directory).during(|| format!("reading {}", directory.display()))?;
        let mut files: Vec<PathBuf> = listing
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
            })
            .collect();
        files.sort();
        let mut found = Found::default();
        for file in &files {
            let text = std::fs::read_to_string(file).during(|| format!("reading {}", file.display()))?;
            found.add(file, &text)?;
        }
        Ok(found.resolve())
    }

    /// Reads the text of one manifest; `file` is named in errors.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self> {
        let mut found = Found::default();
        found.add(file, text)?;
        Ok(found.resolve())
    }

    /// The hosts file of a pod in `namespace`: every Service by the names cluster DNS would answer to.
    pub(crate) fn hosts(&self, namespace: &str) -> String {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for ServiceSpec { name, namespace: home, addresses } in &self.services {
            let short = if home == namespace { format!(" {name}") } else { String::new() };
            for address in addresses {
                let full = format!("{name}.{home}.svc.cluster.local {name}.{home}.svc {name}.{home}");
                text.push_str(&format!("{address} {full}{short}\n"));
            }
        }
        text
    }
}

/// What has been read so far; Services are resolved when all pods are known.
#[derive(Default)]
struct Found {
    pods: Vec<PodSpec>,
    services: Vec<RawService>,
}

impl Found {
    fn add(&mut self, file: &Path, text: &str) -> Result<()> {
        let bad = |reason: String| Error::Manifest { file: file.to_owned(), reason };
        for object in serde_saphyr::from_multiple::<Value>(text).map_err(|error| bad(error.to_string()))? {
            match object["kind"].as_str() {
                Some("Pod") => self.pods.push(pod(object).map_err(bad)?),
                Some("Service") => self.services.push(parse::<RawService>(object).map_err(bad)?),
                _ => {}
            }
        }
        Ok(())
    }

    fn resolve(self) -> Manifests {
        let services = self.services.into_iter().map(|service| service.resolve(&self.pods));
        let services = services.filter(|service| !service.addresses.is_empty()).collect();
        Manifests { pods: self.pods, services }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default = "default_name")]
    namespace: String,
    uid: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawPod {
    metadata: Metadata,
    spec: RawPodSpec,
    status: RawPodStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPodSpec {
    node_name: String,
    #[serde(default = "default_name")]
    service_account_name: String,
    #[serde(default)]
    init_containers: Vec<RawContainer>,
    #[serde(default)]
    containers: Vec<RawContainer>,
    #[serde(default)]
    dns_config: RawDnsConfig,
}

#[derive(Default, Deserialize)]
struct RawDnsConfig {
    #[serde(default)]
    nameservers: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPodStatus {
    #[serde(rename = "podIPs")]
    pod_ips: Vec<RawPodIp>,
}

#[derive(Deserialize)]
struct RawPodIp {
    ip: IpAddr,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainer {
    name: String,
    restart_policy: Option<String>,
    #[serde(flatten)]
    probes: RawProbes,
    image: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Value>,
    #[serde(default)]
    ports: Vec<RawPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    name: Option<String>,
    container_port: u16,
}

#[derive(Deserialize)]
struct RawService {
    metadata: Metadata,
    #[serde(default)]
    spec: RawServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    selector: BTreeMap<String, String>,
}

/// The name of the default namespace, and of every namespace's default service account.
fn default_name() -> String {
    "default".into()
}

fn parse<T: serde::de::DeserializeOwned>(object: Value) -> std::result::Result<T, String> {
    let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
    serde_json::from_value(object).map_err(|error| format!("{what}: {error}"))
}

fn pod(object: Value) -> std::result::Result<PodSpec, String> {
    let RawPod { metadata, spec, status } = parse(object)?;
    let uid = metadata.uid.ok_or_else(|| format!("Pod {}: metadata.uid is missing", metadata.name))?;
    let addresses = status.pod_ips.into_iter().map(|entry| entry.ip).collect();
    let fields = |path: &str| match path {
        "metadata.name" => Some(metadata.name.clone()),
        "metadata.namespace" => Some(metadata.namespace.clone()),
        "spec.nodeName" => Some(spec.node_name.clone()),
        _ => None,
    };
    let (sidecars, init): (Vec<_>, Vec<_>) = spec
        .init_containers
        .into_iter()
        .partition(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut init_containers = Vec::new();
    for container in init {
        init_containers.push(container.resolve(&fields)?.0);
    }
    let (mut containers, mut probes) = (Vec::new(), Vec::new());
    for container in sidecars.into_iter().chain(spec.containers) {
        let (container, own) = container.resolve(&fields)?;
        containers.push(container);
        probes.extend(own);
    }
    Ok(PodSpec {
        init_containers,
        containers,
        probes,
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid,
        node: spec.node_name.clone(),
        service_account: spec.service_account_name.clone(),
        addresses,
        nameservers: spec.dns_config.nameservers,
        labels: metadata.labels.clone(),
    })
}

impl RawContainer {
    fn resolve(
        self,
        field: &impl Fn(&str) -> Option<String>,
    ) -> std::result::Result<(ContainerSpec, Vec<ProbeSpec>), String> {
        let mut env = Vec::new();
        for variable in &self.env {
            let name = variable["name"]
                .as_str()
                .ok_or_else(|| format!("container {}: env without a name", self.name))?;
            let plain = variable["value"].as_str().map(str::to_owned);
            let path = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
            let value = plain.or_else(|| path.and_then(field));
            let value = value.ok_or_else(|| {
                format!("container {}: env {name} has no value the sandbox can give", self.name)
            })?;
            env.push((name.to_owned(), value));
        }
        let args = self.command.into_iter().chain(self.args).collect();
        let named: Vec<_> = self.ports.into_iter().map(|port| (port.name, port.container_port)).collect();
        let probes = self.probes.resolve(&self.name, &named)?;
        let ports = named.into_iter().map(|(_, port)| port).collect();
        Ok((ContainerSpec { name: self.name, image: self.image, args, env, ports }, probes))
    }
}

impl RawService {
    fn resolve(self, pods: &[PodSpec]) -> ServiceSpec {
        let spec = &self.spec;
        let stated = spec.cluster_ips.iter().chain(spec.cluster_ip.iter());
        let mut addresses: Vec<IpAddr> = stated.clone().filter_map(|text| text.parse().ok()).collect();
        addresses.dedup();
        if stated.clone().any(|text| text == "None") && !spec.selector.is_empty() {
            let selected = |pod: &&PodSpec| {
                pod.namespace == self.metadata.namespace
                    && spec.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
            };
            addresses = pods.iter().filter(selected).flat_map(|pod| pod.addresses.clone()).collect();
        }
        addresses.sort();
        addresses.dedup();
        ServiceSpec { name: self.metadata.name, namespace: self.metadata.namespace, addresses }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: 1a, labels: {app: web}}
spec:
  nodeName: east
  containers:
  - {name: echo, image: localhost/culvert-echo, args: [serve], env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]}
status: {podIPs: [{ip: 10.244.1.10}, {ip: 'fd00:244:1::10'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::10'], selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: shop}
spec: {clusterIP: None, selector: {app: web}}
";

    fn read(text: &str) -> Result<Manifests> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.yaml"), text).unwrap();
        Manifests::read(directory.path())
    }

    #[test]
    fn a_pods_hosts_file_names_services_as_cluster_dns_would() {
        let manifests = read(SHOP).unwrap();
        assert_eq!(manifests.pods[0].containers[0].env, [("POD_NAME".to_owned(), "web".to_owned())]);
        let own = manifests.hosts("shop");
        assert!(own.contains("10.96.0.10 web.shop.svc.cluster.local web.shop.svc web.shop web\n"), "{own}");
        assert!(own.contains("fd00:96::10 web.shop.svc.cluster.local"), "{own}");
        assert!(own.contains("10.244.1.10 peers.shop.svc.cluster.local"), "{own}");
        assert!(!manifests.hosts("bank").contains(" web\n"));
    }

    #[test]
    fn a_pod_without_uid_is_an_error_that_names_file_pod_and_field() {
        let error = read(&SHOP.replace("uid: 1a, ", "")).unwrap_err().to_string();
        assert!(error.contains("a.yaml: Pod web: metadata.uid is missing"), "{error}");
    }
}
