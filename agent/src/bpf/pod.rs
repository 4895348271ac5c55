//! Attaching pods and letting them go.
//!
//! A pod's pins are in `pods/UID/net-INODE/`, named after their hook. The inode of the namespace is part of the path because an
//! index such as 2 means another device in another namespace, and a pod that is made anew keeps its uid; the inode is used again only
//! when the namespace, and with it every link in it, is gone. A clsact filter cannot be pinned; the pin of its program stands for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::TcAttachType;
use ebpf_common::LOOPBACK_INDEX;

use super::device::{self, Device, LinkLayer};
use super::error::AttachError;
use super::link::{self, LinkChange, LoadedProgram};
use super::object::{self, program};
use super::sys::{self, Hook, LinkPlace};
use super::{InboundHook, OutboundHook, PodKey, Programs, filter};
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
}

/// A place in a pod, and the name of its pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    Lookup,
    Lo,
    Ingress(u32),
    Egress(u32),
}

impl Point {
    fn name(self) -> String {
        match self {
            Self::Lookup => "lookup".to_owned(),
            Self::Lo => "lo".to_owned(),
            Self::Ingress(index) => format!("ingress-{index}"),
            Self::Egress(index) => format!("egress-{index}"),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name.split_once('-') {
            None if name == "lookup" => Some(Self::Lookup),
            None if name == "lo" => Some(Self::Lo),
            Some(("ingress", index)) => index.parse().ok().map(Self::Ingress),
            Some(("egress", index)) => index.parse().ok().map(Self::Egress),
            _ => None,
        }
    }

    fn is_inbound(self) -> bool {
        matches!(self, Self::Lookup | Self::Ingress(_))
    }

    /// Index and direction on a device; `Lookup` has none.
    fn tc(self) -> Option<(u32, TcAttachType)> {
        match self {
            Self::Lookup => None,
            Self::Lo => Some((LOOPBACK_INDEX, TcAttachType::Ingress)),
            Self::Ingress(index) => Some((index, TcAttachType::Ingress)),
            Self::Egress(index) => Some((index, TcAttachType::Egress)),
        }
    }
}

/// A pin found on the disk of pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pin {
    point: Point,
    /// Whether it stands for a clsact filter.
    is_filter: bool,
}

const FILTER_PREFIX: &str = "filter-";

impl Pin {
    fn name(self) -> String {
        if self.is_filter { format!("{FILTER_PREFIX}{}", self.point.name()) } else { self.point.name() }
    }

    fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix(FILTER_PREFIX) {
            Some(rest) => Point::parse(rest).map(|point| Self { point, is_filter: true }),
            None => Point::parse(name).map(|point| Self { point, is_filter: false }),
        }
    }
}

impl Programs {
    /// Makes new connections from outside to this pod go to its listeners, which must have been set before. Repeating it repairs what
    /// is missing, follows devices that came and went, and brings in this agent's programs.
    pub(crate) fn ensure_inbound(&mut self, pod: &PodKey, netns: &Netns) -> Result<Changes, AttachError> {
        let inbound = self.inbound;
        let reopens = self.program(program::REOPEN).is_ok();
        self.ensure(pod, netns, self.outbound, Point::is_inbound, |devices| match inbound {
            InboundHook::SkLookup => vec![(Point::Lookup, program::LOOKUP)],
            InboundHook::TcIngress => {
                let reopen = reopens.then_some((Point::Lookup, program::REOPEN));
                let ingress = devices.keys().map(|index| (Point::Ingress(*index), program::INGRESS));
                reopen.into_iter().chain(ingress).collect()
            }
        })
    }

    /// Makes the TCP of this pod's applications go to the listener on 15001 in its namespace, or sets the mode if it does already.
    /// Repeating it repairs, as [`Programs::ensure_inbound`] does.
    pub(crate) fn ensure_outbound(
        &mut self,
        pod: &PodKey,
        netns: &Netns,
        mode: PodMode,
    ) -> Result<Changes, AttachError> {
        let hook = self.outbound;
        self.ensure(
            pod,
            netns,
            hook,
            |point| !point.is_inbound(),
            |devices| {
                let mut wanted = vec![(Point::Lo, program::LO)];
                wanted.extend(devices.iter().map(|(index, device)| {
                    let name = match (mode, device.layer) {
                        (PodMode::Joining, _) => program::EGRESS_JOIN,
                        (PodMode::On, LinkLayer::Ethernet) => program::EGRESS,
                        (PodMode::On, LinkLayer::Bare) => program::EGRESS_BARE,
                        (PodMode::Draining, LinkLayer::Ethernet) => program::EGRESS_DRAIN,
                        (PodMode::Draining, LinkLayer::Bare) => program::EGRESS_BARE_DRAIN,
                    };
                    (Point::Egress(*index), name)
                }));
                wanted
            },
        )
    }

    /// Leaves the pod's new inbound connections alone; established ones are not touched.
    pub(crate) fn detach_inbound(&mut self, pod: &PodKey, netns: Option<&Netns>) -> Result<(), AttachError> {
        self.detach(pod, netns, Point::is_inbound)
    }

    /// Leaves the pod's outbound packets alone. Connections that were captured and are still open break; drain first.
    pub(crate) fn detach_outbound(&mut self, pod: &PodKey, netns: Option<&Netns>) -> Result<(), AttachError> {
        self.detach(pod, netns, |point| !point.is_inbound())
    }

    /// Removes everything of this pod: outbound first, then inbound. Without the namespace (it is gone, or cannot be found) links go by
    /// their pins; clsact filters stay with their devices, if those still exist.
    pub(crate) fn detach_pod(&mut self, pod: &PodKey, netns: Option<&Netns>) -> Result<(), AttachError> {
        self.detach_outbound(pod, netns)?;
        self.detach_inbound(pod, netns)?;
        let directory = self.pod_directory(pod);
        for stale in subdirectories(&directory)? {
            remove_directory(&stale)?;
        }
        remove_directory(&directory)
    }

    /// All pods that have pins, of whatever agent of this layout.
    pub(crate) fn attached(&self) -> Result<BTreeSet<PodKey>, AttachError> {
        let directories = subdirectories(&self.root.join("pods"))?;
        Ok(directories.iter().filter_map(|directory| decode(directory.file_name()?.to_str()?)).collect())
    }

    /// The pins of one pod.
    pub(crate) fn links(&self, pod: &PodKey) -> Result<PodLinks, AttachError> {
        let mut links = PodLinks::default();
        for netns in subdirectories(&self.pod_directory(pod))? {
            for pin in pins(&netns)? {
                links.inbound |= pin.point.is_inbound();
                links.outbound |= !pin.point.is_inbound();
            }
        }
        Ok(links)
    }

    fn pod_directory(&self, pod: &PodKey) -> PathBuf {
        self.root.join("pods").join(encode(pod))
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
        let (hook, place) = match pin.point.tc() {
            None => {
                let inode = u32::try_from(self.inode).unwrap_or(0);
                (Hook::SkLookup(self.netns.as_fd()), LinkPlace::Netns(inode))
            }
            Some((index, TcAttachType::Egress)) => (Hook::TcxEgress(index), LinkPlace::Device(index)),
            Some((index, _)) => (Hook::TcxIngress(index), LinkPlace::Device(index)),
        };
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

fn device_name(index: u32, devices: &BTreeMap<u32, Device>) -> &str {
    if index == LOOPBACK_INDEX { "lo" } else { devices.get(&index).map_or("", |device| &device.name) }
}

fn is_gone(index: u32) -> bool {
    device::list().is_ok_and(|devices| index != LOOPBACK_INDEX && !devices.contains_key(&index))
}

fn netns_inode(netns: &Netns) -> Result<u64, AttachError> {
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
    link::remove(&directory.join(pin.name())).map_err(|source| AttachError::Link { hook: pin.name(), source })
}

fn pins(directory: &Path) -> Result<Vec<Pin>, AttachError> {
    Ok(entries(directory)?.iter().filter_map(|path| Pin::parse(path.file_name()?.to_str()?)).collect())
}

fn subdirectories(directory: &Path) -> Result<Vec<PathBuf>, AttachError> {
    Ok(entries(directory)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// What is in a directory; nothing, if there is none.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, AttachError> {
    let failed = |source| AttachError::Directory { path: directory.to_owned(), source };
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(failed(source)),
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
    }
}

fn create_directory(directory: &Path) -> Result<(), AttachError> {
    fs::create_dir_all(directory)
        .map_err(|source| AttachError::Directory { path: directory.to_owned(), source })
}

fn remove_directory(directory: &Path) -> Result<(), AttachError> {
    match fs::remove_dir(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AttachError::Directory { path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// A uid as the name of a directory. The kernel reserves names with dots in a bpffs, and a uid is whatever the API server says, so
/// everything but letters, digits and dashes is written as `_` and two hexadecimal digits.
fn encode(pod: &PodKey) -> String {
    pod.as_str().bytes().fold(String::new(), |mut name, byte| {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("_{byte:02x}"));
        }
        name
    })
}

fn decode(name: &str) -> Option<PodKey> {
    let mut uid = Vec::new();
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'_' {
            let digits = [bytes.next()?, bytes.next()?];
            uid.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            uid.push(byte);
        }
    }
    String::from_utf8(uid).ok().map(PodKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_uid_is_a_name_the_kernel_takes_and_comes_back() {
        for uid in ["6f0d3c1e-9a8b-4b4e-9d4a-111111111111", "shop.frontend", "a/../b", "_", "käse"] {
            let key = PodKey::new(uid);
            let name = encode(&key);
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{name}");
            assert_eq!(decode(&name), Some(key));
        }
    }

    #[test]
    fn every_pin_comes_back_from_its_name_and_nothing_else_does() {
        for point in [Point::Lookup, Point::Lo, Point::Ingress(2), Point::Egress(17)] {
            for is_filter in [false, true] {
                let pin = Pin { point, is_filter };
                assert_eq!(Pin::parse(&pin.name()), Some(pin));
            }
        }
        for name in ["", "egress", "egress-x", "maps", "filter-"] {
            assert_eq!(Pin::parse(name), None, "{name}");
        }
    }

    #[test]
    fn devices_are_let_go_before_lo() {
        let mut points = [Point::Lo, Point::Egress(2), Point::Egress(3)];
        points.sort_by_key(|point| std::cmp::Reverse(*point));
        assert_eq!(points.last(), Some(&Point::Lo));
    }
}
