//! Attaching pods and letting them go.
//!
//! A pod's pins are in `pods/UID/net-INODE/`, named after their hook. The inode of the namespace is part of the path because an
//! index such as 2 means another device in another namespace, and a pod that is made anew keeps its uid; the inode is used again only
//! when the namespace, and with it every link in it, is gone. A clsact filter cannot be pinned; the pin of its program stands for it.
//!
//! Two empty directories beside the pins say how far the outbound side is, so that the next agent finishes what one began: `joining`,
//! while everything passes, and `open`, while connections may run past the mesh that are not in `PRE_MESH`. A third, `dns/UID` beside
//! `pods` (where agents that do not know it do not stumble over it), stands while the pod's DNS may be captured. Each is made before that
//! is so and removed after it has ceased to be.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::TcAttachType;
use ebpf_common::LOOPBACK_INDEX;

use super::device::{self, Device, LinkLayer};
use super::directory::{
    DNS, JOINING, OPEN, create_directory, pins, remove_directory, remove_namespace, subdirectories,
};
use super::error::AttachError;
use super::link::{self, LinkChange, LoadedProgram};
use super::object::{self, program};
use super::pin::{Pin, Point, decode, encode};
use super::sys::{self, Hook, LinkPlace};
use super::{InboundHook, OutboundHook, PodKey, Programs, filter, former};
use crate::netns::Netns;

/// What the outbound programs of a pod do with new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodMode {
    /// Let everything pass and learn whose it is, so that it passes ever after: nothing of the pod is captured yet.
    Joining,
    /// Capture them.
    On,
    /// Let them pass, and go on carrying those that were captured: the pod is leaving.
    Draining,
}

/// What a call had to change; nothing, if the kernel was as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Hooks that were missing, or whose devices were new.
    pub(crate) attached: Vec<String>,
    /// Hooks that got another program.
    pub(crate) updated: Vec<String>,
    /// Hooks that had no use any more.
    pub(crate) removed: Vec<String>,
}

/// The pins of a pod, as an earlier or this agent left them. A link may be dead (its device is gone); only `ensure_*` finds out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodLinks {
    /// Whether anything of the inbound side is pinned.
    pub(crate) inbound: bool,
    /// Whether anything of the outbound side is pinned.
    pub(crate) outbound: bool,
    /// Whether the outbound side lets everything pass yet: [`PodMode::Joining`] was begun, and [`PodMode::On`] was not.
    pub(crate) joining: bool,
    /// Whether DNS is captured: what [`Programs::ensure_outbound`] was told last.
    pub(crate) dns: bool,
    /// Whether connections may have been learnt that nobody has accounted for: see [`Programs::accounted_for`].
    pub(crate) open: bool,
}

impl Programs {
    /// Makes new connections from outside to this pod go to its listeners, which must have been set before. Repeating it repairs what
    /// is missing, follows devices that came and went, and brings in this agent's programs.
    pub(crate) fn ensure_inbound(&mut self, pod: &PodKey, netns: &Netns) -> Result<Changes, AttachError> {
        let inbound = self.inbound;
        let reopens = self.program(program::REOPEN).is_ok();
        self.ensure(pod, netns, self.outbound, Point::is_inbound, |devices| match inbound {
            InboundHook::SkLookup => {
                let guards = devices.keys().map(|index| (Point::Ingress(*index), program::INGRESS_GUARD));
                guards.chain([(Point::Lookup, program::LOOKUP)]).collect()
            }
            InboundHook::TcIngress => {
                let reopen = reopens.then_some((Point::Lookup, program::REOPEN));
                let ingress = devices.keys().map(|index| (Point::Ingress(*index), program::INGRESS));
                reopen.into_iter().chain(ingress).collect()
            }
        })
    }

    /// Makes the TCP of this pod's applications go to the listener on 15001 in its namespace, or sets the mode if it does already.
    /// Repeating it repairs, as [`Programs::ensure_inbound`] does. After [`PodMode::On`] follows [`Programs::accounted_for`]. `dns`: what is
    /// for port 53 goes to the listeners on 15053, over UDP too; in the other modes that concerns what was captured before.
    pub(crate) fn ensure_outbound(
        &mut self,
        pod: &PodKey,
        netns: &Netns,
        mode: PodMode,
        dns: bool,
    ) -> Result<Changes, AttachError> {
        let directory = self.pod_directory(pod).join(format!("net-{}", netns_inode(netns)?));
        if dns {
            create_directory(&self.dns_mark(pod))?;
        }
        match mode {
            PodMode::Joining => {
                create_directory(&directory.join(OPEN))?;
                create_directory(&directory.join(JOINING))?;
            }
            // From here on a device may capture already, and none may go back to letting everything pass.
            PodMode::On => remove_directory(&directory.join(JOINING))?,
            PodMode::Draining => {
                create_directory(&directory.join(OPEN))?;
                remove_directory(&directory.join(JOINING))?;
            }
        }
        let hook = self.outbound;
        let changes = self.ensure(
            pod,
            netns,
            hook,
            |point| !point.is_inbound(),
            |devices| {
                let mut wanted = vec![(Point::Lo, if dns { program::LO_DNS } else { program::LO })];
                wanted.extend(devices.iter().map(|(index, device)| {
                    let name = match (mode, device.layer) {
                        (PodMode::Joining, _) => program::EGRESS_JOIN,
                        (PodMode::On, LinkLayer::Ethernet) if dns => program::EGRESS_DNS,
                        (PodMode::On, LinkLayer::Bare) if dns => program::EGRESS_BARE_DNS,
                        (PodMode::On, LinkLayer::Ethernet) => program::EGRESS,
                        (PodMode::On, LinkLayer::Bare) => program::EGRESS_BARE,
                        (PodMode::Draining, LinkLayer::Ethernet) => program::EGRESS_DRAIN,
                        (PodMode::Draining, LinkLayer::Bare) => program::EGRESS_BARE_DRAIN,
                    };
                    (Point::Egress(*index), name)
                }));
                wanted
            },
        )?;
        if !dns {
            remove_directory(&self.dns_mark(pod))?;
        }
        Ok(changes)
    }

    /// Takes note that every connection of this pod which runs past the mesh is known, as must be so some time after it was set to
    /// [`PodMode::On`].
    pub(crate) fn accounted_for(&mut self, pod: &PodKey, netns: &Netns) -> Result<(), AttachError> {
        remove_directory(&self.pod_directory(pod).join(format!("net-{}", netns_inode(netns)?)).join(OPEN))
    }

    /// The devices of this pod from which something leaves only captured, by index, as of the last [`Programs::ensure_outbound`].
    pub(crate) fn captured_devices(&self, pod: &PodKey, netns: &Netns) -> Result<BTreeSet<u32>, AttachError> {
        let directory = self.pod_directory(pod).join(format!("net-{}", netns_inode(netns)?));
        let egress = |pin: Pin| match pin.point {
            Point::Egress(index) => Some(index),
            Point::Lookup | Point::Lo | Point::Ingress(_) => None,
        };
        Ok(pins(&directory)?.into_iter().filter_map(egress).collect())
    }

    /// Whether something of what is pinned for this pod and this namespace [`stands`] there.
    pub(crate) fn holds(&self, pod: &PodKey, netns: &Netns) -> Result<bool, AttachError> {
        stands(&self.pod_directory(pod).join(format!("net-{}", netns_inode(netns)?)), netns)
    }

    /// Removes what is pinned of this pod for other namespaces than this one: its sandbox was made anew while no agent was there.
    pub(crate) fn detach_elsewhere(&mut self, pod: &PodKey, netns: &Netns) -> Result<(), AttachError> {
        let current = format!("net-{}", netns_inode(netns)?);
        for directory in subdirectories(&self.pod_directory(pod))? {
            if directory.file_name().is_some_and(|name| name != current.as_str()) {
                remove_pins(&directory, |_| true, None)?;
                remove_namespace(&directory)?;
            }
        }
        Ok(())
    }

    /// Leaves the pod's new inbound connections alone; established ones are not touched. A pod of which nothing else was attached is
    /// [`Programs::attached`] no more.
    pub(crate) fn detach_inbound(&mut self, pod: &PodKey, netns: Option<&Netns>) -> Result<(), AttachError> {
        self.detach(pod, netns, Point::is_inbound)?;
        if self.links(pod)?.outbound { Ok(()) } else { self.remove_directories(pod) }
    }

    /// Leaves the pod's outbound packets alone. Connections that were captured and are still open break; drain first.
    pub(crate) fn detach_outbound(&mut self, pod: &PodKey, netns: Option<&Netns>) -> Result<(), AttachError> {
        self.detach(pod, netns, |point| !point.is_inbound())?;
        for directory in subdirectories(&self.pod_directory(pod))? {
            remove_directory(&directory.join(JOINING))?;
            remove_directory(&directory.join(OPEN))?;
        }
        remove_directory(&self.dns_mark(pod))
    }

    /// Removes everything of this pod: outbound first, then inbound. Without the namespace (it is gone, or cannot be found) links go by
    /// their pins; clsact filters stay with their devices, if those still exist.
    pub(crate) fn detach_pod(&mut self, pod: &PodKey, netns: Option<&Netns>) -> Result<(), AttachError> {
        self.detach_outbound(pod, netns)?;
        self.detach_inbound(pod, netns)?;
        self.remove_directories(pod)
    }

    fn remove_directories(&self, pod: &PodKey) -> Result<(), AttachError> {
        let directory = self.pod_directory(pod);
        for stale in subdirectories(&directory)? {
            remove_namespace(&stale)?;
        }
        remove_directory(&directory)
    }

    /// All pods that have pins, of whatever agent.
    pub(crate) fn attached(&self) -> Result<BTreeSet<PodKey>, AttachError> {
        let directories = subdirectories(&self.root.join("pods"))?;
        Ok(directories.iter().filter_map(|directory| decode(directory.file_name()?.to_str()?)).collect())
    }

    /// The pins of one pod.
    pub(crate) fn links(&self, pod: &PodKey) -> Result<PodLinks, AttachError> {
        let mut links = PodLinks { dns: self.dns_mark(pod).is_dir(), ..PodLinks::default() };
        for netns in subdirectories(&self.pod_directory(pod))? {
            for pin in pins(&netns)? {
                links.inbound |= pin.point.is_inbound();
                links.outbound |= !pin.point.is_inbound();
            }
            links.joining |= netns.join(JOINING).is_dir();
            links.open |= netns.join(OPEN).is_dir();
        }
        Ok(links)
    }

    pub(super) fn pod_directory(&self, pod: &PodKey) -> PathBuf {
        self.root.join("pods").join(encode(pod))
    }

    fn dns_mark(&self, pod: &PodKey) -> PathBuf {
        self.root.join(DNS).join(encode(pod))
    }

    /// Brings one side of a pod into the wanted state.
    fn ensure(
        &mut self,
        pod: &PodKey,
        netns: &Netns,
        hook: OutboundHook,
        side: fn(Point) -> bool,
        wanted: impl FnOnce(&BTreeMap<u32, Device>) -> Vec<(Point, &'static str)> + Send,
    ) -> Result<Changes, AttachError> {
        let inode = netns_inode(netns)?;
        let directory = self.pod_directory(pod).join(format!("net-{inode}"));
        create_directory(&directory)?;
        let mut within = Within { programs: self, netns, inode, directory: &directory };
        netns
            .run(move || {
                let devices = device::list().map_err(AttachError::Devices)?;
                let wanted = wanted(&devices);
                within.reconcile(hook, side, &devices, &wanted)
            })
            .map_err(AttachError::Netns)?
    }

    fn detach(
        &mut self,
        pod: &PodKey,
        netns: Option<&Netns>,
        side: fn(Point) -> bool,
    ) -> Result<(), AttachError> {
        let current = match netns {
            Some(netns) => Some((netns, format!("net-{}", netns_inode(netns)?))),
            None => None,
        };
        for directory in subdirectories(&self.pod_directory(pod))? {
            let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let inside = current.as_ref().filter(|(_, current)| current == name).map(|(netns, _)| *netns);
            match inside {
                Some(netns) => netns
                    .run(|| {
                        let devices = device::list().map_err(AttachError::Devices)?;
                        remove_pins(&directory, side, Some(&devices))
                    })
                    .map_err(AttachError::Netns)??,
                None => remove_pins(&directory, side, None)?,
            };
        }
        Ok(())
    }

    fn program(&self, name: &'static str) -> Result<&LoadedProgram, AttachError> {
        self.loaded.iter().find(|program| program.name == name).ok_or(AttachError::NotLoaded(name))
    }
}

/// Where something of a pod is pinned, with the inode of the namespace it is for: all there are below `bpffs`.
pub(crate) fn pinned(bpffs: &Path) -> Result<Vec<(PathBuf, u64)>, AttachError> {
    let mut found = Vec::new();
    for layout in former::layouts(bpffs)? {
        for pod in subdirectories(&layout.join("pods"))? {
            for directory in subdirectories(&pod)? {
                let inode =
                    directory.file_name().and_then(|name| name.to_str()?.strip_prefix("net-")?.parse().ok());
                found.extend(inode.map(|inode| (directory, inode)));
            }
        }
    }
    Ok(found)
}

/// Takes away what is pinned in `directory`, filters included, from the namespace it is for.
pub(crate) fn take_down(directory: &Path, netns: &Netns) -> Result<(), AttachError> {
    netns
        .run(|| {
            let devices = device::list().map_err(AttachError::Devices)?;
            remove_pins(directory, |point| !point.is_inbound(), Some(&devices))?;
            remove_pins(directory, Point::is_inbound, Some(&devices))
        })
        .map_err(AttachError::Netns)?
}

/// The work on one pod, on a thread in its namespace.
struct Within<'a> {
    programs: &'a mut Programs,
    netns: &'a Netns,
    inode: u64,
    directory: &'a Path,
}

impl Within<'_> {
    /// Attaches first and removes last, so that there is no gap when one kind of hook takes over from another.
    fn reconcile(
        &mut self,
        hook: OutboundHook,
        side: fn(Point) -> bool,
        devices: &BTreeMap<u32, Device>,
        wanted: &[(Point, &'static str)],
    ) -> Result<Changes, AttachError> {
        let mut changes = Changes::default();
        let mut standing = Vec::new();
        for (point, name) in wanted {
            let is_filter = hook == OutboundHook::Clsact && *point != Point::Lookup;
            let pin = Pin { point: *point, is_filter };
            let change = if is_filter { self.filter(pin, name, devices) } else { self.link(pin, name) };
            match change {
                Ok(LinkChange::Nothing) => {}
                Ok(LinkChange::Updated) => changes.updated.push(pin.name()),
                Ok(LinkChange::Created) => changes.attached.push(pin.name()),
                // A device that went while we were at it is not wanted any more.
                Err(_) if point.tc().is_some_and(|(index, _)| is_gone(index)) => continue,
                Err(error) => return Err(error),
            }
            standing.push(pin);
        }
        for pin in pins(self.directory)? {
            if side(pin.point) && !standing.contains(&pin) {
                remove_pin(self.directory, pin, Some(devices))?;
                changes.removed.push(pin.name());
            }
        }
        Ok(changes)
    }

    fn link(&self, pin: Pin, name: &'static str) -> Result<LinkChange, AttachError> {
        let program = self.programs.program(name)?;
        let hook = tcx_hook(pin.point).unwrap_or(Hook::SkLookup(self.netns.as_fd()));
        let place = place(pin.point, self.inode);
        link::ensure(&self.directory.join(pin.name()), program, hook, place)
            .map_err(|source| AttachError::Link { hook: pin.name(), source })
    }

    /// A filter is replaced each time, since that is one atomic message and finds out whether somebody removed it.
    fn filter(
        &mut self,
        pin: Pin,
        name: &'static str,
        devices: &BTreeMap<u32, Device>,
    ) -> Result<LinkChange, AttachError> {
        let Some((index, direction)) = pin.point.tc() else { return Ok(LinkChange::Nothing) };
        let device = device_name(index, devices);
        let path = self.directory.join(pin.name());
        let failed = |source| AttachError::Link { hook: pin.name(), source };
        let existed = path.try_exists().unwrap_or(false);
        let classifier =
            object::classifier(&mut self.programs.ebpf, name).ok_or(AttachError::NotLoaded(name))?;
        filter::ensure(classifier, device, direction)
            .map_err(|source| AttachError::Filter { device: device.to_owned(), source: Box::new(source) })?;
        if existed {
            return Ok(LinkChange::Nothing);
        }
        let program = self.programs.program(name)?;
        sys::pin(program.fd.as_fd(), &path).map_err(|error| failed(error.into()))?;
        Ok(LinkChange::Created)
    }
}

fn tcx_hook(point: Point) -> Option<Hook<'static>> {
    let (index, direction) = point.tc()?;
    Some(if direction == TcAttachType::Egress { Hook::TcxEgress(index) } else { Hook::TcxIngress(index) })
}

/// What the kernel says of a link that is where this point's belongs.
fn place(point: Point, netns: u64) -> LinkPlace {
    match point.tc() {
        None => LinkPlace::Netns(u32::try_from(netns).unwrap_or(0)),
        Some((index, _)) => LinkPlace::Device(index),
    }
}

/// Whether something of what is pinned in this directory stands in this namespace: the inode of a namespace that is gone is used
/// again, for that of another pod.
///
/// A filter's pin says no more of it than its device and direction; what does is the link beside it. Kernels before 5.17 have pods without
/// any: of those a filter of ours there is taken for the pod's. It cannot be that of another pod with pins, as
/// [`Programs::namespaces`] leaves those out.
pub(crate) fn stands(directory: &Path, netns: &Netns) -> Result<bool, AttachError> {
    let (filters, links): (Vec<Pin>, Vec<Pin>) = pins(directory)?.into_iter().partition(|pin| pin.is_filter);
    if links.is_empty() {
        let places: Vec<_> = filters.iter().filter_map(|pin| pin.point.tc()).collect();
        return netns.run_async(|| filter::any_stands(&places)).map_err(AttachError::Netns)?;
    }
    let is_linked = || links.iter().any(|pin| is_standing(directory, *pin));
    netns.run(is_linked).map_err(AttachError::Netns)
}

/// Whether a pin names the link it stands for. To be asked on a thread in the namespace.
fn is_standing(directory: &Path, pin: Pin) -> bool {
    let inode = directory.file_name().and_then(|name| name.to_str()?.strip_prefix("net-")?.parse().ok());
    let place = place(pin.point, inode.unwrap_or(0));
    let link = sys::open_pinned(&directory.join(pin.name()));
    let stands = |link: OwnedFd| link::standing(link.as_fd(), tcx_hook(pin.point), place);
    link.is_ok_and(|link| stands(link).is_ok_and(|info| info.is_some()))
}

fn device_name(index: u32, devices: &BTreeMap<u32, Device>) -> &str {
    if index == LOOPBACK_INDEX { "lo" } else { devices.get(&index).map_or("", |device| &device.name) }
}

fn is_gone(index: u32) -> bool {
    device::list().is_ok_and(|devices| index != LOOPBACK_INDEX && !devices.contains_key(&index))
}

pub(super) fn netns_inode(netns: &Netns) -> Result<u64, AttachError> {
    let stat = nix::sys::stat::fstat(netns.as_fd()).map_err(|error| AttachError::Netns(error.into()))?;
    Ok(stat.st_ino)
}

/// Removes the pins of one side and what they stand for: devices before `lo`. `devices` is known when the thread is in the namespace.
fn remove_pins(
    directory: &Path,
    side: fn(Point) -> bool,
    devices: Option<&BTreeMap<u32, Device>>,
) -> Result<(), AttachError> {
    let mut found: Vec<Pin> = pins(directory)?.into_iter().filter(|pin| side(pin.point)).collect();
    found.sort_by_key(|pin| std::cmp::Reverse(pin.point));
    found.into_iter().try_for_each(|pin| remove_pin(directory, pin, devices))
}

fn remove_pin(
    directory: &Path,
    pin: Pin,
    devices: Option<&BTreeMap<u32, Device>>,
) -> Result<(), AttachError> {
    if let (true, Some((index, direction)), Some(devices)) = (pin.is_filter, pin.point.tc(), devices) {
        let device = device_name(index, devices);
        if !device.is_empty() {
            filter::remove(device, direction).map_err(|source| AttachError::Filter {
                device: device.to_owned(),
                source: Box::new(source),
            })?;
        }
    }
    // What a pin names may be another pod's: only what stands here is taken down, and from elsewhere nothing but the pin.
    let path = directory.join(pin.name());
    let ours = devices.is_some() && !pin.is_filter && is_standing(directory, pin);
    let removed = if ours { link::remove(&path) } else { link::unpin(&path) };
    removed.map_err(|source| AttachError::Link { hook: pin.name(), source })
}
