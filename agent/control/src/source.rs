//! Where objects come from. Whichever it is, they are the same objects and mean the same.

use std::fmt;
use std::path::PathBuf;

use crate::kubernetes::{Cluster, Home, Scope, TokenReviews, Watches};
use crate::manifests::{self, LoadError, Objects, Reloads, WatchError};

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum ObjectSource {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server.
    Kubernetes {
        /// Which one.
        cluster: Cluster,
        /// The namespace of control and of the agents, if they are pods of the cluster: the authority's key is kept there, and agents
        /// authenticate by the tokens of their account.
        home: Option<String>,
    },
}

/// The account of the agents' pods.
const AGENT_ACCOUNT: &str = "culvert-agent";

impl ObjectSource {
    /// Control's own namespace.
    pub(crate) fn home(&self) -> Option<Home> {
        match self {
            Self::Kubernetes { cluster, home: Some(namespace) } => Some(Home::new(cluster, namespace)),
            _ => None,
        }
    }

    /// Who tells whose the tokens of pods are.
    pub(crate) fn token_reviews(&self) -> Option<TokenReviews> {
        match self {
            Self::Kubernetes { cluster, home: Some(namespace) } => {
                Some(TokenReviews::new(cluster, namespace, AGENT_ACCOUNT))
            }
            _ => None,
        }
    }
}

impl fmt::Display for ObjectSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(directory) => write!(f, "{}", directory.display()),
            Self::Kubernetes { .. } => f.write_str("Kubernetes"),
        }
    }
}

/// A source that is being followed.
pub(crate) enum Source {
    Manifests(Reloads),
    Kubernetes(Box<Watches>),
}

impl Source {
    /// Begins to follow it; nothing is read before it is asked for.
    pub(crate) fn open(source: &ObjectSource) -> Result<Self, WatchError> {
        Ok(match source {
            ObjectSource::Manifests(directory) => Self::Manifests(manifests::watch(directory)?),
            ObjectSource::Kubernetes { cluster, .. } => {
                Self::Kubernetes(Box::new(Watches::new(cluster, &Scope::Mesh)))
            }
        })
    }

    /// Waits for the next state that differs from the last one returned.
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Objects, LoadError> {
        match self {
            Self::Manifests(reloads) => reloads.next().await,
            Self::Kubernetes(watches) => Ok(watches.next().await),
        }
    }
}
