//! The pods of this node: one task each, told what control wants of it.
//!
//! A pod that control no longer lists is not dropped but told to leave; its task ends when nothing of it stands. Pods that
//! an earlier agent captured and control does not list any more leave in the same way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{self, JoinError, JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Context;
use super::pod::{PodSpec, PodUid};
use super::task::PodTask;

/// The pods of this node that are in the mesh, as control last stated them; none before it has stated any.
pub(crate) type Pods = Option<Arc<BTreeMap<PodUid, PodSpec>>>;

/// What a pod's task is told: its spec while it is a member, none once it is to leave.
pub(crate) type Intent = Option<Arc<PodSpec>>;

/// Looks after all pods until `stop`. Capture stays as it is then.
pub(crate) async fn run(context: Arc<Context>, mut pods: watch::Receiver<Pods>, stop: CancellationToken) {
    let mut manager =
        Manager { context, intents: HashMap::new(), tasks: JoinSet::new(), by_task: HashMap::new() };
    let mut first = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            changed = pods.changed() => {
                if changed.is_err() {
                    break;
                }
                let stated = pods.borrow_and_update().clone();
                if let Some(stated) = stated {
                    manager.update(&stated);
                    if std::mem::take(&mut first) {
                        manager.adopt(&stated);
                    }
                    manager.publish_roster();
                }
            }
            Some(ended) = manager.tasks.join_next_with_id() => {
                manager.ended(&ended);
                manager.publish_roster();
            }
        }
    }
    manager.tasks.shutdown().await;
}

struct Manager {
    context: Arc<Context>,
    intents: HashMap<PodUid, watch::Sender<Intent>>,
    tasks: JoinSet<()>,
    by_task: HashMap<task::Id, PodUid>,
}

impl Manager {
    fn update(&mut self, stated: &BTreeMap<PodUid, PodSpec>) {
        for (uid, intent) in &self.intents {
            if !stated.contains_key(uid) && intent.send_replace(None).is_some() {
                info!(pod = %uid, "the pod leaves the mesh");
            }
        }
        for (uid, spec) in stated {
            self.join(uid, spec);
        }
    }

    fn join(&mut self, uid: &PodUid, spec: &PodSpec) {
        let Some(intent) = self.intents.get(uid) else {
            info!(pod = %uid, name = spec.name, namespace = spec.namespace, "the pod joins the mesh");
            return self.spawn(uid, Some(Arc::new(spec.clone())));
        };
        intent.send_if_modified(|intent| {
            let changed = intent.as_deref() != Some(spec);
            if changed {
                *intent = Some(Arc::new(spec.clone()));
            }
            changed
        });
    }

    /// Has what an earlier agent left, and nobody wants any more, taken down.
    fn adopt(&mut self, stated: &BTreeMap<PodUid, PodSpec>) {
        // At once: a pod that cannot be taken over must not keep what kubelet may do to one that is gone.
        let targets = stated.values().flat_map(|spec| {
            spec.addresses.iter().flat_map(|address| spec.probe_ports.iter().map(|port| (*address, *port)))
        });
        let targets = targets.collect();
        if let Err(error) = block_in_place(|| self.context.kernel.keep_probe_targets(&targets)) {
            warn!(%error, "probe targets of pods that are gone stay in the map");
        }
        let attached = match block_in_place(|| self.context.kernel.attached_pods()) {
            Ok(attached) => attached,
            Err(error) => {
                return error!(%error, "what an earlier agent captured cannot be listed: it stays, and the agent does not become ready");
            }
        };
        // Those that leave, too: what passes and whose addresses are which is theirs until they are drained.
        let pods = self.intents.keys().chain(&attached).cloned().collect();
        self.context.sweep.wait_for(pods, &self.context);
        for uid in attached {
            if !self.intents.contains_key(&uid) {
                info!(pod = %uid, "a pod that an earlier agent captured is no longer in the mesh");
                self.spawn(&uid, None);
            }
        }
    }

    fn spawn(&mut self, uid: &PodUid, intent: Intent) {
        let (sender, receiver) = watch::channel(intent);
        self.intents.insert(uid.clone(), sender);
        let task = PodTask::new(Arc::clone(&self.context), uid.clone(), receiver);
        let id = self.tasks.spawn(task.run()).id();
        self.by_task.insert(id, uid.clone());
    }

    /// A task is done with its pod. If the pod was wanted again in that very moment, or the task panicked, it begins anew.
    fn ended(&mut self, ended: &Result<(task::Id, ()), JoinError>) {
        let (id, failed) = match ended {
            Ok((id, ())) => (*id, false),
            Err(failure) => (failure.id(), true),
        };
        let Some(uid) = self.by_task.remove(&id) else { return };
        let intent = self.intents.remove(&uid).and_then(|intent| intent.borrow().clone());
        if failed {
            error!(pod = %uid, "the pod's task panicked and begins anew; what is captured stays captured");
        }
        if failed || intent.is_some() {
            self.spawn(&uid, intent);
        }
    }

    /// Tells ztunnel's sessions which pods there are, those included that are still leaving.
    fn publish_roster(&self) {
        self.context.hub.set_roster(self.intents.keys().cloned().collect());
    }
}
