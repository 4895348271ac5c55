//! A directory of Kubernetes manifests, read to objects: all of it, or nothing with everything that is wrong with it.
//!
//! Own types for just the fields that are read; the rest of an object is tolerated as Kubernetes does, and other kinds are
//! listed as ignored, but for Istio's security kinds, which are an error in a version that is not known: a misspelt one
//! would protect nothing, in silence. Nothing is decided here: what objects mean is [`translate`](crate::translate)'s.

mod check;
mod endpoint_slice;
mod error;
mod field;
mod files;
mod metadata;
mod object;
mod pod;
mod policy;
mod service;
mod tree;
mod watch;

use std::path::Path;

pub use endpoint_slice::{Endpoint, EndpointPort, EndpointSlice};
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

pub(crate) use field::{Context, Field};
pub(crate) use metadata::Placement;
pub(crate) use object::{Kind, Object};
pub(crate) use tree::{Tree, Value, ValueVisitor, Within};

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
    /// `EndpointSlice`s.
    pub endpoint_slices: Vec<EndpointSlice>,
    /// `PeerAuthentication`s.
    pub peer_authentications: Vec<PeerAuthentication>,
    /// `AuthorizationPolicy`s.
    pub authorization_policies: Vec<AuthorizationPolicy>,
    /// `RequestAuthentication`s: that they are there is all that is read of them.
    pub request_authentications: Vec<Plain>,
    /// Objects of other kinds, and documents that are no Kubernetes objects.
    pub ignored: Vec<Ignored>,
    /// Objects of a cluster that cannot be read: unlike a directory, it is taken all the same.
    pub unreadable: Vec<Unreadable>,
}

/// An object that cannot be read, and what that leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// What is wrong.
    pub error: Box<ManifestError>,
    /// What is done instead.
    pub instead: Instead,
}

/// What is done instead of what an unreadable object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// As much is refused as it could have refused.
    Closed,
    /// It is as if it were not there.
    LeftOut,
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
        let origin = Origin::File { file: file.into(), position: Position::default() };
        let documents = tree::parse(text).map_err(|error| {
            vec![ManifestError {
                origin: origin.at(error.position),
                object: None,
                field: String::new(),
                problem: Problem::Syntax(error.message),
            }]
        })?;
        let mut objects = Self::default();
        let mut errors = Vec::new();
        for document in &documents {
            objects.read_document(&origin, document, &mut errors);
        }
        if errors.is_empty() { Ok(objects) } else { Err(errors) }
    }

    /// Adds an object, or each item of a `List`, as `kubectl get -o yaml` writes it.
    fn read_document(&mut self, origin: &Origin, document: &Tree, errors: &mut Vec<ManifestError>) {
        if let (Some("List"), Some(Value::List(items))) =
            (document.text("kind"), document.entry("items").map(|items| &items.value))
        {
            for item in items {
                self.read_document(origin, item, errors);
            }
        } else if let Err(error) = self.read_object(origin, document) {
            errors.push(*error);
        }
    }

    fn read_object(&mut self, origin: &Origin, tree: &Tree) -> field::Result<()> {
        let (kind, api_version) = (tree.text("kind"), tree.text("apiVersion"));
        let name = ObjectName::of(kind.unwrap_or("document without a kind"), tree);
        let context = Context { origin: origin.clone(), object: name.clone() };
        let object = Field::root(&context, tree);
        match (api_version, kind) {
            (Some(version), Some(kind)) => match Kind::of(version, kind) {
                Some(kind) => self.add(Object::read(kind, &object)?),
                None if is_security(version, kind) => return Err(unknown_security(&object, version, kind)?),
                None => self.ignore(name, version, &object),
            },
            (Some(_), None) => {
                return Err(object.get("kind")?.missing("write the object's kind, as in `kind: Pod`"));
            }
            (None, Some(_)) => {
                return Err(object.get("apiVersion")?.missing("write its version, as in `apiVersion: v1`"));
            }
            (None, None) => self.ignore(name, "", &object),
        }
        Ok(())
    }

    fn ignore(&mut self, name: ObjectName, api_version: &str, object: &Field<'_>) {
        let api_version = api_version.to_owned();
        self.ignored.push(Ignored { object: name, api_version, origin: object.origin() });
    }

    /// Adds an object.
    pub(crate) fn add(&mut self, object: Object) {
        match object {
            Object::Namespace(object) => self.namespaces.push(object),
            Object::Node(object) => self.nodes.push(object),
            Object::ServiceAccount(object) => self.service_accounts.push(object),
            Object::Pod(object) => self.pods.push(*object),
            Object::Service(object) => self.services.push(*object),
            Object::EndpointSlice(object) => self.endpoint_slices.push(object),
            Object::PeerAuthentication(object) => self.peer_authentications.push(object),
            Object::AuthorizationPolicy(object) => self.authorization_policies.push(object),
            Object::RequestAuthentication(object) => self.request_authentications.push(object),
        }
    }

    fn append(&mut self, mut other: Self) {
        self.namespaces.append(&mut other.namespaces);
        self.service_accounts.append(&mut other.service_accounts);
        self.nodes.append(&mut other.nodes);
        self.pods.append(&mut other.pods);
        self.services.append(&mut other.services);
        self.endpoint_slices.append(&mut other.endpoint_slices);
        self.peer_authentications.append(&mut other.peer_authentications);
        self.authorization_policies.append(&mut other.authorization_policies);
        self.request_authentications.append(&mut other.request_authentications);
        self.ignored.append(&mut other.ignored);
        self.unreadable.append(&mut other.unreadable);
    }

    /// Every object that was read, by kind: what must be unique.
    fn all(&self) -> impl Iterator<Item = (&'static str, &Metadata)> {
        let namespaces = self.namespaces.iter().map(|object| ("Namespace", &object.metadata));
        let nodes = self.nodes.iter().map(|object| ("Node", &object.metadata));
        let accounts = self.service_accounts.iter().map(|object| ("ServiceAccount", &object.metadata));
        let pods = self.pods.iter().map(|object| ("Pod", &object.metadata));
        let services = self.services.iter().map(|object| ("Service", &object.metadata));
        let slices = self.endpoint_slices.iter().map(|object| ("EndpointSlice", &object.metadata));
        let peers = self.peer_authentications.iter().map(|object| ("PeerAuthentication", &object.metadata));
        let policies =
            self.authorization_policies.iter().map(|object| ("AuthorizationPolicy", &object.metadata));
        let requests =
            self.request_authentications.iter().map(|object| ("RequestAuthentication", &object.metadata));
        let plain = namespaces.chain(nodes).chain(accounts).chain(requests);
        plain.chain(pods).chain(services).chain(slices).chain(peers).chain(policies)
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

#[cfg(test)]
mod tests;
#[cfg(test)]
mod watch_tests;
