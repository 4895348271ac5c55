//! Events from inside a pod's namespace: devices, addresses, rules and routes that come, go or change.
//!
//! Only that something changed is passed on; what, is read from the kernel afterwards.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::netns::Netns;

/// Events closer together than this count as one: a device comes with a dozen.
const SETTLE: Duration = Duration::from_millis(50);

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    // clsact qdiscs and filters.
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// A subscription; ends when dropped.
#[derive(Debug)]
pub(crate) struct NetnsWatch {
    _connection: AbortOnDropHandle<()>,
    _forwarder: AbortOnDropHandle<()>,
    ended: Arc<AtomicBool>,
}

impl NetnsWatch {
    /// Notifies `changed` of every change in `netns` from now on. Needs a runtime.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the netlink socket not be had.
    pub(crate) fn start(netns: &Netns, changed: Arc<Notify>) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        // The socket belongs to the namespace of the thread that makes it, and is served by the agent's runtime.
        let (connection, handle, mut messages) = netns.run(|| {
            let _entered = runtime.enter();
            rtnetlink::new_multicast_connection(&GROUPS)
        })??;
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        let forward = async move {
            // The connection ends with its last handle.
            let _handle = handle;
            while messages.next().await.is_some() {
                tokio::time::sleep(SETTLE).await;
                while messages.try_recv().is_ok() {}
                changed.notify_one();
            }
            // Nothing is seen from here on; whoever is told looks at everything and subscribes anew.
            has_ended.store(true, Ordering::Release);
            changed.notify_one();
        };
        Ok(Self {
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
            _forwarder: AbortOnDropHandle::new(tokio::spawn(forward)),
            ended,
        })
    }

    /// Whether the kernel's stream has ended, so that nothing is noticed any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}
