//! The mesh of `tests/manifests/mesh` on a sandbox, and the steps the tests are made of.

use std::io::{Read, Write};
use std::iter::Sum;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use sandbox::{
    AccessEntry, AccessLog, Capture, Direction, Family, Fetch, Mesh, MeshOptions, Node, Redirection, Reply,
    Sandbox, Ztunnels, wait,
};

use crate::places::{binaries, options};

/// A text no ciphertext holds by chance; the tests' payloads are full of it.
pub const MARKER: &str = "plain-as-day-7f3a91c4";

/// The policy that stands for PeerAuthentication STRICT where authorization is decided, named as Istio names it.
pub const STRICT: &str = "istio-system/istio_converted_static_strict";

/// How long the effects of a change may take to show, where no promise says less.
pub const SETTLE: Duration = Duration::from_secs(20);

/// How long an access log entry may take to be written.
const LOG_DEADLINE: Duration = Duration::from_secs(5);

/// The label by which `shop/near` is in the mesh.
const NEAR_IN: &str = "labels: {app: near}";
/// And by which it is not.
const NEAR_OUT: &str = "labels: {app: near, istio.io/dataplane-mode: none}";

/// Where an agent serves its metrics on its node.
const AGENT_METRICS_PORT: u16 = 15011;

/// And where a ztunnel does.
const ZTUNNEL_METRICS_PORT: u16 = 15020;

/// Where a ztunnel shows its configuration on its node.
const ZTUNNEL_ADMIN_PORT: u16 = 15000;

/// The pods of the manifests.
pub mod pods {
    /// In the mesh, on `east`.
    pub const CLIENT: &str = "shop/client";
    /// In the mesh, on `east`.
    pub const NEAR: &str = "shop/near";
    /// In the mesh, on `west`.
    pub const FAR: &str = "shop/far";
    /// In the mesh, on `east`, refused by a policy of the shop.
    pub const INTRUDER: &str = "guest/intruder";
    /// Not in the mesh, on `east`.
    pub const OUTSIDER_EAST: &str = "plain/outsider-east";
    /// Not in the mesh, on `west`.
    pub const OUTSIDER_WEST: &str = "plain/outsider-west";
}

/// The ports of every server.
pub mod ports {
    /// HTTP.
    pub const HTTP: u16 = 8080;
    /// Sends back what comes.
    pub const ECHO: u16 = 9000;
    /// Answers once the client has ended its side.
    pub const SINK: u16 = 9001;
    /// Never reads.
    pub const SILENT: u16 = 9002;
    /// Resets after the first byte.
    pub const RESET: u16 = 9003;
    /// Nobody listens.
    pub const CLOSED: u16 = 9999;
}

/// Sandbox, mesh and a capture of the link between the nodes from before the mesh's start.
#[derive(Debug)]
pub struct World {
    /// The mesh's programs.
    pub mesh: Mesh,
    /// Nodes and pods.
    pub sandbox: Sandbox,
    /// Of the whole run, until a test ends it.
    pub capture: Option<Capture>,
}

impl World {
    /// Starts everything and waits until it is ready.
    pub fn start(redirection: Redirection) -> anyhow::Result<Self> {
        Self::of("mesh", redirection)
    }

    /// The same with ztunnels that make their listeners in pods by themselves, as Istio's do.
    pub fn as_istios(redirection: Redirection) -> anyhow::Result<Self> {
        Self::made_of("mesh", redirection, Ztunnels::AsIstios, Vec::new())
    }

    /// The same with the manifests of `tests/manifests/<manifests>`.
    pub fn of(manifests: &str, redirection: Redirection) -> anyhow::Result<Self> {
        Self::made_of(manifests, redirection, Ztunnels::Ours, Vec::new())
    }

    /// As [`World::start`], with further arguments of the control plane.
    pub fn start_with(redirection: Redirection, control: Vec<String>) -> anyhow::Result<Self> {
        Self::made_of("mesh", redirection, Ztunnels::Ours, control)
    }

    fn made_of(
        manifests: &str,
        redirection: Redirection,
        ztunnels: Ztunnels,
        control: Vec<String>,
    ) -> anyhow::Result<Self> {
        let sandbox = Sandbox::start(&options(manifests)?)?;
        let capture = Some(sandbox.capture("east", &[MARKER.as_bytes()])?);
        let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
        let options = MeshOptions { binaries: binaries()?, redirection, ztunnels, log, control };
        let mesh = Mesh::start(&sandbox, options, |_| ())?;
        Ok(Self { mesh, sandbox, capture })
    }

    /// For the report of a failure: the ends of all logs, which stay.
    pub fn explain(&self) -> String {
        self.sandbox.keep_files();
        format!("{}the logs are in {}", self.mesh.log_tails(), self.sandbox.directory().display())
    }

    /// A pod's port as an address.
    pub fn address(&self, pod: &str, family: Family, port: u16) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(self.sandbox.pod(pod)?.address(family)?, port))
    }

    /// A request with the marker to a port of a pod, not yet sent.
    pub fn request(&self, to: &str, family: Family, port: u16) -> anyhow::Result<Fetch> {
        Ok(Fetch::new(format!("http://{}/", self.address(to, family, port)?)).header("x-marker", MARKER))
    }

    /// Sends such a request from a pod.
    pub fn fetch(&self, from: &str, to: &str, family: Family, port: u16) -> anyhow::Result<Reply> {
        Ok(self.request(to, family, port)?.from_pod(self.sandbox.pod(from)?)?)
    }

    /// Waits until such a request is answered.
    pub fn answered_within(
        &self,
        deadline: Duration,
        from: &str,
        to: &str,
        family: Family,
    ) -> anyhow::Result<Reply> {
        let request = self.request(to, family, ports::HTTP)?.within(Duration::from_secs(2));
        let client = self.sandbox.pod(from)?;
        let reply = wait::try_until(
            deadline,
            || format!("an answer of {to} to {from} over {family}"),
            || match request.from_pod(client) {
                Ok(reply) if reply.ok() => Ok(reply),
                Ok(reply) => Err(reply.outcome()),
                Err(error) => Err(error.to_string()),
            },
        )?;
        Ok(reply)
    }

    /// Waits until such a request is reset.
    pub fn refused_within(
        &self,
        deadline: Duration,
        from: &str,
        to: &str,
        family: Family,
    ) -> anyhow::Result<()> {
        let request = self.request(to, family, ports::HTTP)?.within(Duration::from_secs(2));
        let client = self.sandbox.pod(from)?;
        let what = || format!("a refusal of {to} to {from} over {family}");
        Ok(wait::try_until(deadline, what, || match request.from_pod(client) {
            Ok(reply) if reply.reset() => Ok(()),
            Ok(reply) => Err(reply.outcome()),
            Err(error) => Err(error.to_string()),
        })?)
    }

    /// A connection made by this process from inside a pod: captured as any of its connections.
    pub fn connect(&self, from: &str, to: SocketAddr) -> anyhow::Result<TcpStream> {
        let stream = self.sandbox.pod(from)?.net().run(|| TcpStream::connect_timeout(&to, LOG_DEADLINE))?;
        let stream = stream.with_context(|| format!("connecting to {to} from {from}"))?;
        stream.set_read_timeout(Some(SETTLE))?;
        stream.set_write_timeout(Some(SETTLE))?;
        Ok(stream)
    }

    /// As [`World::connect`], again and again while that is refused.
    pub fn connect_within(
        &self,
        deadline: Duration,
        from: &str,
        to: SocketAddr,
    ) -> anyhow::Result<TcpStream> {
        let connect = || self.connect(from, to).map_err(|error| format!("{error:#}"));
        Ok(wait::try_until(deadline, || format!("a connection of {from} to {to}"), connect)?)
    }

    /// Replaces `from` in a manifest of the run by `to`.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let path = self.sandbox.manifests_directory().join(file);
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{file} has no {from:?}");
        std::fs::write(&path, text.replace(from, to))?;
        Ok(())
    }

    /// Writes a manifest of the run, new or in place of another.
    pub fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.sandbox.manifests_directory().join(file), text)?)
    }

    /// Waits until the ztunnels of all nodes hold what the manifests say now, which `revision` has to be new for.
    pub fn until_in_effect(&self, revision: &str) -> anyhow::Result<()> {
        // A Service, since those come last of what ztunnels are told.
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {revision}, namespace: plain}}\n\
             spec: {{clusterIP: 10.43.255.1, ports: [{{port: 80}}]}}\n"
        );
        self.write("revision.yaml", &service)?;
        for node in self.sandbox.pod_nodes() {
            let url = format!("http://127.0.0.1:{ZTUNNEL_ADMIN_PORT}/config_dump");
            wait::try_until(
                SETTLE,
                || format!("{revision} to be known on {}", node.name()),
                || match Fetch::new(&url).from_node(node) {
                    Ok(reply) if reply.body.contains(&format!("\"{revision}\"")) => Ok(()),
                    Ok(reply) => Err(reply.outcome()),
                    Err(error) => Err(error.to_string()),
                },
            )?;
        }
        Ok(())
    }

    /// The sum, over the ztunnels of all nodes, of a metric's samples whose line begins so.
    pub fn ztunnels_metric(&self, beginning: &str) -> anyhow::Result<f64> {
        self.sandbox.pod_nodes().map(|node| self.ztunnel_samples(node, beginning)).sum()
    }

    /// The same of one node.
    pub fn ztunnel_samples(&self, node: &Node, beginning: &str) -> anyhow::Result<f64> {
        sum(node, ZTUNNEL_METRICS_PORT, |line| line.starts_with(beginning))
    }

    /// Runs `check` with plaintext taken, and ends that afterwards, however the check ended.
    pub fn while_permissive(
        &mut self,
        check: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.take_plaintext(true)?;
        let outcome = check(self);
        self.take_plaintext(false)?;
        outcome
    }

    /// Has the mesh as a whole take plaintext (PERMISSIVE) or not (STRICT), and waits until it does.
    pub fn take_plaintext(&self, taken: bool) -> anyhow::Result<()> {
        const MODES: [&str; 2] = ["mode: STRICT", "mode: PERMISSIVE"];
        let (from, to) = if taken { (MODES[0], MODES[1]) } else { (MODES[1], MODES[0]) };
        let file = self.sandbox.manifests_directory().join("policies.yaml");
        if std::fs::read_to_string(file)?.contains(from) {
            self.edit("policies.yaml", from, to)?;
        }
        for family in Family::BOTH {
            if taken {
                self.answered_within(SETTLE, pods::OUTSIDER_EAST, pods::NEAR, family)?;
            } else {
                self.refused_within(SETTLE, pods::OUTSIDER_EAST, pods::NEAR, family)?;
            }
        }
        Ok(())
    }

    /// Runs `check` while the shop's policy `no-guests` denies everybody [`ports::SINK`] as well.
    pub fn while_sink_is_denied(
        &mut self,
        check: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        const RULE: &str = "rules: [{from: [{source: {namespaces: [guest]}}]}";
        let more = format!("{RULE}, {{to: [{{operation: {{ports: [\"{}\"]}}}}]}}", ports::SINK);
        self.edit("policies.yaml", RULE, &more)?;
        self.until_sink_is_denied(true)?;
        let outcome = check(self);
        self.edit("policies.yaml", &more, RULE)?;
        self.until_sink_is_denied(false)?;
        outcome
    }

    fn until_sink_is_denied(&self, denied: bool) -> anyhow::Result<()> {
        for pod in [pods::NEAR, pods::FAR] {
            // It answers no client that does not end its side, so this ends by a reset or by the time.
            let request = self.request(pod, Family::V4, ports::SINK)?.within(Duration::from_millis(500));
            let client = self.sandbox.pod(pods::CLIENT)?;
            wait::try_until(
                SETTLE,
                || format!("{pod}'s port: denied {denied}"),
                || match request.from_pod(client) {
                    Ok(reply) if reply.reset() == denied => Ok(()),
                    Ok(reply) => Err(reply.outcome()),
                    Err(error) => Err(error.to_string()),
                },
            )?;
        }
        Ok(())
    }

    /// Waits until a pod stands so; see [`World::pod_state`].
    pub fn until_pod_is(&self, node: &str, pod: &str, wanted: Option<&str>) -> anyhow::Result<()> {
        let node = self.sandbox.node(node)?;
        let what = || format!("{pod} to be {wanted:?}");
        wait::try_until(SETTLE, what, || match self.pod_state(node, pod) {
            Ok(state) if state.as_deref() == wanted => Ok(()),
            Ok(state) => Err(format!("{state:?}")),
            Err(error) => Err(error.to_string()),
        })?;
        Ok(())
    }

    /// How the agent of a node says a pod stands; `None` for one that is not in the mesh.
    pub fn pod_state(&self, node: &Node, pod: &str) -> anyhow::Result<Option<String>> {
        let status = self.mesh.status(node)?;
        let pods = status["pods"].as_object().context("the agent's status has no pods")?;
        let found = pods.values().find(|entry| entry["name"] == pod);
        Ok(found.and_then(|entry| entry["state"].as_str()).map(str::to_owned))
    }

    /// Takes `shop/near` out of the mesh and waits until nothing of it is captured.
    pub fn leave_near(&self) -> anyhow::Result<()> {
        self.edit("shop.yaml", NEAR_IN, NEAR_OUT)?;
        self.until_near_is(None)
    }

    /// Asks for it to be in again.
    pub fn want_near(&self) -> anyhow::Result<()> {
        self.edit("shop.yaml", NEAR_OUT, NEAR_IN)
    }

    /// Takes it in again and waits until it is captured.
    pub fn join_near(&self) -> anyhow::Result<()> {
        self.want_near()?;
        self.until_near_is(Some("enrolled"))
    }

    /// Waits until the agent says this of `shop/near`; `None` is out of the mesh.
    pub fn until_near_is(&self, wanted: Option<&str>) -> anyhow::Result<()> {
        self.until_pod_is("east", "near", wanted)
    }

    /// Writes a setting of a pod's network namespace, named by its path below `/proc/sys`.
    pub fn set(&self, pod: &str, setting: &str, value: &str) -> anyhow::Result<()> {
        let write = || std::fs::write(format!("/proc/sys/{setting}"), value);
        self.sandbox.pod(pod)?.net().run(write)?.with_context(|| format!("{setting}={value} in {pod}"))
    }

    /// A counter of `/proc/net/netstat` of a pod, which has a line of names above each line of values.
    pub fn netstat(&self, pod: &str, counter: &str) -> anyhow::Result<u64> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/netstat");
        let text = self.sandbox.pod(pod)?.net().run(read)??;
        let lines: Vec<&str> = text.lines().collect();
        let found = lines.chunks(2).find_map(|pair| {
            let place = pair.first()?.split(' ').position(|name| name == counter)?;
            pair.get(1)?.split(' ').nth(place)?.parse().ok()
        });
        found.with_context(|| format!("no counter {counter}"))
    }

    /// That no packet with the marker has crossed the link between the nodes so far.
    pub fn ensure_no_marker(&self) -> anyhow::Result<()> {
        let traffic = self.capture.as_ref().context("the capture has ended before")?.traffic();
        ensure!(traffic.markers == 0, "plaintext on the wire: {traffic:?}");
        Ok(())
    }

    /// That in the whole run nothing of the marker crossed the link between the nodes, and that the capture missed nothing.
    pub fn ensure_sealed(&mut self) -> anyhow::Result<()> {
        let traffic = self.capture.take().context("the capture has ended before")?.finish()?;
        ensure!(traffic.missed == 0, "packets were not looked at: {traffic:?}");
        ensure!(traffic.packets > 100, "the run sent hardly anything: {traffic:?}");
        ensure!(traffic.markers == 0, "plaintext on the wire: {traffic:?}");
        Ok(())
    }

    /// How many packets the kernel programs of a node have decided on with this label.
    pub fn counted(&self, node: &str, label: &str) -> anyhow::Result<u64> {
        let decided = |line: &str| line.starts_with("culvert_bpf_packets_total{") && line.contains(label);
        sum(self.sandbox.node(node)?, AGENT_METRICS_PORT, decided)
    }

    /// The same of one pod on that node.
    pub fn counted_of(&self, node: &str, pod: &str, label: &str) -> anyhow::Result<u64> {
        let (namespace, name) = pod.split_once('/').context("no pod's full name")?;
        let pod = format!("namespace=\"{namespace}\",pod=\"{name}\"");
        let decided = |line: &str| {
            line.starts_with("culvert_bpf_pod_packets_total{") && line.contains(&pod) && line.contains(label)
        };
        sum(self.sandbox.node(node)?, AGENT_METRICS_PORT, decided)
    }

    /// The sum, over an agent's samples whose line is wanted.
    pub fn agent_samples<T: FromStr + Sum>(
        &self,
        node: &Node,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<T> {
        sum(node, AGENT_METRICS_PORT, wanted)
    }

    /// The sum of a metric of a node's ztunnel over all its labels; 0 while there is none.
    pub fn ztunnel_metric(&self, node: &str, name: &str) -> anyhow::Result<u64> {
        let of_name = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        sum(self.sandbox.node(node)?, ZTUNNEL_METRICS_PORT, of_name)
    }

    /// That a connection which has ended went through no ztunnel of either node. What both write of another one, which begins afterwards,
    /// stands for the time in which an entry would have been written.
    pub fn ensure_unseen(&self, log: &AccessLog, client: SocketAddr) -> anyhow::Result<()> {
        let later = log.from_now();
        let reply = self.fetch(pods::CLIENT, pods::FAR, Family::V4, ports::HTTP)?;
        let local = reply.local.with_context(|| reply.outcome())?;
        later.of(local, Direction::Outbound, LOG_DEADLINE)?;
        // The other node knows the client's address, and not its port.
        let what = || format!("what {} wrote of {local}", pods::FAR);
        later.find(LOG_DEADLINE, what, |entry| {
            entry.direction == Some(Direction::Inbound) && entry.source.ip() == local.ip()
        })?;
        let seen: Vec<_> = log.entries().into_iter().filter(|entry| entry.source == client).collect();
        ensure!(seen.is_empty(), "{client} went through a ztunnel: {seen:?}");
        Ok(())
    }

    /// That a request from `client` is refused by a policy, and comes to nothing there. Returns what the server's end
    /// wrote about it.
    pub fn ensure_refused(
        &self,
        client: IpAddr,
        policy: &str,
        send: impl FnOnce() -> anyhow::Result<Reply>,
    ) -> anyhow::Result<AccessEntry> {
        let log = self.mesh.access_log().from_now();
        let reply = send()?;
        ensure!(reply.reset(), "the client saw {} in place of a reset", reply.outcome());
        let entry = log.refusal_of(client, LOG_DEADLINE)?;
        ensure!(entry.policy.as_deref() == Some(policy), "refused by {:?}", entry.policy);
        ensure!(entry.path.as_deref() == Some("refused"), "{entry:?}");
        Ok(entry)
    }
}

/// The sum of those samples of a process's metrics whose line is wanted.
fn sum<T: FromStr + Sum>(node: &Node, port: u16, wanted: impl Fn(&str) -> bool) -> anyhow::Result<T> {
    let reply = Fetch::new(format!("http://127.0.0.1:{port}/metrics")).from_node(node)?;
    ensure!(reply.ok(), "{}", reply.outcome());
    let samples = reply.body.lines().filter(|line| wanted(line));
    Ok(samples.filter_map(|line| line.rsplit(' ').next()?.parse::<T>().ok()).sum())
}

/// Sends the marker to a server that sends back what comes, and receives it.
pub fn echoes(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(MARKER.as_bytes())?;
    let mut answer = vec![0; MARKER.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == MARKER.as_bytes(), "{answer:?}");
    Ok(())
}

/// The identity of a service account in the tests' trust domain.
pub fn identity(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}
