//! A machine from inside: its first process, which mounts what a machine has of its own, starts its programs and reaps what they leave.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait as wait_for_child};
use sandbox::wait;

use super::control_plane;
use super::layout::{Layout, Machine, PODS};

/// How long containerd may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a machine until its power is cut.
///
/// # Errors
/// A program it needs cannot be started.
pub(super) fn run(layout: &Layout, machine: Machine, programs: &Path) -> anyhow::Result<()> {
    // Whoever started this ends its input once there is a network.
    std::io::stdin().read_to_end(&mut Vec::new()).context("waiting for the network")?;
    fs::write("/proc/sys/kernel/hostname", machine.name).context("naming the machine")?;
    let files = layout.machine(machine);
    let children = if machine.index == 0 {
        control_plane::start(layout, &files, programs)?
    } else {
        mount_all(&files)?;
        write_configuration(layout, machine, &files)?;
        start_node(layout, machine, &files, programs)?
    };
    reap(&children)
}

/// A program of the machine, whose output goes to a file of its name.
pub(super) fn start(
    files: &Path,
    name: &'static str,
    command: &mut Command,
) -> anyhow::Result<(&'static str, Child)> {
    let log = File::create(files.join(format!("{name}.log")))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok((name, command.spawn().with_context(|| format!("starting {name}"))?))
}

/// Says which of the programs ends, and frees what orphans leave.
fn reap(children: &[(&'static str, Child)]) -> anyhow::Result<()> {
    loop {
        let status = wait_for_child().context("wait")?;
        let Some(pid) = status.pid() else { continue };
        let ended = children.iter().find(|(_, child)| i32::try_from(child.id()) == Ok(pid.as_raw()));
        if let (Some((name, _)), WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = (ended, status) {
            println!("{name} has ended: {status:?}");
        }
    }
}

/// Directories that are the machine's own, below its files.
const OWN: [(&str, &str); 5] = [
    ("run", "/run"),
    ("var-lib", "/var/lib"),
    ("var-log", "/var/log"),
    ("etc-cni", "/etc/cni"),
    ("opt-cni", "/opt/cni"),
];

fn mount_all(files: &Path) -> anyhow::Result<()> {
    let none = None::<&str>;
    let bind = |from: &Path, to: &Path| {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(from), to, none, flags, none).with_context(|| format!("mounting {}", to.display()))
    };
    let cgroups = files.join("cgroup");
    fs::create_dir_all(&cgroups)?;
    // A sysfs of its own shows this machine's devices, and hides the cgroups, which are carried over.
    bind(Path::new("/sys/fs/cgroup"), &cgroups)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mounting /sys")?;
    bind(&cgroups, Path::new("/sys/fs/cgroup"))?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).context("mounting /sys/fs/bpf")?;
    for (name, path) in OWN {
        let from = files.join(name);
        fs::create_dir_all(&from)?;
        fs::create_dir_all(path)?;
        bind(&from, Path::new(path))?;
    }
    // What kubelet mounts, containers must see.
    mount(none, "/", none, MsFlags::MS_SHARED | MsFlags::MS_REC, none).context("sharing mounts")
}

fn write_configuration(layout: &Layout, machine: Machine, files: &Path) -> anyhow::Result<()> {
    fs::create_dir_all("/etc/cni/net.d")?;
    fs::create_dir_all("/var/lib/kubelet")?;
    fs::create_dir_all("/opt/cni/bin")?;
    for plugin in fs::read_dir("/usr/lib/cni").context("Debian's CNI plugins")? {
        let plugin = plugin?;
        fs::copy(plugin.path(), Path::new("/opt/cni/bin").join(plugin.file_name()))?;
    }
    let network = format!(
        r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [{{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
"#,
        machine.pods()
    );
    fs::write("/etc/cni/net.d/10-bridge.conflist", network)?;
    let containerd = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#;
    fs::write(files.join("containerd.toml"), containerd)?;
    let kubelet = format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false          # where the controllers are still on cgroup v1; harmless on v2
cgroupDriver: cgroupfs
cgroupRoot: /{}  # two kubelets in one kernel must not clean up each other's pods
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failSwapOn: false
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: "{}"}}}}
authorization: {{mode: Webhook}}
clusterDomain: cluster.local
imageGCHighThresholdPercent: 100  # what it would collect on a full disk, no registry could bring back
evictionHard: {{nodefs.available: "1%", imagefs.available: "1%", memory.available: "100Mi"}}
"#,
        layout.cgroup(machine),
        layout.pki("ca.crt").display()
    );
    fs::write(files.join("kubelet.yaml"), kubelet)?;
    Ok(())
}

fn start_node(
    layout: &Layout,
    machine: Machine,
    files: &Path,
    programs: &Path,
) -> anyhow::Result<Vec<(&'static str, Child)>> {
    let mut children = Vec::new();
    let mut containerd = Command::new("containerd");
    children.push(start(files, "containerd", containerd.arg("--config").arg(files.join("containerd.toml")))?);
    wait_for_containerd()?;
    import_images(&layout.images())?;
    let kubeconfig = format!("--kubeconfig={}", layout.kubeconfig().display());
    let name = format!("--hostname-override={}", machine.name);
    let mut proxy = Command::new(programs.join("kube-proxy"));
    proxy.args([&kubeconfig, &name, &format!("--cluster-cidr={PODS}")]);
    children.push(start(
        files,
        "kube-proxy",
        proxy.args(["--proxy-mode=nftables", "--conntrack-max-per-core=0"]),
    )?);
    // In a cgroup of its own, so that its probes can be told from other traffic. A shell moves itself and becomes kubelet.
    let cgroup = version2_root()?.join(layout.cgroup(machine)).join("kubelet");
    fs::create_dir_all(&cgroup)?;
    let mut kubelet = Command::new("sh");
    kubelet.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(cgroup.join("cgroup.procs"));
    kubelet.arg(programs.join("kubelet")).args([&kubeconfig, &name]);
    kubelet.arg(format!("--config={}", files.join("kubelet.yaml").display()));
    children.push(start(files, "kubelet", kubelet.arg(format!("--node-ip={}", machine.address())))?);
    Ok(children)
}

fn wait_for_containerd() -> anyhow::Result<()> {
    let answers = || UnixStream::connect("/run/containerd/containerd.sock").ok().map(drop);
    Ok(wait::until(PATIENCE, || "containerd's answer".to_owned(), answers)?)
}

/// Imports every archive of the directory; none is asked of a registry.
pub(super) fn import_images(directory: &Path) -> anyhow::Result<()> {
    let mut archives: Vec<PathBuf> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    archives.retain(|path| path.extension().is_some_and(|extension| extension == "tar"));
    for archive in archives {
        let output = Command::new("ctr")
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&archive)
            .stdin(Stdio::null())
            .output()
            .context("starting ctr")?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(output.status.success(), "importing {}: {errors}", archive.display());
    }
    Ok(())
}

/// Where the hierarchy of version 2 is mounted.
pub(super) fn version2_root() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let roots = mounts.lines().filter(|line| line.contains(" - cgroup2 "));
    let paths =
        roots.filter_map(|line| line.split(' ').nth(4)).filter(|path| path.starts_with("/sys/fs/cgroup"));
    paths.map(PathBuf::from).next().context("no cgroup hierarchy of version 2 is mounted")
}
