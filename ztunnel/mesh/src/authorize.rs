//! Whether an application may be dialled (Istio contract 1.8), failing closed.
//!
//! [`authorize`] is the only maker of a [`Permit`], and whoever dials an application must hold one. In order:
//! what cannot be judged is refused (a workload or a policy that is not known, a policy that could not be
//! read); a DENY that matches refuses; with no ALLOW in force all else passes; with one, only what an ALLOW
//! matches. Policies in dry run decide nothing and are reported.

#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::SpiffeId;
use crate::policy::{
    Action, Authorization, Clause, Match, PolicyName, Rule, ServiceAccountMatch, StringMatch,
};
use crate::ports::is_proxy_port;
use crate::state::{Policy, RejectedAddress, State};
use crate::workload::{ApplicationTunnel, WorkloadUid};

/// A connection that asks to be let to an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The identity the client has proved; `None` where it has proved none (plaintext).
    pub source: Option<SpiffeId>,
    /// The client's address: the TCP peer of the connection that carries it.
    pub source_ip: IpAddr,
    /// The workload whose application is to be dialled. It is looked up anew, so that policies which came to
    /// select it since it was accepted count.
    pub workload: WorkloadUid,
    /// The application's address and port, after service resolution.
    pub destination: SocketAddr,
}

/// The proof that a connection was let to an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    attempt: Attempt,
    entry: Entry,
}

/// How an application is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// On the port that was asked for. The first bytes are the client's.
    Plain,
    /// On this port, and the first bytes are a header of the PROXY protocol that tells of the client.
    Proxy {
        /// The port.
        port: u16,
    },
}

impl Permit {
    /// What was checked. To check it anew after a change of policy, hand a clone to [`authorize`].
    pub fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// How the application is to be connected to.
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// The identity the client has proved.
    pub fn source(&self) -> Option<&SpiffeId> {
        self.attempt.source.as_ref()
    }

    /// What was asked for, as an address of the pod. Where the application may be dialled, unless it is told of its
    /// clients on another port.
    pub fn destination(&self) -> SocketAddr {
        self.attempt.destination
    }

    /// The port the application may be dialled on.
    pub fn port(&self) -> u16 {
        self.attempt.destination.port()
    }
}

/// Why a connection was not let to an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The policy that did it, if one did. Of several ALLOW policies that do not match, the first.
    pub policy: Option<PolicyName>,
    /// Why.
    pub reason: Reason,
}

/// Kinds of refusals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A DENY policy matches.
    Denied,
    /// There are ALLOW policies, and none matches.
    NotAllowed,
    /// The workload names a policy that is not known (yet).
    UnknownPolicy,
    /// The policy could not be read; what it says.
    UnreadablePolicy(String),
    /// The workload is not known (any more).
    UnknownWorkload,
    /// The workload could not be read.
    UnreadableWorkload(Arc<RejectedAddress>),
    /// The address is not the workload's.
    ForeignAddress,
    /// The port is the proxy's own.
    ProxyPort,
    /// The application is told of its clients on this port. A client that proves no identity would tell of itself.
    TunnelPort,
    /// The application is told of its clients by a protocol of a later version.
    UnknownTunnel,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Denied => write!(f, "denied by policy")?,
            Reason::NotAllowed => write!(f, "allow policies exist, but none allows it")?,
            Reason::UnknownPolicy => write!(f, "the workload names a policy that is not known")?,
            Reason::UnreadablePolicy(why) => write!(f, "a policy cannot be read ({why})")?,
            Reason::UnknownWorkload => write!(f, "the workload is not known")?,
            Reason::UnreadableWorkload(rejected) => {
                write!(f, "the workload cannot be read ({})", rejected.reason)?;
            }
            Reason::ForeignAddress => write!(f, "the address is not the workload's")?,
            Reason::ProxyPort => write!(f, "the port is the proxy's own")?,
            Reason::TunnelPort => {
                write!(f, "on this port the application is told of clients that prove an identity")?;
            }
            Reason::UnknownTunnel => {
                write!(f, "the application is told of its clients by an unknown protocol")?;
            }
        }
        self.policy.as_ref().map_or(Ok(()), |policy| write!(f, ": {policy}"))
    }
}

impl std::error::Error for Refusal {}

/// What a policy in dry run would have said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// The policy.
    pub policy: PolicyName,
    /// What its match means.
    pub action: Action,
    /// Whether it matched.
    pub matched: bool,
}

/// The outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What counts.
    pub decision: Result<Permit, Refusal>,
    /// What is only logged.
    pub dry_run: Vec<DryRun>,
}

/// Judges an attempt by the policies that apply to its destination. IPv4 addresses in IPv6 form count as what
/// they mean.
pub fn authorize(state: &State, mut attempt: Attempt) -> Verdict {
    attempt.source_ip = attempt.source_ip.to_canonical();
    attempt.destination.set_ip(attempt.destination.ip().to_canonical());
    let mut dry_run = Vec::new();
    let decision = decide(state, &attempt, &mut dry_run).map(|entry| Permit { attempt, entry });
    Verdict { decision, dry_run }
}

fn decide(state: &State, attempt: &Attempt, dry_run: &mut Vec<DryRun>) -> Result<Entry, Refusal> {
    let refuse = |policy: Option<&PolicyName>, reason| Err(Refusal { policy: policy.cloned(), reason });
    let Some(workload) = state.workload(&attempt.workload) else {
        let unreadable = state.rejected_address(attempt.workload.as_str());
        let why = unreadable.map(|rejected| Reason::UnreadableWorkload(Arc::clone(rejected)));
        return refuse(None, why.unwrap_or(Reason::UnknownWorkload));
    };
    if !workload.addresses.contains(&attempt.destination.ip()) {
        return refuse(None, Reason::ForeignAddress);
    }
    if is_proxy_port(attempt.destination.port()) {
        return refuse(None, Reason::ProxyPort);
    }
    let entry =
        entry(workload.application_tunnel, attempt).map_err(|reason| Refusal { policy: None, reason })?;
    let facts = Facts::of(attempt);
    let mut refusal = None;
    let mut first_allow = None;
    let mut allowed = false;
    for (name, policy) in state.policies_for(workload) {
        let reason = match policy {
            None => Reason::UnknownPolicy,
            Some(Policy::Rejected(rejected)) if rejected.dry_run => continue,
            Some(Policy::Rejected(rejected)) => Reason::UnreadablePolicy(rejected.reason.clone()),
            Some(Policy::Valid(policy)) => {
                let matched = facts.match_policy(policy);
                match policy.action {
                    action if policy.dry_run => {
                        dry_run.push(DryRun { policy: name.clone(), action, matched });
                        continue;
                    }
                    Action::Deny if matched => Reason::Denied,
                    Action::Deny => continue,
                    Action::Allow => {
                        first_allow = first_allow.or(Some(name));
                        allowed |= matched;
                        continue;
                    }
                }
            }
        };
        // A DENY that matches is the better name to log than a policy that is not known.
        if refusal.is_none() || reason == Reason::Denied {
            let denied = reason == Reason::Denied;
            refusal = Some((name, reason));
            if denied {
                break;
            }
        }
    }
    match (refusal, first_allow) {
        (Some((name, reason)), _) => refuse(Some(name), reason),
        (None, Some(name)) if !allowed => refuse(Some(name), Reason::NotAllowed),
        (None, _) => Ok(entry),
    }
}

/// How the application is connected to for the attempt (contract 1.3). Without an identity it is no client of the
/// mesh's, of which the application's own port of the mesh is to be told; on others it comes as it does without a mesh.
fn entry(tunnel: Option<ApplicationTunnel>, attempt: &Attempt) -> Result<Entry, Reason> {
    let asked = attempt.destination.port();
    match (tunnel, &attempt.source) {
        (None, _) => Ok(Entry::Plain),
        (Some(ApplicationTunnel::Unknown), _) => Err(Reason::UnknownTunnel),
        (Some(ApplicationTunnel::Proxy { port: None }), _) => Ok(Entry::Proxy { port: asked }),
        (Some(ApplicationTunnel::Proxy { port: Some(port) }), Some(_)) => Ok(Entry::Proxy { port }),
        (Some(ApplicationTunnel::Proxy { port: Some(port) }), None) if port == asked => {
            Err(Reason::TunnelPort)
        }
        (Some(ApplicationTunnel::Proxy { port: Some(_) }), None) => Ok(Entry::Plain),
    }
}

/// What policies look at.
struct Facts<'a> {
    source: Option<&'a SpiffeId>,
    /// The form principals are compared with, made when first asked for.
    principal: OnceCell<String>,
    source_ip: IpAddr,
    destination: SocketAddr,
}

impl<'a> Facts<'a> {
    fn of(attempt: &'a Attempt) -> Self {
        Self {
            source: attempt.source.as_ref(),
            principal: OnceCell::new(),
            source_ip: attempt.source_ip,
            destination: attempt.destination,
        }
    }

    fn match_policy(&self, policy: &Authorization) -> bool {
        policy.rules.iter().any(|rule| self.match_rule(rule))
    }

    fn match_rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.match_clause(clause))
    }

    fn match_clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|one| self.match_one(one))
    }

    fn match_one(&self, wanted: &Match) -> bool {
        if wanted.is_empty() {
            return false;
        }
        // A client without identity has no namespace, principal or service account to be matched: a positive
        // list fails and a negative one holds.
        let namespace =
            |one: &StringMatch| self.source.is_some_and(|id| match_text(one, id.namespace.as_str()));
        let principal = |one: &StringMatch| {
            self.source.is_some_and(|id| match_text(one, self.principal.get_or_init(|| id.principal())))
        };
        let account = |one: &ServiceAccountMatch| {
            self.source
                .is_some_and(|id| id.namespace == one.namespace && id.service_account == one.service_account)
        };
        let source_ip = |net: &IpNet| net.contains(&self.source_ip);
        let destination_ip = |net: &IpNet| net.contains(&self.destination.ip());
        let port = |port: &u16| *port == self.destination.port();
        holds(&wanted.namespaces, &wanted.not_namespaces, namespace)
            && holds(&wanted.principals, &wanted.not_principals, principal)
            && holds(&wanted.service_accounts, &wanted.not_service_accounts, account)
            && holds(&wanted.source_ips, &wanted.not_source_ips, source_ip)
            && holds(&wanted.destination_ips, &wanted.not_destination_ips, destination_ip)
            && holds(&wanted.destination_ports, &wanted.not_destination_ports, port)
    }
}

/// Any of the wanted values, if some are stated, and none of the unwanted.
fn holds<T>(wanted: &[T], unwanted: &[T], is: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&is)) && !unwanted.iter().any(&is)
}

fn match_text(wanted: &StringMatch, text: &str) -> bool {
    match wanted {
        StringMatch::Exact(exact) => text == exact,
        StringMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
        StringMatch::Suffix(suffix) => text.ends_with(suffix.as_str()),
        StringMatch::Presence => !text.is_empty(),
    }
}
