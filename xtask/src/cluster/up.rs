//! The cluster as a whole: up, all of it or nothing, and down without a trace.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sandbox::wait;

use super::assets::Assets;
use super::layout::{CONTROL, Layout, Machine, NODES};
use super::machine::{self, Running};
use super::mesh::Mesh;
use super::{check_requirements, image, kubectl, pki};
use crate::progress::Progress;

/// How long a step of the cluster's start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Set by Ctrl-C: no machine is started any more.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Held by whoever starts or stops machines.
static MACHINES: Mutex<()> = Mutex::new(());

/// Whether Ctrl-C was pressed.
pub(super) fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Starts it, with the mesh unless it is to be bare. At Ctrl-C and at a failure all of it is taken down again.
pub(super) fn run(layout: &Layout, bare: bool) -> anyhow::Result<()> {
    anyhow::ensure!(
        Running::find(layout, CONTROL).is_none(),
        "the cluster is up: `cargo xtask cluster down` first"
    );
    check_requirements()?;
    let assets = super::assets()?;
    down(layout).context("removing what an earlier cluster left")?;
    let outcome = interruptible(layout, || {
        let mesh = if bare { None } else { Some(Mesh::build(layout)?) };
        start(layout, &assets)?;
        mesh.map_or(Ok(()), |mesh| mesh.install(layout, &assets))
    });
    if outcome.is_err() {
        down(layout).context("taking down what was started")?;
    }
    outcome?;
    println!(
        "kubectl, on this machine: cargo xtask cluster kubectl -- get pods\nkubeconfig, from within: {}",
        layout.kubeconfig().display()
    );
    Ok(())
}

fn start(layout: &Layout, assets: &Assets) -> anyhow::Result<()> {
    let mut progress = Progress::begin("starting a cluster of two nodes");
    fs::create_dir_all(layout.images())?;
    progress.at("keys and images");
    pki::make(layout)?;
    image::busybox(&layout.images())?;
    progress.at("the control plane");
    start_machine(layout, CONTROL, assets)?;
    until("the API server", layout, || succeeds(layout, assets, &["get", "--raw", "/readyz"]))?;
    progress.at("the nodes");
    for node in NODES {
        start_machine(layout, node, assets)?;
    }
    for node in NODES {
        until(node.name, layout, || is_ready(layout, assets, node))?;
    }
    progress.done("both nodes are Ready");
    Ok(())
}

fn start_machine(layout: &Layout, machine: Machine, assets: &Assets) -> anyhow::Result<()> {
    let _held = MACHINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    anyhow::ensure!(!is_interrupted(), "interrupted");
    machine::start(layout, machine, assets.directory())
}

fn is_ready(layout: &Layout, assets: &Assets, node: Machine) -> anyhow::Result<bool> {
    let name = format!("node/{}", node.name);
    succeeds(layout, assets, &["wait", "--for=condition=Ready", &name, "--timeout=2s"])
}

fn succeeds(layout: &Layout, assets: &Assets, arguments: &[&str]) -> anyhow::Result<bool> {
    let mut command = kubectl(layout, assets)?;
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status()?.success())
}

/// Waits until `holds`; what the machines logged last tells why it does not.
fn until(what: &str, layout: &Layout, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let look = || match holds() {
        _ if is_interrupted() => Ok(false),
        Ok(true) => Ok(true),
        Ok(false) => Err(String::new()),
        Err(error) => Err(error.to_string()),
    };
    let outcome = wait::try_until(PATIENCE, || format!("{what} ready"), look);
    let logs = || {
        let logs = std::iter::once(CONTROL).chain(NODES).map(|machine| {
            let log = layout.machine(machine).join("init.log");
            format!("{}:\n{}", log.display(), machine::tail(&log))
        });
        logs.collect::<Vec<_>>().join("\n")
    };
    let held = outcome.with_context(logs)?;
    anyhow::ensure!(held, "interrupted");
    Ok(())
}

/// Does the work on another thread, so that a signal that asks this process to end stops it.
fn interruptible(layout: &Layout, work: impl FnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Programs that are started get an empty mask again (std::process does so).
    signals.thread_block()?;
    let asked = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(work);
        while !worker.is_finished() {
            let mut waiting = [PollFd::new(asked.as_fd(), PollFlags::POLLIN)];
            if poll(&mut waiting, 100_u16)? > 0 {
                eprintln!("interrupted: taking the cluster down");
                INTERRUPTED.store(true, Ordering::SeqCst);
                // Whatever the worker waits for ends with the machines.
                down(layout)?;
                break;
            }
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Ends all of it and removes its files.
pub(super) fn down(layout: &Layout) -> anyhow::Result<()> {
    let _held = MACHINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for machine in NODES.into_iter().chain([CONTROL]) {
        machine::stop(layout, machine).with_context(|| format!("stopping {}", machine.name))?;
    }
    remove(layout.directory())
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Cuts a node's power and starts it again: what it keeps is what is on its disks.
pub(super) fn reboot(layout: &Layout, node: Machine) -> anyhow::Result<()> {
    anyhow::ensure!(node != CONTROL, "the control plane is not rebooted, but east and west are");
    let assets = super::assets()?;
    let progress = Progress::begin(format!("rebooting {}", node.name));
    machine::stop(layout, node)?;
    remove(&layout.machine(node).join("run"))?;
    machine::start(layout, node, assets.directory())?;
    // What the API server knows of it may be of before.
    let healthy = format!("/api/v1/nodes/{}/proxy/healthz", node.name);
    until(node.name, layout, || succeeds(layout, &assets, &["get", "--raw", &healthy]))?;
    until(node.name, layout, || is_ready(layout, &assets, node))?;
    progress.done("Ready");
    Ok(())
}
