//! A directory of Kubernetes manifests, read to objects: all of it, or nothing with everything that is wrong with it.
//!
//! Own types for just the fields that are read; the rest of an object is tolerated as Kubernetes does, and other kinds are
//! listed as ignored, but for Istio's security kinds, which are an error in a version that is not known: a misspelt one
//! would protect nothing, in silence. Nothing is decided here: what objects mean is [`translate`](crate::translate)'s.

mod check;
mod error;
mod field;
mod files;
mod metadata;
mod pod;
mod policy;
mod service;
mod tree;
mod watch;

use std::path::Path;
use std::sync::Arc;

pub use error::{LoadError, ManifestError, ObjectName, Origin, Problem};
pub use field::PortReference;
pub use files::load;
pub use metadata::{Created, Metadata, Plain};
pub use pod::{NamedPort, Owner, Pod};
pub use policy::{
    AuthorizationPolicy, Condition, MtlsMode, Operation, PeerAuthentication, PolicyAction, PolicyRule,
    Source, Values,
};
pub use service::{Service, ServicePort};
pub use tree::Position;
pub use watch::{Reloads, WatchError, watch};

use field::{Context, Field};
use metadata::Placement;
use tree::{Tree, Value};

/// Everything read from a directory, in the order of file names and of documents.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Namespaces.
    pub namespaces: Vec<Plain>,
    /// Service accounts.
    pub service_accounts: Vec<Plain>,
    /// Nodes.
    pub nodes: Vec<Plain>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Services.
    pub services: Vec<Service>,
    /// `PeerAuthentication`s.
    pub peer_authentications: Vec<PeerAuthentication>,
    /// `AuthorizationPolicy`s.
    pub authorization_policies: Vec<AuthorizationPolicy>,
    /// `RequestAuthentication`s: that they are there is all that is read of them.
    pub request_authentications: Vec<Plain>,
    /// Objects of other kinds, and documents that are no Kubernetes objects.
    pub ignored: Vec<Ignored>,
}

/// Something that was not read, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// What it is.
    pub object: ObjectName,
    /// Its API group and version; empty for what is no Kubernetes object.
    pub api_version: String,
    /// Where it stands.
    pub origin: Origin,
}

impl Objects {
    /// Reads the documents of one file.
    ///
    /// # Errors
    /// Everything that is wrong with it, at most one error an object.
    pub fn read(file: &Path, text: &str) -> Result<Self, Vec<ManifestError>> {
        let file: Arc<Path> = file.into();
        let documents = tree::parse(text).map_err(|error| {
            let origin = Origin { file: Arc::clone(&file), position: error.position };
            vec![ManifestError {
                origin,
                object: None,
                field: String::new(),
                problem: Problem::Syntax(error.message),
            }]
        })?;
        let mut objects = Self::default();
        let mut errors = Vec::new();
        for document in &documents {
            objects.read_document(&file, document, &mut errors);
        }
        if errors.is_empty() { Ok(objects) } else { Err(errors) }
    }

    /// Adds an object, or each item of a `List`, as `kubectl get -o yaml` writes it.
    fn read_document(&mut self, file: &Arc<Path>, document: &Tree, errors: &mut Vec<ManifestError>) {
        if let (Some("List"), Some(Value::List(items))) = (peek(document, "kind"), entry(document, "items")) {
            for item in items {
                self.read_document(file, item, errors);
            }
        } else if let Err(error) = self.read_object(file, document) {
            errors.push(*error);
        }
    }

    fn read_object(&mut self, file: &Arc<Path>, tree: &Tree) -> field::Result<()> {
        let (kind, api_version) = (peek(tree, "kind"), peek(tree, "apiVersion"));
        let name = ObjectName {
            kind: kind.unwrap_or("document without a kind").to_owned(),
            namespace: peek_metadata(tree, "namespace").unwrap_or_default().to_owned(),
            name: peek_metadata(tree, "name").unwrap_or_default().to_owned(),
        };
        let context = Context { file: Arc::clone(file), object: name.clone() };
        let object = Field::root(&context, tree);
        match (api_version, kind) {
            (Some("v1"), Some("Namespace")) => {
                self.namespaces.push(Plain::read(&object, Placement::Cluster)?);
            }
            (Some("v1"), Some("Node")) => self.nodes.push(Plain::read(&object, Placement::Cluster)?),
            (Some("v1"), Some("ServiceAccount")) => {
                self.service_accounts.push(Plain::read(&object, Placement::Namespaced)?);
            }
            (Some("v1"), Some("Pod")) => self.pods.push(Pod::read(&object)?),
            (Some("v1"), Some("Service")) => self.services.push(Service::read(&object)?),
            (Some(ISTIO_SECURITY_V1 | ISTIO_SECURITY_V1BETA1), Some("PeerAuthentication")) => {
                self.peer_authentications.push(PeerAuthentication::read(&object)?);
            }
            (Some(ISTIO_SECURITY_V1 | ISTIO_SECURITY_V1BETA1), Some("AuthorizationPolicy")) => {
                self.authorization_policies.push(AuthorizationPolicy::read(&object)?);
            }
            (Some(ISTIO_SECURITY_V1 | ISTIO_SECURITY_V1BETA1), Some("RequestAuthentication")) => {
                self.request_authentications.push(Plain::read(&object, Placement::Namespaced)?);
            }
            (Some(version), Some(kind)) if is_security(version, kind) => {
                return Err(unknown_security(&object, version, kind)?);
            }
            (Some(_), None) => {
                return Err(object.get("kind")?.missing("write the object's kind, as in `kind: Pod`"));
            }
            (None, Some(_)) => {
                return Err(object.get("apiVersion")?.missing("write its version, as in `apiVersion: v1`"));
            }
            (api_version, _) => self.ignored.push(Ignored {
                object: name,
                api_version: api_version.unwrap_or_default().to_owned(),
                origin: object.origin(),
            }),
        }
        Ok(())
    }

    fn append(&mut self, mut other: Self) {
        self.namespaces.append(&mut other.namespaces);
        self.service_accounts.append(&mut other.service_accounts);
        self.nodes.append(&mut other.nodes);
        self.pods.append(&mut other.pods);
        self.services.append(&mut other.services);
        self.peer_authentications.append(&mut other.peer_authentications);
        self.authorization_policies.append(&mut other.authorization_policies);
        self.request_authentications.append(&mut other.request_authentications);
        self.ignored.append(&mut other.ignored);
    }

    /// Every object that was read, by kind: what must be unique.
    fn all(&self) -> impl Iterator<Item = (&'static str, &Metadata)> {
        let namespaces = self.namespaces.iter().map(|object| ("Namespace", &object.metadata));
        let nodes = self.nodes.iter().map(|object| ("Node", &object.metadata));
        let accounts = self.service_accounts.iter().map(|object| ("ServiceAccount", &object.metadata));
        let pods = self.pods.iter().map(|object| ("Pod", &object.metadata));
        let services = self.services.iter().map(|object| ("Service", &object.metadata));
        let peers = self.peer_authentications.iter().map(|object| ("PeerAuthentication", &object.metadata));
        let policies =
            self.authorization_policies.iter().map(|object| ("AuthorizationPolicy", &object.metadata));
        let requests =
            self.request_authentications.iter().map(|object| ("RequestAuthentication", &object.metadata));
        let plain = namespaces.chain(nodes).chain(accounts).chain(requests);
        plain.chain(pods).chain(services).chain(peers).chain(policies)
    }
}

/// Whether an object is there to protect something: left unread because of a misspelt version it would protect nothing.
fn is_security(api_version: &str, kind: &str) -> bool {
    SECURITY_KINDS.contains(&kind)
        || api_version.split_once('/').is_some_and(|(group, _)| group == ISTIO_SECURITY)
}

/// What is wrong with a protecting object that is none of those that are read.
fn unknown_security(object: &Field<'_>, api_version: &str, kind: &str) -> field::Result<Box<ManifestError>> {
    if SECURITY_KINDS.contains(&kind) {
        let reason = format!(
            "is not known here: write {ISTIO_SECURITY_V1}, and keep objects of other systems elsewhere"
        );
        return Ok(object.get("apiVersion")?.invalid(api_version, reason));
    }
    let reason = format!("is no kind of {ISTIO_SECURITY}: write one of {}", SECURITY_KINDS.join(", "));
    Ok(object.get("kind")?.invalid(kind, reason))
}

const SECURITY_KINDS: [&str; 3] = ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"];
const ISTIO_SECURITY: &str = "security.istio.io";
const ISTIO_SECURITY_V1: &str = "security.istio.io/v1";
const ISTIO_SECURITY_V1BETA1: &str = "security.istio.io/v1beta1";

fn entry<'a>(tree: &'a Tree, key: &str) -> Option<&'a Value> {
    let Value::Map(entries) = &tree.value else { return None };
    entries.iter().find(|(name, _)| name == key).map(|(_, tree)| &tree.value)
}

fn peek<'a>(tree: &'a Tree, key: &str) -> Option<&'a str> {
    match entry(tree, key) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}

fn peek_metadata<'a>(tree: &'a Tree, key: &str) -> Option<&'a str> {
    let Value::Map(entries) = &tree.value else { return None };
    let (_, metadata) = entries.iter().find(|(name, _)| name == "metadata")?;
    peek(metadata, key)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod watch_tests;
