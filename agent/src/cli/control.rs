//! `culvert control`: runs the crate `control` as a process, with its endpoints.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use control::ca::{LEAF_LIFETIME, SHORTEST_LIFETIME};
use control::status::{Refusal, Status};
use control::translate::Settings;
use control::{ControlConfig, ObjectSource, SERVER_NAME};
use daemon::admin::{self, Address, Admin, Routes};
use daemon::metrics::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio_util::sync::CancellationToken;

use super::agent::LogArgs;
use super::kubernetes::KubernetesArgs;

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory of manifests (*.yaml, *.yml, several documents a file); changes take effect within a second.
    #[arg(long, required_unless_present = "kubernetes", conflicts_with = "kubernetes")]
    manifests: Option<PathBuf>,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    /// With --kubernetes, where control and the agents are pods of the cluster: their namespace. The authority's key is kept there in the
    /// Secret `culvert-authority`, its roots in the ConfigMap `culvert-roots`, and agents authenticate by tokens of the account `culvert-agent`
    /// for the audience `culvert-control`.
    #[arg(long, requires = "kubernetes")]
    home_namespace: Option<String>,
    /// The directory of the certificate authority's key and the nodes' tokens; made when missing (0700).
    #[arg(long)]
    state: PathBuf,
    #[arg(long, default_value = "0.0.0.0:15012", help = format!("Where agents connect to, with TLS, for the name {SERVER_NAME}"))]
    listen: SocketAddr,
    /// The longest that workloads' certificates are valid, seconds. They are renewed at half of it: control must not be away
    /// for as long as that, or pods are cut off.
    #[arg(long, env = "CERTIFICATE_TTL", default_value_t = LEAF_LIFETIME.as_secs(), value_parser = clap::value_parser!(u64).range(SHORTEST_LIFETIME.as_secs()..=LEAF_LIFETIME.as_secs()))]
    certificate_ttl: u64,
    /// The trust domain of all identities.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// The cluster's name, the first part of workload uids.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// The namespace whose policies hold for the whole mesh.
    #[arg(long, default_value = "istio-system")]
    root_namespace: String,
    /// The last part of Services' host names.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Where the admin endpoint listens: GET /status, GET /metrics (OpenMetrics).
    #[arg(long, default_value = "127.0.0.1:15010")]
    admin: SocketAddr,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let (_logging, _written_at_exit) = args.log.init()?;
    let source = match (args.kubernetes.find().await?, args.manifests) {
        (Some(cluster), None) => ObjectSource::Kubernetes { cluster, home: args.home_namespace },
        (None, Some(manifests)) => ObjectSource::Manifests(manifests),
        _ => anyhow::bail!("either --manifests is needed, or --kubernetes"),
    };
    daemon::limits::raise_descriptor_limit()?;
    let status = Status::new();
    let admin = Admin::bind(&Address::Tcp(args.admin), "--admin")?;
    let config = ControlConfig {
        source,
        state: args.state,
        listen: args.listen,
        certificate_lifetime: Duration::from_secs(args.certificate_ttl),
        settings: Settings {
            trust_domain: args.trust_domain.into(),
            cluster_id: args.cluster_id,
            root_namespace: args.root_namespace,
            cluster_domain: args.cluster_domain,
        },
        status: status.clone(),
    };
    let stop = CancellationToken::new();
    let routes = metrics(status.clone()).routes(routes(status));
    let admin = tokio::spawn(admin.serve(routes, stop.clone().cancelled_owned()));
    let mut control = tokio::spawn(control::run(config, stop.clone()));
    let outcome = tokio::select! {
        outcome = &mut control => outcome,
        cause = daemon::drain::signalled() => {
            tracing::info!(?cause, "control stops");
            stop.cancel();
            control.await
        }
    };
    stop.cancel();
    admin.await?;
    Ok(outcome??)
}

fn routes(status: Status) -> Routes {
    Routes::new().get("/status", move |_| {
        let (manifests, counters) = (status.manifests(), status.counters());
        std::future::ready(admin::json(&serde_json::json!({
            "manifests": {
                "loaded": manifests.loaded,
                "error": manifests.error,
                "warnings": manifests.warnings,
                "unenforced": manifests.unenforced,
                "workloads": manifests.workloads,
                "services": manifests.services,
                "policies": manifests.policies,
                "pods": manifests.pods,
                "loads": counters.loads,
                "failed_loads": counters.failed_loads,
            },
            "certificates": { "issued": counters.certificates_issued, "refused": counters.certificates_refused },
        })))
    })
}

/// What control counts, read when somebody asks.
#[derive(Debug)]
struct Counted(Status);

fn metrics(status: Status) -> Metrics {
    let metrics = Metrics::new();
    metrics.register(|registry| {
        let own = registry.sub_registry_with_prefix("culvert_control");
        own.register_collector(Box::new(Counted(status)));
    });
    metrics
}

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (counters, manifests) = (self.0.counters(), self.0.manifests());
        let help = "Requests for certificates that were refused, by reason";
        let mut refused =
            encoder.encode_descriptor("certificate_refusals", help, None, MetricType::Counter)?;
        for reason in Refusal::ALL {
            let labels = [("reason", reason.label())];
            ConstCounter::new(self.0.refused(reason)).encode(refused.encode_family(&labels)?)?;
        }
        for (name, help, count) in [
            ("certificates_issued", "Certificates signed", counters.certificates_issued),
            (
                "stream_refusals",
                "Streams of configuration that were refused, for want of a node's token or of a place",
                counters.streams_refused,
            ),
            ("loads", "States of the manifests that took effect", counters.loads),
            ("failed_loads", "States of the manifests that were not taken", counters.failed_loads),
        ] {
            let counter = ConstCounter::new(count);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, value) in [
            (
                "manifests_in_error",
                "Whether what is on the disk is not in effect: 1 or 0",
                usize::from(manifests.error.is_some()),
            ),
            (
                "unenforced",
                "Parts of manifests that leave something open which they mean to close",
                manifests.unenforced.len(),
            ),
            ("pods", "Pods in the mesh", manifests.pods),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}
