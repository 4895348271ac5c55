//! L4 authorization policies: their form. Rules are an OR of ANDs of ORs (Istio contract 1.8):
//! a policy matches when any rule does, a rule when all its clauses do, a clause when any match does,
//! and a match when all its stated fields do.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use crate::identity::{Namespace, ServiceAccount, name};

name!(
    /// The name of a policy within its namespace.
    PolicyShortName
);

/// A policy's name, written `namespace/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// The policy's namespace.
    pub namespace: Namespace,
    /// The policy's name in it.
    pub name: PolicyShortName,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no policy's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form namespace/name")]
pub struct InvalidPolicyName(pub String);

impl FromStr for PolicyName {
    type Err = InvalidPolicyName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(InvalidPolicyName(text.to_owned())),
        }
    }
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// All of the mesh.
    Global,
    /// All of the policy's namespace.
    Namespace,
    /// Those whose `authorization_policies` name it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Only what matches some ALLOW policy passes, once there is one.
    Allow,
    /// What matches is refused.
    Deny,
}

/// A policy, as the control plane describes it (`istio.security.Authorization`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// Namespace and name.
    pub name: PolicyName,
    /// Which workloads it applies to.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// OR. None: never matches.
    pub rules: Vec<Rule>,
    /// Only logged, never enforced.
    pub dry_run: bool,
}

/// A policy that was received and cannot be enforced as written. What it means is unknown, so it refuses
/// whatever it may apply to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedPolicy {
    /// Namespace and name.
    pub name: PolicyName,
    /// Which workloads it applies to; [`PolicyScope::Global`] where even that could not be read.
    pub scope: PolicyScope,
    /// It would only have been logged, and so refuses nothing.
    pub dry_run: bool,
    /// What is wrong with it.
    pub reason: String,
}

/// AND of its clauses.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// The clauses.
    pub clauses: Vec<Clause>,
}

/// OR of its matches; an empty clause matches.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Clause {
    /// The matches.
    pub matches: Vec<Match>,
}

/// AND of its stated fields; within a field any value suffices, within a `not_` field none may match.
/// A match that states no field never matches.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Match {
    /// Namespace of the source identity.
    pub namespaces: Vec<StringMatch>,
    /// See the type.
    pub not_namespaces: Vec<StringMatch>,
    /// Source identity without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// See the type.
    pub not_principals: Vec<StringMatch>,
    /// Service account of the source identity; the trust domain does not matter.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// See the type.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The TCP peer's address.
    pub source_ips: Vec<IpNet>,
    /// See the type.
    pub not_source_ips: Vec<IpNet>,
    /// The workload's address.
    pub destination_ips: Vec<IpNet>,
    /// See the type.
    pub not_destination_ips: Vec<IpNet>,
    /// The workload's port (after service resolution).
    pub destination_ports: Vec<u16>,
    /// See the type.
    pub not_destination_ports: Vec<u16>,
}

impl Match {
    /// Whether it states no field at all.
    pub fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            service_accounts,
            not_service_accounts,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = self;
        [namespaces, not_namespaces, principals, not_principals].iter().all(|texts| texts.is_empty())
            && [service_accounts, not_service_accounts].iter().all(|accounts| accounts.is_empty())
            && [source_ips, not_source_ips, destination_ips, not_destination_ips]
                .iter()
                .all(|nets| nets.is_empty())
            && [destination_ports, not_destination_ports].iter().all(|ports| ports.is_empty())
    }
}

/// A service account of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub service_account: ServiceAccount,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// The same text.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Any non-empty text.
    Presence,
}
