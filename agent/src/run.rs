//! The agent as a process: what it needs, in the order in which it is safe, and its end.
//!
//! The order matters twice. The agent's own cgroup is exempt before any listener exists, since accepted sockets inherit it; and
//! every socket is bound before anything in the kernel changes, so that a port in use ends the start without a trace.
//! At the end capture stays: pods leave the mesh when control says so, not when the agent stops.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::cni::members::Members;
use anyhow::Context as _;
use api::ca::CaClient;
use api::channel::{Credentials, Roots, Server, ServerAddress};
use api::key_exchange::KeyExchange;
use api::seqpacket::SeqPacketListener;
use api::type_url::ResourceType;
use api::xds_client::{self, Subscription, XdsClient, XdsConfig};
use control::kubernetes::{Cluster, NodePods};
use control::xds::ResourceStore;
use daemon::admin::{Address, Admin, Routes};
use daemon::logging::LogHandle;
use daemon::metrics::Metrics;
use daemon::readiness::Readiness;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::bpf::{LoadOptions, LogReader, Programs, Redirection};
use crate::cgroup;
use crate::cni::{self, Attachments, Installation};
use crate::embedded;
use crate::enroll::manager::{self, Pods};
use crate::enroll::pod::PreMesh;
use crate::enroll::{Context, Sweep, Turns};
use crate::forged;
use crate::kernel::Kernel;
use crate::kubelet;
use crate::local_socket;
use crate::netns::Netns;
use crate::netns::processes::Processes;
use crate::node_api::{self, ca_relay::CaRelay, last_state::LastState, upstream::Copy};
use crate::status::Board;
use crate::tasks::Tasks;
use crate::telemetry::{Observed, Telemetry};
use crate::view::{View, logging_routes};
use crate::zds::admission::Admissions;
use crate::zds::hub::Hub;
use crate::zds::server::{self as zds_server, Service};

/// Where configuration comes from.
#[derive(Clone, Debug)]
pub(crate) enum ControlSource {
    /// A control plane elsewhere.
    Remote {
        /// Its address.
        server: ServerAddress,
        /// The PEM file of its root.
        roots: PathBuf,
        /// The file of this node's token.
        token: PathBuf,
    },
    /// A control plane in this process, for this node alone.
    Embedded {
        /// The manifests.
        manifests: PathBuf,
        /// Its state directory.
        state: PathBuf,
    },
}

/// Where it is said which pods of this node are in the mesh.
#[derive(Clone, Debug)]
pub(crate) enum PodSource {
    /// Control tells.
    Control,
    /// The API server does, so that pods join and leave while control is away.
    ApiServer {
        /// Which one.
        cluster: Cluster,
        /// The namespace whose policies hold for the whole mesh.
        root_namespace: String,
    },
}

/// What the agent needs to know.
#[derive(Clone, Debug)]
pub(crate) struct AgentConfig {
    /// The node's name.
    pub(crate) node: String,
    /// Where configuration comes from.
    pub(crate) control: ControlSource,
    /// Where pods come from.
    pub(crate) pods: PodSource,
    /// With pods from the API server: the CNI plugin that has pods captured before they start; none: they are once they are seen.
    pub(crate) plugin: Option<Installation>,
    /// The directory of the sockets.
    pub(crate) run_dir: PathBuf,
    /// A mounted BPF file system.
    pub(crate) bpffs: PathBuf,
    /// The cgroup below which kubelet runs; none: all of the tree.
    pub(crate) cgroup_root: Option<PathBuf>,
    /// Kubelet's cgroup, absolute or below the former.
    pub(crate) kubelet_cgroup: Option<PathBuf>,
    /// The cgroup below which ztunnels run, absolute or below `cgroup_root`; none: any but a pod's of the mesh.
    pub(crate) ztunnel_cgroup: Option<PathBuf>,
    /// How capture is attached.
    pub(crate) redirection: Redirection,
    /// How long captured connections of a leaving pod may last.
    pub(crate) drain_deadline: Duration,
    /// What becomes of connections from before a pod joined, where the pod does not say.
    pub(crate) pre_mesh: PreMesh,
    /// Whether pods' DNS is captured, where the pod does not say.
    pub(crate) dns: bool,
    /// Where the admin endpoint listens.
    pub(crate) admin: SocketAddr,
    /// Where metrics are served.
    pub(crate) metrics: SocketAddr,
    /// Where readiness is served.
    pub(crate) readiness: SocketAddr,
}

/// Everything that listens, bound before anything else happens.
struct Sockets {
    zds: SeqPacketListener,
    xds: UnixListener,
    cni: Admin,
    agent: Admin,
    admin: Admin,
    metrics: Admin,
    readiness: Admin,
}

impl Sockets {
    fn bind(config: &AgentConfig) -> anyhow::Result<Self> {
        let directory = &config.run_dir;
        local_socket::make_directory(directory).with_context(|| format!("making {}", directory.display()))?;
        let named = |name: &str| directory.join(name);
        let cannot = |name: &str| format!("cannot listen on {} (--run-dir)", directory.join(name).display());
        Ok(Self {
            zds: listen_seqpacket(&named("zds.sock")).with_context(|| cannot("zds.sock"))?,
            xds: local_socket::listen(&named("xds.sock")).with_context(|| cannot("xds.sock"))?,
            cni: Admin::bind(&Address::Unix(named("cni.sock")), "--run-dir")?,
            agent: Admin::bind(&Address::Unix(named("agent.sock")), "--run-dir")?,
            admin: Admin::bind(&Address::Tcp(config.admin), "--admin")?,
            metrics: Admin::bind(&Address::Tcp(config.metrics), "--metrics")?,
            readiness: Admin::bind(&Address::Tcp(config.readiness), "--readiness")?,
        })
    }
}

/// Listens where ztunnels connect, in place of a predecessor that has ended.
fn listen_seqpacket(path: &Path) -> std::io::Result<SeqPacketListener> {
    local_socket::make_way(path, api::seqpacket::socket()?)?;
    SeqPacketListener::bind(path)
}

/// Runs the agent until it is told to stop, or cannot go on.
///
/// # Errors
/// What it lacks to start, with the flag that would change it; or what ended it.
pub(crate) async fn run(config: AgentConfig, logging: LogHandle) -> anyhow::Result<()> {
    daemon::limits::raise_descriptor_limit()?;
    let sockets = Sockets::bind(&config)?;
    let readiness = Readiness::new();
    let stop = CancellationToken::new();
    let mut tasks = Tasks::new(stop.clone());
    let (server, credentials) = connect_control(&config, &mut tasks).await?;
    let cgroup_root = cgroup_root(&config)?;
    let processes = Processes::below(&cgroup_root)?;
    let (kernel, log) = block_in_place(|| load(&config, &cgroup_root))?;
    let address = server.to_string();
    let roots = match &server {
        Server::Tls { roots, .. } => Some(roots.clone()),
        Server::Unix(_) => None,
    };
    let authority = CaClient::new(server.clone(), credentials.clone());
    let (client, subscription) = xds_client::client(xds_config(&config, server, credentials));
    let control_status = subscription.status.clone();
    let store = ResourceStore::new(ResourceType::ZTUNNEL);
    let (pods, pods_out) = watch::channel::<Pods>(None);
    let last_state = LastState::new(&config.run_dir, &config.node, &address);
    let copy = Arc::new(Copy::new(store.clone(), pods, roots));
    follow_control(client, subscription, &copy, (store.clone(), last_state), &mut tasks);
    let (pods_out, attachments) = with_sandboxes(pods_out, &mut tasks);
    let members = follow_api_server(&config, copy, &readiness, &mut tasks);

    let passing = block_in_place(|| kernel.pre_mesh())?;
    let hub = Arc::new(Hub::new());
    let board = Arc::new(Board::default());
    let telemetry = Telemetry::default();
    let context = Arc::new(Context {
        kernel: kernel.clone(),
        hub: Arc::clone(&hub),
        board: Arc::clone(&board),
        telemetry: telemetry.clone(),
        turns: Turns::new(),
        sweep: Sweep::new(readiness.block("pods of this node"), passing),
        own_netns: Netns::own().context("reading the agent's own network namespace")?.id(),
        processes,
        drain_deadline: config.drain_deadline,
        pre_mesh: config.pre_mesh,
        dns: config.dns,
    });
    tasks.spawn_told("pods", manager::run(context, pods_out, stop.clone()));
    let admissions = admissions(&config, &cgroup_root, &kernel, &hub);
    let zds = Service::new(Arc::clone(&hub), Arc::new(admissions), telemetry.clone());
    tasks.spawn_told("zds", zds_server::serve(sockets.zds, zds, stop.clone()));
    let relay = CaRelay::new(authority, telemetry.clone());
    let node_api = node_api::serve(sockets.xds, store, relay, telemetry.visitors.clone(), stop.clone());
    tasks.spawn("node api", async move {
        if let Err(error) = node_api.await {
            error!(%error, "the configuration socket failed");
        }
    });
    follow_kubelet(&config, &cgroup_root, &kernel, &mut tasks);
    tasks.spawn_told("forged marks", forged::tell(kernel.clone(), Arc::clone(&board), stop.clone()));
    if let Some(log) = log {
        tasks.spawn("kernel log", read_log(log));
    }
    let plugin = cni::Service::new(attachments, members, Arc::clone(&board));
    let view = View { node: config.node, address, kernel, hub, board, control: control_status };
    let metrics = metrics(&view, &telemetry);
    let about = Arc::new(view);
    let status = |about: &Arc<View>| about.routes(Routes::new());
    let endpoints = [
        (sockets.cni.counting(&telemetry.visitors), plugin.routes()),
        (sockets.agent.counting(&telemetry.visitors), logging_routes(status(&about), logging)),
        (sockets.admin, status(&about)),
        (sockets.metrics, metrics.routes(Routes::new())),
        (sockets.readiness, readiness.routes(Routes::new())),
    ];
    for (endpoint, routes) in endpoints {
        tasks.spawn_told("endpoint", endpoint.serve(routes, stop.clone().cancelled_owned()));
    }
    tasks.until_told().await
}

fn cgroup_root(config: &AgentConfig) -> anyhow::Result<PathBuf> {
    match &config.cgroup_root {
        Some(root) => Ok(root.clone()),
        None => cgroup::mount_point()?
            .context("no cgroup tree of version 2 is mounted; state it with --cgroup-root"),
    }
}

/// The pods with what the CNI plugin says of their sandboxes.
fn with_sandboxes(
    pods: watch::Receiver<Pods>,
    tasks: &mut Tasks,
) -> (watch::Receiver<Pods>, Arc<Attachments>) {
    let (sender, merged) = watch::channel(None);
    let attachments = Arc::new(Attachments::default());
    let all = Arc::clone(&attachments);
    tasks.spawn("sandboxes", async move { all.merge(pods, sender).await });
    (merged, attachments)
}

/// Takes pods from the API server, if that is where they come from, and has the CNI plugin for them; returns what is known of who is in the mesh.
fn follow_api_server(
    config: &AgentConfig,
    copy: Arc<Copy>,
    readiness: &Readiness,
    tasks: &mut Tasks,
) -> cni::Knowledge {
    let PodSource::ApiServer { cluster, root_namespace } = &config.pods else {
        return cni::Knowledge::none();
    };
    let last = config.plugin.as_ref().and_then(|plugin| block_in_place(|| cni::last_members(&plugin.places)));
    let (sender, told) = watch::channel(None);
    let node_pods = NodePods::new(cluster, &config.node, root_namespace);
    let heard = node_pods.heard();
    tasks.spawn("pods of the API server", async move { copy.follow_api_server(node_pods, sender).await });
    if let Some(plugin) = &config.plugin {
        let unready = readiness.block("the CNI plugin");
        let socket = config.run_dir.join("cni.sock");
        let written = written_members(last.clone(), told.clone(), tasks);
        let kept = cni::keep_installed(plugin.clone(), socket, written, unready, tasks.stop());
        tasks.spawn_told("the CNI plugin", kept);
    }
    cni::Knowledge { told, last, heard }
}

/// What the file of members has to say: what a predecessor left, until the API server has told of all.
fn written_members(
    last: Option<Arc<Members>>,
    mut told: cni::Membership,
    tasks: &mut Tasks,
) -> cni::Membership {
    let (sender, written) = watch::channel(last);
    tasks.spawn("members", async move {
        while told.changed().await.is_ok() {
            sender.send_replace(told.borrow_and_update().clone());
        }
    });
    written
}

/// Who is taken for this node's ztunnel.
fn admissions(config: &AgentConfig, cgroup_root: &Path, kernel: &Kernel, hub: &Arc<Hub>) -> Admissions {
    let below = config.ztunnel_cgroup.as_ref().map(|path| cgroup_root.join(path));
    if below.is_none() {
        warn!(
            "without --ztunnel-cgroup any process of root outside of the mesh's pods may be this node's ztunnel"
        );
    }
    Admissions::new(kernel.clone(), Arc::clone(hub), below)
}

/// Goes on with what control said last, and follows it from there.
fn follow_control(
    mut client: XdsClient,
    subscription: Subscription,
    copy: &Arc<Copy>,
    (store, last_state): (ResourceStore, LastState),
    tasks: &mut Tasks,
) {
    let pushes = block_in_place(|| last_state.read());
    for (kind, resources) in &pushes {
        client.hold(*kind, resources.iter().map(|resource| resource.name.clone()));
    }
    copy.resume(pushes);
    tasks.spawn("last state", last_state.write(store, copy.messages()));
    tasks.spawn("control client", client.run());
    let copy = Arc::clone(copy);
    tasks.spawn("control client", async move { copy.follow(subscription).await });
}

/// Loads the programs and exempts the agent itself.
fn load(config: &AgentConfig, cgroup_root: &Path) -> anyhow::Result<(Kernel, Option<LogReader>)> {
    let options = LoadOptions {
        bpffs: &config.bpffs,
        cgroup_root,
        redirection: config.redirection,
        log: tracing::enabled!(target: "culvert::bpf", tracing::Level::DEBUG),
    };
    let mut programs = Programs::load(&options)?;
    let log = programs.take_log();
    let own = cgroup::of_process(std::process::id()).context("the agent's own cgroup")?;
    programs.exempt_cgroup(own)?;
    let kernel = Kernel::new(programs);
    info!(redirection = kernel.redirection(), "the kernel programs are loaded");
    Ok((kernel, log))
}

/// How control is reached; an embedded one is started first.
async fn connect_control(config: &AgentConfig, tasks: &mut Tasks) -> anyhow::Result<(Server, Credentials)> {
    match &config.control {
        ControlSource::Remote { server, roots, token } => {
            let server = match server {
                ServerAddress::Unix(path) => Server::Unix(path.clone()),
                ServerAddress::Https(authority) => Server::Tls {
                    authority: authority.clone(),
                    name: control::SERVER_NAME.to_owned(),
                    roots: Roots::learning(roots.clone(), config.run_dir.join("control-roots.pem")),
                    key_exchange: KeyExchange::default(),
                },
            };
            Ok((server, Credentials { token: Some(token.clone().into()), ..Credentials::default() }))
        }
        ControlSource::Embedded { manifests, state } => {
            embedded::start(&config.node, manifests, state, &config.run_dir, tasks).await
        }
    }
}

fn metrics(view: &View, telemetry: &Telemetry) -> Metrics {
    let metrics = Metrics::new();
    metrics.register(|registry| {
        let registry = registry.sub_registry_with_prefix("culvert");
        telemetry.register(registry);
        registry.register_collector(Box::new(Observed {
            kernel: view.kernel.clone(),
            board: Arc::clone(&view.board),
            hub: Arc::clone(&view.hub),
            control: view.control.clone(),
        }));
    });
    metrics
}

fn xds_config(config: &AgentConfig, server: Server, credentials: Credentials) -> XdsConfig {
    let node = &config.node;
    let mut types = Vec::from(ResourceType::AGENT);
    if matches!(config.pods, PodSource::ApiServer { .. }) {
        types.retain(|kind| *kind != ResourceType::NodePod);
    }
    let id = format!("agent~{node}~culvert-agent.culvert-system~culvert-system.svc.cluster.local");
    XdsConfig {
        server,
        credentials,
        node: xds_client::node(&id, [("NODE_NAME".to_owned(), node.clone().into())]),
        types,
        on_demand: None,
    }
}

fn follow_kubelet(config: &AgentConfig, cgroup_root: &Path, kernel: &Kernel, tasks: &mut Tasks) {
    let Some(path) = &config.kubelet_cgroup else {
        warn!("without --kubelet-cgroup kubelet's probes are captured like everything else");
        if let Err(error) = block_in_place(|| kernel.expect_no_kubelet()) {
            error!(%error, "an earlier agent's kubelet cannot be forgotten");
        }
        return;
    };
    let path = cgroup_root.join(path);
    if let Err(reason) = expect_kubelet(kernel, &path) {
        // What an earlier agent was told may be another path, at which somebody else may make a cgroup.
        if let Err(error) = block_in_place(|| kernel.expect_no_kubelet()) {
            error!(%error, "an earlier agent's kubelet cannot be forgotten");
        }
        warn!(%reason, "a new kubelet's probes are captured, and under STRICT refused, for its first milliseconds");
    }
    let kernel = kernel.clone();
    let looked_at = path.clone();
    let look = move || {
        let found = block_in_place(|| kernel.find_kubelet(|| cgroup::of_directory(&looked_at).ok()));
        found.unwrap_or_else(|error| {
            error!(%error, "kubelet's cgroup cannot be told to the kernel");
            None
        })
    };
    tasks.spawn_told("kubelet", kubelet::follow(path, look, tasks.stop()));
}

/// Has the kernel notice a new cgroup of kubelet's by itself.
fn expect_kubelet(kernel: &Kernel, path: &Path) -> Result<(), String> {
    let path = kubelet::as_the_kernel_says(path)?;
    block_in_place(|| kernel.expect_kubelet(path)).map_err(|error| error.to_string())
}

async fn read_log(log: LogReader) {
    if let Err(error) = log.run().await {
        error!(%error, "the kernel programs' log cannot be read any more");
    }
    // Without it the agent does its work all the same.
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_for_ztunnels_is_not_taken_while_it_is_served_and_a_stale_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zds.sock");
        let first = listen_seqpacket(&path).unwrap();
        assert_eq!(listen_seqpacket(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
        drop(first);
        listen_seqpacket(&path).unwrap();
    }
}
