//! What decides who may reach a pod: its workload and the policies that apply to it. As long as it stays the same, so
//! do all decisions.

use std::sync::Arc;

use mesh::state::Policy;
use mesh::{Namespace, ServiceAccount, State, Workload};

/// See the module. It holds what it compares, so that no other thing can come to stand at the same place.
#[derive(Debug)]
pub(crate) struct Basis {
    workload: Option<Arc<Workload>>,
    /// In the state's order. `None`: one that the workload names and that is not known.
    policies: Vec<Option<Policy>>,
}

impl Basis {
    /// That of a pod, by `state`.
    pub(crate) fn of(state: &State, namespace: &Namespace, name: &str, account: &ServiceAccount) -> Self {
        let workload = state.workload_by_pod(namespace, name, account).cloned();
        let policies = workload.iter().flat_map(|workload| state.policies_for(workload));
        Self { policies: policies.map(|(_, policy)| policy.cloned()).collect(), workload }
    }

    /// Whether nothing has changed between the two. Replaced by its like counts as changed.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        let same_workload = match (&self.workload, &other.workload) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        same_workload
            && self.policies.len() == other.policies.len()
            && self.policies.iter().zip(&other.policies).all(|(one, other)| is_same_policy(one, other))
    }
}

fn is_same_policy(one: &Option<Policy>, other: &Option<Policy>) -> bool {
    match (one, other) {
        (Some(Policy::Valid(one)), Some(Policy::Valid(other))) => Arc::ptr_eq(one, other),
        (Some(Policy::Rejected(one)), Some(Policy::Rejected(other))) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use mesh::policy::{Action, Authorization, PolicyScope, RejectedPolicy};
    use mesh::{PolicyName, WorkloadUid};

    use super::*;
    use crate::proxy::tests::workload;

    fn name(namespace: &str, name: &str) -> PolicyName {
        PolicyName { namespace: namespace.into(), name: name.into() }
    }

    fn policy(name: PolicyName, scope: PolicyScope) -> Authorization {
        Authorization { name, scope, action: Action::Deny, rules: Vec::new(), dry_run: false }
    }

    type Change<'a> = &'a dyn Fn(&mut State);

    #[test]
    fn only_the_own_workload_and_policies_that_apply_to_it_make_a_difference() {
        let mut state = State::new();
        let mut own = workload("web", "10.0.0.1");
        own.authorization_policies = vec![name("shop", "named")];
        state.upsert_workload(own.clone());
        let cases: [(&str, bool, Change<'_>); 9] = [
            ("nothing", true, &|_| {}),
            ("another workload", true, &|state| state.upsert_workload(workload("db", "10.0.0.2"))),
            ("a policy of another namespace", true, &|state| {
                state.upsert_policy(policy(name("bank", "all"), PolicyScope::Namespace));
            }),
            ("a policy that names others", true, &|state| {
                state.upsert_policy(policy(name("shop", "other"), PolicyScope::WorkloadSelector));
            }),
            ("the policy it names comes", false, &|state| {
                state.upsert_policy(policy(name("shop", "named"), PolicyScope::WorkloadSelector));
            }),
            ("the policy it names cannot be read any more", false, &|state| {
                state.reject_policy(RejectedPolicy {
                    name: name("shop", "named"),
                    scope: PolicyScope::WorkloadSelector,
                    dry_run: false,
                    reason: "no".to_owned(),
                });
            }),
            ("a policy of the mesh", false, &|state| {
                state.upsert_policy(policy(name("istio-system", "all"), PolicyScope::Global));
            }),
            ("the workload", false, &|state| state.upsert_workload(own.clone())),
            ("the workload goes", false, &|state| {
                state.remove_workload(&WorkloadUid::from("Kubernetes//Pod/shop/web"));
            }),
        ];
        for (what, same, change) in cases {
            let of = |state: &State| Basis::of(state, &"shop".into(), "web", &"web".into());
            let before = of(&state);
            change(&mut state);
            assert_eq!(before.is_same_as(&of(&state)), same, "{what}");
        }
    }
}
