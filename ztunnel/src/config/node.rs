//! Who this process is, and how it describes itself to a control plane (contract 2.3).

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::proto::discovery::Node;
use api::xds_client;
use mesh::{Network, TrustDomain};
use serde_json::Value;

use super::ConfigError;
use super::environment::Environment;

/// Prefixes of the variables whose rest names an entry of the metadata: a text, and JSON.
const TEXTS: &str = "ISTIO_META_";
const JSON: &str = "ISTIO_METAJSON_";

/// See the module.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NodeOptions {
    /// The name of the node this runs on.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node_name: String,
    /// The cluster the node belongs to.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// The network the node belongs to; addresses are unique within one.
    #[arg(long, env = "NETWORK", default_value = "", value_parser = network)]
    pub(super) network: Network,
    /// The trust domain of this mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local", value_parser = trust_domain)]
    pub(crate) trust_domain: TrustDomain,
    /// The domain of the cluster: Services are found by DNS below `svc.` of it.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = cluster_domain)]
    pub(crate) cluster_domain: String,
    /// The address under which the control plane knows this process. It calls nobody there.
    #[arg(long, env = "INSTANCE_IP", default_value = "1.1.1.1")]
    instance_ip: IpAddr,
    /// The name of this process's own pod. Default: the node's name.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// The namespace of this process's own pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "ztunnel")]
    pod_namespace: String,
    #[arg(skip)]
    metadata: BTreeMap<String, Value>,
}

impl NodeOptions {
    /// Takes what variables add to the description: ISTIO_META_NAME=TEXT and ISTIO_METAJSON_NAME=JSON.
    pub(super) fn take_metadata(&mut self, environment: &Environment) -> Result<(), ConfigError> {
        let texts = environment.family(TEXTS).map(|(name, text)| (name.to_owned(), text.into()));
        self.metadata.extend(texts);
        for (name, text) in environment.family(JSON) {
            let value = serde_json::from_str(text).map_err(|error| ConfigError::Variable {
                variable: format!("{JSON}{name}"),
                reason: format!("not JSON: {error}"),
            })?;
            self.metadata.insert(name.to_owned(), value);
        }
        Ok(())
    }

    /// The cluster: the metadata's word for it is said in more places.
    pub(super) fn cluster_id(&self) -> &str {
        self.metadata.get("CLUSTER_ID").and_then(Value::as_str).unwrap_or(&self.cluster_id)
    }

    /// The description.
    pub(crate) fn describe(&self) -> Node {
        let Self { node_name, instance_ip, pod_namespace, .. } = self;
        let pod = self.pod_name.as_ref().unwrap_or(node_name);
        let own = [
            ("NAME", pod.clone()),
            ("NAMESPACE", pod_namespace.clone()),
            ("INSTANCE_IPS", instance_ip.to_string()),
            ("NODE_NAME", node_name.clone()),
            ("CLUSTER_ID", self.cluster_id.clone()),
            ("NETWORK", self.network.to_string()),
        ];
        let mut metadata: BTreeMap<String, Value> =
            own.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
        metadata.extend(self.metadata.clone());
        let id = format!("ztunnel~{instance_ip}~{pod}.{pod_namespace}~{pod_namespace}.svc.cluster.local");
        xds_client::node(&id, metadata)
    }
}

fn network(text: &str) -> Result<Network, String> {
    Ok(Network::from(text))
}

fn cluster_domain(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    match !text.is_empty() && text.bytes().all(allowed) {
        true => Ok(text),
        false => Err("a domain is made of letters, digits, '.' and '-'".to_owned()),
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    match !text.is_empty() && text.bytes().all(allowed) {
        true => Ok(TrustDomain::from(text)),
        false => Err("a trust domain is made of a-z, 0-9, '.', '-' and '_' (SPIFFE-ID 2.1)".to_owned()),
    }
}
