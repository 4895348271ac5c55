//! `PeerAuthentication`: which pods refuse plaintext, on which ports, and the policies that make them do so.
//!
//! Most specific first: workload, namespace, mesh; UNSET inherits; the oldest of a level wins (names break ties). One with
//! a selector in the root namespace is of no level and has no effect, neither there nor elsewhere, as in Istio. A pod
//! refuses plaintext by a DENY policy on whoever has proved no identity (Istio contract 1.8, last point).

use std::collections::{BTreeMap, BTreeSet};

use mesh::Authorization;
use mesh::policy::{Action, Clause, Match, PolicyName, PolicyScope, Rule, StringMatch};

use super::{Settings, Warnings, selects};
use crate::manifests::{MtlsMode, Objects, PeerAuthentication, Pod};

/// The policy of every pod that is STRICT on all ports; lives in the root namespace. No object of Kubernetes can have
/// this name: it has underscores.
const STATIC_STRICT: &str = "istio_converted_static_strict";
/// Prefix of the policy of pods whose ports differ.
const CONVERTED: &str = "converted_peer_authentication_";

/// The levels' modes.
pub(super) struct Modes<'a> {
    root_namespace: &'a str,
    mesh: bool,
    namespaces: BTreeMap<&'a str, bool>,
    /// Those with a selector, most authoritative first.
    workloads: Vec<&'a PeerAuthentication>,
}

/// What holds for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effective {
    strict: bool,
    /// Ports on which the opposite holds.
    exceptions: BTreeSet<u16>,
    /// Names the policy for the exceptions.
    source: Option<PolicyName>,
    root_namespace: String,
}

/// The ports on which a pod refuses plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PlaintextRefusal {
    /// All.
    Everywhere,
    /// These alone; none of them: nowhere.
    OnlyOn(BTreeSet<u16>),
    /// All others; at least one.
    AllBut(BTreeSet<u16>),
}

/// STRICT, or not; `None` where it is inherited.
fn strictness(mode: MtlsMode) -> Option<bool> {
    match mode {
        MtlsMode::Unset => None,
        MtlsMode::Strict => Some(true),
        MtlsMode::Permissive | MtlsMode::Disable => Some(false),
    }
}

impl<'a> Modes<'a> {
    pub(super) fn of(objects: &'a Objects, settings: &'a Settings, warnings: &mut Warnings) -> Self {
        let mut by_age: Vec<&PeerAuthentication> = objects.peer_authentications.iter().collect();
        by_age.sort_by_key(|object| {
            (&object.metadata.created, &object.metadata.name, &object.metadata.namespace)
        });
        let mut wide: BTreeMap<&str, &PeerAuthentication> = BTreeMap::new();
        let mut workloads = Vec::new();
        for object in by_age {
            let metadata = &object.metadata;
            if object.mode == MtlsMode::Disable
                || object.ports.values().any(|mode| *mode == MtlsMode::Disable)
            {
                let message =
                    "mode DISABLE means PERMISSIVE here: mutual TLS stays on offer, plaintext is taken too";
                warnings.add("PeerAuthentication", metadata, message);
            }
            if !object.selector.is_empty() {
                if metadata.namespace == settings.root_namespace {
                    let message = "a selector has no meaning in the root namespace: the object has no effect";
                    if object.asks_strict() {
                        warnings.unenforced("PeerAuthentication", metadata, message);
                    } else {
                        warnings.add("PeerAuthentication", metadata, message);
                    }
                } else {
                    workloads.push(object);
                }
            } else if let Some(first) = wide.get(metadata.namespace.as_str()) {
                let message = format!(
                    "`{}` is older and of the same level: this object has no effect",
                    first.metadata.name
                );
                warnings.add("PeerAuthentication", metadata, message);
            } else {
                wide.insert(&metadata.namespace, object);
            }
        }
        let mesh = wide.remove(settings.root_namespace.as_str()).and_then(|object| strictness(object.mode));
        let mesh = mesh.unwrap_or(false);
        let namespaces =
            wide.into_iter().map(|(name, object)| (name, strictness(object.mode).unwrap_or(mesh))).collect();
        Self { root_namespace: &settings.root_namespace, mesh, namespaces, workloads }
    }

    pub(super) fn of_pod(&self, pod: &Pod) -> Effective {
        let namespace = pod.metadata.namespace.as_str();
        let inherited = self.namespaces.get(namespace).copied().unwrap_or(self.mesh);
        let own = self.workloads.iter().find(|object| {
            object.metadata.namespace == namespace && selects(&object.selector, &pod.metadata.labels)
        });
        let strict = own.and_then(|object| strictness(object.mode)).unwrap_or(inherited);
        let ports = own.map(|object| &object.ports).into_iter().flatten();
        let exceptions: BTreeSet<u16> = ports
            .filter(|(_, mode)| strictness(**mode).is_some_and(|port| port != strict))
            .map(|(port, _)| *port)
            .collect();
        let source = own.map(|object| PolicyName {
            namespace: namespace.into(),
            name: format!("{CONVERTED}{}", object.metadata.name).into(),
        });
        Effective { strict, exceptions, source, root_namespace: self.root_namespace.to_owned() }
    }
}

impl Effective {
    /// Where the pod refuses plaintext, for its agent.
    pub(super) fn refusal(&self) -> PlaintextRefusal {
        match (self.strict, self.exceptions.is_empty()) {
            (true, true) => PlaintextRefusal::Everywhere,
            (true, false) => PlaintextRefusal::AllBut(self.exceptions.clone()),
            (false, _) => PlaintextRefusal::OnlyOn(self.exceptions.clone()),
        }
    }

    /// The policy that enforces it; none where plaintext is taken on every port.
    pub(super) fn policy(&self) -> Option<Authorization> {
        let ports: Vec<u16> = self.exceptions.iter().copied().collect();
        let on_ports = match (self.strict, ports.is_empty()) {
            (false, true) => return None,
            (true, true) => None,
            (true, false) => Some(Match { not_destination_ports: ports, ..Match::default() }),
            (false, false) => Some(Match { destination_ports: ports, ..Match::default() }),
        };
        let unproved = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
        let static_name =
            PolicyName { namespace: self.root_namespace.as_str().into(), name: STATIC_STRICT.into() };
        let name = if on_ports.is_some() { self.source.clone() } else { None };
        let clauses = std::iter::once(unproved).chain(on_ports);
        Some(Authorization {
            name: name.unwrap_or(static_name),
            scope: PolicyScope::WorkloadSelector,
            action: Action::Deny,
            rules: vec![Rule { clauses: clauses.map(|only| Clause { matches: vec![only] }).collect() }],
            dry_run: false,
        })
    }
}
