//! Policies.

use ipnet::IpNet;
use mesh::Authorization;
use mesh::policy::{Action, Clause, Match, PolicyName, PolicyScope, Rule, ServiceAccountMatch, StringMatch};

use super::{ConvertError, address_to_bytes, port, range};
use crate::proto::security as proto;

/// Reads a policy, whole or not at all.
pub fn policy_from_proto(policy: proto::Authorization) -> Result<Authorization, ConvertError> {
    for (field, value) in [("name", &policy.name), ("namespace", &policy.namespace)] {
        if value.is_empty() {
            return Err(ConvertError::Missing(field));
        }
    }
    Ok(Authorization {
        scope: scope(policy.scope)?,
        action: match proto::Action::try_from(policy.action) {
            Ok(proto::Action::Allow) => Action::Allow,
            Ok(proto::Action::Deny) => Action::Deny,
            Err(_) => return Err(ConvertError::UnknownValue { field: "action", value: policy.action }),
        },
        name: PolicyName { namespace: policy.namespace.into(), name: policy.name.into() },
        rules: policy.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
        dry_run: policy.dry_run,
    })
}

/// Reads a scope.
pub(super) fn scope(value: i32) -> Result<PolicyScope, ConvertError> {
    match proto::Scope::try_from(value) {
        Ok(proto::Scope::Global) => Ok(PolicyScope::Global),
        Ok(proto::Scope::Namespace) => Ok(PolicyScope::Namespace),
        Ok(proto::Scope::WorkloadSelector) => Ok(PolicyScope::WorkloadSelector),
        Err(_) => Err(ConvertError::UnknownValue { field: "scope", value }),
    }
}

fn rule(rule: proto::Rule) -> Result<Rule, ConvertError> {
    Ok(Rule { clauses: rule.clauses.into_iter().map(clause).collect::<Result<_, _>>()? })
}

fn clause(clause: proto::Clause) -> Result<Clause, ConvertError> {
    Ok(Clause { matches: clause.matches.into_iter().map(one).collect::<Result<_, _>>()? })
}

fn one(one: proto::Match) -> Result<Match, ConvertError> {
    Ok(Match {
        namespaces: texts("namespaces", one.namespaces)?,
        not_namespaces: texts("not_namespaces", one.not_namespaces)?,
        principals: texts("principals", one.principals)?,
        not_principals: texts("not_principals", one.not_principals)?,
        service_accounts: accounts("service_accounts", one.service_accounts)?,
        not_service_accounts: accounts("not_service_accounts", one.not_service_accounts)?,
        source_ips: ranges("source_ips", &one.source_ips)?,
        not_source_ips: ranges("not_source_ips", &one.not_source_ips)?,
        destination_ips: ranges("destination_ips", &one.destination_ips)?,
        not_destination_ips: ranges("not_destination_ips", &one.not_destination_ips)?,
        destination_ports: ports("destination_ports", &one.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &one.not_destination_ports)?,
    })
}

fn texts(field: &'static str, texts: Vec<proto::StringMatch>) -> Result<Vec<StringMatch>, ConvertError> {
    use proto::string_match::MatchType;
    let text = |text: String, wanted: fn(String) -> StringMatch| {
        if text.is_empty() { Err(ConvertError::EmptyMatch(field)) } else { Ok(wanted(text)) }
    };
    let convert = |one: proto::StringMatch| match one.match_type.ok_or(ConvertError::EmptyMatch(field))? {
        MatchType::Exact(exact) => text(exact, StringMatch::Exact),
        MatchType::Prefix(prefix) => text(prefix, StringMatch::Prefix),
        MatchType::Suffix(suffix) => text(suffix, StringMatch::Suffix),
        MatchType::Presence(()) => Ok(StringMatch::Presence),
    };
    texts.into_iter().map(convert).collect()
}

fn accounts(
    field: &'static str,
    accounts: Vec<proto::ServiceAccountMatch>,
) -> Result<Vec<ServiceAccountMatch>, ConvertError> {
    let convert = |one: proto::ServiceAccountMatch| {
        if one.namespace.is_empty() || one.service_account.is_empty() {
            return Err(ConvertError::EmptyMatch(field));
        }
        Ok(ServiceAccountMatch {
            namespace: one.namespace.into(),
            service_account: one.service_account.into(),
        })
    };
    accounts.into_iter().map(convert).collect()
}

fn ranges(field: &'static str, ranges: &[proto::Address]) -> Result<Vec<IpNet>, ConvertError> {
    ranges.iter().map(|one| range(field, &one.address, one.length)).collect()
}

fn ports(field: &'static str, ports: &[u32]) -> Result<Vec<u16>, ConvertError> {
    ports.iter().map(|value| port(field, *value)).collect()
}

/// Writes a policy.
pub fn policy_to_proto(policy: &Authorization) -> proto::Authorization {
    proto::Authorization {
        name: policy.name.name.to_string(),
        namespace: policy.name.namespace.to_string(),
        scope: match policy.scope {
            PolicyScope::Global => proto::Scope::Global,
            PolicyScope::Namespace => proto::Scope::Namespace,
            PolicyScope::WorkloadSelector => proto::Scope::WorkloadSelector,
        }
        .into(),
        action: match policy.action {
            Action::Allow => proto::Action::Allow,
            Action::Deny => proto::Action::Deny,
        }
        .into(),
        rules: policy.rules.iter().map(rule_to_proto).collect(),
        dry_run: policy.dry_run,
    }
}

fn rule_to_proto(rule: &Rule) -> proto::Rule {
    let clause =
        |clause: &Clause| proto::Clause { matches: clause.matches.iter().map(match_to_proto).collect() };
    proto::Rule { clauses: rule.clauses.iter().map(clause).collect() }
}

fn match_to_proto(one: &Match) -> proto::Match {
    let ports = |ports: &[u16]| ports.iter().copied().map(u32::from).collect();
    proto::Match {
        namespaces: texts_to_proto(&one.namespaces),
        not_namespaces: texts_to_proto(&one.not_namespaces),
        principals: texts_to_proto(&one.principals),
        not_principals: texts_to_proto(&one.not_principals),
        source_ips: ranges_to_proto(&one.source_ips),
        not_source_ips: ranges_to_proto(&one.not_source_ips),
        destination_ips: ranges_to_proto(&one.destination_ips),
        not_destination_ips: ranges_to_proto(&one.not_destination_ips),
        destination_ports: ports(&one.destination_ports),
        not_destination_ports: ports(&one.not_destination_ports),
        service_accounts: accounts_to_proto(&one.service_accounts),
        not_service_accounts: accounts_to_proto(&one.not_service_accounts),
    }
}

fn texts_to_proto(texts: &[StringMatch]) -> Vec<proto::StringMatch> {
    use proto::string_match::MatchType;
    let convert = |one: &StringMatch| match one {
        StringMatch::Exact(exact) => MatchType::Exact(exact.clone()),
        StringMatch::Prefix(prefix) => MatchType::Prefix(prefix.clone()),
        StringMatch::Suffix(suffix) => MatchType::Suffix(suffix.clone()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    texts.iter().map(|one| proto::StringMatch { match_type: Some(convert(one)) }).collect()
}

fn ranges_to_proto(ranges: &[IpNet]) -> Vec<proto::Address> {
    let convert = |range: &IpNet| proto::Address {
        address: address_to_bytes(range.addr()),
        length: range.prefix_len().into(),
    };
    ranges.iter().map(convert).collect()
}

fn accounts_to_proto(accounts: &[ServiceAccountMatch]) -> Vec<proto::ServiceAccountMatch> {
    let convert = |one: &ServiceAccountMatch| proto::ServiceAccountMatch {
        namespace: one.namespace.to_string(),
        service_account: one.service_account.to_string(),
    };
    accounts.iter().map(convert).collect()
}
