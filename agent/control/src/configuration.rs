//! From objects to the store, for as long as control runs: the last good state stays in effect until a better one is read.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::convert::{pod_resource, policy_resource, service_resource, workload_resource};
use api::type_url::ResourceType;

use crate::manifests::{LoadError, Objects};
use crate::nodes::Nodes;
use crate::source::Source;
use crate::status::{Manifests, Status};
use crate::translate::{Settings, Translation, translate};
use crate::xds::{Entry, ResourceStore};

/// Reads objects and publishes what they mean.
pub(crate) struct Configuration {
    pub(crate) source: Source,
    pub(crate) settings: Settings,
    pub(crate) store: ResourceStore,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) status: Status,
    /// What was said already: a line for each is enough.
    pub(crate) said: BTreeSet<String>,
}

impl Configuration {
    /// Until it is dropped.
    pub(crate) async fn follow(mut self) {
        loop {
            match self.source.next().await {
                Ok(objects) => self.take(&objects),
                Err(error) => self.refuse(&error),
            }
        }
    }

    fn take(&mut self, objects: &Objects) {
        let translation = translate(objects, &self.settings);
        // Identities first: an agent that hears of a pod asks for its certificate at once.
        self.nodes.set_workloads(&translation.workloads);
        let warnings: Vec<String> = translation.warnings.iter().map(ToString::to_string).collect();
        let unenforced = translation.warnings.iter().filter(|warning| warning.unenforced);
        let unenforced: Vec<String> = unenforced.map(ToString::to_string).collect();
        let ignored = objects
            .ignored
            .iter()
            .map(|ignored| format!("{}: {}: this kind is not read", ignored.origin, ignored.object));
        let mut said = BTreeSet::new();
        for line in ignored {
            if !self.said.contains(&line) {
                tracing::info!("{line}");
            }
            said.insert(line);
        }
        for line in &warnings {
            if !self.said.contains(line) {
                if unenforced.contains(line) {
                    tracing::error!("NOT ENFORCED: {line}");
                } else {
                    tracing::warn!("{line}");
                }
            }
            said.insert(line.clone());
        }
        self.said = said;
        let manifests = Manifests {
            loaded: true,
            error: None,
            warnings,
            unenforced,
            workloads: translation.workloads.len(),
            services: translation.services.len(),
            policies: translation.policies.len(),
            pods: translation.pods.len(),
        };
        let Manifests { workloads, services, policies, pods, .. } = manifests;
        let (warnings, unenforced) = (manifests.warnings.len(), manifests.unenforced.len());
        tracing::info!(workloads, services, policies, pods, warnings, unenforced, "manifests are in effect");
        publish(&self.store, &translation);
        self.status.loaded(manifests);
    }

    fn refuse(&self, error: &LoadError) {
        let consequence = if self.status.manifests().loaded {
            "the last good state stays in effect until this is mended"
        } else {
            "nothing is served until this is mended"
        };
        tracing::error!("manifests are not taken, {consequence}:\n{error}");
        self.status.load_failed(error.to_string());
    }
}

fn publish(store: &ResourceStore, translation: &Translation) {
    let workloads = translation.workloads.iter().map(workload_resource);
    let services = translation.services.iter().map(service_resource);
    let pods = translation.pods.iter().map(|enrolled| Entry {
        node: Some(enrolled.node.clone()),
        ..Entry::from(pod_resource(&enrolled.pod))
    });
    store.replace([
        (
            ResourceType::Authorization,
            translation.policies.iter().map(policy_resource).map(Entry::from).collect(),
        ),
        (ResourceType::Address, workloads.chain(services).map(Entry::from).collect()),
        (ResourceType::NodePod, pods.collect()),
    ]);
}
