//! Makes a call and gathers what is known of it: from the client, and from both ends' access logs.

use std::net::SocketAddr;
use std::time::Duration;

use sandbox::{AccessEntry, AccessLog, Direction, Fetch, Mesh, Pod, Reply, Sandbox};
use serde::Serialize;

use super::MARKER;
use super::call::{self, Call, Caller, Expectation, Target};

/// The port of every container, behind the Services' port 80.
const POD_PORT: u16 = 8080;

/// How long an entry of an access log may take to appear after the client has its answer.
const LOG_DEADLINE: Duration = Duration::from_secs(3);

const TRUST_DOMAIN: &str = "cluster.local";

/// What is known of a call.
#[derive(Debug, Serialize)]
pub(crate) struct Fact {
    pub(crate) source: String,
    /// The pod that answered, or what was called.
    pub(crate) destination: String,
    pub(crate) called: String,
    pub(crate) family: String,
    /// The identities both ends wrote down alike; of a refused call, the one the refusing end had verified.
    pub(crate) source_identity: Option<String>,
    pub(crate) destination_identity: Option<String>,
    pub(crate) tls_version: Option<String>,
    pub(crate) key_exchange: Option<String>,
    /// `same_node`, `other_node`, `refused_by_policy`, `not_captured`, or `unknown`.
    pub(crate) path: String,
    pub(crate) policy: Option<String>,
    pub(crate) outcome: String,
    pub(crate) latency_us: u64,
    /// What was not as expected.
    pub(crate) problems: Vec<String>,
}

/// Makes the call.
pub(crate) fn observe(sandbox: &Sandbox, mesh: &Mesh, call: &Call) -> anyhow::Result<Fact> {
    let url = url(sandbox, call)?;
    let log = mesh.access_log().from_now();
    let request = Fetch::new(&url).over(call.family).header("x-marker", MARKER);
    let reply = match call.caller {
        Caller::Pod(name) => request.from_pod(sandbox.pod(name)?)?,
        // As kubelet does; it sends no marker, since the probe is in plaintext and need not be secret.
        Caller::Kubelet(node) => Fetch::new(&url).over(call.family).from_kubelet(sandbox.node(node)?)?,
    };
    let mut fact = Fact::of_client(call, &url, &reply);
    match call.expectation {
        Expectation::Answered(by) => fact.answered(sandbox, &log, call, &reply, by)?,
        Expectation::RefusedBy(policy) => fact.refused(sandbox, &log, call, &reply, policy)?,
        Expectation::Probe => fact.probe(&log, &reply),
    }
    Ok(fact)
}

fn url(sandbox: &Sandbox, call: &Call) -> anyhow::Result<String> {
    let path = if call.expectation == Expectation::Probe { "/healthz" } else { "/" };
    Ok(match call.target {
        Target::Service(name) => format!("http://{name}{path}"),
        Target::Pod(pod) => {
            format!("http://{}{path}", SocketAddr::new(sandbox.pod(pod)?.address(call.family)?, POD_PORT))
        }
    })
}

fn identity(pod: &Pod) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}", pod.spec().namespace, pod.spec().service_account)
}

impl Fact {
    fn of_client(call: &Call, url: &str, reply: &Reply) -> Self {
        let source = match call.caller {
            Caller::Pod(name) => name.to_owned(),
            Caller::Kubelet(node) => format!("kubelet of {node}"),
        };
        let destination = match call.target {
            Target::Service(name) | Target::Pod(name) => name.to_owned(),
        };
        Self {
            source,
            destination,
            called: url.to_owned(),
            family: call.family.to_string(),
            source_identity: None,
            destination_identity: None,
            tls_version: None,
            key_exchange: None,
            path: "unknown".into(),
            policy: None,
            outcome: reply.outcome(),
            latency_us: u64::try_from(reply.latency.as_micros()).unwrap_or(u64::MAX),
            problems: Vec::new(),
        }
    }

    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.problems.push(otherwise());
        }
    }

    fn answered(
        &mut self,
        sandbox: &Sandbox,
        log: &AccessLog,
        call: &Call,
        reply: &Reply,
        by: &[&str],
    ) -> anyhow::Result<()> {
        self.expect(reply.ok(), || format!("expected an answer, got: {}", reply.outcome()));
        let (Some(client), true) = (reply.local, reply.ok()) else {
            self.quote(log, reply);
            return Ok(());
        };
        let line =
            |name: &str| reply.body.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let Some(name) = by.iter().find(|name| name.ends_with(&format!("/{}", line("pod=")))) else {
            self.problems.push(format!("expected an answer of {by:?}, got one of {:?}", line("pod=")));
            return Ok(());
        };
        let server = sandbox.pod(name)?;
        self.destination = (*name).to_owned();
        self.expect(line("marker=") == MARKER, || "the marker did not come back".into());
        let seen = line("peer=").parse::<SocketAddr>().map(|peer| peer.ip()).ok();
        self.expect(seen == Some(client.ip()), || {
            format!("the server saw {seen:?} in place of {}", client.ip())
        });
        let Some((outbound, inbound)) = self.both_ends(log, client) else {
            self.quote(log, reply);
            return Ok(());
        };
        if let Caller::Pod(source) = call.caller {
            let source = sandbox.pod(source)?;
            self.agree(&outbound, &inbound, &identity(source), &identity(server));
            let same = source.spec().node == server.spec().node;
            self.path_is(&outbound, &inbound, if same { "same_node" } else { "other_node" });
        }
        Ok(())
    }

    /// What client's and server's end wrote about the connection, tied together by the trace id.
    fn both_ends(&mut self, log: &AccessLog, client: SocketAddr) -> Option<(AccessEntry, AccessEntry)> {
        let found = log.of(client, Direction::Outbound, LOG_DEADLINE).and_then(|outbound| {
            let trace = outbound.trace_id.clone();
            let what = || format!("an inbound access log entry with trace id {trace:?}");
            let inbound = log.find(LOG_DEADLINE, what, |entry| {
                entry.direction == Some(Direction::Inbound)
                    && entry.trace_id.is_some()
                    && entry.trace_id == trace
            })?;
            Ok((outbound, inbound))
        });
        found.map_err(|error| self.problems.push(error.to_string())).ok()
    }

    fn agree(&mut self, outbound: &AccessEntry, inbound: &AccessEntry, source: &str, destination: &str) {
        for (whose, at_client, at_server, expected) in [
            ("source", &outbound.source_identity, &inbound.source_identity, source),
            ("destination", &outbound.destination_identity, &inbound.destination_identity, destination),
        ] {
            self.expect(at_client.as_deref() == Some(expected), || {
                format!("the client's end has {at_client:?} as {whose} identity, not {expected}")
            });
            self.expect(at_server.as_deref() == Some(expected), || {
                format!("the server's end has {at_server:?} as {whose} identity, not {expected}")
            });
        }
        self.source_identity.clone_from(&inbound.source_identity);
        self.destination_identity.clone_from(&outbound.destination_identity);
    }

    fn path_is(&mut self, outbound: &AccessEntry, inbound: &AccessEntry, expected: &str) {
        for entry in [outbound, inbound] {
            let (path, direction) = (&entry.path, entry.direction);
            self.expect(path.as_deref() == Some(expected), || {
                format!("the {direction:?} path is {path:?}, not {expected}")
            });
        }
        self.path = outbound.path.clone().unwrap_or_else(|| "unknown".into());
        if expected != "other_node" {
            return;
        }
        for entry in [outbound, inbound] {
            let (version, group) = (entry.tls_version.as_deref(), entry.tls_group.as_deref());
            let right = version == Some("TLSv1.3") && group == Some("X25519MLKEM768");
            self.expect(right, || format!("TLS is {version:?} with {group:?}"));
        }
        self.tls_version.clone_from(&outbound.tls_version);
        self.key_exchange.clone_from(&outbound.tls_group);
    }

    fn refused(
        &mut self,
        sandbox: &Sandbox,
        log: &AccessLog,
        call: &Call,
        reply: &Reply,
        policy: &str,
    ) -> anyhow::Result<()> {
        self.expect(reply.exit != 0, || format!("expected a refusal, got: {}", reply.outcome()));
        self.expect(reply.reset(), || format!("a refusal is to be a reset, but was: {}", reply.outcome()));
        let Caller::Pod(source) = call.caller else { return Ok(()) };
        let source = sandbox.pod(source)?;
        let found = log.refusal_of(source.address(call.family)?, LOG_DEADLINE);
        match found {
            Ok(entry) => {
                self.expect(entry.policy.as_deref() == Some(policy), || {
                    format!("refused by {:?}, not by {policy}", entry.policy)
                });
                self.path = "refused_by_policy".into();
                self.policy.clone_from(&entry.policy);
                self.tls_version.clone_from(&entry.tls_version);
                self.key_exchange.clone_from(&entry.tls_group);
                self.source_identity.clone_from(&entry.source_identity);
                self.destination_identity.clone_from(&entry.destination_identity);
                let expected = (policy != call::STRICT).then(|| identity(source));
                self.expect(entry.source_identity == expected, || {
                    format!(
                        "the refusing end has {:?} as source identity, not {expected:?}",
                        entry.source_identity
                    )
                });
            }
            Err(error) => {
                self.problems.push(error.to_string());
                self.quote(log, reply);
            }
        }
        Ok(())
    }

    fn probe(&mut self, log: &AccessLog, reply: &Reply) {
        self.expect(reply.ok(), || format!("expected an answer, got: {}", reply.outcome()));
        let logged = log.entries().into_iter().any(|entry| Some(entry.source) == reply.local);
        self.expect(!logged, || "a probe went through ztunnel".into());
        self.path = if logged { "unknown".into() } else { "not_captured".into() };
        if !reply.ok() {
            self.quote(log, reply);
        }
    }

    /// Adds what the logs say about the client, for a person to find out why.
    fn quote(&mut self, log: &AccessLog, reply: &Reply) {
        let entries = log.entries();
        let about: Vec<String> = entries
            .iter()
            .filter(|entry| Some(entry.source) == reply.local)
            .map(|entry| format!("the log says {:?}: {:?}", entry.direction, entry.error))
            .collect();
        self.problems.extend(about);
    }
}
