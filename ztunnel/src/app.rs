//! The process: makes the parts, joins them, and takes them down in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::ca::CaClient;
use api::type_url::ResourceType;
use api::xds_client::{self, Demander, Subscription, XdsClient, XdsConfig};
use daemon::admin::{Address, Admin, BindError, Routes};
use daemon::drain::{Cause, Deadline, Drain, Drained, drain, signalled};
use daemon::logging::LogHandle;
use daemon::process::Process;
use daemon::readiness::Readiness;
use daemon::visitors::Refusals;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tunnel::hbone::Pool;
use tunnel::tls::{Revocations, TlsPolicy};

use crate::admin::{self, Access, Shown};
use crate::config::{Config, START_WAIT, Unused};
use crate::dns::Surroundings;
use crate::identity::{Authority, CrlFile, Identities, Pace};
use crate::local_config::Local;
use crate::mesh_state::MeshState;
use crate::on_demand::OnDemand;
use crate::pods::Pods;
use crate::proxy::{
    self, CUT_TIME, Capacity, Failure, KernelDialer, Limits, Node, Outliers, SystemResolver, Workers,
    cut_in_gaps, last_part,
};
use crate::telemetry::{BuildLabel, Collected, Metrics, Shared};
use crate::xds;
use crate::zds::{self, NodeProxies};

const BUILD: &str = env!("CARGO_PKG_VERSION");

/// How long a predecessor may take to let go of the endpoints' ports, and how often that is tried.
const HANDOVER: Duration = Duration::from_secs(5);
const HANDOVER_RETRY: Duration = Duration::from_millis(50);

/// Runs until a signal ends it and what is live has ended or been cut.
pub(crate) async fn run(config: Config, logging: LogHandle, workers: Workers) -> anyhow::Result<()> {
    let registry = daemon::metrics::Metrics::new();
    let metrics = Metrics {
        shared: Arc::new(Shared { localities: config.locality_metrics, ..Shared::default() }),
        ..Metrics::default()
    };
    registry.register(|registry| metrics.register(registry));
    let readiness = Readiness::new();
    let (drain, drain_signal) = drain();
    metrics.build.get_or_create(&BuildLabel { component: "ztunnel", tag: BUILD }).set(1);
    let crl = config.identity.crl.as_deref().map(CrlFile::open).transpose().context("--crl")?;
    let revocations = crl.as_ref().map_or_else(Revocations::none, CrlFile::revocations);
    let tls = TlsPolicy::new(config.identity.compliance_policy, revocations);
    let demander = config.control.xds_on_demand.then(Demander::default);
    let node = node(&config, metrics, demander.clone(), drain_signal, workers, tls)?;
    let local = match config.control.local() {
        Some(source) => Some(Local::load(source, &node.mesh).await?),
        None => None,
    };
    let collected = Collected {
        tunnels: node.tunnels.clone(),
        logging: logging.clone(),
        identities: node.identities.clone(),
    };
    registry.register(|registry| collected.register(registry));
    let process = Process::new(runtimes(&node));
    registry.register(|registry| process.register(registry));
    let servers = Servers::bind(&config).await?;
    let (stop, quit) = (CancellationToken::new(), CancellationToken::new());
    let servers = Servers { control: servers.control.counting(&visitors(&registry)), ..servers };
    let shown = Shown { node: node.clone(), logging, settings: config.listed(), quit: quit.clone() };
    let shown = Arc::new(shown);
    servers.serve(&config, &shown, &registry, &readiness, &stop);

    // They go on while the process drains: live connections are still re-checked, and certificates renewed.
    let mut lasting = JoinSet::new();
    match control(&config, demander)? {
        Some(control) => {
            lasting.spawn(follow_control(control, &node, &readiness));
        }
        None => node.mesh.complete(),
    }
    if let Some(local) = local {
        let node = node.clone();
        lasting.spawn(async move { local.follow(&node.mesh, &node.metrics).await });
    }
    lasting.spawn(proxy::keep_identities(node.clone()));
    if let Some(crl) = crl {
        lasting.spawn(crl.follow(Pace::default(), node.metrics.clone()));
    }
    let proxies = NodeProxies(node.clone());
    let pods =
        zds::run(&config.inpod_uds, config.zds_hello(), proxies, readiness.clone(), node.drain.clone());
    let mut pods = std::pin::pin!(pods);
    tracing::info!(node = %config.node.node_name, version = BUILD, "ztunnel started");
    for Unused { variable, reason } in &config.unused {
        tracing::warn!(variable, reason, "a variable of the environment is not used");
    }
    let cause = tokio::select! {
        cause = signalled() => cause.context("waiting for signals")?,
        () = quit.cancelled() => Cause::Request,
        () = &mut pods => anyhow::bail!("the agent's socket is no longer followed"),
        _ = lasting.join_next() => anyhow::bail!("the control plane, the CA or the --crl is no longer followed"),
    };
    tracing::info!(?cause, deadline = ?node.drain_deadline.get(), "draining");
    // The endpoints are the successor's from now on; who asks for readiness meanwhile is refused, which is true.
    stop.cancel();
    admin::serve_while_draining(&config, &shown);
    // The agent's words still count: a pod may leave meanwhile.
    let followed = async {
        pods.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = end(&node, drain) => {}
        () = followed => {}
    }
    Ok(())
}

/// The process's runtimes by name.
fn runtimes(node: &Node) -> Vec<(String, Handle)> {
    let workers = node.workers.runtimes().enumerate();
    let workers = workers.map(|(number, runtime)| (format!("worker-{number}"), runtime.clone()));
    std::iter::once(("main".to_owned(), Handle::current())).chain(workers).collect()
}

/// The count of those who are not let in to the admin socket.
fn visitors(registry: &daemon::metrics::Metrics) -> Refusals {
    let refusals = Refusals::default();
    registry.register(|registry| refusals.register(registry.sub_registry_with_prefix("culvert")));
    refusals
}

fn node(
    config: &Config,
    metrics: Metrics,
    demander: Option<Demander>,
    drain: daemon::drain::DrainSignal,
    workers: Workers,
    tls: TlsPolicy,
) -> anyhow::Result<Arc<Node>> {
    let descriptors =
        daemon::limits::raise_descriptor_limit().context("raising the limit of file descriptors")?;
    let stage_timeout = config.lifetime.stage_timeout;
    let options = config.sockets.options(stage_timeout);
    let authority = Authority {
        client: CaClient::new(config.ca_server()?, config.ca_credentials()),
        policy: tls.clone(),
        validity: config.identity.certificate_validity,
    };
    Ok(Arc::new(Node {
        tls,
        identities: Identities::new(authority, metrics.clone()),
        metrics,
        mesh: MeshState::default(),
        on_demand: demander.map(|demander| OnDemand::new(demander, START_WAIT)),
        outliers: Outliers::new(),
        trust_domain: config.node.trust_domain.clone(),
        workers,
        pods: Pods::default(),
        dns: Surroundings::new(config.node.cluster_domain.clone(), &own_resolv_conf()),
        dialer: Arc::new(KernelDialer { options: options.clone(), told_at: config.sockets.told_at() }),
        names: Arc::new(SystemResolver::new()),
        tunnels: Pool::new(config.tunnels.pool(stage_timeout)),
        response_baggage: config.tunnels.response_baggage,
        capacity: Capacity::of_descriptors(descriptors),
        limits: Limits {
            handshake: stage_timeout,
            idle: config.lifetime.idle_timeout,
            per_pod: config.max_connections_per_pod,
        },
        drain_deadline: Deadline::new(config.drain_deadline()),
        rules: config.rules(),
        options,
        drain,
    }))
}

/// How this process resolves names. Without the file it asks nobody on behalf of pods whose own configuration is not known.
fn own_resolv_conf() -> String {
    let path = "/etc/resolv.conf";
    std::fs::read_to_string(path).unwrap_or_else(|error| {
        tracing::warn!(path, %error, "not read");
        String::new()
    })
}

/// The control plane, unless the mesh is what is said locally.
fn control(
    config: &Config,
    on_demand: Option<Demander>,
) -> anyhow::Result<Option<(XdsClient, Subscription)>> {
    let Some(server) = config.xds_server()? else { return Ok(None) };
    Ok(Some(xds_client::client(XdsConfig {
        server,
        credentials: config.xds_credentials(),
        node: config.node.describe(),
        types: ResourceType::ZTUNNEL.to_vec(),
        on_demand,
    })))
}

/// Keeps the mesh's state up to date. Does not end by itself.
fn follow_control(
    (client, subscription): (XdsClient, Subscription),
    node: &Arc<Node>,
    readiness: &Readiness,
) -> impl Future<Output = ()> + use<> {
    let block = readiness.block("configuration from the control plane");
    let node = node.clone();
    async move {
        let consume = xds::consume(subscription, &node.mesh, &node.metrics, move || drop(block));
        tokio::join!(client.run(), consume);
    }
}

/// The endpoints for people, probes and scrapers: what TCP shows, the unix socket shows and changes.
struct Servers {
    admin: Admin,
    control: Admin,
    stats: Admin,
    readiness: Admin,
}

impl Servers {
    async fn bind(config: &Config) -> Result<Self, BindError> {
        Ok(Self {
            admin: bind(Address::Tcp(config.endpoints.admin()), "--admin-address").await?,
            control: bind(Address::Unix(config.admin_socket()), "--admin-socket").await?,
            stats: bind(Address::Tcp(config.endpoints.stats()), "--stats-address").await?,
            readiness: bind(Address::Tcp(config.endpoints.readiness()), "--readiness-address").await?,
        })
    }

    fn serve(
        self,
        config: &Config,
        shown: &Arc<Shown>,
        registry: &daemon::metrics::Metrics,
        readiness: &Readiness,
        stop: &CancellationToken,
    ) {
        let admin = |access| {
            let routes = admin::routes(shown, &access);
            registry.routes(readiness.routes(routes))
        };
        let all = [
            (self.admin, admin(Access::ReadOnly { socket: config.admin_socket() })),
            (self.control, admin(Access::Full)),
            (self.stats, registry.routes(Routes::new())),
            (self.readiness, readiness.routes(Routes::new())),
        ];
        for (server, routes) in all {
            let stop = stop.clone().cancelled_owned();
            tokio::spawn(server.serve(routes, stop));
        }
    }
}

/// Binds, waiting a little for a predecessor to let go: it does as soon as it is told to end.
async fn bind(address: Address, flag: &'static str) -> Result<Admin, BindError> {
    let deadline = Instant::now() + HANDOVER;
    loop {
        match Admin::bind(&address, flag) {
            Err(BindError::InUse { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(HANDOVER_RETRY).await;
            }
            bound => return bound,
        }
    }
}

/// Waits for live connections until the deadline, then resets what is left.
async fn end(node: &Node, drain: Drain) {
    let begun = Instant::now();
    let live = || node.pods.with_connections().iter().map(|pod| pod.live.clone()).collect();
    let gaps = async {
        node.drain_deadline.passed(begun, last_part).await;
        cut_in_gaps(live, || Failure::Drained).await
    };
    let drained = tokio::select! {
        drained = drain.start(&node.drain_deadline) => drained,
        never = gaps => match never {},
    };
    match drained {
        Drained::Completely => tracing::info!("all connections have ended"),
        Drained::DeadlineReached(left) => {
            tracing::warn!(left, "the drain deadline is over; what is left is reset");
            let pods = node.pods.with_connections();
            for pod in &pods {
                pod.live.cut_all(|| Failure::Drained);
            }
            let all = futures::future::join_all(pods.iter().map(|pod| pod.live.ended()));
            // Whoever does not make it is closed by the kernel.
            let _ = timeout(CUT_TIME, all).await;
        }
    }
}
