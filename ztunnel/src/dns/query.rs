//! One query: from the mesh's state, or from others.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::dns::Code;
use mesh::names::{self, Answer, Client, Search};
use mesh::{Namespace, Workload};

use super::forward::Forward;
use super::message::{Family, Request, Transport, Unusable};
use crate::pods::Pod;
use crate::proxy::Node;
use crate::telemetry::{DnsLabels, ReasonLabel};

/// A query that was read and counted.
pub(crate) struct Query {
    pub(super) request: Request,
    labels: DnsLabels,
}

/// It is none; with what its sender is to be told.
pub(crate) struct NoQuery(pub(super) Option<Vec<u8>>);

impl Query {
    /// Reads and counts what came.
    pub(crate) fn read(
        node: &Node,
        pod: &Pod,
        bytes: Vec<u8>,
        transport: Transport,
    ) -> Result<Self, NoQuery> {
        let error = match Request::read(bytes, transport) {
            Ok(request) => {
                let own = pod.own_now();
                let workload = own.as_ref().map(|own| &*own.workload);
                let labels = DnsLabels::new(request.question(), transport, &pod.namespace, workload);
                node.metrics.shared.dns.requests.get_or_create(&labels).inc();
                return Ok(Self { request, labels });
            }
            Err(error) => error,
        };
        let reason = match error {
            Unusable::Short(_) => "short",
            Unusable::Answer => "answer",
            Unusable::Question(_) => "question",
        };
        node.metrics.shared.dns.unusable.get_or_create(&ReasonLabel { reason }).inc();
        tracing::debug!(target: "dns", pod = %pod.name, namespace = %pod.namespace, %error, "no query");
        Err(NoQuery(error.answer()))
    }

    /// The mesh's answer, if there is one that needs no waiting.
    pub(crate) fn answer_now(&self, node: &Node, pod: &Pod) -> Option<Vec<u8>> {
        let (name, family) = self.request.lookup()?;
        let own = pod.own_now()?;
        self.of_mesh(node, pod, &own.workload, &name, family)
    }

    /// The answer, whatever it takes. `asked`: the server that the pod asked, if that is known.
    pub(crate) async fn answer(
        self,
        node: &Arc<Node>,
        pod: &Arc<Pod>,
        client: IpAddr,
        asked: Option<SocketAddr>,
    ) -> Vec<u8> {
        let (Some(_place), Ok(_turn)) = (pod.share.admit(), pod.dns.queries.try_acquire()) else {
            return self.failed(node, pod, "OVERLOAD", &"the pod's share of waiting queries is taken");
        };
        if let Some((name, family)) = self.request.lookup() {
            // What is not known yet may be a name of the mesh.
            let own = match pod.own().await {
                Ok(own) => own,
                Err(error) => return self.failed(node, pod, "NO_CONFIGURATION", &error),
            };
            if let Some(answer) = self.of_mesh(node, pod, &own.workload, &name, family) {
                return answer;
            }
        }
        let Self { request, labels } = self;
        let forward = Forward { node: node.clone(), pod: pod.clone(), request, client, labels };
        let forward = Arc::new(forward);
        match forward.run(asked).await {
            Ok(reply) => {
                tracing::debug!(target: "dns", pod = %pod.name, namespace = %pod.namespace, question = %Asked(&forward.request), "forwarded");
                forward.request.returned(reply)
            }
            Err(error) => {
                tracing::info!(target: "dns", pod = %pod.name, namespace = %pod.namespace, question = %Asked(&forward.request), %error, "no server answers");
                forward.request.refusal(Code::SERVER)
            }
        }
    }

    fn failed(&self, node: &Node, pod: &Pod, reason: &'static str, error: &dyn std::fmt::Display) -> Vec<u8> {
        node.metrics.shared.dns.unusable.get_or_create(&ReasonLabel { reason }).inc();
        tracing::debug!(target: "dns", pod = %pod.name, namespace = %pod.namespace, question = %Asked(&self.request), %error, "not answered");
        self.request.refusal(Code::SERVER)
    }

    fn of_mesh(
        &self,
        node: &Node,
        pod: &Pod,
        workload: &Workload,
        name: &str,
        family: Family,
    ) -> Option<Vec<u8>> {
        let answer = resolve(node, pod, workload, name)?;
        tracing::debug!(target: "dns", pod = %pod.name, namespace = %pod.namespace, name, ?family, addresses = ?answer.addresses, "of the mesh");
        Some(self.request.answer(&answer, family, usize::from(rand::random::<u16>())))
    }
}

fn resolve(node: &Node, pod: &Pod, workload: &Workload, name: &str) -> Option<Answer> {
    let domain = &node.dns.cluster_domain;
    let resolver = pod.dns.resolver();
    let by_default: Search;
    let search = match &resolver {
        Some(resolver) => &resolver.search,
        None => {
            let namespace: &Namespace = &pod.namespace;
            by_default = Search::of_cluster(namespace, domain);
            &by_default
        }
    };
    let client =
        Client { namespace: &pod.namespace, network: &workload.network, search, cluster_domain: domain };
    node.mesh.read(|state| names::resolve(state, &client, name))
}

/// What was asked, for people.
struct Asked<'a>(&'a Request);

impl std::fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.question() {
            Some(question) => write!(f, "{} {}", question.name, question.kind),
            None => f.write_str("nothing"),
        }
    }
}
