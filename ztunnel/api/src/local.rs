//! A mesh's state from a file, in the YAML that Istio's ztunnel reads from its `LOCAL_XDS_PATH` (contract 1.5): workloads, services
//! and policies, read into the same types as those that a control plane pushes, by the same rules.
//!
//! A file counts as a whole or not at all. A field that is not known is an error with its line: in a policy it would otherwise
//! make a DENY inert or an ALLOW wide.

mod policy;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use mesh::State;
use serde_saphyr::{Location, Spanned};

use crate::convert::{
    ConvertError, Resource, policy_from_proto, policy_name, service_from_proto, workload_from_proto,
};
use crate::type_url::ResourceType;

/// What a file says: its resources, by type and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalConfig(BTreeMap<(ResourceType, String), Resource>);

/// Where in the file: line and column, from 1; 0 where that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

impl From<Location> for Position {
    fn from(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

/// Why a file is no mesh's state. Whoever wrote it is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalConfigError {
    /// It is not of the form.
    #[error("{line}:{column}: {reason}", line = .position.line, column = .position.column)]
    Form {
        /// Where.
        position: Position,
        /// What is wrong.
        reason: String,
    },
    /// A resource of it means nothing.
    #[error("{line}:{column}: {name}: {error}", line = .position.line, column = .position.column)]
    Resource {
        /// Where it begins.
        position: Position,
        /// Its name.
        name: String,
        /// What is wrong.
        error: ConvertError,
    },
    /// Two resources have one name.
    #[error("{line}:{column}: {name} is there already", line = .position.line, column = .position.column)]
    Twice {
        /// Where the second begins.
        position: Position,
        /// The name.
        name: String,
    },
}

impl LocalConfig {
    /// Reads a file's text. An empty one is a mesh without anything.
    pub fn parse(text: &str) -> Result<Self, LocalConfigError> {
        let mut config = Self::default();
        if text.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
            return Ok(config);
        }
        let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
        let file: shape::File = serde_saphyr::from_str_with_options(text, options).map_err(form)?;
        for workload in file.workloads {
            config.add(ResourceType::Address, workload, |workload| {
                let wire = workload.into_proto();
                let name = wire.uid.clone();
                (name, workload_from_proto(wire).map(|workload| Resource::Workload(Box::new(workload))))
            })?;
        }
        for service in file.services {
            config.add(ResourceType::Address, service, |service| {
                let wire = service.into_proto();
                let name = format!("{}/{}", wire.namespace, wire.hostname);
                (name, service_from_proto(wire).map(|service| Resource::Service(Box::new(service))))
            })?;
        }
        for policy in file.policies {
            config.add(ResourceType::Authorization, policy, |policy| {
                let wire = policy.into_proto();
                let name = format!("{}/{}", wire.namespace, wire.name);
                (name, policy_from_proto(wire).map(|policy| Resource::Policy(Box::new(policy))))
            })?;
        }
        Ok(config)
    }

    fn add<T>(
        &mut self,
        kind: ResourceType,
        stated: Spanned<T>,
        read: impl FnOnce(T) -> (String, Result<Resource, ConvertError>),
    ) -> Result<(), LocalConfigError> {
        let position = stated.referenced.into();
        let (name, resource) = read(stated.value);
        let resource =
            resource.map_err(|error| LocalConfigError::Resource { position, name: name.clone(), error })?;
        match self.0.insert((kind, name.clone()), resource) {
            None => Ok(()),
            Some(_) => Err(LocalConfigError::Twice { position, name }),
        }
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Brings a state that holds what `before` says up to this. What is the same is not touched.
    pub fn apply_over(&self, before: &Self, state: &mut State) {
        // Policies first: those of a workload are in force before it is known.
        for ((kind, name), _) in before.0.iter().filter(|(key, _)| !self.0.contains_key(key)) {
            match kind {
                ResourceType::Authorization => {
                    state.remove_policy(&policy_name(name));
                }
                ResourceType::Address => {
                    state.remove_address(name);
                }
                ResourceType::NodePod | ResourceType::TrustBundle => {}
            }
        }
        for (key, resource) in &self.0 {
            if before.0.get(key) == Some(resource) {
                continue;
            }
            match resource.clone() {
                Resource::Workload(workload) => state.upsert_workload(*workload),
                Resource::Service(service) => state.upsert_service(*service),
                Resource::Policy(policy) => state.upsert_policy(*policy),
                Resource::Pod(_) | Resource::TrustBundle(_) => {}
            }
        }
    }
}

fn form(error: serde_saphyr::Error) -> LocalConfigError {
    let position = error.location().map(Position::from).unwrap_or_default();
    let rendered = error.without_snippet().render();
    let reason = rendered.lines().next().unwrap_or("not YAML").to_owned();
    LocalConfigError::Form { position, reason }
}
