//! The session's hand on the data path.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use tokio::sync::watch;

use super::session::{HeldPod, Proxies};
use crate::identity::deposit;
use crate::pods::{Likeness, PodSpec, PodUid, Serving};
use crate::proxy::{self, Node};

/// The proxies of this process. Must be used within its runtime.
pub(crate) struct NodeProxies(pub(crate) Arc<Node>);

impl Proxies for NodeProxies {
    fn start(&mut self, spec: &PodSpec) -> Result<(), String> {
        match self.0.pods.get(&spec.uid).map(|serving| (serving.likeness(spec), serving)) {
            Some((Likeness::Same, serving)) => {
                serving.pod.dns.set_resolver(spec.resolver.clone());
                return Ok(());
            }
            Some((Likeness::ButForDns, serving)) => {
                return proxy::follow_dns(&self.0, &serving, spec).map_err(|error| error.to_string());
            }
            Some((Likeness::Another, _)) | None => {}
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

    fn take_back(&mut self, deposit: OwnedFd) -> Result<(), String> {
        let certificates =
            deposit::take(&self.0.identities, &self.0.tls, deposit).map_err(|error| error.to_string())?;
        tracing::info!(certificates, "took over a predecessor's certificates");
        Ok(())
    }

    fn deposit(&self) -> io::Result<Option<OwnedFd>> {
        // The successor has its own.
        if self.0.drain.is_draining() {
            return Ok(None);
        }
        deposit::make(&self.0.identities)
    }

    fn deposits(&self) -> watch::Receiver<u64> {
        self.0.identities.changes()
    }

    fn pending(&self, count: usize) {
        self.0.metrics.pending_proxies.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
