//! What can be wrong with manifests. Whoever wrote them is at fault; each error says where (file, line, column, object,
//! field) and what to write instead.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tree::{Position, Tree};

/// Where an object stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file.
    File {
        /// The file.
        file: Arc<Path>,
        /// The place in it.
        position: Position,
    },
    /// In a cluster, under its own name.
    ApiServer,
}

impl Origin {
    /// Another place in the same text.
    pub(crate) fn at(&self, position: Position) -> Self {
        match self {
            Self::File { file, .. } => Self::File { file: Arc::clone(file), position },
            Self::ApiServer => Self::ApiServer,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiServer => f.write_str("Kubernetes"),
            Self::File { file, position: Position { line: 0, .. } } => write!(f, "{}", file.display()),
            Self::File { file, position: Position { line, column } } => {
                write!(f, "{}:{line}:{column}", file.display())
            }
        }
    }
}

/// An object's kind, namespace and name, for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectName {
    /// Kind, such as `Pod`.
    pub kind: String,
    /// Namespace; empty for kinds that have none.
    pub namespace: String,
    /// Name; empty where it is missing.
    pub name: String,
}

impl ObjectName {
    /// The name in an object of this kind, whatever else may be wrong with it.
    pub(crate) fn of(kind: &str, object: &Tree) -> Self {
        let text = |key| object.entry("metadata").and_then(|metadata| metadata.text(key));
        let text = |key| text(key).unwrap_or_default().to_owned();
        Self { kind: kind.to_owned(), namespace: text("namespace"), name: text("name") }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() && self.namespace.is_empty() {
            return f.write_str(&self.kind);
        }
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {}{slash}{}", self.kind, self.namespace, self.name)
    }
}

/// One thing wrong with one manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// Where.
    pub origin: Origin,
    /// In which object; none when the text could not be read that far.
    pub object: Option<ObjectName>,
    /// Which field, such as `spec.nodeName`; empty when it is about the whole.
    pub field: String,
    /// What.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// The text is no YAML.
    #[error("{0}")]
    Syntax(String),
    /// A field that is needed is not there.
    #[error("is missing: {0}")]
    Missing(&'static str),
    /// A field has another type.
    #[error("must be {expected}, and is {found}")]
    WrongType {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A field has a value it cannot have.
    #[error("`{value}` {reason}")]
    Invalid {
        /// The value.
        value: String,
        /// Why not, and what to write.
        reason: String,
    },
    /// Fields that exclude each other.
    #[error("{0}")]
    Conflict(&'static str),
    /// The same object twice.
    #[error("is there twice: the other one is at {0}")]
    Duplicate(Origin),
    /// The same address twice.
    #[error("{address} is the address of {owner} too ({origin}): every pod and Service needs its own")]
    AddressUsedTwice {
        /// The address.
        address: IpAddr,
        /// Who else has it.
        owner: ObjectName,
        /// Where that stands.
        origin: Origin,
    },
    /// The same uid twice.
    #[error("{uid} is the uid of {owner} too ({origin})")]
    UidUsedTwice {
        /// The uid.
        uid: String,
        /// Who else has it.
        owner: ObjectName,
        /// Where that stands.
        origin: Origin,
    },
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{} ", self.field)?;
        }
        write!(f, "{}", self.problem)
    }
}

impl std::error::Error for ManifestError {}

/// Why a directory of manifests was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The directory cannot be listed.
    #[error("the manifests' directory {directory} cannot be read: {reason}", directory = directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        reason: String,
    },
    /// Files kept changing while they were read.
    #[error("the manifests in {directory} change faster than they can be read", directory = directory.display())]
    Unsettled {
        /// The directory.
        directory: PathBuf,
    },
    /// Manifests are wrong. All that is wrong, at most one thing an object.
    #[error("{}", Lines(.0))]
    Manifests(Vec<ManifestError>),
}

struct Lines<'a>(&'a [ManifestError]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}
