//! Doing the steps: each is written so that repeating it does no harm.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::{debug, info, warn};

use super::Context;
use super::connections;
use super::destroy::{destroy, end_captured};
use super::error::EnrollError;
use super::look::Look;
use super::pod::{PodSpec, Strict};
use super::steps::{Outbound, Step};
use super::task::{PodTask, Side};
use super::watch::NetnsWatch;
use crate::borrowed;
use crate::bpf::{self, Changes, PodMode};
use crate::listeners::{ListenError, Listeners, NotOurs};
use crate::netns::Netns;
use crate::netns::find;
use crate::plumbing::{self, Before, kernel as plumber};
use crate::zds::hub::AnnounceError;
use crate::zds::{Announcement, Held};
use api::sock_diag::TcpState;

/// Connections from before it joined that one pod may keep: a quarter of the places there are for all pods of the node, so that no pod
/// keeps others from joining.
const PRE_MESH_SHARE: usize = 16_384;

impl PodTask {
    /// Does one step.
    pub(super) async fn make(&mut self, step: Step, look: &Look) -> Result<(), EnrollError> {
        match step {
            Step::Announce => {
                self.read_resolv_conf().await;
                self.announce(look.facts.outbound != Outbound::Detached).await
            }
            Step::Withdraw => {
                self.context.hub.withdraw(&self.uid).await;
                self.announcement = None;
                self.withdrawn = true;
                Ok(())
            }
            _ => {
                let context = Arc::clone(&self.context);
                context.turns.blocking(|| self.make_in_kernel(step, look)).await
            }
        }
    }

    fn make_in_kernel(&mut self, step: Step, look: &Look) -> Result<(), EnrollError> {
        match step {
            Step::FindNetns => self.find_netns(),
            Step::ObtainListeners => self.obtain_listeners(),
            Step::CloseListeners => {
                self.listeners = None;
                self.announcement = None;
                // What was captured for them alone is no longer.
                self.unverified();
                Ok(())
            }
            Step::Plumb => self.plumb(look),
            Step::AttachInbound => self.attach_inbound(),
            Step::AttachOutbound => self.attach_outbound(),
            Step::Gate => self.gate(look),
            Step::CutPreMesh => self.cut_pre_mesh(),
            Step::StartDraining => self.start_draining(),
            Step::DetachInbound => self.detach_inbound(),
            Step::DetachOutbound => self.detach_outbound(),
            Step::Unplumb => self.unplumb(look),
            Step::Announce | Step::Withdraw | Step::Enrolled | Step::AwaitDrain | Step::Forget => Ok(()),
        }
    }

    /// The spec and the namespace, which every step but the first follows from having.
    fn pod(&self) -> Option<(Arc<PodSpec>, Arc<Netns>)> {
        Some((self.spec.clone()?, self.netns()?))
    }

    fn netns(&self) -> Option<Arc<Netns>> {
        Some(Arc::clone(&self.found.as_ref()?.netns))
    }

    fn find_netns(&mut self) -> Result<(), EnrollError> {
        let Some(spec) = &self.spec else { return Ok(()) };
        let found = find::find(spec, self.context.own_netns, &self.context.processes)?;
        info!(pod = %self.uid, netns = %found.netns.id(), "the pod's network namespace");
        // Before anything is read from it, so that no change falls between reading and watching.
        let watch =
            NetnsWatch::start(&found.netns, Arc::clone(&self.changed_inside)).map_err(EnrollError::Watch)?;
        self.watch = Some(watch);
        self.let_go_elsewhere(&found.netns)?;
        self.found = Some(found);
        self.marked = None;
        Ok(())
    }

    /// Takes down what is pinned for the pod in other namespaces than this one: its sandbox was made anew while no agent was there. What
    /// still lives in one of those must not go on in plaintext either.
    fn let_go_elsewhere(&self, netns: &Netns) -> Result<(), EnrollError> {
        let Context { kernel, own_netns, processes, .. } = &*self.context;
        for inode in kernel.namespaces(&self.uid, Some(netns))? {
            let other = find::pinned(&[inode].into(), *own_netns, processes.proc_root())?;
            if let Some(other) = other.filter(|other| other.netns.id() != netns.id()) {
                self.end_captured(&other.netns)?;
            }
        }
        Ok(kernel.detach_elsewhere(&self.uid, netns)?)
    }

    /// Takes back what ztunnel held while the agent was away, or makes the listeners.
    fn obtain_listeners(&mut self) -> Result<(), EnrollError> {
        let Some((spec, netns)) = self.pod() else { return Ok(()) };
        if !self.context.hub.holdings_known() {
            return Err(AnnounceError::NoZtunnel.into());
        }
        self.announcement = None;
        let dns = self.wants_dns();
        if let Some(listeners) = &self.listeners {
            self.listeners = Some(Arc::new(listeners.with_dns(&netns, dns)?));
            // The maps and the programs follow.
            self.unverified();
            return Ok(());
        }
        if let Some(held) = self.context.hub.take_held(&self.uid) {
            match adopt(held, &netns) {
                Ok(listeners) => {
                    // If they lack those for DNS, or have them for nothing, that is seen next.
                    self.listeners = Some(Arc::new(listeners));
                    return Ok(());
                }
                Err(error) => {
                    warn!(pod = %self.uid, %error, "what ztunnel held for the pod is not usable; new listeners are made");
                }
            }
        }
        match Listeners::make(&netns, dns) {
            Ok(listeners) => {
                self.listeners = Some(Arc::new(listeners));
                Ok(())
            }
            Err(error) => {
                if matches!(error, ListenError::PortInUse(_)) {
                    self.shut_out(&spec, &netns)?;
                }
                Err(error.into())
            }
        }
    }

    /// A pod that cannot join, for its application holds a port of ours: that it takes plaintext from nobody, on whatever ports, holds all
    /// the same, and on all of them, since there is no ztunnel to tell them apart. Without
    /// a listener to lead them to, new connections are refused, but for kubelet's probes; what the pod sends is plaintext, as from
    /// any pod outside of the mesh. One that takes plaintext goes on as if it had not been asked to join.
    fn shut_out(&mut self, spec: &PodSpec, netns: &Netns) -> Result<(), EnrollError> {
        let links = self.context.kernel.links(&self.uid)?;
        if spec.strict != Strict::Nowhere {
            self.context.kernel.open_to_probes(&self.uid, &spec.addresses, &spec.probe_ports)?;
            let changes = self.context.kernel.ensure_inbound(&self.uid, netns)?;
            self.tell(&changes);
        } else if links.inbound && !links.outbound {
            self.detach_inbound()?;
        }
        Ok(())
    }

    fn plumb(&mut self, look: &Look) -> Result<(), EnrollError> {
        let (Some((_, netns)), Some(actual)) = (self.pod(), &look.plumbing) else { return Ok(()) };
        self.before.note(actual);
        let changes = plumbing::to_enrolled(actual);
        plumber::apply(&netns, &changes)?;
        info!(pod = %self.uid, pieces = changes.len(), "rules, routes and sysctls are set");
        Ok(())
    }

    /// Tells ztunnel and waits for its answer. With a pod that `is_captured` already, a change in its namespace comes first: a
    /// new device must not wait for a ztunnel that is slow to answer.
    async fn announce(&mut self, is_captured: bool) -> Result<(), EnrollError> {
        let Some((spec, netns)) = self.pod() else { return Ok(()) };
        let (listeners, resolv_conf) = (self.listeners.clone(), self.resolv_conf.clone());
        let announcement = self.announcement.get_or_insert_with(|| {
            Arc::new(Announcement { pod: PodSpec::clone(&spec), netns, listeners, resolv_conf })
        });
        tokio::select! {
            answer = self.context.hub.announce(announcement) => Ok(answer?),
            () = self.changed_inside.notified(), if is_captured => {
                self.changed_inside.notify_one();
                Err(EnrollError::Interrupted)
            }
        }
    }

    /// Whether the pod's DNS is captured as far as its listeners say; before they are known, as it was. A ztunnel that makes its own has
    /// none that DNS could be led to.
    fn captures_dns(&self, links: &bpf::PodLinks) -> bool {
        let as_it_was = links.dns && self.context.hub.takes_listeners() != Some(false);
        self.listeners.as_ref().map_or(as_it_was, |listeners| listeners.dns().is_some())
    }

    /// Reads how the pod resolves names. Without that ztunnel has the pod ask whom it asks anyhow, and completes names as kubelet's
    /// default has it.
    async fn read_resolv_conf(&mut self) {
        let Some(found) = &self.found else { return };
        let process = match found.process() {
            Some(process) => process.to_owned(),
            None => {
                let context = Arc::clone(&self.context);
                let all = context.turns.blocking(|| context.processes.of(&self.uid)).await;
                let Some(first) = all.first() else { return };
                context.processes.proc_root().join(first.to_string())
            }
        };
        match self.resolv_conf_reader.read(&process).await {
            Ok(text) => self.resolv_conf = Some(text),
            // Once is enough.
            Err(error) if self.announcement.is_some() => {
                debug!(pod = %self.uid, %error, "how the pod resolves names is not known");
            }
            Err(error) => {
                warn!(pod = %self.uid, %error, "how the pod resolves names is not known");
            }
        }
    }

    /// Announces the pod anew if it resolves names in another way now.
    pub(super) async fn follow_resolv_conf(&mut self) {
        // Where a path has led to the namespace, a process would have to be looked for each time.
        let is_known = self.found.as_ref().is_some_and(|found| found.process().is_some());
        if self.announcement.is_none() || !is_known || !self.wants_dns() {
            return;
        }
        let before = self.resolv_conf.clone();
        self.read_resolv_conf().await;
        let changed = match (&before, &self.resolv_conf) {
            (Some(before), Some(now)) => !before.is_same_as(now),
            (None, now) => now.is_some(),
            (Some(_), None) => false,
        };
        if changed {
            info!(pod = %self.uid, "the pod resolves names in another way now");
            self.announcement = None;
        } else {
            self.resolv_conf = before;
        }
    }

    fn attach_inbound(&mut self) -> Result<(), EnrollError> {
        let Some((spec, netns)) = self.pod() else { return Ok(()) };
        let active = self.context.hub.active();
        let listeners = match (&self.listeners, active) {
            (Some(listeners), _) => Arc::clone(listeners),
            (None, Some((_, pid))) => Arc::new(borrowed::borrow(pid, &netns)?),
            (None, None) => return Err(AnnounceError::NoZtunnel.into()),
        };
        let addresses: BTreeSet<_> = spec.addresses.iter().copied().collect();
        let ports: BTreeSet<_> = spec.probe_ports.iter().copied().collect();
        self.context.kernel.lead(&self.uid, (&addresses, &self.led), &ports, &listeners)?;
        self.led = addresses;
        self.led_for = active.map(|(session, _)| session);
        let changes = self.context.kernel.ensure_inbound(&self.uid, &netns)?;
        self.tell(&changes);
        self.inbound = Side::Ensured;
        Ok(())
    }

    /// Captures what the pod sends. The first time, what lives already is to go on: programs are attached that let everything pass
    /// and learn whose it is, the connections there are then are marked, and the programs are swapped for those that capture,
    /// which is atomic. What began after the marking has been learnt, so no connection falls in between, and is accounted for then, as
    /// is what connected while the pod was leaving. What fails before anything is captured leaves nothing attached.
    fn attach_outbound(&mut self) -> Result<(), EnrollError> {
        let Some((spec, netns)) = self.pod() else { return Ok(()) };
        let kernel = self.context.kernel.clone();
        kernel.name_addresses(&self.uid, &spec.addresses)?;
        let links = kernel.links(&self.uid)?;
        let begins = !links.outbound || links.joining;
        if begins && let Err(error) = self.begin_outbound(&netns) {
            kernel.detach_outbound(&self.uid, Some(&netns))?;
            let marked: Vec<_> = self.marked.take().unwrap_or_default().into_iter().collect();
            kernel.forget_pre_mesh(&marked)?;
            return Err(error);
        }
        let changes = kernel.ensure_outbound(&self.uid, &netns, PodMode::On, self.captures_dns(&links))?;
        self.tell(&changes);
        if begins || links.open {
            self.account_for_outside(&netns)?;
        }
        self.outbound = Side::Ensured;
        Ok(())
    }

    /// Keeps TCP to captured devices. One that came since they were attached has them attached again first.
    fn gate(&mut self, look: &Look) -> Result<(), EnrollError> {
        let (Some((_, netns)), Some(actual)) = (self.pod(), &look.plumbing) else { return Ok(()) };
        let captured = self.context.kernel.captured_devices(&self.uid, &netns)?;
        plumber::apply(&netns, &plumbing::to_gated(actual, &captured))?;
        if !actual.groups.keys().all(|index| captured.contains(index)) {
            self.unverified();
        }
        Ok(())
    }

    /// Lets everything pass, learning whose it is, and marks what lives.
    fn begin_outbound(&mut self, netns: &Netns) -> Result<(), EnrollError> {
        let dns = self.captures_dns(&self.context.kernel.links(&self.uid)?);
        let changes = self.context.kernel.ensure_outbound(&self.uid, netns, PodMode::Joining, dns)?;
        self.mark_outside(netns)?;
        self.tell(&changes);
        Ok(())
    }

    /// Takes all that runs past the mesh into the list, from which a strict pod cuts it. Of what was learnt and has ended since nothing
    /// is entered: nobody would take it out.
    fn account_for_outside(&mut self, netns: &Netns) -> Result<(), EnrollError> {
        let kernel = &self.context.kernel;
        let all = bpf::connections(netns).map_err(EnrollError::Sockets)?;
        let alive = all.iter().filter(|connection| connection.state != TcpState::TIME_WAIT);
        let alive: Vec<_> = alive.map(|connection| connection.cookie).collect();
        let mut learnt = kernel.learnt(&alive)?;
        let marked = self.marked.get_or_insert_default();
        let room = PRE_MESH_SHARE.saturating_sub(marked.len());
        if learnt.len() > room {
            warn!(pod = %self.uid, connections = learnt.len(), kept = room, "more connections from while the pod joined or left than it may keep: the others are reset");
            kernel.forget_pre_mesh(&learnt.split_off(room))?;
        }
        // First, so that what is entered when this fails half way is taken out by the next look.
        marked.extend(&learnt);
        for forgotten in kernel.account(&self.uid, netns, &learnt)? {
            marked.remove(&forgotten);
        }
        let known = connections::known(&all, &kernel.pre_mesh()?);
        marked.extend(known.iter().map(|connection| connection.cookie));
        self.cut = None;
        Ok(())
    }

    /// Lets the connections there are now pass from here on.
    fn mark_outside(&mut self, netns: &Netns) -> Result<(), EnrollError> {
        let all = bpf::connections(netns).map_err(EnrollError::Sockets)?;
        let exempt = self.context.kernel.exempt_cgroups()?;
        let mut cookies: Vec<_> =
            connections::outside(&all, &exempt).iter().map(|connection| connection.cookie).collect();
        if cookies.len() > PRE_MESH_SHARE {
            warn!(pod = %self.uid, connections = cookies.len(), kept = PRE_MESH_SHARE, "more connections from before the pod joined than one pod may keep: the others are reset");
            cookies.truncate(PRE_MESH_SHARE);
        }
        // First, so that what is marked when this fails half way is forgotten with the rest.
        self.marked.get_or_insert_default().extend(&cookies);
        Ok(self.context.kernel.mark_pre_mesh(&cookies)?)
    }

    /// Ends the connections from before the pod joined on the ports where it takes plaintext from nobody, or all if that was asked for.
    /// With the ports all but some, or all, that includes those it opened itself.
    fn cut_pre_mesh(&mut self) -> Result<(), EnrollError> {
        let Some((spec, netns)) = self.pod() else { return Ok(()) };
        let all = bpf::connections(&netns).map_err(EnrollError::Sockets)?;
        let marked = self.marked.get_or_insert_default();
        let mut known = connections::known(&all, marked);
        let cuts = spec.cuts(self.context.pre_mesh);
        known.retain(|connection| cuts.covers(connection.local.port()));
        let cut: Vec<_> = known.iter().map(|connection| connection.cookie).collect();
        // Before they are forgotten, or their resets would be captured and the peers never told. What cannot be destroyed is
        // reset by the kernel with its next packet.
        let destroyed = destroy(&netns, &known);
        self.context.kernel.forget_pre_mesh(&cut)?;
        marked.retain(|cookie| !cut.contains(cookie));
        let destroyed = destroyed.map_err(EnrollError::Sockets)?;
        if !known.is_empty() {
            info!(pod = %self.uid, connections = known.len(), destroyed, "connections from before the pod joined are cut: it is strict there, or this was asked for");
        }
        self.cut = Some(cuts);
        Ok(())
    }

    fn start_draining(&mut self) -> Result<(), EnrollError> {
        let Some(netns) = self.netns() else { return Ok(()) };
        let dns = self.context.kernel.links(&self.uid)?.dns;
        self.context.kernel.ensure_outbound(&self.uid, &netns, PodMode::Draining, dns)?;
        self.outbound = Side::Draining;
        Ok(())
    }

    fn detach_inbound(&mut self) -> Result<(), EnrollError> {
        let netns = self.found.as_ref().map(|found| &*found.netns);
        self.context.kernel.detach_inbound(&self.uid, netns)?;
        self.context.kernel.unlead(&self.uid, &self.led)?;
        self.led = BTreeSet::new();
        self.inbound = Side::Unverified;
        Ok(())
    }

    fn detach_outbound(&mut self) -> Result<(), EnrollError> {
        let netns = self.found.as_ref().map(|found| &*found.netns);
        netns.map_or(Ok(()), |netns| self.end_captured(netns))?;
        self.context.kernel.detach_pod(&self.uid, netns)?;
        let marked: Vec<_> = self.marked.take().unwrap_or_default().into_iter().collect();
        self.context.kernel.forget_pre_mesh(&marked)?;
        self.outbound = Side::Unverified;
        Ok(())
    }

    /// Ends what is left of captured connections: the drain's deadline has passed, or their ztunnel is gone. Nothing more is captured
    /// from then on: an application connects again within the moment, and what was captured then would go on in plaintext.
    pub(super) fn end_captured(&self, netns: &Netns) -> Result<(), EnrollError> {
        let kernel = &self.context.kernel;
        let links = kernel.links(&self.uid)?;
        // The inode of a namespace that is gone is used again: then these are another pod's connections.
        if !links.outbound || links.joining || !kernel.holds(&self.uid, netns)? {
            return Ok(());
        }
        kernel.ensure_outbound(&self.uid, netns, PodMode::Draining, links.dns)?;
        let ended = end_captured(netns, &kernel.exempt_cgroups()?, |all| Ok(kernel.passing(all)?))?;
        if ended > 0 {
            info!(pod = %self.uid, connections = ended, "captured connections that did not end are cut");
        }
        Ok(())
    }

    fn unplumb(&mut self, look: &Look) -> Result<(), EnrollError> {
        let (Some(netns), Some(actual)) = (self.netns(), &look.plumbing) else { return Ok(()) };
        plumber::apply(&netns, &plumbing::to_left(actual, &self.before))?;
        self.before = Before::default();
        Ok(())
    }

    fn tell(&self, changes: &Changes) {
        if !changes.attached.is_empty() || !changes.removed.is_empty() {
            info!(pod = %self.uid, attached = ?changes.attached, updated = ?changes.updated, removed = ?changes.removed, "links");
        }
    }
}

/// Checks that what ztunnel held belongs to the namespace that was found.
fn adopt(held: Held, netns: &Netns) -> Result<Listeners, NotOurs> {
    let same = Netns::from_fd(held.netns).is_ok_and(|held| held.id() == netns.id());
    if same { Listeners::adopt(held.listeners, netns.id()) } else { Err(NotOurs::OtherNetns) }
}
