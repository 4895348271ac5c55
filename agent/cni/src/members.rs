//! Who is in the mesh, as far as the agent of the node knows: a small file that the plugin reads while no agent answers.
//!
//! A pod that came up after the file was written is not in it. Its labels are then unknown, and its namespace decides: in a namespace of the
//! mesh it counts as a member, also if a label of its own takes it out; elsewhere it does not, also if a label takes it in (it is
//! captured when the agent is back).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ask::PodName;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// Namespaces whose pods are in the mesh unless they say otherwise.
    pub namespaces: BTreeSet<String>,
    /// This node's pods by their uids: whether each is in the mesh.
    pub pods: BTreeMap<String, bool>,
}

impl Members {
    /// Whether a pod is known, and if so, whether it is in the mesh.
    #[must_use]
    pub fn known(&self, pod: &PodName) -> Option<bool> {
        self.pods.get(pod.uid.as_deref()?).copied()
    }

    /// Whether a pod counts as one of the mesh, known or not.
    #[must_use]
    pub fn counts(&self, pod: &PodName) -> bool {
        self.known(pod).unwrap_or_else(|| self.namespaces.contains(&pod.namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_pod_goes_before_what_is_known_of_its_namespace() {
        let members = Members {
            namespaces: BTreeSet::from(["shop".to_owned()]),
            pods: BTreeMap::from([("in".to_owned(), true), ("out".to_owned(), false)]),
        };
        for (namespace, uid, known, counts) in [
            ("shop", Some("in"), Some(true), true),
            ("shop", Some("out"), Some(false), false),
            ("shop", Some("new"), None, true),
            ("shop", None, None, true),
            ("plain", Some("in"), Some(true), true),
            ("plain", Some("new"), None, false),
            ("plain", None, None, false),
        ] {
            let pod =
                PodName { namespace: namespace.into(), name: "a".into(), uid: uid.map(ToOwned::to_owned) };
            assert_eq!((members.known(&pod), members.counts(&pod)), (known, counts), "{namespace} {uid:?}");
        }
    }

    #[test]
    fn a_file_of_another_form_is_not_taken_for_an_empty_one() {
        for text in ["", "{}", r#"{"namespaces": []}"#, r#"{"namespaces": [], "pods": {}, "more": 1}"#] {
            assert!(serde_json::from_str::<Members>(text).is_err(), "{text}");
        }
    }
}
