//! An object as the API server sends it, without what nobody here asks for: that is never held, not even for a moment.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::de::{Deserialize, DeserializeSeed, Deserializer};

use crate::manifests::{Position, Tree, ValueVisitor, Within};

/// What is left out below a field.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// All of it.
    All,
    /// These fields of it, or of each of its items.
    Of(&'static [(&'static str, Cut)]),
}

/// Fields of any object that are left out. What a reader asks for must not be here; all else costs memory alone.
const OBJECT: &[(&str, Cut)] = &[
    (
        "metadata",
        Cut::Of(&[
            ("managedFields", Cut::All),
            ("annotations", Cut::Of(&[("kubectl.kubernetes.io/last-applied-configuration", Cut::All)])),
        ]),
    ),
    (
        "spec",
        Cut::Of(&[
            ("volumes", Cut::All),
            ("affinity", Cut::All),
            ("tolerations", Cut::All),
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
            ("ephemeralContainers", Cut::All),
        ]),
    ),
    (
        "status",
        Cut::Of(&[
            ("containerStatuses", Cut::All),
            ("initContainerStatuses", Cut::All),
            ("ephemeralContainerStatuses", Cut::All),
            ("images", Cut::All),
        ]),
    ),
];

const CONTAINER: Cut = Cut::Of(&[
    ("args", Cut::All),
    ("command", Cut::All),
    ("env", Cut::All),
    ("envFrom", Cut::All),
    ("image", Cut::All),
    ("resources", Cut::All),
    ("securityContext", Cut::All),
    ("volumeDevices", Cut::All),
    ("volumeMounts", Cut::All),
]);

/// Reads a tree but for these fields.
#[derive(Clone, Copy, Debug)]
struct Without(&'static [(&'static str, Cut)]);

impl<'de> DeserializeSeed<'de> for Without {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        // The API server's texts have no lines.
        let value = deserializer.deserialize_any(ValueVisitor(self))?;
        Ok(Tree { position: Position::default(), value })
    }
}

impl<'de> Within<'de> for Without {
    type Seed = Self;

    fn field(&self, key: &str) -> Option<Self> {
        match self.0.iter().find(|(name, _)| *name == key) {
            None => Some(Self(&[])),
            Some((_, Cut::Of(fields))) => Some(Self(fields)),
            Some((_, Cut::All)) => None,
        }
    }

    fn item(&self) -> Self {
        *self
    }
}

/// An object of some kind. That it is malformed is found when it is read: here it would end the watch.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// Name, namespace and version.
    metadata: ObjectMeta,
    /// The whole.
    pub(super) tree: Tree,
}

impl<'de> Deserialize<'de> for Received {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tree = Without(OBJECT).deserialize(deserializer)?;
        let text = |key| tree.entry("metadata").and_then(|metadata| metadata.text(key)).map(str::to_owned);
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, tree })
    }
}

/// The kind is what was asked for; items of a list do not state it.
impl Resource for Received {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::Value;

    /// The paths of all that is kept.
    fn paths(tree: &Tree, path: &str, found: &mut Vec<String>) {
        match &tree.value {
            Value::Map(entries) => {
                entries.iter().for_each(|(key, tree)| paths(tree, &format!("{path}/{key}"), found));
            }
            Value::List(items) => items.iter().for_each(|tree| paths(tree, path, found)),
            _ => found.push(path.to_owned()),
        }
    }

    #[test]
    fn what_nobody_reads_is_left_out_where_it_stands_and_nowhere_else() {
        let text = r#"{
            "metadata": {"name": "a", "namespace": "n", "resourceVersion": "7", "managedFields": [{"manager": "kubelet"}],
                "labels": {"env": "prod", "volumes": "many"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "b": "c"}},
            "spec": {"nodeName": "east", "volumes": [{"name": "v"}], "tolerations": [],
                "containers": [{"name": "x", "env": [{"name": "SECRET", "value": "s"}], "ports": [{"containerPort": 80}]}],
                "selector": {"env": "prod"}},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [{"name": "x"}]}
        }"#;
        let received: Received = serde_json::from_str(text).unwrap();
        let mut found = Vec::new();
        paths(&received.tree, "", &mut found);
        let kept = [
            "/metadata/name",
            "/metadata/namespace",
            "/metadata/resourceVersion",
            "/metadata/labels/env",
            "/metadata/labels/volumes",
            "/metadata/annotations/b",
            "/spec/nodeName",
            "/spec/containers/name",
            "/spec/containers/ports/containerPort",
            "/spec/selector/env",
            "/status/podIPs/ip",
        ];
        assert_eq!(found, kept);
        let ObjectMeta { name, namespace, resource_version, .. } = received.metadata;
        assert_eq!([name, namespace, resource_version].map(Option::unwrap), ["a", "n", "7"]);
    }

    #[test]
    fn anything_that_is_json_is_received() {
        for text in ["{}", "[]", "7", "\"a\"", "null", r#"{"metadata": {"name": 7}}"#, r#"{"metadata": "a"}"#]
        {
            let received: Received = serde_json::from_str(text).unwrap();
            assert_eq!(received.metadata, ObjectMeta::default(), "{text}");
        }
    }
}
