//! Sandboxes as the CNI plugin told of them: where a pod's network namespace is and which addresses it has, before the API server knows.
//!
//! What the plugin says goes before what the API server says, for as long as the sandbox lasts: kubelet reports late, and, of a pod whose sandbox
//! was made anew, the former addresses until then. An agent that is started anew knows only what the API server says, and finds
//! namespaces by their processes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::enroll::manager::Pods;
use crate::enroll::pod::{PodSpec, PodUid};

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    /// The container runtime's name for it.
    pub(super) container: String,
    /// Its network namespace.
    pub(super) netns: PathBuf,
    /// The pod's addresses in it.
    pub(super) addresses: Vec<IpAddr>,
}

type ByPod = BTreeMap<PodUid, Attached>;

/// The sandboxes of this node's pods.
#[derive(Debug, Default)]
pub(crate) struct Attachments(watch::Sender<ByPod>);

impl Attachments {
    /// A pod has this sandbox now.
    pub(super) fn put(&self, pod: PodUid, attached: Attached) {
        self.0.send_if_modified(|all| {
            let changed = all.get(&pod) != Some(&attached);
            all.insert(pod, attached);
            changed
        });
    }

    /// Only those sandboxes last that satisfy `lasts`, by the container runtime's names.
    pub(super) fn retain(&self, lasts: impl Fn(&str) -> bool) {
        self.0.send_if_modified(|all| {
            let before = all.len();
            all.retain(|_, attached| lasts(&attached.container));
            all.len() != before
        });
    }

    /// Tells `merged` of the pods that `stated` tells of, each with its sandbox; until either ends.
    pub(crate) async fn merge(&self, mut stated: watch::Receiver<Pods>, merged: watch::Sender<Pods>) {
        let mut attachments = self.0.subscribe();
        loop {
            let pods = stated.borrow_and_update().clone();
            if let Some(pods) = &pods {
                // One whose pod is gone was not said to end, or will not be.
                self.0.send_if_modified(|all| {
                    all.retain(|uid, _| pods.contains_key(uid));
                    false
                });
            }
            let now = pods.map(|pods| with(pods, &attachments.borrow_and_update()));
            merged.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
            tokio::select! {
                changed = stated.changed() => if changed.is_err() { return },
                changed = attachments.changed() => if changed.is_err() { return },
            }
        }
    }
}

fn with(pods: Arc<BTreeMap<PodUid, PodSpec>>, attachments: &ByPod) -> Arc<BTreeMap<PodUid, PodSpec>> {
    if attachments.is_empty() {
        return pods;
    }
    let mut pods = Arc::unwrap_or_clone(pods);
    for (uid, attached) in attachments {
        if let Some(pod) = pods.get_mut(uid) {
            pod.addresses.clone_from(&attached.addresses);
            pod.netns_path = Some(attached.netns.clone());
        }
    }
    Arc::new(pods)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(container: &str, address: &str) -> Attached {
        Attached {
            container: container.to_owned(),
            netns: format!("/run/netns/{container}").into(),
            addresses: vec![address.parse().unwrap()],
        }
    }

    fn pods(uids: &[(&str, &[&str])]) -> Pods {
        let spec = |(uid, addresses): &(&str, &[&str])| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            (PodUid::from(*uid), PodSpec { addresses, ..PodSpec::named(uid) })
        };
        Some(Arc::new(uids.iter().map(spec).collect()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_pods_sandbox_is_the_plugins_while_it_lasts_and_the_api_servers_from_then_on() {
        let attachments = Arc::new(Attachments::default());
        let (stated, stated_out) = watch::channel(pods(&[("a", &[]), ("b", &["10.0.0.2"])]));
        let (merged_in, mut merged) = watch::channel(None);
        let task = tokio::spawn({
            let attachments = Arc::clone(&attachments);
            async move { attachments.merge(stated_out, merged_in).await }
        });
        let seen = |pods: &Pods| {
            let pods = pods.as_ref().unwrap().values();
            pods.map(|pod| (pod.addresses.clone(), pod.netns_path.clone())).collect::<Vec<_>>()
        };
        merged.changed().await.unwrap();
        let b = (vec!["10.0.0.2".parse().unwrap()], None);
        assert_eq!(seen(&merged.borrow()), [(vec![], None), b.clone()]);

        attachments.put("a".into(), attached("c1", "10.0.0.9"));
        merged.changed().await.unwrap();
        let a = (vec!["10.0.0.9".parse().unwrap()], Some("/run/netns/c1".into()));
        assert_eq!(seen(&merged.borrow_and_update()), [a.clone(), b.clone()]);

        stated.send_replace(pods(&[("a", &["10.0.0.1"]), ("b", &["10.0.0.2"])]));
        attachments.retain(|container| container == "c1");
        tokio::task::yield_now().await;
        assert_eq!(seen(&merged.borrow()), [a, b.clone()], "the former sandbox's address does not count");

        attachments.retain(|container| container != "c1");
        merged.changed().await.unwrap();
        assert_eq!(seen(&merged.borrow_and_update()), [(vec!["10.0.0.1".parse().unwrap()], None), b]);

        attachments.put("b".into(), attached("c2", "10.0.0.3"));
        merged.changed().await.unwrap();
        stated.send_replace(pods(&[("a", &["10.0.0.1"])]));
        merged.changed().await.unwrap();
        assert!(attachments.0.borrow().is_empty(), "a sandbox ends with its pod");
        drop(stated);
        task.await.unwrap();
    }
}
