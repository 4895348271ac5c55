//! Answers the CNI plugin: a pod of the mesh once it is captured, or with the reason why it is not by the end of the plugin's patience; any
//! other pod once the API server has said that it is one.
//!
//! What a predecessor wrote of a pod may be out of date. That it is in the mesh counts at once, since the worst of that is a pod that waits;
//! that it is not counts only at the end of the plugin's patience, if the API server has still said nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cni::ask::{Answer, PodName, Question, Sandbox, Sandboxes};
use cni::members::Members;
use daemon::admin::{self, AdminRequest, AdminResponse, Routes};
use http::StatusCode;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::Membership;
use super::attachments::{Attached, Attachments};
use crate::enroll::pod::PodUid;
use crate::enroll::steps::State;
use crate::netns::{Netns, NetnsId};
use crate::status::Board;

/// How long the namespace may take to be known of a pod that cannot be matched itself.
const NAMESPACE: Duration = Duration::from_secs(2);
/// Of the plugin's patience, what the answer takes to be there.
const MARGIN: Duration = Duration::from_millis(500);

/// What is known of who is in the mesh.
pub(crate) struct Knowledge {
    /// From the API server; none before its first whole state.
    pub(crate) told: Membership,
    /// What a predecessor left.
    pub(crate) last: Option<Arc<Members>>,
    /// Whether the API server is heard: the last that it was asked, it has answered.
    pub(crate) heard: watch::Receiver<bool>,
}

impl Knowledge {
    /// Nothing, as long as nobody tells.
    pub(crate) fn none() -> Self {
        let told = watch::Sender::new(None).subscribe();
        Self { told, last: None, heard: watch::Sender::new(false).subscribe() }
    }

    /// Whether the pod is in the mesh, by what is `told`; none if that is still to come.
    fn of(&self, told: Option<&Members>, pod: &PodName) -> Option<bool> {
        match told {
            Some(members) => members.known(pod),
            None => self.last.as_ref()?.known(pod).filter(|inside| *inside),
        }
    }

    fn now(&self, pod: &PodName) -> Option<bool> {
        self.of(self.told.borrow().as_deref(), pod)
    }

    /// Waits until it is known whether the pod is in the mesh.
    async fn wait(&self, pod: &PodName, deadline: Instant) -> Option<bool> {
        let mut told = self.told.clone();
        let known = async {
            if !is_matched(pod) {
                // Only its namespace can become known.
                let _ = told.wait_for(Option::is_some).await;
                tokio::time::sleep(NAMESPACE).await;
                return None;
            }
            let members = told.wait_for(|told| self.of(told.as_deref(), pod).is_some()).await.ok()?;
            self.of(members.as_deref(), pod)
        };
        timeout_at(deadline, known).await.ok().flatten()
    }

    /// The best there is.
    fn best(&self) -> Option<Arc<Members>> {
        self.told.borrow().clone().or_else(|| self.last.clone())
    }

    /// The API server is sure to tell of every pod: it has told of all that there were, and is still heard.
    fn is_live(&self) -> bool {
        self.told.borrow().is_some() && *self.heard.borrow()
    }
}

/// Whether the API server may tell of the pod under the uid that the container runtime says, if it says any. Kubelet makes a static pod's of
/// 32 hexadecimal digits; the API server has such a pod under another uid, with dashes (RFC 9562).
fn is_matched(pod: &PodName) -> bool {
    pod.uid.as_ref().is_some_and(|uid| !(uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())))
}

/// The service.
pub(crate) struct Service {
    attachments: Arc<Attachments>,
    members: Knowledge,
    board: Arc<Board>,
}

impl Service {
    /// `attachments` are told of sandboxes, `members` says whose count, and `board` how the pods stand.
    pub(crate) fn new(attachments: Arc<Attachments>, members: Knowledge, board: Arc<Board>) -> Self {
        Self { attachments, members, board }
    }

    /// What is served.
    pub(crate) fn routes(self) -> Routes {
        let service = Arc::new(self);
        let (check, delete, keep) = (Arc::clone(&service), Arc::clone(&service), Arc::clone(&service));
        Routes::new()
            .post(Question::Add.path(), move |request| {
                let service = Arc::clone(&service);
                answered(request, async move |sandbox| json(&service.add(&sandbox).await))
            })
            .post(Question::Check.path(), move |request| {
                let service = Arc::clone(&check);
                answered(request, async move |sandbox| json(&service.check(&sandbox)))
            })
            .post(Question::Delete.path(), move |request| {
                let service = Arc::clone(&delete);
                answered(request, async move |ended: Sandboxes| {
                    service
                        .attachments
                        .retain(|container| !ended.containers.iter().any(|one| one == container));
                    json(&())
                })
            })
            .post(Question::Keep.path(), move |request| {
                let service = Arc::clone(&keep);
                answered(request, async move |all: Sandboxes| {
                    service.attachments.retain(|container| all.containers.iter().any(|one| one == container));
                    json(&())
                })
            })
    }

    async fn add(&self, sandbox: &Sandbox) -> Answer {
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(sandbox.patience_ms).saturating_sub(MARGIN);
        let answer = self.capture(sandbox, deadline).await;
        let (pod, took_ms) = (&sandbox.pod, begun.elapsed().as_millis());
        match &answer {
            Answer::Captured => info!(%pod, took_ms, "the pod is captured, and may start"),
            Answer::Outside => tracing::debug!(%pod, took_ms, "the pod is not of the mesh, and may start"),
            Answer::Refused(reason) => warn!(%pod, took_ms, reason, "the pod may not start yet"),
        }
        answer
    }

    async fn capture(&self, sandbox: &Sandbox, deadline: Instant) -> Answer {
        let pod = &sandbox.pod;
        match self.members.wait(pod, deadline).await {
            Some(true) => {}
            Some(false) => return Answer::Outside,
            None => return self.unknown(pod),
        }
        let Some(uid) = pod.uid.as_deref().map(PodUid::from) else { return self.unknown(pod) };
        let netns = as_mounted(&sandbox.netns);
        let id = match Netns::open(&netns) {
            Ok(opened) => opened.id(),
            Err(error) => {
                let path = netns.display();
                return Answer::Refused(format!(
                    "culvert's agent cannot open its network namespace {path}: {error}"
                ));
            }
        };
        let (mut changes, mut members) = (self.board.changes(), self.members.told.clone());
        let attached =
            Attached { container: sandbox.container.clone(), netns, addresses: sandbox.addresses.clone() };
        self.attachments.put(uid.clone(), attached);
        loop {
            if self.is_captured(&uid, id) {
                return Answer::Captured;
            }
            if self.members.now(pod) == Some(false) {
                return Answer::Outside;
            }
            let changed = async {
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = members.changed() => {}
                }
            };
            if timeout_at(deadline, changed).await.is_err() {
                return Answer::Refused(self.obstacle(&uid));
            }
        }
    }

    fn check(&self, sandbox: &Sandbox) -> Answer {
        if !self.counts(&sandbox.pod) {
            return Answer::Outside;
        }
        let uid = sandbox.pod.uid.as_deref().map(PodUid::from);
        let netns = Netns::open(&as_mounted(&sandbox.netns));
        match (uid, netns) {
            (Some(uid), Ok(netns)) if self.is_captured(&uid, netns.id()) => Answer::Captured,
            (Some(uid), _) => Answer::Refused(self.obstacle(&uid)),
            (None, _) => self.unknown(&sandbox.pod),
        }
    }

    /// Nothing has been said of the pod. It waits for as long as the API server is sure to say it; else its namespace decides, as it does
    /// while no agent runs.
    fn unknown(&self, pod: &PodName) -> Answer {
        let why = if pod.uid.is_none() {
            "the container runtime does not say its uid (K8S_POD_UID in CNI_ARGS, as containerd 1.6 and CRI-O 1.24 do)"
        } else {
            "the API server has not told culvert's agent of it"
        };
        match self.members.best() {
            Some(members) if members.counts(pod) => Answer::Refused(format!(
                "its namespace belongs to the mesh, and it cannot be captured: {why}"
            )),
            Some(_) if is_matched(pod) && self.members.is_live() => Answer::Refused(
                "culvert's agent has not been told of this pod by the API server yet; kubelet tries again"
                    .to_owned(),
            ),
            Some(_) => Answer::Outside,
            None => Answer::Refused("culvert's agent has not heard from the API server yet".to_owned()),
        }
    }

    fn counts(&self, pod: &PodName) -> bool {
        self.members.best().is_none_or(|members| members.counts(pod))
    }

    fn is_captured(&self, pod: &PodUid, netns: NetnsId) -> bool {
        let netns = netns.to_string();
        let captured = |state, at: Option<&str>| state == State::Enrolled && at == Some(&netns);
        self.board.one(pod).is_some_and(|status| captured(status.state, status.netns.as_deref()))
    }

    /// Why a pod is not captured, for a person.
    fn obstacle(&self, pod: &PodUid) -> String {
        let status = self.board.one(pod);
        let why = match status.as_ref().map(|status| (&status.last_error, status.state)) {
            Some((Some(error), _)) => error.message.clone(),
            Some((None, state)) => format!("it is {} for now", state.as_str()),
            None => "culvert's agent has not begun with it".to_owned(),
        };
        format!(
            "the pod belongs to the mesh and is not captured: {why}. It waits, since it would talk past the mesh (`culvert status` on its node shows more)"
        )
    }
}

/// A namespace's path where the agent sees it: container runtimes say `/var/run`, which is a link on their side.
fn as_mounted(netns: &Path) -> PathBuf {
    netns.strip_prefix("/var/run").map_or_else(|_| netns.to_owned(), |rest| Path::new("/run").join(rest))
}

fn json<T: serde::Serialize>(answer: &T) -> AdminResponse {
    match serde_json::to_value(answer) {
        Ok(answer) => admin::json(&answer),
        Err(error) => admin::status(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

async fn answered<Q: DeserializeOwned>(
    request: AdminRequest,
    answer: impl AsyncFnOnce(Q) -> AdminResponse,
) -> AdminResponse {
    match serde_json::from_slice(request.body()) {
        Ok(question) => answer(question).await,
        Err(error) => {
            admin::status(StatusCode::BAD_REQUEST, format!("the plugin is of another version: {error}\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::status::PodStatus;

    /// The uid that kubelet makes for a static pod.
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    struct Stage {
        service: Arc<Service>,
        members: watch::Sender<Option<Arc<Members>>>,
        heard: watch::Sender<bool>,
    }

    fn stage() -> Stage {
        stage_after(None)
    }

    /// With what a predecessor left.
    fn stage_after(last: Option<Members>) -> Stage {
        let (members, heard) = (watch::Sender::new(None), watch::Sender::new(true));
        let knowledge =
            Knowledge { told: members.subscribe(), last: last.map(Arc::new), heard: heard.subscribe() };
        let service = Service::new(Arc::default(), knowledge, Arc::default());
        Stage { service: Arc::new(service), members, heard }
    }

    fn members(pods: &[(&str, bool)]) -> Members {
        let pods = pods.iter().map(|(uid, inside)| ((*uid).to_owned(), *inside)).collect::<BTreeMap<_, _>>();
        Members { namespaces: BTreeSet::from(["shop".to_owned()]), pods }
    }

    impl Stage {
        fn tell(&self, pods: &[(&str, bool)]) {
            self.members.send_replace(Some(Arc::new(members(pods))));
        }

        fn post(&self, state: State, netns: &str, error: Option<&str>) {
            let status = PodStatus { netns: Some(netns.to_owned()), ..PodStatus::in_state(state, error) };
            self.service.board.post(&PodUid::from("1a"), status);
        }
    }

    fn sandbox(namespace: &str, uid: Option<&str>) -> Sandbox {
        Sandbox {
            container: "c1".into(),
            pod: PodName { namespace: namespace.into(), name: "web".into(), uid: uid.map(str::to_owned) },
            netns: "/proc/self/ns/net".into(),
            addresses: vec!["10.0.0.5".parse().unwrap()],
            patience_ms: 10_000,
        }
    }

    fn here() -> String {
        Netns::own().unwrap().id().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_of_the_mesh_starts_once_it_is_captured_in_this_very_namespace() {
        let stage = stage();
        stage.tell(&[("1a", true)]);
        stage.post(State::Enrolled, "net:[1]", None);
        let service = Arc::clone(&stage.service);
        let adding = tokio::spawn(async move { service.add(&sandbox("shop", Some("1a"))).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!adding.is_finished(), "captured in the namespace that it had before");
        stage.post(State::Preparing, &here(), None);
        tokio::task::yield_now().await;
        stage.post(State::Enrolled, &here(), None);
        assert_eq!(adding.await.unwrap(), Answer::Captured);
        assert_eq!(stage.service.check(&sandbox("shop", Some("1a"))), Answer::Captured);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_outside_of_the_mesh_starts_at_once_and_one_that_leaves_meanwhile_then() {
        let stage = stage();
        stage.tell(&[("1a", false), ("2b", true)]);
        let begun = Instant::now();
        assert_eq!(stage.service.add(&sandbox("shop", Some("1a"))).await, Answer::Outside);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let service = Arc::clone(&stage.service);
        let adding = tokio::spawn(async move { service.add(&sandbox("shop", Some("2b"))).await });
        tokio::task::yield_now().await;
        stage.tell(&[("2b", false)]);
        assert_eq!(adding.await.unwrap(), Answer::Outside);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_cannot_be_captured_is_refused_with_what_holds_it_up_before_the_plugin_loses_patience()
    {
        let stage = stage();
        stage.tell(&[("1a", true)]);
        stage.post(State::AwaitingZtunnel, &here(), Some("no ztunnel is connected"));
        let begun = Instant::now();
        let Answer::Refused(reason) = stage.service.add(&sandbox("shop", Some("1a"))).await else {
            panic!("not refused")
        };
        assert!(reason.contains("no ztunnel is connected"), "{reason}");
        assert_eq!(begun.elapsed(), Duration::from_millis(9_500));
    }

    const REFUSED: bool = false;
    const STARTS: bool = true;
    const END: Duration = Duration::from_millis(9_500);

    async fn assert_add(stage: &Stage, namespace: &str, uid: Option<&str>, expected: (bool, Duration)) {
        let begun = Instant::now();
        let answer = stage.service.add(&sandbox(namespace, uid)).await;
        let found = (answer == Answer::Outside, begun.elapsed());
        assert_eq!(found, expected, "{namespace} {uid:?}: {answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_the_api_server_is_to_tell_of_waits_for_that() {
        let stage = stage();
        stage.tell(&[]);
        for namespace in ["plain", "shop"] {
            assert_add(&stage, namespace, Some("9z"), (REFUSED, END)).await;
        }
        stage.heard.send_replace(false);
        assert_add(&stage, "plain", Some("9z"), (STARTS, END)).await;
        assert_add(&stage, "shop", Some("9z"), (REFUSED, END)).await;
        stage.members.send_replace(None);
        assert_add(&stage, "plain", Some("9z"), (REFUSED, END)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_pod_that_the_api_server_never_tells_of_the_namespace_decides_after_a_while() {
        let stage = stage();
        stage.tell(&[]);
        for uid in [None, Some(STATIC)] {
            assert_add(&stage, "plain", uid, (STARTS, NAMESPACE)).await;
            assert_add(&stage, "shop", uid, (REFUSED, NAMESPACE)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_predecessor_left_lets_a_pod_pass_only_when_the_api_server_says_nothing_to_the_end() {
        let stage = stage_after(Some(members(&[("1a", false), ("2b", true)])));
        assert_add(&stage, "plain", Some("1a"), (STARTS, END)).await;
        assert_add(&stage, "plain", Some("9z"), (STARTS, END)).await;
        assert_add(&stage, "plain", None, (STARTS, END)).await;
        for uid in ["2b", "9z"] {
            assert_add(&stage, "shop", Some(uid), (REFUSED, END)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_joined_while_no_agent_ran_is_captured_before_it_starts() {
        let stage = stage_after(Some(members(&[("1a", false)])));
        let service = Arc::clone(&stage.service);
        let adding = tokio::spawn(async move { service.add(&sandbox("shop", Some("1a"))).await });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!adding.is_finished(), "what a predecessor left is out of date");
        stage.tell(&[("1a", true)]);
        tokio::task::yield_now().await;
        stage.post(State::Enrolled, &here(), None);
        assert_eq!(adding.await.unwrap(), Answer::Captured);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_a_predecessor_knew_to_be_in_the_mesh_is_captured_while_the_api_server_is_away() {
        let stage = stage_after(Some(members(&[("1a", true)])));
        stage.post(State::Enrolled, &here(), None);
        assert_eq!(stage.service.add(&sandbox("shop", Some("1a"))).await, Answer::Captured);
    }

    #[test]
    fn a_path_below_var_run_is_looked_for_below_run() {
        for (path, expected) in [
            ("/var/run/netns/cni-1", "/run/netns/cni-1"),
            ("/run/netns/cni-1", "/run/netns/cni-1"),
            ("/proc/7/ns/net", "/proc/7/ns/net"),
        ] {
            assert_eq!(as_mounted(Path::new(path)), Path::new(expected));
        }
    }
}
