//! Events from inside a pod's namespace: devices, addresses, rules and routes that come, go or change.
//!
//! Only that something changed is passed on; what, is read from the kernel afterwards.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::netns::Netns;

/// Events closer together than this count as one: a device comes with a dozen.
const SETTLE: Duration = Duration::from_millis(50);

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
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
        let forward = async move {
            // The connection ends with its last handle.
            let _handle = handle;
            while messages.next().await.is_some() {
                tokio::time::sleep(SETTLE).await;
                while messages.try_recv().is_ok() {}
                changed.notify_one();
            }
        };
        Ok(Self {
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
            _forwarder: AbortOnDropHandle::new(tokio::spawn(forward)),
        })
    }
}
