//! Looking at a pod: the facts by which `steps` decides, read from the kernel and from ztunnel's sessions.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use super::connections;
use super::error::EnrollError;
use super::pod::Strict;
use super::steps::{Facts, Outbound, Wanted};
use super::task::{PodTask, Side};
use super::watch::NetnsWatch;
use crate::bpf;
use crate::netns::{devices, find};
use crate::plumbing::{self, Actual, Before, kernel as plumber};
use crate::status::Connection;

/// What was seen.
pub(super) struct Look {
    /// What `steps` asks for.
    pub(super) facts: Facts,
    /// Rules, routes and sysctls; none without a namespace.
    pub(super) plumbing: Option<Actual>,
    /// What is pinned for the pod, for people.
    pub(super) links: Vec<String>,
    /// Its connections from before it joined.
    pub(super) pre_mesh: Vec<Connection>,
}

impl PodTask {
    /// Looks at everything.
    pub(super) async fn look(&mut self) -> Result<Look, EnrollError> {
        self.take_intent();
        let context = Arc::clone(&self.context);
        let member = self.leaving_since.is_none();
        if member {
            self.follow_sandbox().await?;
        } else if self.found.is_none() && !self.sought {
            context.turns.blocking(|| self.find_what_an_earlier_agent_captured()).await?;
        }
        self.keep_watching().await?;
        if member {
            self.follow_resolv_conf().await;
        }
        context.turns.blocking(|| self.read(member)).await
    }

    /// A pod that left before this agent found it: nobody need describe it any more, but its pins name its namespace, in which it is then
    /// drained and put in order like any other, if what they stand for is there.
    fn find_what_an_earlier_agent_captured(&mut self) -> Result<(), EnrollError> {
        let kernel = &self.context.kernel;
        let inodes = kernel.namespaces(&self.uid, None)?;
        let found = find::pinned(&inodes, self.context.own_netns, self.context.processes.proc_root())?;
        if let Some(found) = found
            && kernel.holds(&self.uid, &found.netns)?
        {
            kernel.name_addresses(&self.uid, &found.routable_addresses())?;
            self.found = Some(found);
        }
        // Once only, if it was answered: fewer of its pins say less the next time.
        self.sought = true;
        Ok(())
    }

    /// Subscribes to what happens in the namespace, anew if that ended.
    async fn keep_watching(&mut self) -> Result<(), EnrollError> {
        let Some(found) = &self.found else { return Ok(()) };
        if self.watch.as_ref().is_some_and(|watch| !watch.has_ended()) {
            return Ok(());
        }
        let start = || NetnsWatch::start(&found.netns, Arc::clone(&self.changed_inside));
        self.watch = Some(self.context.turns.blocking(start).await.map_err(EnrollError::Watch)?);
        Ok(())
    }

    /// Takes note of what control wants now.
    fn take_intent(&mut self) {
        let Some(spec) = self.intent.borrow_and_update().clone() else {
            self.leaving_since.get_or_insert_with(Instant::now);
            // What connects in plaintext from here on is cut if the pod comes back.
            self.cut = None;
            return;
        };
        self.leaving_since = None;
        self.withdrawn = false;
        if spec.cuts(self.context.pre_mesh) == Strict::Nowhere {
            self.cut = None;
        }
        if let Some(announcement) = &self.announcement
            && !announcement.pod.is_same_to_ztunnel(&spec)
        {
            self.announcement = None;
        }
        self.spec = Some(spec);
    }

    /// Checks that the pod still lives in the namespace that is held; a sandbox that was made anew is another one.
    async fn follow_sandbox(&mut self) -> Result<(), EnrollError> {
        let (Some(spec), Some(found)) = (self.spec.clone(), &mut self.found) else { return Ok(()) };
        let context = Arc::clone(&self.context);
        let listed = context.turns.blocking(|| devices::list(&found.netns)).await;
        let devices = listed.map_err(EnrollError::Watch)?;
        let missing = devices::missing(&devices, &spec.addresses);
        found.devices = devices;
        if missing.is_empty() && found.still_leads_here(&spec) {
            return Ok(());
        }
        let find = || find::find(&spec, context.own_netns, &context.processes);
        match context.turns.blocking(find).await {
            Ok(now) if now.netns.id() == found.netns.id() => *found = now,
            Ok(_) => {
                info!(pod = %self.uid, was = %found.netns.id(), "the pod moved to another network namespace");
                self.leave_behind().await?;
            }
            // Its processes ended, but the sandbox stands: nothing to do until control says more.
            Err(_) if missing.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Lets go of a namespace that the pod no longer lives in.
    async fn leave_behind(&mut self) -> Result<(), EnrollError> {
        self.context.hub.withdraw(&self.uid).await;
        self.announcement = None;
        let Some(found) = self.found.take() else { return Ok(()) };
        // Whatever is known is known of that namespace.
        self.watch = None;
        self.listeners = None;
        self.resolv_conf = None;
        self.inbound = Side::Unverified;
        self.outbound = Side::Unverified;
        self.cut = None;
        self.before = Before::default();
        let led = std::mem::take(&mut self.led);
        let marked: Vec<_> = self.marked.take().unwrap_or_default().into_iter().collect();
        let kernel = &self.context.kernel;
        let let_go = || {
            self.end_captured(&found.netns)?;
            kernel.detach_pod(&self.uid, Some(&found.netns))?;
            kernel.unlead(&self.uid, &led)?;
            Ok(kernel.forget_pre_mesh(&marked)?)
        };
        self.context.turns.blocking(let_go).await
    }

    fn read(&mut self, member: bool) -> Result<Look, EnrollError> {
        let links = self.context.kernel.links(&self.uid)?;
        let plumbing = self.found.as_ref().map(|found| plumber::read(&found.netns)).transpose()?;
        let stands = plumbing.as_ref().is_some_and(|actual| {
            if member {
                plumbing::to_enrolled(actual).is_empty()
            } else {
                !plumbing::to_left(actual, &self.before).is_empty()
            }
        });
        let (pre_mesh, captured) = self.read_connections(member)?;
        let takes_listeners = self.context.hub.takes_listeners();
        let spec = self.spec.as_deref();
        let facts = Facts {
            wanted: self.wanted(member),
            netns: self.found.is_some(),
            listeners: self.listeners.as_ref().is_some_and(|listeners| {
                takes_listeners == Some(false) || listeners.dns().is_some() == self.wants_dns()
            }),
            plumbing: stands,
            ztunnel_takes_listeners: takes_listeners.unwrap_or(true),
            announced: self.is_announced(member),
            inbound: if member { self.is_led() } else { links.inbound },
            outbound: match self.outbound {
                _ if !links.outbound => Outbound::Detached,
                _ if links.joining => Outbound::Joining,
                Side::Unverified if member => Outbound::Partial,
                Side::Ensured => Outbound::Capturing,
                Side::Draining => Outbound::Draining,
                Side::Unverified => Outbound::Capturing,
            },
            gated: plumbing.as_ref().is_some_and(plumbing::is_gated),
            cut_due: spec.is_some_and(|spec| {
                let cuts = spec.cuts(self.context.pre_mesh);
                cuts != Strict::Nowhere && self.cut.as_ref() != Some(&cuts)
            }),
            captured_connections: captured,
        };
        Ok(Look { facts, plumbing, links: self.names(links), pre_mesh })
    }

    /// Whether the pod's DNS is to be captured, by an active ztunnel that answers it. While there is none, it goes on as it was.
    pub(super) fn wants_dns(&self) -> bool {
        let stated = self.spec.as_ref().and_then(|spec| spec.dns).unwrap_or(self.context.dns);
        let as_it_was = || self.listeners.as_ref().is_none_or(|listeners| listeners.dns().is_some());
        stated && self.context.hub.takes_dns().unwrap_or_else(as_it_was)
    }

    /// Whether connections are led to the listeners there are: of a ztunnel that makes its own, to the active one's.
    fn is_led(&self) -> bool {
        let hub = &self.context.hub;
        let theirs = hub.takes_listeners() == Some(false);
        let current =
            !theirs || self.led_for.is_some() && self.led_for == hub.active().map(|(session, _)| session);
        self.inbound == Side::Ensured && current
    }

    /// A member is announced when the active ztunnel has acknowledged it; a leaving pod, also one that an earlier agent announced,
    /// while it is not withdrawn.
    fn is_announced(&self, member: bool) -> bool {
        let acknowledged = |announcement| self.context.hub.acknowledged(announcement);
        if member { self.announcement.as_ref().is_some_and(acknowledged) } else { !self.withdrawn }
    }

    fn wanted(&self, member: bool) -> Wanted {
        let Some(since) = self.leaving_since.filter(|_| !member) else { return Wanted::Member };
        let gone = match (&self.found, &self.spec) {
            (Some(found), Some(spec)) => devices::list(&found.netns).is_ok_and(|devices| {
                devices::missing(&devices, &spec.addresses).len() == spec.addresses.len()
            }),
            // Nobody says which addresses it had.
            (Some(_), None) => false,
            // What no namespace can be found for cannot be examined.
            (None, _) => true,
        };
        if gone || since.elapsed() >= self.context.drain_deadline { Wanted::Gone } else { Wanted::Leave }
    }

    /// The pod's connections from before it joined, and whether a leaving pod still has captured ones. Sockets are listed only when
    /// there is something to find.
    fn read_connections(&mut self, member: bool) -> Result<(Vec<Connection>, bool), EnrollError> {
        let Some(found) = &self.found else { return Ok((Vec::new(), false)) };
        if member && self.marked.as_ref().is_some_and(BTreeSet::is_empty) {
            return Ok((Vec::new(), false));
        }
        let all = bpf::connections(&found.netns).map_err(EnrollError::Sockets)?;
        let known = match &self.marked {
            Some(marked) => connections::known(&all, marked),
            None => connections::known(&all, &self.context.kernel.pre_mesh()?),
        };
        let alive: BTreeSet<_> = known.iter().map(|connection| connection.cookie).collect();
        let ended: Vec<_> =
            self.marked.iter().flatten().filter(|cookie| !alive.contains(cookie)).copied().collect();
        if let Err(error) = self.context.kernel.forget_pre_mesh(&ended) {
            warn!(pod = %self.uid, %error, "ended connections stay in the map");
        }
        self.marked = Some(alive);
        let status = known.iter().filter(|end| connections::is_open(end));
        let status = status.map(|end| Connection { local: end.local, remote: end.remote });
        let exempt = self.context.kernel.exempt_cgroups()?;
        Ok((status.collect(), connections::carried(&all, &exempt) > 0))
    }

    fn names(&self, links: bpf::PodLinks) -> Vec<String> {
        let inbound = links.inbound.then(|| "inbound".to_owned());
        let outbound = links.outbound.then(|| match self.outbound {
            Side::Draining => "outbound (draining)".to_owned(),
            Side::Unverified | Side::Ensured => "outbound".to_owned(),
        });
        inbound.into_iter().chain(outbound).collect()
    }
}
