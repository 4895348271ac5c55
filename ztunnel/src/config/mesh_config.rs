//! Istio's mesh config as far as a proxy is told by it: the file that its chart mounts, and the variable `PROXY_CONFIG` over it
//! (contract 1.5). What they say is laid beneath the environment under the names that it has there.
//!
//! Both have many fields that are not for a ztunnel, so that unknown ones say nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::environment::Environment;

/// Where Istio's chart mounts it, from the root of the container.
pub(super) const FILE: &str = "./etc/istio/config/mesh";

const VARIABLE: &str = "PROXY_CONFIG";
const METADATA: &str = "ISTIO_META_";

/// The mesh config cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeshConfigError {
    /// The file cannot be read.
    #[error("cannot read the mesh config {file}: {error}", file = file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// It is not of its form.
    #[error("{place}: {error}")]
    Form {
        /// Where: the file or the variable.
        place: String,
        /// What is wrong, with line and column.
        error: Box<serde_saphyr::Error>,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: Option<ProxyConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyConfig {
    discovery_address: Option<String>,
    proxy_admin_port: Option<u16>,
    stats_port: Option<u16>,
    /// 0: one a core.
    concurrency: Option<u16>,
    proxy_metadata: BTreeMap<String, String>,
}

impl ProxyConfig {
    /// Under the names of the environment.
    fn into_variables(self) -> Environment {
        let single = [
            ("XDS_ADDRESS", self.discovery_address),
            ("ADMIN_PORT", self.proxy_admin_port.map(|port| port.to_string())),
            ("STATS_PORT", self.stats_port.map(|port| port.to_string())),
            ("ZTUNNEL_WORKER_THREADS", self.concurrency.map(|threads| threads.to_string())),
        ];
        let single = single.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let metadata = self.proxy_metadata.into_iter().map(|(name, value)| {
            let name = name.strip_prefix(METADATA).unwrap_or(&name);
            (format!("{METADATA}{name}"), value)
        });
        single.chain(metadata).collect()
    }
}

/// The environment with the mesh config beneath it. A file that is not there says nothing.
pub(super) fn beneath(environment: Environment, file: &Path) -> Result<Environment, MeshConfigError> {
    let from_variable = match environment.get(VARIABLE) {
        Some(text) => parse::<ProxyConfig>(text, VARIABLE)?,
        None => ProxyConfig::default(),
    };
    let from_file = match std::fs::read_to_string(file) {
        Ok(text) => parse::<MeshConfig>(&text, &file.display().to_string())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => MeshConfig::default(),
        Err(error) => return Err(MeshConfigError::Read { file: file.to_owned(), error }),
    };
    let from_file = from_file.default_config.unwrap_or_default();
    Ok(environment.over(from_variable.into_variables()).over(from_file.into_variables()))
}

fn parse<T: Default + for<'de> Deserialize<'de>>(text: &str, place: &str) -> Result<T, MeshConfigError> {
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    serde_saphyr::from_str(text)
        .map_err(|error| MeshConfigError::Form { place: place.to_owned(), error: error.into() })
}
