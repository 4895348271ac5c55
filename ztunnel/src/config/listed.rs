//! The settings, for people, in the letters of Istio's dump: what came of flags, variables and defaults. Places of secrets, no secrets.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::Config;
use crate::local_config::Source;

impl Config {
    /// See the module.
    pub(crate) fn listed(&self) -> Value {
        let mut all = json!({
            "inpodUds": path(&self.inpod_uds),
            "logFormat": format!("{:?}", self.log_format),
            "localityMetrics": self.locality_metrics,
            "maxConnectionsPerPod": self.max_connections_per_pod,
            "numWorkerThreads": self.worker_threads(),
            "selfTerminationDeadline": seconds(self.drain_deadline()),
            "idleTimeout": seconds(self.lifetime.idle_timeout),
            "connectTimeout": seconds(self.lifetime.stage_timeout),
        });
        let parts = [
            self.of_control(),
            self.of_identity(),
            self.of_endpoints(),
            self.of_sockets(),
            self.of_tunnels(),
        ];
        if let Some(all) = all.as_object_mut() {
            for part in parts {
                all.extend(part.as_object().cloned().unwrap_or_default());
            }
        }
        all
    }

    fn of_control(&self) -> Value {
        let control = &self.control;
        let text = |value: &Option<_>| value.as_ref().map(ToString::to_string);
        let local = control.local().map(|source| match source {
            Source::File(file) => path(&file),
            Source::Inline(_) => "given as text".to_owned(),
        });
        json!({
            "xdsAddress": text(&control.xds_address),
            "caAddress": text(&control.ca_address),
            "xdsRootCert": control.root_ca.as_ref().map(ToString::to_string),
            "caRootCert": control.ca_root_ca.as_ref().map(ToString::to_string),
            "authToken": control.token.as_ref().map(|token| format!("{token:?}")),
            "altXdsHostname": control.xds_name,
            "altCaHostname": control.ca_name,
            "localXdsConfig": local,
            "xdsOnDemand": control.xds_on_demand,
        })
    }

    fn of_identity(&self) -> Value {
        let (node, identity) = (&self.node, &self.identity);
        json!({
            "localNode": node.node_name,
            "clusterId": node.cluster_id(),
            "clusterDomain": node.cluster_domain,
            "network": node.network.to_string(),
            "trustDomain": node.trust_domain.to_string(),
            "crlPath": identity.crl.as_deref().map(path),
            "compliancePolicy": format!("{:?}", identity.compliance_policy),
            "secretTtl": seconds(identity.certificate_validity),
        })
    }

    fn of_endpoints(&self) -> Value {
        json!({
            "adminAddr": self.endpoints.admin().to_string(),
            "adminSocket": path(&self.admin_socket()),
            "statsAddr": self.endpoints.stats().to_string(),
            "readinessAddr": self.endpoints.readiness().to_string(),
            "ipv6Enabled": self.endpoints.ipv6_enabled,
        })
    }

    fn of_sockets(&self) -> Value {
        let options = self.sockets.options(self.lifetime.stage_timeout);
        let rules = self.rules();
        let keepalive = options.keepalive.map(|keepalive| {
            json!({
                "time": seconds(keepalive.time),
                "interval": seconds(keepalive.interval),
                "retries": keepalive.probes,
            })
        });
        json!({
            "keepalive": keepalive,
            "userTimeout": options.user_timeout.map(seconds),
            "packetMark": rules.mark.get(),
            "originalSource": format!("{:?}", rules.original_source),
            "inpodPortReuse": rules.port_reuse,
            "appTunnelAt": format!("{:?}", self.sockets.told_at()),
        })
    }

    fn of_tunnels(&self) -> Value {
        let pool = self.tunnels.pool(self.lifetime.stage_timeout);
        json!({
            "poolMaxStreamsPerConn": pool.streams_per_tunnel,
            "poolUnusedReleaseTimeout": seconds(pool.idle_release),
            "windowSize": pool.http2.stream_window,
            "frameSize": pool.http2.max_frame,
            "bufferBudget": pool.budget.stats().total,
        })
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn seconds(duration: Duration) -> String {
    format!("{duration:?}")
}
