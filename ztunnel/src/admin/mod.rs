//! The admin endpoint: what the process knows, in the shapes that Istio's tools read, and its log level.

mod drain;
mod dump;
mod profile;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use daemon::admin::{AdminRequest, AdminResponse, Routes, query, status, text};
use daemon::log_filter::merged;
use daemon::logging::LogHandle;
use http::StatusCode;
use mesh::State;
use mesh::state::Policy;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;
use tunnel::tls::{CertificateFacts, WorkloadCertificate};

pub(crate) use self::drain::serve_while_draining;
use self::drain::{End, drain_routes};
use crate::identity::Held;
use crate::pods::Serving;
use crate::proxy::{Listed, Node};

/// What an endpoint's visitors may do.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// Look. Whoever reaches the port may be anybody: a process of the host network, or who forwards a port.
    ReadOnly {
        /// Where things are changed instead.
        socket: PathBuf,
    },
    /// Also change things: our own user alone (design 4).
    Full,
}

impl Access {
    /// What who may only look is told when he asks for a change, an example of which is `change`.
    fn refusal(&self, change: &str) -> Option<AdminResponse> {
        let Self::ReadOnly { socket } = self else { return None };
        let text = format!(
            "this is changed on the unix socket alone: curl -X POST --unix-socket {} 'http://localhost{change}'\n",
            socket.display()
        );
        Some(status(StatusCode::FORBIDDEN, text))
    }
}

/// What is shown, and what may be changed.
pub(crate) struct Shown {
    /// What connections share.
    pub(crate) node: Arc<Node>,
    /// The log.
    pub(crate) logging: LogHandle,
    /// What the process was started with.
    pub(crate) settings: Value,
    /// Ends the process in order.
    pub(crate) quit: CancellationToken,
}

/// The routes (contract 1.10).
pub(crate) fn routes(shown: &Arc<Shown>, access: &Access) -> Routes {
    let help = help(access);
    let end = End { deadline: shown.node.drain_deadline.clone(), signal: shown.node.drain.clone() };
    let routes = drain_routes(Routes::new(), end, access).get("/", move |_| {
        let help = help.clone();
        async move { text(help) }
    });
    let for_dump = shown.clone();
    let routes = routes.get("/config_dump", move |_| {
        let shown = for_dump.clone();
        async move { daemon::admin::json(&config_dump(&shown.node, &shown.settings)) }
    });
    let routes = profile::profile_routes(routes, access);
    let routes = log_routes(routes, shown.logging.clone(), access.clone());
    quit_route(routes, shown.quit.clone(), access.clone())
}

fn help(access: &Access) -> String {
    let where_to = match access {
        Access::Full => String::new(),
        Access::ReadOnly { socket } => {
            format!("\nWhat is marked * is done on the unix socket {} alone.\n", socket.display())
        }
    };
    format!(
        "/config_dump\n\
         /healthz/ready\n\
         /metrics\n\
         /debug/pprof/profile (?seconds=10, 1 to 300; ?frequency=100 Hz, 1 to 1000)\n\
         /debug/pprof/heap (once activated)\n\
         /debug/pprof/heap/profiling (?activate=true*, ?activate=false*)\n\
         /logging (GET; POST* ?level=LEVEL, ?level=MODULE:LEVEL,..., ?reset)\n\
         /drain (GET; POST* ?deadline=60s)\n\
         /quitquitquit* (POST)\n{where_to}"
    )
}

/// Ends the process as SIGTERM does.
fn quit_route(routes: Routes, quit: CancellationToken, access: Access) -> Routes {
    routes.post("/quitquitquit", move |_| {
        let answer = access.refusal("/quitquitquit").unwrap_or_else(|| {
            quit.cancel();
            text("shutdown now\n")
        });
        async move { answer }
    })
}

fn log_routes(routes: Routes, logging: LogHandle, access: Access) -> Routes {
    let first = logging.filter();
    let routes = routes.get("/logging", {
        let logging = logging.clone();
        move |_| {
            let logging = logging.clone();
            async move { text(format!("current log level is {}\n", logging.filter())) }
        }
    });
    routes.post("/logging", move |request| {
        let refusal = access.refusal("/logging?level=debug");
        let answer = refusal.unwrap_or_else(|| set_filter(&logging, &first, &request));
        async move { answer }
    })
}

/// `level=` adds to the filter: a level for all, or one for each of some modules. `reset` brings back the one that the process began
/// with, to which `level` is then added. Both are istioctl's words.
fn set_filter(logging: &LogHandle, first: &str, request: &AdminRequest) -> AdminResponse {
    let base = if query(request, "reset").is_some() { first.to_owned() } else { logging.filter() };
    let wanted = merged(&base, &query(request, "level").unwrap_or_default());
    match logging.set_filter(&wanted) {
        Ok(()) => text(format!("current log level is {}\n", logging.filter())),
        Err(error) => status(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// All of `/config_dump` (contract 2.7).
pub(crate) fn config_dump(node: &Node, settings: &Value) -> Value {
    let mut dump = node.mesh.read(mesh_dump);
    dump["certificates"] =
        node.identities.snapshot().iter().map(|(id, held)| certificate(id, held)).collect();
    let pods: Map<String, Value> =
        node.pods.all().iter().map(|serving| (serving.pod.uid.to_string(), pod(serving))).collect();
    dump["workloadState"] = Value::Object(pods);
    dump["version"] = build();
    dump["config"] = settings.clone();
    // Istio's: endpoints that came before their service, which our state holds as endpoints, and configuration out of a file.
    dump["stagedServices"] = json!({});
    dump["staticConfig"] = json!({});
    dump
}

fn mesh_dump(state: &State) -> Value {
    let policy = |policy: &Policy| match policy {
        Policy::Valid(policy) => dump::policy(policy),
        Policy::Rejected(policy) => json!({
            "name": policy.name.name.as_str(),
            "namespace": policy.name.namespace.as_str(),
            "action": "Deny",
            "error": policy.reason,
            "rules": [],
        }),
    };
    let service = |service: &Arc<mesh::Service>| {
        let endpoints = state.endpoints(&service.name);
        dump::service(service, endpoints.iter().flat_map(|all| all.iter()).map(AsRef::as_ref))
    };
    json!({
        "workloads": state.workloads().map(|workload| dump::workload(workload)).collect::<Vec<_>>(),
        "services": state.services().map(service).collect::<Vec<_>>(),
        "policies": state.policies().map(policy).collect::<Vec<_>>(),
        "unreadable": state.rejected_addresses().map(|one| dump::rejected(one)).collect::<Vec<_>>(),
    })
}

fn certificate(id: &mesh::SpiffeId, held: &Held<WorkloadCertificate>) -> Value {
    let Some((certificate, _)) = &held.current else {
        let state =
            held.error.as_ref().map_or("Initializing".to_owned(), |error| format!("Unavailable: {error}"));
        return json!({ "identity": id.to_string(), "state": state, "certChain": [] });
    };
    let facts = |pem: &String| {
        let mut value = json!({ "pem": BASE64.encode(pem) });
        if let Some(facts) = CertificateFacts::of(pem) {
            value["serialNumber"] = json!(facts.serial);
            value["validFrom"] = json!(timestamp(facts.not_before));
            value["expirationTime"] = json!(timestamp(facts.not_after));
        }
        value
    };
    json!({
        "identity": id.to_string(),
        "state": "Available",
        "certChain": certificate.chain_pem().iter().map(facts).collect::<Vec<_>>(),
        "rootCerts": certificate.roots_pem().iter().map(facts).collect::<Vec<_>>(),
        "error": held.error,
    })
}

/// What this program is, in the keys of Istio's.
fn build() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "rustVersion": env!("CARGO_PKG_RUST_VERSION"),
        "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
    })
}

fn pod(serving: &Serving) -> Value {
    let pod = &serving.pod;
    let own = pod.own_now();
    let (inbound, outbound): (Vec<_>, Vec<_>) =
        pod.live.list().into_iter().partition(|(inbound, _)| *inbound);
    let connections =
        |list: Vec<(bool, Listed)>| list.iter().map(|(_, one)| connection(one)).collect::<Vec<_>>();
    json!({
        "state": match (&own, pod.stopping.is_cancelled()) {
            (_, true) => "Draining",
            (Some(_), false) => "Up",
            (None, false) => "Pending",
        },
        "info": {
            "name": pod.name,
            "namespace": pod.namespace.as_str(),
            "serviceAccount": pod.service_account.as_str(),
            "trustDomain": own.as_ref().map(|own| own.workload.trust_domain.to_string()).unwrap_or_default(),
        },
        "addresses": pod.addresses(),
        "connections": { "inbound": connections(inbound), "outbound": connections(outbound) },
    })
}

fn connection(listed: &Listed) -> Value {
    json!({
        "src": listed.source.to_string(),
        "originalDst": listed.original.to_string(),
        "actualDst": listed.actual.to_string(),
        "protocol": listed.protocol,
    })
}

/// RFC 3339 in UTC.
fn timestamp(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use daemon::admin::{Address, Admin};
    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    pub(super) async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> String {
        let request = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn the_log_level_is_read_over_tcp_and_changed_on_the_unix_socket_alone() {
        let (logging, _written) = daemon::logging::init("info", daemon::logging::Format::Text).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let tcp = Admin::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap()), "--admin-address").unwrap();
        let unix = Admin::bind(&Address::Unix(socket.clone()), "--admin-socket").unwrap();
        let port = tcp.local_addr().unwrap();
        for (server, access) in [(tcp, Access::ReadOnly { socket: socket.clone() }), (unix, Access::Full)] {
            let routes = log_routes(Routes::new(), logging.clone(), access);
            tokio::spawn(server.serve(routes, std::future::pending()));
        }
        let over_tcp = async |line| ask(TcpStream::connect(port).await.unwrap(), line).await;
        let over_unix = async |line| ask(UnixStream::connect(&socket).await.unwrap(), line).await;
        for line in ["POST /logging?level=debug", "POST /logging?reset", "POST /logging"] {
            let refused = over_tcp(line).await;
            assert!(refused.starts_with("HTTP/1.1 403 "), "{line}: {refused}");
            assert!(refused.contains(&format!("--unix-socket {}", socket.display())), "{refused}");
        }
        assert!(over_tcp("GET /logging").await.ends_with("current log level is info\n"));
        assert!(over_unix("POST /logging?level=warn").await.ends_with("current log level is warn\n"));
        assert!(over_tcp("GET /logging").await.ends_with("current log level is warn\n"));
        let more = over_unix("POST /logging?level=access:debug,ztunnel::proxy:trace").await;
        assert!(more.ends_with("current log level is warn,access=debug,ztunnel::proxy=trace\n"), "{more}");
        let bad = over_unix("POST /logging?level=info,%3D%5B").await;
        assert!(bad.starts_with("HTTP/1.1 400 "), "{bad}");
        let anew = over_unix("POST /logging?reset&level=h2:off").await;
        assert!(anew.ends_with("current log level is info,h2=off\n"), "{anew}");
        assert!(over_unix("POST /logging?reset").await.ends_with("current log level is info\n"));
    }
}
