//! What an object of the API server is to the mesh: pure.
//!
//! Objects are read as manifests are. Where a directory with a fault in it is not taken as a whole, a cluster is, without the object: one
//! user's mistake must not keep the changes of all others from taking effect. But an unreadable policy is there to refuse something, so that
//! until it is mended it refuses all that it could.

use std::collections::BTreeMap;

use crate::manifests::{
    AuthorizationPolicy, Context, Field, Instead, Kind, Metadata, MtlsMode, Object, ObjectName, Origin,
    PeerAuthentication, Placement, PolicyAction, PolicyRule, Tree, Unreadable,
};

/// What an object is to the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing: a pod without a node yet, or that has ended and has no address any more.
    Nothing,
    /// What it says.
    Read(Object),
    /// It cannot be read; the object stands for it.
    Unreadable(Unreadable, Option<Object>),
}

impl Meaning {
    /// What an object of this kind means.
    pub(super) fn of(kind: Kind, tree: &Tree) -> Self {
        let context = Context { origin: Origin::ApiServer, object: ObjectName::of(kind.name(), tree) };
        let object = Field::root(&context, tree);
        if kind == Kind::Pod && is_nowhere(tree) {
            return Self::Nothing;
        }
        match Object::read(kind, &object) {
            Ok(object) => Self::Read(object),
            Err(error) => {
                let stand_in = stand_in(kind, &object);
                let instead = if stand_in.is_some() { Instead::Closed } else { Instead::LeftOut };
                Self::Unreadable(Unreadable { error, instead }, stand_in)
            }
        }
    }
}

/// Whether a pod is not scheduled yet, or holds its addresses no longer. A manifest of such a pod would be a mistake.
fn is_nowhere(pod: &Tree) -> bool {
    let has = |path: [&str; 2]| pod.entry(path[0]).is_some_and(|tree| tree.entry(path[1]).is_some());
    let phase = pod.entry("status").and_then(|status| status.text("phase"));
    !has(["spec", "nodeName"]) || matches!(phase, Some("Succeeded" | "Failed"))
}

/// What stands for an unreadable object: nothing where its absence opens nothing, or where it is not for connections.
fn stand_in(kind: Kind, object: &Field<'_>) -> Option<Object> {
    let metadata = || Metadata::read(object, Placement::Namespaced).ok();
    match kind {
        Kind::PeerAuthentication => Some(Object::PeerAuthentication(PeerAuthentication {
            metadata: metadata()?,
            selector: selector(object),
            mode: MtlsMode::Strict,
            ports: BTreeMap::new(),
        })),
        Kind::AuthorizationPolicy if !is_for_waypoints(object) => {
            Some(Object::AuthorizationPolicy(AuthorizationPolicy {
                metadata: metadata()?,
                selector: selector(object),
                for_waypoints: false,
                action: PolicyAction::Deny,
                // A rule that states nothing matches everything.
                rules: vec![PolicyRule::default()],
            }))
        }
        _ => None,
    }
}

fn is_for_waypoints(policy: &Field<'_>) -> bool {
    let has = |key| policy.at(&["spec", key]).is_ok_and(|field| field.is_present());
    has("targetRef") || has("targetRefs")
}

/// Whom an unreadable policy is about, if that much can be read of it; else everybody it could be about.
fn selector(object: &Field<'_>) -> BTreeMap<String, String> {
    let labels = object.at(&["spec", "selector", "matchLabels"]);
    labels.and_then(|labels| labels.text_map()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::decode::Received;
    use super::*;

    fn meaning(kind: Kind, object: &Value) -> Meaning {
        let received: Received = serde_json::from_value(object.clone()).unwrap();
        Meaning::of(kind, &received.tree)
    }

    fn pod(change: impl Fn(&mut Value)) -> Meaning {
        let mut pod = json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "1a", "creationTimestamp": "2026-01-31T12:00:00Z"},
            "spec": {"nodeName": "east", "containers": [{"name": "a", "env": [{"name": "A"}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "Ready", "status": "True"}]},
        });
        change(&mut pod);
        meaning(Kind::Pod, &pod)
    }

    #[test]
    fn a_pod_without_an_address_is_one_whose_network_is_being_made() {
        let Meaning::Read(Object::Pod(read)) = pod(|pod| pod["status"] = json!({"phase": "Pending"})) else {
            panic!("not read")
        };
        assert_eq!((read.node.as_str(), read.ready, read.ended), ("east", false, false));
        assert!(read.addresses.is_empty());
    }

    #[test]
    fn a_pod_is_read_once_it_has_a_node_and_until_it_has_ended() {
        let Meaning::Read(Object::Pod(read)) = pod(|_| {}) else { panic!("not read") };
        assert_eq!(
            (read.node.as_str(), read.ready, &read.metadata.origin),
            ("east", true, &Origin::ApiServer)
        );
        for (name, path, value) in [
            ("not scheduled", "/spec/nodeName", Value::Null),
            ("ended well", "/status/phase", "Succeeded".into()),
            ("ended", "/status/phase", "Failed".into()),
        ] {
            let meaning = pod(|pod| *pod.pointer_mut(path).unwrap() = value.clone());
            assert_eq!(meaning, Meaning::Nothing, "{name}");
        }
        let Meaning::Unreadable(unreadable, None) = pod(|pod| pod["status"]["podIPs"] = json!([{"ip": "x"}]))
        else {
            panic!("read")
        };
        assert_eq!(unreadable.instead, Instead::LeftOut);
        assert!(unreadable.error.to_string().starts_with("Kubernetes: Pod shop/a: status.podIPs[0].ip `x`"));
    }

    #[test]
    fn an_unreadable_policy_refuses_all_that_it_could() {
        let policy = |spec: Value| json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": spec});
        let any = || policy(json!({"selector": {"matchLabels": {"app": "a"}}, "novel": true}));
        let Meaning::Unreadable(unreadable, Some(Object::AuthorizationPolicy(stands))) =
            meaning(Kind::AuthorizationPolicy, &any())
        else {
            panic!("read")
        };
        assert_eq!(unreadable.instead, Instead::Closed);
        assert_eq!(
            (stands.action, stands.rules.as_slice()),
            (PolicyAction::Deny, &[PolicyRule::default()][..])
        );
        assert_eq!(stands.selector, BTreeMap::from([("app".to_owned(), "a".to_owned())]));

        let Meaning::Unreadable(_, Some(Object::PeerAuthentication(stands))) =
            meaning(Kind::PeerAuthentication, &policy(json!({"mtls": {"mode": "PERMISIVE"}})))
        else {
            panic!("read")
        };
        assert_eq!((stands.mode, stands.selector.len()), (MtlsMode::Strict, 0));

        let unreadable_selector = policy(json!({"selector": {"matchExpressions": []}, "action": "ALLOW"}));
        let Meaning::Unreadable(_, Some(Object::AuthorizationPolicy(stands))) =
            meaning(Kind::AuthorizationPolicy, &unreadable_selector)
        else {
            panic!("read")
        };
        assert!(stands.selector.is_empty(), "it may be about anybody in its namespace");

        let for_waypoints = policy(json!({"targetRefs": [{"kind": "Service", "name": "a"}], "novel": true}));
        assert!(matches!(
            meaning(Kind::AuthorizationPolicy, &for_waypoints),
            Meaning::Unreadable(Unreadable { instead: Instead::LeftOut, .. }, None)
        ));
    }
}
