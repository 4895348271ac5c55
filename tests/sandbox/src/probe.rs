//! Probes and lifecycle hooks of containers, as kubelet reads them from a Pod.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A probe or hook of a container that calls a port. Those that run a command are none of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    /// The container's name and the field's, such as `web livenessProbe`.
    pub name: String,
    /// `host`: an address to call in place of the pod's.
    pub host: Option<IpAddr>,
    /// `port`, by number or by the name the container gives it.
    pub port: u16,
    /// How it is called.
    pub call: Call,
    /// `periodSeconds`; 10 without it. None for a hook.
    pub period_seconds: Option<u64>,
    /// `timeoutSeconds`; 1 without it.
    pub timeout_seconds: u64,
    /// `failureThreshold`; 3 without it.
    pub failure_threshold: u32,
}

/// How a port is called. Serialized as the prober's plan has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// `httpGet`.
    Http {
        /// `HTTP` or `HTTPS`.
        scheme: String,
        /// The path.
        path: String,
    },
    /// `tcpSocket`.
    Tcp,
    /// `grpc`.
    Grpc {
        /// The service that is asked for.
        service: String,
    },
}

/// What a container says of probes.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawProbes {
    startup_probe: Option<RawHandler>,
    liveness_probe: Option<RawHandler>,
    readiness_probe: Option<RawHandler>,
    lifecycle: RawLifecycle,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawLifecycle {
    post_start: Option<RawHandler>,
    pre_stop: Option<RawHandler>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawHandler {
    http_get: Option<RawAction>,
    tcp_socket: Option<RawAction>,
    grpc: Option<RawAction>,
    #[serde(default = "default_period")]
    period_seconds: u64,
    #[serde(default = "default_timeout")]
    timeout_seconds: u64,
    #[serde(default = "default_threshold")]
    failure_threshold: u32,
}

#[derive(Deserialize)]
struct RawAction {
    port: RawPortReference,
    #[serde(default)]
    host: String,
    #[serde(default)]
    path: String,
    #[serde(default = "default_scheme")]
    scheme: String,
    #[serde(default)]
    service: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPortReference {
    Number(u16),
    Name(String),
}

/// Defaults of the Kubernetes API (core/v1 Probe and HTTPGetAction).
fn default_period() -> u64 {
    10
}

fn default_timeout() -> u64 {
    1
}

fn default_threshold() -> u32 {
    3
}

fn default_scheme() -> String {
    "HTTP".into()
}

impl RawProbes {
    /// The probes of a container that gives its ports these names.
    pub(crate) fn resolve(
        self,
        container: &str,
        ports: &[(Option<String>, u16)],
    ) -> Result<Vec<ProbeSpec>, String> {
        let handlers = [
            ("postStart", self.lifecycle.post_start, true),
            ("startupProbe", self.startup_probe, false),
            ("livenessProbe", self.liveness_probe, false),
            ("readinessProbe", self.readiness_probe, false),
            ("preStop", self.lifecycle.pre_stop, true),
        ];
        let mut probes = Vec::new();
        for (field, handler, is_hook) in handlers {
            let Some(handler) = handler else { continue };
            let name = format!("{container} {field}");
            if let Some(mut probe) = handler.resolve(name, ports)? {
                probe.period_seconds = probe.period_seconds.filter(|_| !is_hook);
                probes.push(probe);
            }
        }
        Ok(probes)
    }
}

impl RawHandler {
    fn resolve(self, name: String, ports: &[(Option<String>, u16)]) -> Result<Option<ProbeSpec>, String> {
        let (action, call): (RawAction, fn(&RawAction) -> Call) =
            match (self.http_get, self.tcp_socket, self.grpc) {
                (Some(action), ..) => {
                    (action, |action| Call::Http { scheme: action.scheme.clone(), path: action.path.clone() })
                }
                (_, Some(action), _) => (action, |_| Call::Tcp),
                (.., Some(action)) => (action, |action| Call::Grpc { service: action.service.clone() }),
                (None, None, None) => return Ok(None),
            };
        let call = call(&action);
        let port = match &action.port {
            RawPortReference::Number(port) => *port,
            RawPortReference::Name(wanted) => {
                let found = ports.iter().find(|(known, _)| known.as_ref() == Some(wanted));
                found.ok_or_else(|| format!("{name}: no port of the container is named {wanted}"))?.1
            }
        };
        let host = match action.host.as_str() {
            "" => None,
            text => Some(
                text.parse().map_err(|_| format!("{name}: the sandbox resolves no names, such as {text}"))?,
            ),
        };
        Ok(Some(ProbeSpec {
            name,
            host,
            port,
            call,
            period_seconds: Some(self.period_seconds),
            timeout_seconds: self.timeout_seconds,
            failure_threshold: self.failure_threshold,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ports_are_the_containers_own_and_hooks_have_no_period() {
        let raw: RawProbes = serde_json::from_str(
            r#"{"livenessProbe": {"httpGet": {"port": "http", "path": "/live"}, "periodSeconds": 1},
                "readinessProbe": {"exec": {"command": ["true"]}},
                "lifecycle": {"preStop": {"tcpSocket": {"port": 81, "host": "10.0.0.9"}}}}"#,
        )
        .unwrap();
        let probes = raw.resolve("web", &[(None, 1), (Some("http".into()), 8080)]).unwrap();
        let [live, stop] = probes.as_slice() else { panic!("{probes:?}") };
        let call = Call::Http { scheme: "HTTP".into(), path: "/live".into() };
        assert_eq!((live.name.as_str(), live.port, &live.call), ("web livenessProbe", 8080, &call));
        assert_eq!((live.period_seconds, live.timeout_seconds, live.failure_threshold), (Some(1), 1, 3));
        assert_eq!((stop.port, stop.host, stop.period_seconds), (81, Some([10, 0, 0, 9].into()), None));
        let raw: RawProbes = serde_json::from_str(r#"{"livenessProbe": {"grpc": {"port": "x"}}}"#).unwrap();
        assert!(raw.resolve("web", &[]).is_err());
    }
}
