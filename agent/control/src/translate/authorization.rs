//! `AuthorizationPolicy`: its L4 part, as a node's proxy enforces it (Istio's ambient rules, restated).
//!
//! A connection shows its peer's identity and address and the port; methods, paths, hosts and tokens it does not. An
//! ALLOW rule that needs those is left out, so less is allowed. Of a DENY rule they are dropped, so more is denied; a
//! rule of which nothing remains has no effect. Policies with `targetRefs` are for waypoints alone, and the actions AUDIT
//! and CUSTOM are not for connections. What is thereby left open is said so.

use std::collections::BTreeMap;

use mesh::Authorization;
use mesh::policy::{Action, Clause, Match, PolicyName, PolicyScope, Rule, ServiceAccountMatch, StringMatch};

use super::{Settings, Warnings, selects};
use crate::manifests::{
    AuthorizationPolicy, Condition, Metadata, Objects, Operation, Pod, PolicyAction, PolicyRule, Source,
};

const KIND: &str = "AuthorizationPolicy";
/// The annotation that has a policy only logged.
const DRY_RUN: &str = "istio.io/dry-run";

/// A policy, and whom it selects by label.
pub(super) struct Converted<'a> {
    pub(super) policy: Authorization,
    selector: &'a BTreeMap<String, String>,
    /// It selects in every namespace.
    root: bool,
}

/// The policies a node's proxy enforces.
pub(super) fn convert<'a>(
    objects: &'a Objects,
    settings: &Settings,
    warnings: &mut Warnings,
) -> Vec<Converted<'a>> {
    objects.authorization_policies.iter().filter_map(|object| one(object, settings, warnings)).collect()
}

/// The policies that select the pod by label, in the order of the manifests. Wider ones apply without being named.
pub(super) fn selecting(pod: &Pod, policies: &[Converted<'_>]) -> Vec<PolicyName> {
    let applies = |converted: &&Converted<'_>| {
        converted.policy.scope == PolicyScope::WorkloadSelector
            && (converted.root || converted.policy.name.namespace.as_str() == pod.metadata.namespace)
            && selects(converted.selector, &pod.metadata.labels)
    };
    policies.iter().filter(applies).map(|converted| converted.policy.name.clone()).collect()
}

/// Warnings about one policy.
struct Warn<'a> {
    warnings: &'a mut Warnings,
    metadata: &'a Metadata,
}

impl Warn<'_> {
    fn say(&mut self, message: impl Into<String>) {
        self.warnings.add(KIND, self.metadata, message);
    }

    /// Something stays open that the policy would close.
    fn open(&mut self, message: impl Into<String>) {
        self.warnings.unenforced(KIND, self.metadata, message);
    }
}

fn one<'a>(
    object: &'a AuthorizationPolicy,
    settings: &Settings,
    warnings: &mut Warnings,
) -> Option<Converted<'a>> {
    let metadata = &object.metadata;
    let mut warn = Warn { warnings, metadata };
    if object.for_waypoints {
        warn.open(
            "has targetRefs, so it is for waypoints, which this build does not have: it is not enforced",
        );
        return None;
    }
    let action = match object.action {
        PolicyAction::Allow => Action::Allow,
        PolicyAction::Deny => Action::Deny,
        PolicyAction::Audit => {
            warn.say("action AUDIT is not supported for connections: nothing is logged");
            return None;
        }
        PolicyAction::Custom => {
            warn.open("action CUSTOM is not supported for connections: it is not enforced");
            return None;
        }
    };
    let rules: Vec<Rule> = object
        .rules
        .iter()
        .enumerate()
        .filter_map(|(index, rule)| convert_rule(index, rule, action, &mut warn))
        .collect();
    if action == Action::Deny && rules.is_empty() {
        warn.say("denies nothing: no rule is left to match");
    }
    let root = metadata.namespace == settings.root_namespace;
    let scope = match (object.selector.is_empty(), root) {
        (false, _) => PolicyScope::WorkloadSelector,
        (true, true) => PolicyScope::Global,
        (true, false) => PolicyScope::Namespace,
    };
    let dry_run = is_dry_run(metadata, &mut warn);
    let name =
        PolicyName { namespace: metadata.namespace.as_str().into(), name: metadata.name.as_str().into() };
    let policy = Authorization { name, scope, action, rules, dry_run };
    Some(Converted { policy, selector: &object.selector, root })
}

fn is_dry_run(metadata: &Metadata, warn: &mut Warn<'_>) -> bool {
    match metadata.annotation(DRY_RUN) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            warn.say(format!(
                "annotation {DRY_RUN}: `{other}` is neither true nor false; the policy is enforced"
            ));
            false
        }
    }
}

/// Alternatives of a clause; `None` is one of which nothing is left once requests' fields are dropped.
type Alternatives = Vec<Option<Match>>;

fn convert_rule(index: usize, rule: &PolicyRule, action: Action, warn: &mut Warn<'_>) -> Option<Rule> {
    let mut unsupported = Vec::new();
    let mut clauses: Vec<Alternatives> = Vec::new();
    if !rule.from.is_empty() {
        clauses.push(rule.from.iter().map(|source| convert_source(source, &mut unsupported, warn)).collect());
    }
    if !rule.to.is_empty() {
        clauses
            .push(rule.to.iter().map(|operation| convert_operation(operation, &mut unsupported)).collect());
    }
    clauses
        .extend(rule.when.iter().map(|condition| vec![convert_condition(condition, &mut unsupported, warn)]));
    if unsupported.is_empty() {
        return Some(finish(clauses.into_iter().map(|clause| clause.into_iter().flatten().collect())));
    }
    let fields = unsupported.join(", ");
    if action == Action::Allow {
        warn.say(format!(
            "rules[{index}] needs {fields}, which a connection does not show: the rule is left out, so less is allowed"
        ));
        return None;
    }
    // An alternative without anything left is true, and so is its clause.
    let kept: Vec<Vec<Match>> =
        clauses.iter().filter_map(|clause| clause.iter().cloned().collect()).collect();
    if !kept.is_empty() {
        warn.say(format!(
            "rules[{index}] has {fields}, which a connection does not show: they are dropped, so more is denied"
        ));
        return Some(finish(kept.into_iter()));
    }
    // Nothing is left of any whole clause; alternatives that stand by themselves still do.
    let partial: Vec<Vec<Match>> = clauses
        .into_iter()
        .map(|clause| clause.into_iter().flatten().collect::<Vec<_>>())
        .filter(|clause| !clause.is_empty())
        .collect();
    if partial.is_empty() {
        warn.open(format!(
            "rules[{index}] has nothing but {fields}, which a connection does not show: the rule has no effect"
        ));
        return None;
    }
    warn.open(format!(
        "rules[{index}] has {fields}, which a connection does not show: only its other alternatives are enforced"
    ));
    Some(finish(partial.into_iter()))
}

/// A rule that states nothing matches everything, which the empty clause says.
fn finish(clauses: impl Iterator<Item = Vec<Match>>) -> Rule {
    let mut clauses: Vec<Clause> = clauses.map(|matches| Clause { matches }).collect();
    if clauses.is_empty() {
        clauses.push(Clause::default());
    }
    Rule { clauses }
}

fn non_empty(found: Match) -> Option<Match> {
    (found != Match::default()).then_some(found)
}

fn convert_source(source: &Source, unsupported: &mut Vec<String>, warn: &mut Warn<'_>) -> Option<Match> {
    unsupported.extend(source.unsupported.iter().cloned());
    non_empty(Match {
        principals: principals(&source.principals.any, warn),
        not_principals: principals(&source.principals.none, warn),
        namespaces: strings(&source.namespaces.any),
        not_namespaces: strings(&source.namespaces.none),
        service_accounts: accounts(&source.service_accounts.any),
        not_service_accounts: accounts(&source.service_accounts.none),
        source_ips: source.ip_blocks.any.clone(),
        not_source_ips: source.ip_blocks.none.clone(),
        ..Match::default()
    })
}

fn convert_operation(operation: &Operation, unsupported: &mut Vec<String>) -> Option<Match> {
    unsupported.extend(operation.unsupported.iter().cloned());
    non_empty(Match {
        destination_ports: operation.ports.any.clone(),
        not_destination_ports: operation.ports.none.clone(),
        ..Match::default()
    })
}

fn convert_condition(
    condition: &Condition,
    unsupported: &mut Vec<String>,
    warn: &mut Warn<'_>,
) -> Option<Match> {
    let mut found = Match::default();
    match condition {
        Condition::SourceNamespace(values) => {
            (found.namespaces, found.not_namespaces) = (strings(&values.any), strings(&values.none));
        }
        Condition::SourcePrincipal(values) => {
            found.principals = principals(&values.any, warn);
            found.not_principals = principals(&values.none, warn);
        }
        Condition::SourceIp(values) => {
            (found.source_ips, found.not_source_ips) = (values.any.clone(), values.none.clone());
        }
        Condition::DestinationIp(values) => {
            (found.destination_ips, found.not_destination_ips) = (values.any.clone(), values.none.clone());
        }
        Condition::DestinationPort(values) => {
            (found.destination_ports, found.not_destination_ports) =
                (values.any.clone(), values.none.clone());
        }
        Condition::Unsupported(key) => unsupported.push(format!("when {key}")),
    }
    non_empty(found)
}

fn accounts(values: &[(String, String)]) -> Vec<ServiceAccountMatch> {
    let account = |(namespace, name): &(String, String)| ServiceAccountMatch {
        namespace: namespace.as_str().into(),
        service_account: name.as_str().into(),
    };
    values.iter().map(account).collect()
}

/// `*` is any, `abc*` a prefix, `*abc` a suffix, all else exact.
fn strings(values: &[String]) -> Vec<StringMatch> {
    let one = |value: &String| match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(suffix), _) => StringMatch::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => StringMatch::Prefix(prefix.to_owned()),
        (None, None) => StringMatch::Exact(value.clone()),
    };
    values.iter().map(one).collect()
}

/// Principals are compared without `spiffe://`. Written with it they could never match, which in a DENY lets through.
fn principals(values: &[String], warn: &mut Warn<'_>) -> Vec<StringMatch> {
    let mut plain = Vec::new();
    for value in values {
        match value.strip_prefix("spiffe://") {
            Some(rest) => {
                warn.say(format!(
                    "principal `{value}` is taken as `{rest}`: principals are written without spiffe://"
                ));
                plain.push(rest.to_owned());
            }
            None => plain.push(value.clone()),
        }
    }
    strings(&plain)
}
