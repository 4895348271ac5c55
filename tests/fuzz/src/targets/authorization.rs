//! A policy as it comes over xDS, and what it then decides.

use api::convert::{Marker, Resource, policy_resource, policy_to_proto, read};
use api::proto::security::Authorization as Message;
use api::type_url::ResourceType;
use mesh::authorize::{Attempt, authorize};
use mesh::policy::{Action, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use mesh::{Authorization, State};
use prost::Message as _;
use prost_types::Any;

use super::address::{pod, web};

/// A policy is read whole, and written back alike; or it is rejected, and refuses all that it may have been meant for.
pub fn run(input: &[u8]) {
    let content = Any { type_url: ResourceType::Authorization.url().to_owned(), value: input.to_vec() };
    // The resource goes by the name of its content, where it has one: another is refused for that alone.
    let message = Message::decode(input).ok();
    let name =
        message.as_ref().map_or_else(|| "shop/p".to_owned(), |one| format!("{}/{}", one.namespace, one.name));
    let mut state = State::new();
    let mut pod = pod();
    let outcome = read(ResourceType::Authorization, &name, &[], &content);
    match &outcome {
        Ok(Resource::Policy(policy)) => {
            let (again, written) = policy_resource(policy);
            assert_eq!(read(ResourceType::Authorization, &again, &[], &written), outcome);
            assert_eq!(message.map(|one| one.rules.len()), Some(policy_to_proto(policy).rules.len()));
            if policy.scope == PolicyScope::WorkloadSelector {
                pod.authorization_policies.push(policy.name.clone());
            }
            state.upsert_policy(Authorization::clone(policy));
        }
        Ok(other) => panic!("read as {other:?}"),
        Err(rejected) => {
            let Some(Marker::Policy(policy)) = rejected.marker.clone() else {
                panic!("nothing is enforced in its place")
            };
            if policy.scope == PolicyScope::WorkloadSelector {
                pod.authorization_policies.push(policy.name.clone());
            }
            state.reject_policy(policy);
        }
    }
    state.upsert_workload(pod.clone());
    for source in [None, Some(web())] {
        let attempt = Attempt {
            source,
            source_ip: [10, 0, 0, 7].into(),
            workload: pod.uid.clone(),
            destination: ([10, 0, 0, 2], 8080).into(),
        };
        let verdict = authorize(&state, attempt.clone());
        if let Err(rejected) = &outcome {
            let policy = match &rejected.marker {
                Some(Marker::Policy(policy)) => Some(policy),
                _ => None,
            };
            let applies =
                policy.is_some_and(|policy| !policy.dry_run && policy.scope != PolicyScope::Namespace);
            assert!(
                !applies || verdict.decision.is_err(),
                "what cannot be read lets {:?} in",
                attempt.source
            );
        }
    }
}

/// A policy with everything in it, and one with nothing.
pub fn seeds() -> Vec<Vec<u8>> {
    let texts = |text: &str| {
        let text = || text.to_owned();
        vec![
            StringMatch::Exact(text()),
            StringMatch::Prefix(text()),
            StringMatch::Suffix(text()),
            StringMatch::Presence,
        ]
    };
    let accounts = vec![ServiceAccountMatch { namespace: "shop".into(), service_account: "web".into() }];
    let net = |text: &str| text.parse().ok().into_iter().collect::<Vec<_>>();
    let full = Match {
        namespaces: texts("shop"),
        not_namespaces: texts("evil"),
        principals: texts("cluster.local/ns/shop/sa/web"),
        not_principals: texts("x"),
        service_accounts: accounts.clone(),
        not_service_accounts: accounts,
        source_ips: net("10.0.0.0/8"),
        not_source_ips: net("fd00::/8"),
        destination_ips: net("10.0.0.2/32"),
        not_destination_ips: net("::/0"),
        destination_ports: vec![8080],
        not_destination_ports: vec![22],
    };
    let strict = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let policy = |scope, action, matches, dry_run| Authorization {
        name: mesh::PolicyName { namespace: "shop".into(), name: "p".into() },
        scope,
        action,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        dry_run,
    };
    let policies = [
        policy(PolicyScope::Namespace, Action::Allow, vec![full], false),
        policy(PolicyScope::Global, Action::Deny, vec![strict.clone()], true),
        policy(PolicyScope::WorkloadSelector, Action::Deny, vec![strict], false),
        policy(PolicyScope::Namespace, Action::Allow, Vec::new(), false),
    ];
    policies.iter().map(|policy| policy_to_proto(policy).encode_to_vec()).collect()
}
