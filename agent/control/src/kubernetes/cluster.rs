//! Where an API server is, and by which right it is asked.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// An API server and what it takes to be let in. Nothing connects before something is asked. Clones share connections.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster(..)")
    }
}

/// There is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file that was named.
    #[error("the kubeconfig {path} cannot be used: {error}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        error: Box<KubeconfigError>,
    },
    /// Nothing was named, and nothing is found.
    #[error("no API server is known here (neither a kubeconfig nor a pod's service account): {0}")]
    Unknown(#[source] Box<kube::config::InferConfigError>),
    /// What is said of it cannot be used.
    #[error("the connection to the API server cannot be set up: {0}")]
    Setup(#[source] Box<kube::Error>),
}

impl Cluster {
    /// The API server that a kubeconfig names in its current context; without one that of `KUBECONFIG` or `~/.kube/config`, or the one
    /// whose pod this is.
    ///
    /// # Errors
    /// See the type. That the API server does not answer is none: it may do so later.
    pub async fn find(kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        let config = match kubeconfig {
            None => Config::infer().await.map_err(|error| ConnectError::Unknown(Box::new(error)))?,
            Some(path) => {
                let read = async || {
                    let file = Kubeconfig::read_from(path)?;
                    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await
                };
                let failed =
                    |error| ConnectError::Kubeconfig { path: path.to_owned(), error: Box::new(error) };
                read().await.map_err(failed)?
            }
        };
        Self::new(config)
    }

    pub(super) fn new(config: Config) -> Result<Self, ConnectError> {
        let client = Client::try_from(config).map_err(|error| ConnectError::Setup(Box::new(error)))?;
        Ok(Self { client })
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }
}
