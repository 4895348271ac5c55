//! `culvert agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use daemon::logging::Format;

use super::kubernetes::KubernetesArgs;
use super::plugin::PluginArgs;
use crate::bpf::Redirection;
use crate::enroll::pod::PreMesh;
use crate::run::{self, AgentConfig, ControlSource, PodSource};

/// The options. Either `--control` with `--control-ca` and `--token`, or `--manifests` with `--state`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's name, as pods' `spec.nodeName` has it.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Where control is: https://HOST:PORT.
    #[arg(long, env = "CULVERT_CONTROL", requires_all = ["control_ca", "token"], required_unless_present = "manifests")]
    control: Option<String>,
    /// The PEM file of the roots that vouch for control (its `root.pem`); read for every connection. What control says of
    /// its roots later counts in its place, until it is replaced.
    #[arg(long, env = "CULVERT_CONTROL_CA")]
    control_ca: Option<PathBuf>,
    /// The file of this node's token (`culvert token create`); read for every connection.
    #[arg(long, env = "CULVERT_TOKEN")]
    token: Option<PathBuf>,
    /// A directory of manifests: control runs within this process, for this node alone.
    #[arg(long, conflicts_with = "control", requires = "state")]
    manifests: Option<PathBuf>,
    /// With --manifests: the directory of the certificate authority's key, made when missing (0700).
    #[arg(long)]
    state: Option<PathBuf>,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    /// With --kubernetes: the namespace whose PeerAuthentications hold for the whole mesh.
    #[arg(long, default_value = "istio-system")]
    root_namespace: String,
    /// With --kubernetes: install the CNI plugin, which has pods captured before their first container starts.
    #[arg(long, requires = "kubernetes")]
    cni: bool,
    #[command(flatten)]
    plugin: PluginArgs,
    /// The directory of the sockets zds.sock, xds.sock, cni.sock and agent.sock; made when missing (0700).
    #[arg(long, default_value = "/run/culvert")]
    run_dir: PathBuf,
    /// Where a BPF file system is mounted; capture is pinned there and outlives the agent.
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The cgroup (version 2) below which kubelet runs. Default: where the tree is mounted.
    #[arg(long)]
    cgroup_root: Option<PathBuf>,
    /// Kubelet's cgroup, absolute or below --cgroup-root; its probes pass the mesh. It may come and go.
    #[arg(long)]
    kubelet_cgroup: Option<PathBuf>,
    /// The cgroup below which ztunnels run, absolute or below --cgroup-root: whoever runs elsewhere is none. It may come and go.
    /// Default: any that is no pod's of the mesh.
    #[arg(long)]
    ztunnel_cgroup: Option<PathBuf>,
    /// How capture is attached: `tcx` needs Linux 6.6; `clsact` is for older kernels.
    #[arg(long, value_enum, default_value_t = RedirectionArg::Auto)]
    redirection: RedirectionArg,
    /// How long captured connections of a pod that leaves the mesh may last, seconds; then they are cut.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    drain_seconds: u64,
    /// What becomes of connections that were open before their pod joined the mesh; a pod's annotation
    /// `culvert.dev/pre-mesh-connections` goes before it. A pod that is STRICT has them cut whatever is said.
    #[arg(long, value_enum, default_value_t = PreMeshArg::Keep)]
    pre_mesh_connections: PreMeshArg,
    /// Whether the DNS of pods is answered by ztunnel, which knows the mesh's names; a pod's annotation `ambient.istio.io/dns-capture` goes
    /// before it.
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    dns_capture: bool,
    /// Where the admin endpoint listens: /status, /logging.
    #[arg(long, default_value = "127.0.0.1:15010")]
    admin: SocketAddr,
    /// Where metrics are served: /metrics (OpenMetrics).
    #[arg(long, default_value = "0.0.0.0:15011")]
    metrics: SocketAddr,
    /// Where readiness is served: /healthz/ready.
    #[arg(long, default_value = "0.0.0.0:15012")]
    readiness: SocketAddr,
    #[command(flatten)]
    log: LogArgs,
}

/// What is logged and how.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// What is logged, such as `info,culvert::bpf=debug` (decisions on single
    /// packets; those have to be asked for at the start). `kube_client` warns of each kind that the cluster lacks, each time it looks.
    #[arg(long = "log", env = "RUST_LOG", default_value = "info,kube_client=error")]
    filter: String,
    /// How lines look: `text` or `json`.
    #[arg(long = "log-format", env = "LOG_FORMAT", default_value = "text")]
    format: Format,
}

impl LogArgs {
    /// Sets logging up; the guard is to be kept to the end.
    pub(crate) fn init(&self) -> anyhow::Result<(daemon::logging::LogHandle, daemon::logging::LogGuard)> {
        Ok(daemon::logging::init(&self.filter, self.format)?)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RedirectionArg {
    /// The best that the kernel has.
    Auto,
    /// TCX and sk_lookup.
    Tcx,
    /// Filters of the clsact qdisc in both directions.
    Clsact,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PreMeshArg {
    /// They live on past the mesh, and `culvert status` counts them.
    Keep,
    /// They are reset once the pod is captured.
    Cut,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let (logging, _written_at_exit) = args.log.init()?;
    let control = match (args.control, args.control_ca, args.token, args.manifests, args.state) {
        (Some(url), Some(roots), Some(token), None, _) => ControlSource::Remote {
            server: url.parse().with_context(|| format!("--control {url}"))?,
            roots,
            token,
        },
        (None, _, _, Some(manifests), Some(state)) => ControlSource::Embedded { manifests, state },
        _ => {
            anyhow::bail!("either --control, --control-ca and --token are needed, or --manifests and --state")
        }
    };
    let pods = match args.kubernetes.find().await? {
        Some(cluster) => PodSource::ApiServer { cluster, root_namespace: args.root_namespace },
        None => PodSource::Control,
    };
    let config = AgentConfig {
        node: args.node,
        control,
        pods,
        plugin: args.cni.then(|| args.plugin.installation()).transpose()?,
        run_dir: args.run_dir,
        bpffs: args.bpffs,
        cgroup_root: args.cgroup_root,
        kubelet_cgroup: args.kubelet_cgroup,
        ztunnel_cgroup: args.ztunnel_cgroup,
        redirection: match args.redirection {
            RedirectionArg::Auto => Redirection::Auto,
            RedirectionArg::Tcx => Redirection::Tcx,
            RedirectionArg::Clsact => Redirection::Clsact,
        },
        pre_mesh: match args.pre_mesh_connections {
            PreMeshArg::Keep => PreMesh::Keep,
            PreMeshArg::Cut => PreMesh::Cut,
        },
        dns: args.dns_capture,
        drain_deadline: Duration::from_secs(args.drain_seconds),
        admin: args.admin,
        metrics: args.metrics,
        readiness: args.readiness,
    };
    run::run(config, logging).await
}
