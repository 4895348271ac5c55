//! The end of the mesh on a cluster: its agents first, then what outlives them on every node.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};

use super::Cluster;

/// The agents' DaemonSet and their label.
const AGENT: &str = "culvert-agent";
/// The DaemonSet whose pods clear their nodes.
const UNINSTALL: &str = "culvert-uninstall";
/// How often it is asked how far it is.
const POLL: Duration = Duration::from_millis(250);

/// The mesh's own namespace in a cluster, at its end.
pub struct Retirement {
    client: Client,
    namespace: String,
}

impl Retirement {
    /// Of the mesh in this namespace.
    pub fn new(cluster: &Cluster, namespace: &str) -> Self {
        Self { client: cluster.client(), namespace: namespace.to_owned() }
    }

    /// Deletes the agents, and waits until none is left. Pods stay captured.
    ///
    /// # Errors
    /// The API server refuses, or does not answer.
    pub async fn end_agents(&self) -> Result<(), kube::Error> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        match sets.delete(AGENT, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            outcome => drop(outcome?),
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let agents = ListParams::default().labels(&format!("app={AGENT}"));
        while !pods.list_metadata(&agents).await?.items.is_empty() {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until the pods that clear nodes have done so on all of them; returns on how many.
    ///
    /// # Errors
    /// The API server refuses, or does not answer.
    pub async fn await_nodes(&self) -> Result<i32, kube::Error> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        loop {
            if let Some(nodes) = cleared(&sets.get(UNINSTALL).await?) {
                return Ok(nodes);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// On how many nodes the pods of a DaemonSet are ready, if that is all.
fn cleared(set: &DaemonSet) -> Option<i32> {
    let status = set.status.as_ref()?;
    let is_current = status.observed_generation == set.metadata.generation;
    let ready = status.number_ready == status.desired_number_scheduled;
    (is_current && ready).then_some(status.number_ready)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_clear_when_the_controller_has_seen_the_set_and_all_of_its_pods_are_ready() {
        for (status, expected) in [
            (json!(null), None),
            (json!({"observedGeneration": 1, "desiredNumberScheduled": 2, "numberReady": 1}), None),
            (json!({"desiredNumberScheduled": 0, "numberReady": 0}), None),
            (json!({"observedGeneration": 1, "desiredNumberScheduled": 2, "numberReady": 2}), Some(2)),
        ] {
            let mut status = status;
            if let Some(status) = status.as_object_mut() {
                status.insert("currentNumberScheduled".into(), 0.into());
                status.insert("numberMisscheduled".into(), 0.into());
            }
            let set = json!({"metadata": {"generation": 1}, "status": status});
            assert_eq!(cleared(&serde_json::from_value(set).unwrap()), expected);
        }
    }
}
