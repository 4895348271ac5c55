//! Accepts ztunnels on `zds.sock`: the active one, and some that drain. None is told or given anything before
//! it is admitted, and what a ztunnel is found out not to be ends its session.

use std::sync::Arc;
use std::time::Duration;

use api::seqpacket::{SeqPacket, SeqPacketListener};
use daemon::visitors::Visitor as Peer;
use tokio::sync::Semaphore;
use tokio::task;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::admission::{Admissions, Unfit};
use super::hub::Hub;
use super::process::Process;
use super::session;
use crate::cgroup;
use crate::telemetry::Telemetry;

/// The pause after a failed accept, such as for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Sessions at once: the active one, which alone is given anything, and those that drain, one for each upgrade within a drain's deadline.
const MAX_SESSIONS: usize = 16;

/// How long a dead ztunnel's cgroup stays exempt: its sockets may still have something to send, and end by then
/// (`net.ipv4.tcp_fin_timeout`).
const LINGER: Duration = Duration::from_secs(60);

/// What all sessions share.
#[derive(Clone)]
pub(crate) struct Service {
    hub: Arc<Hub>,
    admissions: Arc<Admissions>,
    telemetry: Telemetry,
    places: Arc<Semaphore>,
}

impl Service {
    /// Without sessions.
    pub(crate) fn new(hub: Arc<Hub>, admissions: Arc<Admissions>, telemetry: Telemetry) -> Self {
        Self { hub, admissions, telemetry, places: Arc::new(Semaphore::new(MAX_SESSIONS)) }
    }
}

/// Serves ztunnels until `stop`.
pub(crate) async fn serve(listener: SeqPacketListener, service: Service, stop: CancellationToken) {
    let sessions = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(socket) => {
                let (service, stop) = (service.clone(), stop.clone());
                sessions.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = service.one(socket) => {}
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

impl Service {
    /// One connection, from its credentials to the end of its process. When the agent stops, it is dropped at any point: what is
    /// exempt stays so, for the ztunnel lives on.
    async fn one(&self, socket: SeqPacket) {
        let Some(peer) = self.telemetry.visitors.let_in(&socket, "zds.sock") else {
            return self.telemetry.ztunnel_refused("user");
        };
        let hello = match session::greet(&socket).await {
            Ok(hello) => hello,
            Err(error) => {
                self.telemetry.ztunnel_refused("no_hello");
                return warn!(pid = peer.pid, %error, "a connection to the ZDS socket was refused");
            }
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.telemetry.ztunnel_refused("too_many");
            return warn!(
                pid = peer.pid,
                "a ztunnel was refused: {MAX_SESSIONS} are connected already, of which one must end first"
            );
        };
        let process = match Process::of_peer(&socket, peer) {
            Ok(process) => Arc::new(process),
            Err(error) => return self.refused(peer, &error.into()),
        };
        let candidate = Arc::clone(&process);
        let admitted = match self.blocking(move |admissions| admissions.admit(&candidate)).await {
            Ok(admitted) => Arc::new(admitted),
            Err(unfit) => return self.refused(peer, &unfit),
        };
        self.note_takeover(peer);
        let fit = tokio::select! {
            ended = session::run(socket, hello, peer, admitted.place, &self.hub) => {
                match ended {
                    Ok(()) => info!(pid = peer.pid, "ztunnel disconnected"),
                    Err(error) => warn!(pid = peer.pid, %error, "the ZDS session ended"),
                }
                true
            }
            unfit = self.found_unfit(&process) => {
                self.refused(peer, &unfit);
                false
            }
        };
        drop(place);
        let ended = Arc::clone(&admitted);
        self.release(move |admissions| admissions.session_ended(&ended)).await;
        if fit {
            if !admitted.is_first {
                // The first session of the process waits for its end.
                return;
            }
            if let Err(error) = process.ended().await {
                return warn!(pid = peer.pid, %error, "a ztunnel's end cannot be seen: its cgroup stays exempt");
            }
            tokio::time::sleep(LINGER).await;
        }
        self.release(move |admissions| admissions.process_ended(&admitted)).await;
    }

    /// One that takes the place of another process says so: it may be its successor, and it may be a stranger.
    fn note_takeover(&self, peer: Peer) {
        let sessions = self.hub.sessions();
        let Some(former) = sessions.last().map(|former| former.pid).filter(|former| *former != peer.pid)
        else {
            return;
        };
        self.telemetry.ztunnel_took_over();
        let program = std::fs::read_link(format!("/proc/{}/exe", peer.pid)).unwrap_or_default();
        let cgroup = cgroup::paths_of(peer.pid).unwrap_or_default();
        warn!(
            pid = peer.pid,
            program = %program.display(),
            cgroup = cgroup::version2_path(&cgroup).unwrap_or_default(),
            former,
            "a ztunnel takes the place of the active one, which is still connected"
        );
    }

    async fn release(&self, work: impl FnOnce(&Admissions) + Send + 'static) {
        let done = self.blocking(move |admissions| {
            work(admissions);
            Ok(())
        });
        if let Err(error) = done.await {
            warn!(%error, "a ztunnel's cgroup stays exempt from capture");
        }
    }

    fn refused(&self, peer: Peer, reason: &Unfit) {
        self.telemetry.ztunnel_refused(reason.label());
        warn!(pid = peer.pid, %reason, "a ztunnel was refused: the connection is closed");
    }

    /// Does what reads procfs and waits for the kernel's maps, which another pod's attaching may hold.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Admissions) -> Result<T, Unfit> + Send + 'static,
    ) -> Result<T, Unfit> {
        let admissions = Arc::clone(&self.admissions);
        task::spawn_blocking(move || work(&admissions)).await?
    }

    /// Resolves when a pod that the agent has come to know turns out to be where this process is.
    async fn found_unfit(&self, process: &Arc<Process>) -> Unfit {
        // Marked as changed, for what was learnt since the process was admitted.
        let mut learnt = self.hub.learnt();
        learnt.mark_changed();
        loop {
            if learnt.changed().await.is_err() {
                // The hub outlives its sessions.
                return std::future::pending().await;
            }
            let process = Arc::clone(process);
            let checked = self.blocking(move |admissions| admissions.check(&process)).await;
            // A ztunnel that ends, or cannot be looked at now, was admitted all the same.
            if let Err(unfit @ (Unfit::PodCgroup(_) | Unfit::PodNetns(_))) = checked {
                return unfit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use api::zds::Hello;

    use super::*;
    use crate::bpf::{AttachError, CgroupId, MapError};
    use crate::enroll::pod::PodUid;
    use crate::zds::admission::Capture;

    /// A kernel in which this process's own namespace is a pod's.
    struct OwnNetnsIsAPods;

    impl Capture for OwnNetnsIsAPods {
        fn exempt(&self, _: CgroupId) -> Result<bool, MapError> {
            unreachable!("nobody is admitted")
        }

        fn unexempt(&self, _: CgroupId) -> Result<(), MapError> {
            unreachable!("nobody was admitted")
        }

        fn captured(&self) -> Result<Vec<(PodUid, BTreeSet<u64>)>, AttachError> {
            let own = std::fs::read_link("/proc/self/ns/net").unwrap();
            let inode = own.to_str().unwrap().trim_start_matches("net:[").trim_end_matches(']').parse();
            Ok(vec![(PodUid::from("a"), BTreeSet::from([inode.unwrap()]))])
        }
    }

    fn service() -> Service {
        let hub = Arc::new(Hub::new());
        let admissions = Admissions::new(OwnNetnsIsAPods, Arc::clone(&hub), None);
        Service::new(hub, Arc::new(admissions), Telemetry::default())
    }

    #[tokio::test]
    async fn one_session_too_many_is_refused_before_it_is_told_anything() {
        let service = service();
        let _others = Arc::clone(&service.places).try_acquire_many_owned(16).unwrap();
        let (another, agents) = SeqPacket::pair().unwrap();
        another.send(&Hello { listeners: true, deposits: false, dns: false }.encode(), &[]).await.unwrap();
        service.one(agents).await;
        assert!(another.receive().await.unwrap().is_none());
        assert_eq!(service.telemetry.ztunnels_refused("too_many"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_says_nothing_is_refused_before_anything_is_exempted_for_it() {
        let service = service();
        let (_silent, agents) = SeqPacket::pair().unwrap();
        service.one(agents).await;
        assert_eq!(service.telemetry.ztunnels_refused("no_hello"), 1);
    }

    #[tokio::test]
    async fn a_refused_process_is_told_nothing_and_leaves_its_place() {
        let service = service();
        let (socket, agents) = SeqPacket::pair().unwrap();
        socket.send(&Hello { listeners: true, deposits: false, dns: false }.encode(), &[]).await.unwrap();
        service.one(agents).await;
        assert!(socket.receive().await.unwrap().is_none());
        assert_eq!(service.places.available_permits(), MAX_SESSIONS);
        let refused = ["pod_netns", "cgroup"].map(|reason| service.telemetry.ztunnels_refused(reason));
        // Where the tests run in the root cgroup, or see no tree of version 2, that is what they are refused for.
        assert_eq!(refused.iter().sum::<u64>(), 1);
    }
}
