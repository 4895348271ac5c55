//! The mesh on the cluster, installed as a user installs it, and an application in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::layout::{Layout, NODES};
use super::{assets::Assets, helm as helm_program, init, kubectl, within};
use crate::progress::Progress;
use crate::{cargo, image, workspace};

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
        output(install.args(values(layout)?)).with_context(|| pods(layout, assets))?;
        progress.at("the example");
        apply(layout, assets, "deploy/examples/cluster")?;
        let mut wait = kubectl(layout, assets)?;
        wait.args(["wait", "--for=condition=Available", "deployments", "--all", "--namespace=shop"]);
        output(wait.arg("--timeout=60s")).with_context(|| pods(layout, assets))?;
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
    output(apply.args(["apply", "--filename"]).arg(workspace().join(directory)))
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

fn output(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
