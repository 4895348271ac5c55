//! Accepts ztunnels on `zds.sock`.

use std::sync::Arc;
use std::time::Duration;

use api::seqpacket::{SeqPacket, SeqPacketListener};
use tokio::task;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::hub::Hub;
use super::session;
use crate::local_socket::{self, Peer};

/// The pause after a failed accept, such as for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Makes a ztunnel's own traffic exempt from capture, before it learns of any pod.
pub(crate) trait Admission: Send + Sync + 'static {
    /// Exempts the traffic of `peer`; the text says why it cannot be.
    fn admit(&self, peer: Peer) -> Result<(), String>;
}

/// Serves ztunnels until `stop`.
pub(crate) async fn serve(
    listener: SeqPacketListener,
    hub: Arc<Hub>,
    admission: Arc<dyn Admission>,
    stop: CancellationToken,
) {
    let sessions = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(socket) => {
                let (hub, admission, stop) = (Arc::clone(&hub), Arc::clone(&admission), stop.clone());
                sessions.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = one(socket, &hub, admission) => {}
                    }
                });
            }
            Err(error) => {
                warn!(%error, "a connection to the ZDS socket could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    sessions.close();
    sessions.wait().await;
}

async fn one(socket: SeqPacket, hub: &Arc<Hub>, admission: Arc<dyn Admission>) {
    let peer = match local_socket::admit(&socket) {
        Ok(peer) => peer,
        Err(error) => return warn!(%error, "a connection to the ZDS socket was refused"),
    };
    // It reads procfs and waits for the kernel's maps, which another pod's attaching may hold.
    let admitted = task::spawn_blocking(move || admission.admit(peer)).await;
    if let Err(reason) = admitted.unwrap_or_else(|error| Err(error.to_string())) {
        return warn!(
            pid = peer.pid,
            reason, "a ztunnel was refused: its traffic could not be exempted from capture"
        );
    }
    match session::run(socket, peer, hub).await {
        Ok(()) => info!(pid = peer.pid, "ztunnel disconnected"),
        Err(error) => warn!(pid = peer.pid, %error, "the ZDS session ended"),
    }
}
