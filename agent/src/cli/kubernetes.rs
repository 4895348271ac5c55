//! Options of whoever asks an API server.

use std::path::PathBuf;

use control::kubernetes::{Cluster, ConnectError};

/// Which API server, if any.
#[derive(Debug, clap::Args)]
pub(crate) struct KubernetesArgs {
    /// A Kubernetes API server says what there is (to an agent: which pods of its node are in the mesh): that of --kubeconfig, else of
    /// KUBECONFIG or ~/.kube/config, else of the cluster in whose pod this runs.
    #[arg(long)]
    kubernetes: bool,
    /// With --kubernetes: the kubeconfig whose current context counts.
    #[arg(long, requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
}

impl KubernetesArgs {
    /// The API server, if it was asked for.
    pub(crate) async fn find(&self) -> Result<Option<Cluster>, ConnectError> {
        if !self.kubernetes {
            return Ok(None);
        }
        Cluster::find(self.kubeconfig.as_deref()).await.map(Some)
    }
}
