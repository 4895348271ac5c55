//! `metadata`: what every object has, and the kinds that have little else.

use std::collections::BTreeMap;

use super::error::Origin;
use super::field::{Field, Result};

/// An object's `metadata`, as far as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// `name`.
    pub name: String,
    /// `namespace`, `default` where it is not stated; empty for kinds that have none.
    pub namespace: String,
    /// `uid`, where it is stated.
    pub uid: Option<String>,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Its age, for ties between policies.
    pub created: Created,
    /// `deletionTimestamp` is set: it is being taken away.
    pub deleting: bool,
    /// Where the object stands.
    pub origin: Origin,
}

/// `creationTimestamp`; ordered oldest first. An object that states none is younger than all that do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Created {
    /// RFC 3339 in UTC, of a fixed width, so that its text sorts by time.
    At(String),
    /// Not stated.
    Unknown,
}

/// Whether a kind lives in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    Namespaced,
    Cluster,
}

impl Metadata {
    pub(crate) fn read(object: &Field<'_>, placement: Placement) -> Result<Self> {
        let metadata = object.get("metadata")?;
        let name = metadata.get("name")?;
        let namespace = match placement {
            Placement::Cluster => String::new(),
            Placement::Namespaced => {
                let field = metadata.get("namespace")?;
                field.checked_name(field.text()?.unwrap_or("default"))?
            }
        };
        Ok(Self {
            name: name.checked_name(name.required_text("write the object's name")?)?,
            namespace,
            uid: uid(&metadata.get("uid")?)?,
            labels: metadata.get("labels")?.text_map()?,
            annotations: metadata.get("annotations")?.text_map()?,
            created: created(&metadata.get("creationTimestamp")?)?,
            deleting: metadata.get("deletionTimestamp")?.is_present(),
            origin: object.origin(),
        })
    }

    /// A label's value, if the label is there.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// An annotation's value, if the annotation is there.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

/// A uid becomes a file name and part of a cgroup's name: no separators.
fn uid(field: &Field<'_>) -> Result<Option<String>> {
    let Some(uid) = field.text()?.filter(|uid| !uid.is_empty()) else { return Ok(None) };
    if uid.len() <= 64 && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Ok(Some(uid.to_owned()));
    }
    Err(field.invalid(
        uid,
        "is no uid: letters, digits and `-`, at most 64, as in 5b0f3c1e-0001-4c57-9a10-000000000010",
    ))
}

fn created(field: &Field<'_>) -> Result<Created> {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00Z";
    let Some(text) = field.text()? else { return Ok(Created::Unknown) };
    let fits = text.len() == SHAPE.len()
        && text
            .bytes()
            .zip(SHAPE)
            .all(|(byte, shape)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == *shape });
    if fits {
        return Ok(Created::At(text.to_owned()));
    }
    Err(field.invalid(text, "is no time as Kubernetes writes it: 2026-01-31T12:00:00Z"))
}

/// A `Namespace`, `ServiceAccount` or `Node`: nothing but metadata is read of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plain {
    /// The metadata.
    pub metadata: Metadata,
}

impl Plain {
    pub(crate) fn read(object: &Field<'_>, placement: Placement) -> Result<Self> {
        Ok(Self { metadata: Metadata::read(object, placement)? })
    }
}
