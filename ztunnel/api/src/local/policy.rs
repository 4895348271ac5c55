//! The form of policies in the file, and their messages.

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::convert::address_to_bytes;
use crate::proto::security;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    name: String,
    namespace: String,
    scope: PolicyScope,
    action: Action,
    /// Any of these; of each all; of each of those any.
    rules: Vec<Vec<Vec<Match>>>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Debug, Deserialize)]
enum PolicyScope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Debug, Deserialize)]
enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Match {
    namespaces: Vec<TextMatch>,
    not_namespaces: Vec<TextMatch>,
    principals: Vec<TextMatch>,
    not_principals: Vec<TextMatch>,
    service_accounts: Vec<Account>,
    not_service_accounts: Vec<Account>,
    source_ips: Vec<IpNet>,
    not_source_ips: Vec<IpNet>,
    destination_ips: Vec<IpNet>,
    not_destination_ips: Vec<IpNet>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Account {
    namespace: String,
    service_account: String,
}

/// `Exact: text`, `Prefix: text`, `Suffix: text` or `Presence: []`.
#[derive(Debug)]
struct TextMatch(security::string_match::MatchType);

impl<'de> Deserialize<'de> for TextMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TextMatchVisitor)
    }
}

struct TextMatchVisitor;

impl<'de> Visitor<'de> for TextMatchVisitor {
    type Value = TextMatch;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("one of Exact, Prefix, Suffix and Presence")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextMatch, A::Error> {
        use security::string_match::MatchType;
        const KINDS: &[&str] = &["Exact", "Prefix", "Suffix", "Presence"];
        let kind: String = map.next_key()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        let matched = match kind.as_str() {
            "Exact" => MatchType::Exact(map.next_value()?),
            "Prefix" => MatchType::Prefix(map.next_value()?),
            "Suffix" => MatchType::Suffix(map.next_value()?),
            "Presence" => {
                let _: [(); 0] = map.next_value()?;
                MatchType::Presence(())
            }
            other => return Err(A::Error::unknown_variant(other, KINDS)),
        };
        match map.next_key::<String>()? {
            None => Ok(TextMatch(matched)),
            Some(_) => Err(A::Error::invalid_length(2, &self)),
        }
    }
}

impl Match {
    fn into_proto(self) -> security::Match {
        let texts = |texts: Vec<TextMatch>| {
            let one = |text: TextMatch| security::StringMatch { match_type: Some(text.0) };
            texts.into_iter().map(one).collect()
        };
        let accounts = |accounts: Vec<Account>| {
            let one = |account: Account| security::ServiceAccountMatch {
                namespace: account.namespace,
                service_account: account.service_account,
            };
            accounts.into_iter().map(one).collect()
        };
        let ranges = |ranges: Vec<IpNet>| {
            let one = |range: IpNet| security::Address {
                address: address_to_bytes(range.addr()),
                length: range.prefix_len().into(),
            };
            ranges.into_iter().map(one).collect()
        };
        let ports = |ports: Vec<u16>| ports.into_iter().map(u32::from).collect();
        security::Match {
            namespaces: texts(self.namespaces),
            not_namespaces: texts(self.not_namespaces),
            principals: texts(self.principals),
            not_principals: texts(self.not_principals),
            service_accounts: accounts(self.service_accounts),
            not_service_accounts: accounts(self.not_service_accounts),
            source_ips: ranges(self.source_ips),
            not_source_ips: ranges(self.not_source_ips),
            destination_ips: ranges(self.destination_ips),
            not_destination_ips: ranges(self.not_destination_ips),
            destination_ports: ports(self.destination_ports),
            not_destination_ports: ports(self.not_destination_ports),
        }
    }
}

impl Policy {
    pub(super) fn into_proto(self) -> security::Authorization {
        let clause = |matches: Vec<Match>| security::Clause {
            matches: matches.into_iter().map(Match::into_proto).collect(),
        };
        let rule =
            |clauses: Vec<Vec<Match>>| security::Rule { clauses: clauses.into_iter().map(clause).collect() };
        security::Authorization {
            name: self.name,
            namespace: self.namespace,
            scope: match self.scope {
                PolicyScope::Global => security::Scope::Global,
                PolicyScope::Namespace => security::Scope::Namespace,
                PolicyScope::WorkloadSelector => security::Scope::WorkloadSelector,
            }
            .into(),
            action: match self.action {
                Action::Allow => security::Action::Allow,
                Action::Deny => security::Action::Deny,
            }
            .into(),
            rules: self.rules.into_iter().map(rule).collect(),
            dry_run: self.dry_run,
        }
    }
}
