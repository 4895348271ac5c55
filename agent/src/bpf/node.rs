//! Bringing the programs into the kernel, and the links that serve the whole node.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use ebpf_common::LAYOUT_VERSION;

use super::error::{AttachError, LinkError, LoadError};
use super::former;
use super::link::{self, LinkChange, LoadedProgram};
use super::log::LogReader;
use super::object::{self, Maps, program};
use super::sys::Hook;
use super::{InboundHook, OutboundHook, Programs, absent_is_fine, in_map};

/// Which of the kernel's ways of attaching to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Redirection {
    /// TCX and `sk_lookup` where the kernel has them.
    #[default]
    Auto,
    /// TCX, or fail.
    Tcx,
    /// What kernels before 5.17 are served with: clsact in both directions.
    Clsact,
}

/// Where and how to load.
#[derive(Debug)]
pub(crate) struct LoadOptions<'a> {
    /// A mounted bpffs; pins go below `culvert/` in it.
    pub(crate) bpffs: &'a Path,
    /// Root of the cgroup (v2) hierarchy, or of the part of it that has this node's kubelet in it.
    pub(crate) cgroup_root: &'a Path,
    /// Which of the kernel's ways of attaching to use.
    pub(crate) redirection: Redirection,
    /// Whether the programs report their decisions; see [`Programs::take_log`].
    pub(crate) log: bool,
}

impl Programs {
    /// Loads the programs, takes over the maps and node-wide links an earlier agent pinned, and makes those that are missing. Of an
    /// agent of another layout it takes over the pods, see `former`.
    /// Links of pods stand as they were until [`Programs::ensure_inbound`] and [`Programs::ensure_outbound`] update them.
    ///
    /// # Errors
    /// See [`LoadError`]; the verifier's log is part of the text. What was made stays pinned and is adopted by the next try.
    pub(crate) fn load(options: &LoadOptions<'_>) -> Result<Self, LoadError> {
        let root = options.bpffs.join("culvert").join(format!("v{LAYOUT_VERSION}"));
        let maps_dir = directory(root.join("maps"))?;
        directory(root.join("pods"))?;
        let node_dir = directory(root.join("node"))?;

        former::share_maps(options.bpffs, &root)?;
        let (mut ebpf, inbound, mut loaded) = open(&maps_dir, options)?;
        let mut maps = Maps::take(&mut ebpf)?;
        let former = former::take_over(options.bpffs, &root)?;
        let log = if options.log { Some(LogReader::new(&mut ebpf)?) } else { None };
        let outbound = choose_outbound(options.redirection)?;
        for name in [
            program::EGRESS,
            program::EGRESS_BARE,
            program::EGRESS_DNS,
            program::EGRESS_BARE_DNS,
            program::EGRESS_JOIN,
            program::EGRESS_DRAIN,
            program::EGRESS_BARE_DRAIN,
            program::LO,
            program::LO_DNS,
        ] {
            loaded.push(object::load(&mut ebpf, name)?);
        }
        attach_node(&mut ebpf, &mut maps, &node_dir, options.cgroup_root)?;
        Ok(Self {
            ebpf,
            maps,
            loaded,
            outbound,
            inbound,
            root,
            former,
            log,
            targets: Default::default(),
            listeners: Default::default(),
            addresses: Default::default(),
        })
    }
}

fn directory(path: PathBuf) -> Result<PathBuf, LoadError> {
    match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(LoadError::Directory { path, source }),
    }
}

fn choose_outbound(redirection: Redirection) -> Result<OutboundHook, LoadError> {
    // Every namespace has a `lo`, and asking changes nothing; kernels without TCX do not know the question.
    let has_tcx = || SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
    match redirection {
        Redirection::Clsact => Ok(OutboundHook::Clsact),
        Redirection::Auto if has_tcx() => Ok(OutboundHook::Tcx),
        Redirection::Auto => Ok(OutboundHook::Clsact),
        Redirection::Tcx if has_tcx() => Ok(OutboundHook::Tcx),
        Redirection::Tcx => Err(LoadError::NoTcx),
    }
}

/// Opens the object and loads its inbound programs: `sk_lookup` if it is wanted and the kernel takes that program, else its
/// substitute, and beside that what only `sk_lookup` can do, if the kernel takes it.
fn open(
    maps: &Path,
    options: &LoadOptions<'_>,
) -> Result<(Ebpf, InboundHook, Vec<LoadedProgram>), LoadError> {
    let mut ebpf = object::open(maps, options.log, true)?;
    if options.redirection != Redirection::Clsact {
        match object::load(&mut ebpf, program::LOOKUP) {
            Ok(program) => {
                let guard = object::load(&mut ebpf, program::INGRESS_GUARD)?;
                return Ok((ebpf, InboundHook::SkLookup, vec![program, guard]));
            }
            Err(error) => tracing::info!(%error, "sk_lookup cannot be had; capturing at ingress instead"),
        }
    }
    let mut loaded = Vec::new();
    match object::load(&mut ebpf, program::REOPEN) {
        Ok(program) => loaded.push(program),
        Err(_) => ebpf = object::open(maps, options.log, false)?,
    }
    loaded.push(object::load(&mut ebpf, program::INGRESS)?);
    Ok((ebpf, InboundHook::TcIngress, loaded))
}

/// Attaches what recognises kubelet's probes.
fn attach_node(ebpf: &mut Ebpf, maps: &mut Maps, pins: &Path, cgroup_root: &Path) -> Result<(), LoadError> {
    let failed = |name| move |source| LoadError::Link { name, source };
    let opened = File::open(cgroup_root)
        .map_err(|source| LinkError::File { path: cgroup_root.to_owned(), source })
        .map_err(failed("cgroup root"))?;
    let cgroup = opened.as_fd();
    let place = link::cgroup_place(cgroup, cgroup_root).map_err(failed("cgroup root"))?;
    let sockops = object::load(ebpf, program::SOCKOPS)?;
    let change = link::ensure(&pins.join(program::SOCKOPS), &sockops, Hook::SockOps(cgroup), place)
        .map_err(failed(program::SOCKOPS))?;
    if change == LinkChange::Created {
        // Nobody saw the ends of the connections recorded before, so the ports may be others' by now.
        clear(&mut maps.probe_sockets, "PROBE_SOCKETS")?;
        clear(&mut maps.probes, "PROBES")?;
    }
    let hooks = [(program::CONNECT4, Hook::Connect4(cgroup)), (program::CONNECT6, Hook::Connect6(cgroup))];
    for (name, hook) in hooks {
        let program = object::load(ebpf, name)?;
        link::ensure(&pins.join(name), &program, hook, place).map_err(failed(name))?;
    }
    Ok(())
}

fn clear<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<(), LoadError> {
    let keys: Vec<K> = map.keys().collect::<Result<_, _>>().map_err(in_map(name))?;
    for key in keys {
        absent_is_fine(map.remove(&key)).map_err(in_map(name))?;
    }
    Ok(())
}

/// Removes everything any agent left below `bpffs`: what an uninstallation does after the pods were let go.
///
/// # Errors
/// A pin cannot be removed. Filters of clsact are their devices' and not seen from here; see [`Programs::detach_pod`].
pub(crate) fn remove_pins(bpffs: &Path) -> Result<(), AttachError> {
    let failed = |source| AttachError::Link { hook: "the layout's pins".to_owned(), source };
    former::layouts(bpffs)?.iter().try_for_each(|root| remove_tree(root).map_err(failed))?;
    // Only if nothing is in it that we do not know, and if it is there at all.
    let _ = fs::remove_dir(bpffs.join("culvert"));
    Ok(())
}

/// Removes a directory of pins, and what they hold with it.
pub(super) fn remove_tree(path: &Path) -> Result<(), LinkError> {
    let failed = |source| LinkError::File { path: path.to_owned(), source };
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            link::remove(&entry.path())?;
        }
    }
    fs::remove_dir(path).map_err(failed)
}
