//! `PeerAuthentication` and `AuthorizationPolicy` (`security.istio.io`): their form, before any meaning.
//!
//! Unlike elsewhere, a field that is not known is an error: left out, a misspelled one would open what the policy was to close. An API
//! server refuses or prunes such fields; a directory has only this.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::{ManifestError, Problem};
use super::field::{Field, Result};
use super::metadata::{Metadata, Placement};

/// `spec.mtls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MtlsMode {
    /// As the next wider level says.
    #[default]
    Unset,
    /// Not offered; in a mesh without sidecars the same as [`Permissive`](Self::Permissive).
    Disable,
    /// Plaintext is taken too.
    Permissive,
    /// Plaintext is refused.
    Strict,
}

/// A `PeerAuthentication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Its metadata.
    pub metadata: Metadata,
    /// `spec.selector.matchLabels`; empty: all of its namespace, or of the mesh.
    pub selector: BTreeMap<String, String>,
    /// `spec.mtls.mode`.
    pub mode: MtlsMode,
    /// `spec.portLevelMtls`, by the workload's port.
    pub ports: BTreeMap<u16, MtlsMode>,
}

/// `spec.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PolicyAction {
    /// ALLOW.
    #[default]
    Allow,
    /// DENY.
    Deny,
    /// AUDIT.
    Audit,
    /// CUSTOM.
    Custom,
}

/// An `AuthorizationPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its metadata.
    pub metadata: Metadata,
    /// `spec.selector.matchLabels`; empty: all of its namespace, or of the mesh.
    pub selector: BTreeMap<String, String>,
    /// It has `targetRef` or `targetRefs`, so it is for waypoints.
    pub for_waypoints: bool,
    /// `spec.action`.
    pub action: PolicyAction,
    /// `spec.rules`: OR.
    pub rules: Vec<PolicyRule>,
}

/// A rule: any of `from`, any of `to`, and all of `when`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PolicyRule {
    /// `from[].source`.
    pub from: Vec<Source>,
    /// `to[].operation`.
    pub to: Vec<Operation>,
    /// `when[]`.
    pub when: Vec<Condition>,
}

/// Positive and negative values of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values<T> {
    /// One of these.
    pub any: Vec<T>,
    /// None of these.
    pub none: Vec<T>,
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self { any: Vec::new(), none: Vec::new() }
    }
}

/// `source`: the fields a connection can be judged by, and the names of those that need a request.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Source {
    /// `principals`.
    pub principals: Values<String>,
    /// `namespaces`.
    pub namespaces: Values<String>,
    /// `serviceAccounts`, as namespace and name; the namespace is the policy's where it is not stated.
    pub service_accounts: Values<(String, String)>,
    /// `ipBlocks`.
    pub ip_blocks: Values<IpNet>,
    /// Stated fields that cannot be judged by a connection alone.
    pub unsupported: Vec<String>,
}

/// `operation`, likewise.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Operation {
    /// `ports`.
    pub ports: Values<u16>,
    /// Stated fields that cannot be judged by a connection alone.
    pub unsupported: Vec<String>,
}

/// An entry of `when`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `source.namespace`.
    SourceNamespace(Values<String>),
    /// `source.principal`.
    SourcePrincipal(Values<String>),
    /// `source.ip`.
    SourceIp(Values<IpNet>),
    /// `destination.ip`.
    DestinationIp(Values<IpNet>),
    /// `destination.port`.
    DestinationPort(Values<u16>),
    /// Any other key: it cannot be judged by a connection alone.
    Unsupported(String),
}

impl PeerAuthentication {
    /// Whether it asks for STRICT, on whichever port.
    pub fn asks_strict(&self) -> bool {
        std::iter::once(&self.mode).chain(self.ports.values()).any(|mode| *mode == MtlsMode::Strict)
    }

    pub(crate) fn read(object: &Field<'_>) -> Result<Self> {
        only(object, &OBJECT)?;
        let spec = object.get("spec")?;
        only(&spec, &["selector", "mtls", "portLevelMtls"])?;
        let selector = selector(&spec)?;
        let mut ports = BTreeMap::new();
        let per_port = spec.get("portLevelMtls")?;
        for (key, field) in per_port.entries()? {
            let port: u16 = field.parsed(key, "a port: write a number from 1 to 65535")?;
            if port == 0 {
                return Err(field.invalid(key, "is no port: write a number from 1 to 65535"));
            }
            ports.insert(port, mode(&field)?);
        }
        if !ports.is_empty() && selector.is_empty() {
            return Err(per_port
                .error(Problem::Conflict("needs a spec.selector: ports differ from workload to workload")));
        }
        let metadata = Metadata::read(object, Placement::Namespaced)?;
        Ok(Self { metadata, selector, mode: mode(&spec.get("mtls")?)?, ports })
    }
}

/// The only field of `mtls` and of the entries of `portLevelMtls`.
fn mode(mtls: &Field<'_>) -> Result<MtlsMode> {
    only(mtls, &["mode"])?;
    let field = mtls.get("mode")?;
    match field.text()? {
        None | Some("UNSET") => Ok(MtlsMode::Unset),
        Some("DISABLE") => Ok(MtlsMode::Disable),
        Some("PERMISSIVE") => Ok(MtlsMode::Permissive),
        Some("STRICT") => Ok(MtlsMode::Strict),
        Some(other) => Err(field.invalid(other, "is none of UNSET, DISABLE, PERMISSIVE and STRICT")),
    }
}

/// `selector.matchLabels`. Istio knows no other form; `matchExpressions` left unread would widen the policy.
fn selector(spec: &Field<'_>) -> Result<BTreeMap<String, String>> {
    let selector = spec.get("selector")?;
    only(&selector, &["matchLabels"])?;
    selector.get("matchLabels")?.text_map()
}

impl AuthorizationPolicy {
    pub(crate) fn read(object: &Field<'_>) -> Result<Self> {
        only(object, &OBJECT)?;
        let metadata = Metadata::read(object, Placement::Namespaced)?;
        let spec = object.get("spec")?;
        only(&spec, &["selector", "targetRef", "targetRefs", "action", "provider", "rules"])?;
        let for_waypoints =
            spec.get("targetRef")?.is_present() || !spec.get("targetRefs")?.items()?.is_empty();
        let selector = selector(&spec)?;
        if for_waypoints && !selector.is_empty() {
            return Err(spec
                .get("selector")?
                .error(Problem::Conflict("cannot stand beside targetRefs: write one of the two")));
        }
        let rules = spec.get("rules")?.items()?;
        let rules = rules.iter().map(|item| rule(item, &metadata.namespace)).collect::<Result<_>>()?;
        Ok(Self { selector, for_waypoints, action: action(&spec.get("action")?)?, rules, metadata })
    }
}

fn action(field: &Field<'_>) -> Result<PolicyAction> {
    match field.text()? {
        None | Some("ALLOW") => Ok(PolicyAction::Allow),
        Some("DENY") => Ok(PolicyAction::Deny),
        Some("AUDIT") => Ok(PolicyAction::Audit),
        Some("CUSTOM") => Ok(PolicyAction::Custom),
        Some(other) => Err(field.invalid(other, "is none of ALLOW, DENY, AUDIT and CUSTOM")),
    }
}

/// What every object has.
const OBJECT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
/// Fields of a source that need a request.
const REQUEST_SOURCE: [&str; 4] =
    ["requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"];
/// Fields of an operation that need a request.
const REQUEST_OPERATION: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
/// Beginnings of what a condition may be about that needs a request, or more than a connection shows (Istio's "Authorization
/// Policy Conditions").
const REQUEST_CONDITION: [&str; 5] =
    ["request.", "remote.ip", "source.serviceAccount", "connection.sni", "experimental."];

/// No fields but the known ones.
fn only(field: &Field<'_>, known: &[&str]) -> Result<()> {
    match field.entries()?.into_iter().find(|(key, _)| !known.contains(key)) {
        Some((_, unknown)) => Err(not_known(&unknown)),
        None => Ok(()),
    }
}

fn not_known(field: &Field<'_>) -> Box<ManifestError> {
    field.error(Problem::Conflict(
        "is not known here (misspelled?); left out it would change what the policy does",
    ))
}

fn rule(field: &Field<'_>, namespace: &str) -> Result<PolicyRule> {
    only(field, &["from", "to", "when"])?;
    let mut rule = PolicyRule::default();
    for item in field.get("from")?.items()? {
        only(&item, &["source"])?;
        rule.from.push(source(&item.get("source")?, namespace)?);
    }
    for item in field.get("to")?.items()? {
        only(&item, &["operation"])?;
        rule.to.push(operation(&item.get("operation")?)?);
    }
    for item in field.get("when")?.items()? {
        rule.when.push(condition(&item)?);
    }
    Ok(rule)
}

fn source(field: &Field<'_>, namespace: &str) -> Result<Source> {
    let mut source = Source::default();
    let entries = field.entries()?;
    if entries.is_empty() {
        return Err(field
            .missing("write at least one field of the source, or leave `from` out to match every source"));
    }
    for (key, values) in entries {
        match key {
            "principals" => source.principals.any = texts(&values)?,
            "notPrincipals" => source.principals.none = texts(&values)?,
            "namespaces" => source.namespaces.any = texts(&values)?,
            "notNamespaces" => source.namespaces.none = texts(&values)?,
            "serviceAccounts" => source.service_accounts.any = accounts(&values, namespace)?,
            "notServiceAccounts" => source.service_accounts.none = accounts(&values, namespace)?,
            "ipBlocks" => source.ip_blocks.any = blocks(&values)?,
            "notIpBlocks" => source.ip_blocks.none = blocks(&values)?,
            other if !REQUEST_SOURCE.contains(&other) => return Err(not_known(&values)),
            other if values.is_present() => source.unsupported.push(format!("source.{other}")),
            _ => {}
        }
    }
    let accounts = source.service_accounts != Values::default();
    if accounts && (source.principals != Values::default() || source.namespaces != Values::default()) {
        return Err(field.error(Problem::Conflict(
            "has serviceAccounts beside principals or namespaces: write one of them",
        )));
    }
    Ok(source)
}

fn operation(field: &Field<'_>) -> Result<Operation> {
    let mut operation = Operation::default();
    let entries = field.entries()?;
    if entries.is_empty() {
        return Err(
            field.missing("write at least one field of the operation, or leave `to` out to match all")
        );
    }
    for (key, values) in entries {
        match key {
            "ports" => operation.ports.any = ports(&values)?,
            "notPorts" => operation.ports.none = ports(&values)?,
            other if !REQUEST_OPERATION.contains(&other) => return Err(not_known(&values)),
            other if values.is_present() => operation.unsupported.push(format!("operation.{other}")),
            _ => {}
        }
    }
    Ok(operation)
}

fn condition(field: &Field<'_>) -> Result<Condition> {
    only(field, &["key", "values", "notValues"])?;
    let key = field
        .get("key")?
        .required_text("write what the condition is about, as in `key: source.namespace`")?;
    let (any, none) = (field.get("values")?, field.get("notValues")?);
    if any.items()?.is_empty() && none.items()?.is_empty() {
        return Err(any.missing("write the values, or notValues"));
    }
    Ok(match key {
        "source.namespace" => Condition::SourceNamespace(Values { any: texts(&any)?, none: texts(&none)? }),
        "source.principal" => Condition::SourcePrincipal(Values { any: texts(&any)?, none: texts(&none)? }),
        "source.ip" => Condition::SourceIp(Values { any: blocks(&any)?, none: blocks(&none)? }),
        "destination.ip" => Condition::DestinationIp(Values { any: blocks(&any)?, none: blocks(&none)? }),
        "destination.port" => Condition::DestinationPort(Values { any: ports(&any)?, none: ports(&none)? }),
        other if REQUEST_CONDITION.iter().any(|known| other.starts_with(known)) => {
            Condition::Unsupported(other.to_owned())
        }
        other => {
            return Err(field.get("key")?.invalid(other, "is nothing that conditions are known to be about"));
        }
    })
}

fn texts(field: &Field<'_>) -> Result<Vec<String>> {
    let value = |(text, item): (&str, Field<'_>)| match text {
        "" => Err(item.invalid("", "matches nothing: write a value, or `*` for any")),
        text => Ok(text.to_owned()),
    };
    field.texts()?.into_iter().map(value).collect()
}

fn accounts(field: &Field<'_>, namespace: &str) -> Result<Vec<(String, String)>> {
    let account = |(text, item): (&str, Field<'_>)| {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        Ok((item.checked_name(namespace)?, item.checked_name(name)?))
    };
    field.texts()?.into_iter().map(account).collect()
}

fn blocks(field: &Field<'_>) -> Result<Vec<IpNet>> {
    let block = |(text, item): (&str, Field<'_>)| {
        let single = text.parse::<IpAddr>().map(IpNet::from).ok();
        let block: IpNet = match single {
            Some(block) => block,
            None => item.parsed(text, "an address or a range of them, such as 10.42.0.0/16")?,
        };
        Ok(block.trunc())
    };
    field.texts()?.into_iter().map(block).collect()
}

fn ports(field: &Field<'_>) -> Result<Vec<u16>> {
    let port = |(text, item): (&str, Field<'_>)| match text.parse() {
        Ok(0) | Err(_) => Err(item.invalid(text, "is no port: write a number from 1 to 65535, in quotes")),
        Ok(port) => Ok(port),
    };
    field.texts()?.into_iter().map(port).collect()
}
