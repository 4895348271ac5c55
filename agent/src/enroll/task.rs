//! The task of one pod: look, ask what is next, do it, until nothing is left to do; then wait for a reason to look again.
//!
//! It owns what the agent holds of the pod: the namespace, the listeners, the watch. What captures outlives it: links
//! are pinned, and ztunnel holds the listeners too.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::zds::Listener;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Context;
use super::backoff::Backoff;
use super::error::EnrollError;
use super::look::Look;
use super::manager::Intent;
use super::pod::{PodSpec, PodUid, Strict};
use super::steps::{self, Outbound, State, Step};
use super::watch::NetnsWatch;
use crate::bpf::SocketCookie;
use crate::listeners::{KINDS, Listeners};
use crate::netns::find::Found;
use crate::plumbing::Before;
use crate::resolv_conf::{Reader, ResolvConf};
use crate::status::{LastError, PodStatus};
use crate::zds::Announcement;
use crate::zds::hub::SessionId;

/// How often everything is looked at without any event.
const RECONCILE: Duration = Duration::from_secs(30);
/// How often a leaving pod's connections are counted.
const DRAIN_POLL: Duration = Duration::from_millis(250);

/// What the agent holds of a pod while it runs.
pub(super) struct PodTask {
    pub(super) context: Arc<Context>,
    pub(super) uid: PodUid,
    pub(super) intent: watch::Receiver<Intent>,
    /// The last spec, kept for the time of leaving; none for a pod of an earlier agent.
    pub(super) spec: Option<Arc<PodSpec>>,
    pub(super) leaving_since: Option<Instant>,
    pub(super) found: Option<Found>,
    /// The namespace of a pod of which nothing is known but its pins has been looked for.
    pub(super) sought: bool,
    pub(super) watch: Option<NetnsWatch>,
    pub(super) changed_inside: Arc<Notify>,
    pub(super) listeners: Option<Arc<Listeners>>,
    pub(super) announcement: Option<Arc<Announcement>>,
    /// How the pod resolves names, as it was read last.
    pub(super) resolv_conf: Option<Arc<ResolvConf>>,
    pub(super) resolv_conf_reader: Reader,
    /// Every ztunnel has been told that the pod left.
    pub(super) withdrawn: bool,
    /// The addresses that this task has led to the inbound listener.
    pub(super) led: BTreeSet<IpAddr>,
    /// For which session, where the listeners are ztunnel's own.
    pub(super) led_for: Option<SessionId>,
    pub(super) inbound: Side,
    pub(super) outbound: Side,
    /// Connections that were marked to pass; none while it is not known which an earlier agent marked.
    pub(super) marked: Option<BTreeSet<SocketCookie>>,
    /// Where connections from before the pod joined have been cut since that was due.
    pub(super) cut: Option<Strict>,
    pub(super) before: Before,
    state: State,
}

/// What this task knows of the links of one side. The kernel tells whether they are pinned; that they are whole is known only from
/// making them so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Not looked at since something may have changed.
    Unverified,
    /// Made whole.
    Ensured,
    /// Outbound only: made whole, and lets new connections pass.
    Draining,
}

/// Where the steps have led.
enum Settled {
    /// Nothing to do until something changes.
    Rest,
    /// Connections are draining; look again soon.
    Drain,
    /// Nothing of the pod stands.
    Over,
}

impl PodTask {
    /// A pod of which nothing is known but what control wants.
    pub(super) fn new(context: Arc<Context>, uid: PodUid, intent: watch::Receiver<Intent>) -> Self {
        Self {
            context,
            uid,
            intent,
            spec: None,
            leaving_since: None,
            found: None,
            sought: false,
            watch: None,
            changed_inside: Arc::new(Notify::new()),
            listeners: None,
            announcement: None,
            resolv_conf: None,
            resolv_conf_reader: Reader::default(),
            withdrawn: false,
            led: BTreeSet::new(),
            led_for: None,
            inbound: Side::Unverified,
            outbound: Side::Unverified,
            marked: None,
            cut: None,
            before: Before::default(),
            state: State::Searching,
        }
    }

    /// Runs until nothing of the pod stands.
    pub(super) async fn run(mut self) {
        let mut ztunnels = self.context.hub.changes();
        let mut backoff = Backoff::new();
        loop {
            ztunnels.mark_unchanged();
            self.unverified();
            let pause = match self.settle().await {
                Some(Settled::Over) => break,
                Some(Settled::Drain) => DRAIN_POLL,
                Some(Settled::Rest) => {
                    backoff = Backoff::new();
                    RECONCILE
                }
                None => backoff.next(),
            };
            tokio::select! {
                changed = self.intent.changed() => match changed {
                    Ok(()) => backoff = Backoff::new(),
                    // Without its manager the agent is ending.
                    Err(_) => return,
                },
                _ = ztunnels.changed() => {}
                () = self.changed_inside.notified() => {
                    debug!(pod = %self.uid, "something changed in the pod's network namespace");
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.context.board.remove(&self.uid);
        info!(pod = %self.uid, "the pod has left the mesh");
    }

    /// Has the links looked at again.
    pub(super) fn unverified(&mut self) {
        self.inbound = Side::Unverified;
        if self.outbound == Side::Ensured {
            self.outbound = Side::Unverified;
        }
    }

    /// Does step after step, as long as each has an effect, and posts where that led. None: a step failed.
    async fn settle(&mut self) -> Option<Settled> {
        let mut last = None;
        loop {
            let look = match self.look().await {
                Ok(look) => look,
                Err(error) => return self.failed(self.state, None, &error),
            };
            let step = steps::next(&look.facts);
            let state = State::from(step);
            let settled = match step {
                Step::Enrolled => Some(Settled::Rest),
                Step::AwaitDrain => Some(Settled::Drain),
                Step::Forget => Some(Settled::Over),
                _ => None,
            };
            if settled.is_some() {
                self.post(state, Some(&look), None);
                self.context.sweep.settled(&self.uid, self.marked.as_ref(), &self.context);
                return settled;
            }
            debug!(pod = %self.uid, ?step, "next");
            let done = if last == Some(step) {
                Err(EnrollError::NoEffect(step))
            } else {
                self.make(step, &look).await
            };
            if let Err(error) = done {
                return self.failed(state, Some(&look), &error);
            }
            last = Some(step);
        }
    }

    fn failed(&mut self, state: State, look: Option<&Look>, error: &EnrollError) -> Option<Settled> {
        match look {
            _ if error.reason() == "no_ztunnel" => {}
            // Nothing is captured, so that there is nothing to take over.
            Some(look) if look.facts.outbound == Outbound::Detached => {
                self.context.sweep.settled(&self.uid, None, &self.context);
            }
            _ => self.context.sweep.dealt_with(&self.uid),
        }
        if error.is_waiting() {
            debug!(pod = %self.uid, %error, "waiting");
        } else {
            self.context.telemetry.enrolment_failed(error.reason());
            warn!(pod = %self.uid, state = state.as_str(), %error, "the pod is not where it should be; it is tried again");
        }
        let state = if error.reason() == "no_ztunnel" { State::AwaitingZtunnel } else { state };
        self.post(state, look, Some(error));
        None
    }

    /// Posts how the pod stands.
    fn post(&mut self, state: State, look: Option<&Look>, error: Option<&EnrollError>) {
        if self.state != state && matches!(state, State::Enrolled | State::Draining) {
            info!(pod = %self.uid, name = self.spec.as_ref().map_or("", |spec| &spec.name), state = state.as_str(), "the pod's state");
        }
        self.state = state;
        let spec = self.spec.as_deref();
        let now = SystemTime::now();
        let text = |field: fn(&PodSpec) -> &String| spec.map(field).cloned().unwrap_or_default();
        let devices = self.found.iter().flat_map(|found| &found.devices).filter(|device| !device.loopback);
        let status = PodStatus {
            name: text(|spec| &spec.name),
            namespace: text(|spec| &spec.namespace),
            service_account: text(|spec| &spec.service_account),
            addresses: spec.map(|spec| spec.addresses.clone()).unwrap_or_default(),
            strict: spec.is_some_and(|spec| spec.strict == Strict::Everywhere),
            state,
            since: now,
            netns: self.found.as_ref().map(|found| found.netns.id().to_string()),
            devices: devices.map(|device| device.name.clone()).collect(),
            links: look.map(|look| look.links.clone()).unwrap_or_default(),
            listeners: self.listeners.as_ref().map(|listeners| ports(listeners)).unwrap_or_default(),
            pre_mesh: look.map(|look| look.pre_mesh.clone()).unwrap_or_default(),
            last_error: error.map(|error| LastError {
                message: error.to_string(),
                reason: error.reason().to_owned(),
                since: now,
                attempts: 1,
            }),
        };
        self.context.board.post(&self.uid, status);
    }
}

/// On which ports the listeners are, each once.
fn ports(listeners: &Listeners) -> Vec<u16> {
    let dns = listeners.dns().map(|_| Listener::DnsStream);
    KINDS.into_iter().chain(dns).map(Listener::port).collect()
}
