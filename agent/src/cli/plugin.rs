//! Options of whoever installs the CNI plugin or takes it away, and the plugin itself.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::cni::Installation;
use crate::cni::files::Places;

/// Where the plugin is. The container runtime has to see the same files under the same paths.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PluginArgs {
    /// Where the container runtime looks for CNI plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Where it looks for networks' configurations; the first one of them gets the plugin at its end.
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The directory of what outlives the agent: who of this node is in the mesh, for the plugin to know while no agent answers it.
    #[arg(long, default_value = "/var/lib/culvert")]
    state_dir: PathBuf,
}

impl PluginArgs {
    /// The places.
    pub(super) fn places(&self) -> Places {
        let Self { cni_bin_dir, cni_conf_dir, state_dir } = self.clone();
        Places { programs: cni_bin_dir, networks: cni_conf_dir, state: state_dir }
    }

    /// With the program, which stands beside this one.
    pub(super) fn installation(&self) -> anyhow::Result<Installation> {
        let own = std::env::current_exe().context("finding this program")?;
        Ok(Installation { program: own.with_file_name(cni::chain::TYPE), places: self.places() })
    }
}
