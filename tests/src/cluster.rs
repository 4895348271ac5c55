//! A real Kubernetes of two nodes with the mesh on it, which `cargo xtask cluster` brings up: its program's path is in `XTASK_BIN`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox::{interrupt, wait};

use crate::places::{binary, workspace};

/// How long the effects of a change may take to show, where no promise says less.
pub const SETTLE: Duration = Duration::from_secs(30);

/// The nodes.
pub const NODES: [&str; 2] = ["east", "west"];

/// How the cluster is reached.
#[derive(Clone, Debug)]
struct Handle {
    xtask: PathBuf,
    directory: PathBuf,
    /// What brings it up, while that runs.
    running: Arc<Mutex<Option<Pid>>>,
}

/// The cluster; it goes with this value.
#[derive(Debug)]
pub struct Cluster(Handle);

impl Cluster {
    /// Brings it up, with the mesh and the example, and applies the manifests `tests/manifests/cluster/later.yaml`.
    pub fn start() -> anyhow::Result<Self> {
        let directory = workspace().join("target/test-cluster");
        let handle = Handle { xtask: binary("XTASK_BIN")?, directory, running: Arc::default() };
        // What a run left that was ended by force.
        handle.run(&["down"])?;
        let cluster = Self(handle.clone());
        std::thread::spawn(move || {
            let asked = interrupt::wait(Duration::MAX, || Ok::<_, sandbox::Error>(()));
            // It takes down what it has begun, and would go on otherwise.
            if let Some(running) = *handle.running.lock().unwrap_or_else(PoisonError::into_inner) {
                let _ = kill(running, Signal::SIGTERM);
                let ended = || (kill(running, None) == Err(Errno::ESRCH)).then_some(());
                let _ = wait::until(SETTLE, || "the end of what brings it up".to_owned(), ended);
            }
            if let Err(error) = asked.map_err(anyhow::Error::from).and_then(|()| handle.run(&["down"])) {
                eprintln!("taking the cluster down: {error:#}");
            }
            std::process::exit(130);
        });
        cluster.0.up()?;
        cluster.apply_file("later.yaml")?;
        let pods = ["wait", "--namespace=later", "--for=condition=Ready", "pod", "--all", "--timeout=30s"];
        cluster.kubectl(&pods)?;
        Ok(cluster)
    }

    /// For the report of a failure.
    pub fn explain(&self) -> String {
        let look =
            |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
        let mut text = look(&["get", "pods", "--all-namespaces", "--output=wide"]);
        text += &look(&["get", "events", "--all-namespaces", "--field-selector=type=Warning"]);
        for app in ["culvert-agent", "culvert-control", "ztunnel"] {
            let app = format!("--selector=app={app}");
            text += &look(&["logs", "--namespace=culvert-system", &app, "--tail=30", "--prefix"]);
        }
        text
    }

    /// What kubectl prints.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.0.run(&[&["kubectl", "--"], arguments].concat())
    }

    /// What helm prints.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.0.run(&[&["helm", "--"], arguments].concat())
    }

    /// What a shell's line prints on a node.
    pub fn on(&self, node: &str, line: &str) -> anyhow::Result<String> {
        self.0.run(&["enter", node, "--", "sh", "-c", line])
    }

    /// Applies a file of `tests/manifests/cluster`.
    pub fn apply_file(&self, name: &str) -> anyhow::Result<String> {
        let path = workspace().join("tests/manifests/cluster").join(name);
        self.kubectl(&["apply", "--filename", &path.display().to_string()])
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        let path = self.0.directory.join("applied.yaml");
        std::fs::write(&path, manifest).with_context(|| format!("writing {}", path.display()))?;
        self.kubectl(&["apply", "--filename", &path.display().to_string()])
    }

    /// A field of an object, by a path of kubectl's.
    pub fn field(&self, namespace: &str, object: &str, path: &str) -> anyhow::Result<String> {
        let path = format!("--output=jsonpath={{{path}}}");
        self.kubectl(&["get", "--namespace", namespace, object, &path])
    }

    /// Waits until a field has a value.
    pub fn until_field(&self, namespace: &str, object: &str, path: &str, value: &str) -> anyhow::Result<()> {
        let wanted = format!("--for=jsonpath={{{path}}}={value}");
        let timeout = format!("--timeout={}s", SETTLE.as_secs());
        self.kubectl(&["wait", "--namespace", namespace, object, &wanted, &timeout]).map(drop)
    }

    /// Waits until what kubectl prints holds a line with all of these texts; that line.
    pub fn until_line(&self, arguments: &[&str], texts: &[&str]) -> anyhow::Result<String> {
        let look = || {
            let text = self.kubectl(arguments).map_err(|error| format!("{error:#}"))?;
            let mut lines = text.lines();
            let found = lines.find(|line| texts.iter().all(|text| line.contains(text)));
            found.map(str::to_owned).ok_or_else(String::new)
        };
        let what = || format!("a line with {texts:?} of kubectl {}", arguments.join(" "));
        Ok(wait::try_until(SETTLE, what, look)?)
    }

    /// Waits for such a line in the log of a node's ztunnel.
    pub fn until_ztunnel_says(&self, node: &str, texts: &[&str]) -> anyhow::Result<String> {
        let selector = ["get", "pods", "--namespace=culvert-system", "--selector=app=ztunnel"];
        let on = format!("--field-selector=spec.nodeName={node}");
        let pod = self.kubectl(&[&selector[..], &[&on, "--output=name"]].concat())?;
        self.until_line(&["logs", "--namespace=culvert-system", pod.trim()], texts)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.0.run(&["down"]) {
            eprintln!("taking the cluster down: {error:#}");
        }
    }
}

impl Handle {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.xtask);
        command.arg("cluster").arg("--directory").arg(&self.directory).stdin(Stdio::null());
        command
    }

    fn up(&self) -> anyhow::Result<()> {
        let mut up = self.command();
        let up =
            up.arg("up").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("starting xtask")?;
        let running = || self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running() = Some(Pid::from_raw(up.id().try_into()?));
        let output = up.wait_with_output()?;
        *running() = None;
        anyhow::ensure!(output.status.success(), "up failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command().args(arguments).output().context("starting xtask")?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "{} failed: {errors}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
