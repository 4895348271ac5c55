//! The session's hand on the data path.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::session::{HeldPod, Proxies};
use crate::pods::{PodSpec, PodUid, Serving};
use crate::proxy::{self, Node};

/// The proxies of this process. Must be used within its runtime.
pub(crate) struct NodeProxies(pub(crate) Arc<Node>);

impl Proxies for NodeProxies {
    fn start(&mut self, spec: &PodSpec) -> Result<(), String> {
        if self.0.pods.get(&spec.uid).is_some_and(|serving| serving.is_same_as(spec)) {
            return Ok(());
        }
        if self.0.drain.is_draining() {
            return Err("this ztunnel is ending and takes no further pods".to_owned());
        }
        proxy::start(&self.0, spec).map_err(|error| error.to_string())
    }

    fn stop(&mut self, uid: &PodUid) {
        proxy::stop(&self.0, uid);
    }

    fn served(&self) -> Vec<PodUid> {
        self.0.pods.all().iter().map(|serving| serving.pod.uid.clone()).collect()
    }

    fn held(&self) -> io::Result<Vec<HeldPod>> {
        let one = |serving: &Arc<Serving>| {
            let listeners = serving.listeners.iter();
            Ok(HeldPod {
                uid: serving.pod.uid.clone(),
                addresses: serving.pod.addresses(),
                netns: serving.pod.netns.as_fd().try_clone_to_owned()?,
                listeners: listeners
                    .map(|(kind, fd)| Ok((*kind, fd.try_clone()?)))
                    .collect::<io::Result<_>>()?,
            })
        };
        self.0.pods.all().iter().map(one).collect()
    }

    fn pending(&self, count: usize) {
        self.0.metrics.pending_proxies.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
