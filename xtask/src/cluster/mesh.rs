//! The mesh on the cluster, installed as a user installs it, and an application in it.

use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use sandbox::wait;

use super::layout::{Layout, NODES};
use super::{assets::Assets, helm as helm_program, init, kubectl, up, within};
use crate::progress::Progress;
use crate::{cargo, image, workspace};

/// Longer than any of the programs takes by what it is told itself.
const PATIENCE: Duration = Duration::from_secs(120);

/// The test application's image.
const ECHO: &str = "localhost/culvert-echo:dev";

/// What is installed: programs that were built before any machine starts.
pub(super) struct Mesh {
    helm: PathBuf,
}

impl Mesh {
    /// Builds everything and packs it as images, which every node has from its start.
    ///
    /// # Errors
    /// Something cannot be built.
    pub(super) fn build(layout: &Layout) -> anyhow::Result<Self> {
        let helm = helm_program::ensure(&super::built())?;
        crate::toolchain::ensure(&workspace())?;
        let built = cargo::build()?;
        let images = layout.images();
        std::fs::create_dir_all(&images)?;
        image::culvert(image::NAME, &built, &images.join("culvert.tar"))?;
        image::write(ECHO, &["/bin/echo"], "65532", &[("/bin/echo", &built.echo)], &images.join("echo.tar"))?;
        Ok(Self { helm })
    }

    /// Installs the mesh by its chart, then the example, and waits until all of it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub(super) fn install(&self, layout: &Layout, assets: &Assets) -> anyhow::Result<()> {
        let mut progress = Progress::begin("installing Culvert by its chart");
        apply(layout, assets, "deploy/crds")?;
        let mut install = helm(layout, &self.helm)?;
        install.args(["install", "culvert"]).arg(workspace().join("deploy/chart"));
        install.args(["--namespace=culvert-system", "--create-namespace", "--wait", "--timeout=90s"]);
        run(install.args(values(layout)?)).with_context(|| pods(layout, assets))?;
        progress.at("the example");
        apply(layout, assets, "deploy/examples/cluster")?;
        let mut wait = kubectl(layout, assets)?;
        wait.args(["wait", "--for=condition=Available", "deployments", "--all", "--namespace=shop"]);
        run(wait.arg("--timeout=60s")).with_context(|| pods(layout, assets))?;
        progress.done("the mesh and the example are ready");
        Ok(())
    }
}

/// Helm, where it reaches the API server; what it keeps for itself is kept with the cluster's files.
pub(super) fn helm(layout: &Layout, program: &Path) -> anyhow::Result<Command> {
    let mut command = within(layout, program)?;
    for (variable, name) in [("CACHE", "cache"), ("CONFIG", "config"), ("DATA", "data")] {
        command.env(format!("HELM_{variable}_HOME"), layout.directory().join("helm").join(name));
    }
    command.arg("--kubeconfig").arg(layout.kubeconfig());
    Ok(command)
}

/// What is not as on other clusters: where the nodes' cgroups are, since all are in one kernel.
fn values(layout: &Layout) -> anyhow::Result<[String; 2]> {
    let east = layout.cgroup(NODES[0]);
    let common = east.strip_suffix(NODES[0].name).context("a machine's cgroup ends with its name")?;
    let root = init::version2_root()?.join(format!("{common}$(NODE_NAME)"));
    Ok([format!("--set=agent.cgroupRoot={}", root.display()), "--set=agent.kubeletCgroup=kubelet".to_owned()])
}

fn apply(layout: &Layout, assets: &Assets, directory: &str) -> anyhow::Result<()> {
    let mut apply = kubectl(layout, assets)?;
    run(apply.args(["apply", "--filename"]).arg(workspace().join(directory)))
}

/// How the pods stand, for the report of a failure.
fn pods(layout: &Layout, assets: &Assets) -> String {
    let look = |arguments: &[&str]| {
        let output = kubectl(layout, assets).and_then(|mut kubectl| Ok(kubectl.args(arguments).output()?));
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    let list = look(&["get", "pods", "--all-namespaces", "--output=wide"]);
    let events = look(&["get", "events", "--all-namespaces", "--field-selector=type=Warning"]);
    format!("{list}{events}")
}

/// Runs a program to its end, or to Ctrl-C: helm goes on asking an API server that is gone for a minute.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let mut errors = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let ended = || {
        if up::is_interrupted() {
            let _ = child.kill();
        }
        child.try_wait().map_err(|error| error.to_string())?.ok_or_else(String::new)
    };
    let status = wait::try_until(PATIENCE, || format!("the end of {command:?}"), ended)?;
    let mut text = String::new();
    errors.rewind()?;
    errors.read_to_string(&mut text)?;
    anyhow::ensure!(status.success(), "{}", text.trim());
    Ok(())
}
