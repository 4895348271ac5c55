//! The client of a control plane: delta xDS over one stream, for ever (Istio contract 2.3).
//!
//! [`client`] makes two halves. [`XdsClient::run`] keeps a stream up and is given to a task; what it receives
//! comes out of the [`Subscription`] as [`Batch`]es, one at a time: the next push is read when the last batch
//! is answered. What a consumer holds stays in force while the control plane is away.

mod demand;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::time::Duration;

use mesh::state::RejectedAddress;
use mesh::{Authorization, Service, State, Workload};
use prost::Message;
use prost_types::{Any, ListValue, Struct, Value, value::Kind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use demand::Named;
pub use demand::{DemandError, Demander};

use crate::causes::Causes;
use crate::channel::{ConnectError, Credentials, Server, connect};
use crate::convert::{self, Marker, Rejected, Resource, policy_name};
use crate::delta::{ClientState, ClientViolation, Push, Rejection};
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::discovery::{DeltaDiscoveryRequest, Node};
use crate::type_url::ResourceType;

/// The longest message in bytes (contract 2.3): a first push has all of the mesh.
pub const MAX_MESSAGE: usize = 200 * 1024 * 1024;

/// How long a control plane may take to answer the call that opens a stream. Istio's answers with its first push,
/// which waits for its turn when a whole mesh reconnects.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait before the next attempt: doubled with each, from 10 ms to 15 s (contract 2.8).
#[derive(Debug)]
struct Backoff(Duration);

impl Backoff {
    const MIN: Duration = Duration::from_millis(10);
    const MAX: Duration = Duration::from_secs(15);

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::MAX);
        pause
    }
}

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct XdsConfig {
    /// The control plane.
    pub server: Server,
    /// What we say of ourselves.
    pub credentials: Credentials,
    /// Who we are; see [`node`].
    pub node: Node,
    /// What to subscribe to, in this order.
    pub types: Vec<ResourceType>,
    /// Asks for workloads and services by name instead of for all of them; default: for all.
    pub on_demand: Option<Demander>,
}

/// A node's description of itself; `metadata` as in contract 2.3 (`NAME`, `NODE_NAME`, ...).
pub fn node(id: &str, metadata: impl IntoIterator<Item = (String, serde_json::Value)>) -> Node {
    Node { id: id.to_owned(), cluster: String::new(), metadata: Some(to_struct(metadata)) }
}

fn to_struct(object: impl IntoIterator<Item = (String, serde_json::Value)>) -> Struct {
    Struct { fields: object.into_iter().map(|(name, value)| (name, to_value(value))).collect() }
}

fn to_value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // JSON's numbers are what a double holds.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(to_value).collect() })
        }
        Json::Object(object) => Kind::StructValue(to_struct(object)),
    };
    Value { kind: Some(kind) }
}

/// How the client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdsStatus {
    /// There is a stream.
    pub connected: bool,
    /// A push of every type has been applied and answered, on this stream or an earlier one: what a process
    /// waits for before it serves.
    pub synced: bool,
    /// How many streams or attempts at one have ended.
    pub terminations: u64,
    /// The same, by how.
    pub endings: Endings,
}

/// How streams and attempts at one have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endings {
    /// There was no stream: no connection, or no answer on it.
    pub connection_error: u64,
    /// The server ended it with an error, or broke the protocol.
    pub error: u64,
    /// The server ended it without an error, as one does that restarts.
    pub complete: u64,
}

/// The receiving half.
#[derive(Debug)]
pub struct Subscription {
    /// What was pushed. The client ends when it is dropped.
    pub batches: mpsc::Receiver<Batch>,
    /// How the client is.
    pub status: watch::Receiver<XdsStatus>,
}

/// A push, to be applied and answered. One that is dropped without an answer ends the stream, and what it
/// carried comes again with the next.
#[derive(Debug)]
pub struct Batch {
    /// The type.
    pub kind: ResourceType,
    /// What is new or changed.
    pub updates: Vec<Update>,
    /// The names of what is gone.
    pub removed: Vec<String>,
    /// The length of the message in bytes.
    pub bytes: usize,
    /// When it was there as a whole, not yet read.
    pub received: Instant,
    answer: oneshot::Sender<Vec<Rejection>>,
}

/// A resource that is new or changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its content as it came, for whoever hands it on.
    pub content: Any,
    /// Its content as it was read. One that was not is rejected without the consumer's doing.
    pub outcome: Result<Resource, Rejected>,
}

impl Batch {
    /// Brings a mesh state up to date: policies that could not be read come to refuse what they apply to, workloads and
    /// services that could not be read are refused to be connected to. Pods are no part of the state.
    pub fn apply_to(&self, state: &mut State) {
        for update in &self.updates {
            match &update.outcome {
                Ok(Resource::Workload(workload)) => state.upsert_workload(Workload::clone(workload)),
                Ok(Resource::Service(service)) => state.upsert_service(Service::clone(service)),
                Ok(Resource::Policy(policy)) => state.upsert_policy(Authorization::clone(policy)),
                Ok(Resource::Pod(_) | Resource::TrustBundle(_)) | Err(Rejected { marker: None, .. }) => {}
                Err(Rejected { marker: Some(Marker::Policy(policy)), .. }) => {
                    state.reject_policy(policy.clone());
                }
                Err(Rejected { marker: Some(Marker::Address(address)), .. }) => {
                    state.reject_address(RejectedAddress::clone(address));
                }
            }
        }
        for name in &self.removed {
            match self.kind {
                ResourceType::Address => {
                    state.remove_address(name);
                }
                ResourceType::Authorization => {
                    state.remove_policy(&policy_name(name));
                }
                ResourceType::NodePod | ResourceType::TrustBundle => {}
            }
        }
    }

    /// Says that the batch is applied.
    pub fn accept(self) {
        self.reject(Vec::new());
    }

    /// Says that the batch is applied but for these.
    pub fn reject(self, rejected: Vec<Rejection>) {
        // Nobody waits for it any more when the stream has been given up; it is told anew on the next.
        let _ = self.answer.send(rejected);
    }
}

/// Makes the two halves of a client.
pub fn client(config: XdsConfig) -> (XdsClient, Subscription) {
    // One batch at a time: the client waits for its answer.
    let (batches, batches_out) = mpsc::channel(1);
    let (status, status_out) = watch::channel(XdsStatus::default());
    let mut state = ClientState::new(config.node.clone(), &config.types);
    if config.on_demand.is_some() {
        state.ask_by_name(ResourceType::Address);
    }
    let client = XdsClient { config, state, batches, status };
    (client, Subscription { batches: batches_out, status: status_out })
}

impl XdsClient {
    /// Takes note that the consumer holds these resources from an earlier process: the control plane sends each anew or says that it
    /// is gone.
    pub fn hold(&mut self, kind: ResourceType, names: impl IntoIterator<Item = String>) {
        self.state.hold(kind, names);
    }
}

/// The half that keeps a stream up.
#[derive(Debug)]
pub struct XdsClient {
    config: XdsConfig,
    state: ClientState,
    batches: mpsc::Sender<Batch>,
    status: watch::Sender<XdsStatus>,
}

/// Why a stream has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the control plane ended the stream ({:?}): {}{}", .0.code(), .0.message(), behind(.0))]
    Status(Box<Status>),
    #[error("the control plane has not answered within {} s", OPEN_TIMEOUT.as_secs())]
    Silent,
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane sent {0}")]
    Violation(#[from] ClientViolation),
    #[error("a batch was dropped without an answer")]
    Unanswered,
    /// Nobody is there to be told: the client's own end.
    #[error("nobody listens any more")]
    Abandoned,
}

/// What led to a status that this side made up, such as of a broken connection.
fn behind(status: &Status) -> String {
    std::error::Error::source(status).map_or_else(String::new, |cause| format!(": {}", Causes(cause)))
}

impl Ended {
    fn count(&self, endings: &mut Endings) {
        match self {
            Self::Connect(_) | Self::Silent => endings.connection_error += 1,
            Self::Status(_) | Self::Violation(_) | Self::Unanswered | Self::Abandoned => endings.error += 1,
            Self::Closed => endings.complete += 1,
        }
    }
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl XdsClient {
    /// Keeps a stream up until the [`Subscription`] is dropped.
    pub async fn run(mut self) {
        let abandoned = self.batches.clone();
        tokio::select! {
            () = abandoned.closed() => {}
            never = self.reconnect_for_ever() => match never {},
        }
    }

    async fn reconnect_for_ever(&mut self) -> Infallible {
        let mut backoff = Backoff(Backoff::MIN);
        loop {
            let mut heard = false;
            let Err(ended) = self.serve_stream(&mut heard).await;
            self.status.send_modify(|status| {
                status.connected = false;
                status.terminations += 1;
                ended.count(&mut status.endings);
            });
            // A server that had something to say is not one to be spared.
            if heard {
                backoff = Backoff(Backoff::MIN);
            }
            let pause = backoff.next();
            tracing::warn!(
                server = %self.config.server,
                error = %Causes(&ended),
                retry_in = ?pause,
                "no configuration stream"
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream, to its end. Sets `heard` with the first push.
    async fn serve_stream(&mut self, heard: &mut bool) -> Result<Infallible, Ended> {
        let channel = connect(&self.config.server).await?;
        let on_demand = self.config.on_demand.clone();
        let by_name = on_demand.as_ref().map(Demander::names_for_new_stream).unwrap_or_default();
        let subscriptions = self.state.connect(&by_name);
        // Room for the subscriptions and one answer: there is hardly more to say at a time.
        let (requests, outgoing) = mpsc::channel(subscriptions.len() + 1);
        for subscription in subscriptions {
            requests.send(subscription).await.map_err(|_| Ended::Closed)?;
        }
        let mut request = Request::new(ReceiverStream::new(outgoing));
        self.config.credentials.apply(request.metadata_mut()).await?;
        let mut stub = stub(channel);
        let opened = timeout(OPEN_TIMEOUT, stub.delta_aggregated_resources(request)).await;
        let mut stream = opened.map_err(|_| Ended::Silent)??.into_inner();
        self.status.send_modify(|status| status.connected = true);
        tracing::info!(server = %self.config.server, "configuration stream established");
        loop {
            let response = tokio::select! {
                response = stream.message() => response?.ok_or(Ended::Closed)?,
                (subscribe, unsubscribe) = next_names(on_demand.as_ref()) => {
                    let request = self.state.ask(ResourceType::Address, subscribe, unsubscribe);
                    requests.send(request).await.map_err(|_| Ended::Closed)?;
                    continue;
                }
            };
            let received = Instant::now();
            *heard = true;
            let bytes = response.encoded_len();
            let push = self.state.receive(response)?;
            let answer = self.apply(push, bytes, received).await?;
            requests.send(answer).await.map_err(|_| Ended::Closed)?;
            let synced = self.state.is_synced();
            self.status.send_if_modified(|status| synced && !std::mem::replace(&mut status.synced, synced));
        }
    }

    /// Gives a push to the consumer and waits for what it says.
    async fn apply(
        &mut self,
        push: Push,
        bytes: usize,
        received: Instant,
    ) -> Result<DeltaDiscoveryRequest, Ended> {
        let Push { kind, resources, removed, receipt } = push;
        let on_demand = self.config.on_demand.clone().filter(|_| kind == ResourceType::Address);
        let named = on_demand.map(|demander| (demander, Named::of(&resources, &removed)));
        let updates: Vec<Update> = resources.into_iter().map(|resource| read(kind, resource)).collect();
        let mut rejected: Vec<Rejection> = updates.iter().filter_map(unreadable).collect();
        let (answer, answered) = oneshot::channel();
        let batch = Batch { kind, updates, removed, bytes, received, answer };
        self.batches.send(batch).await.map_err(|_| Ended::Abandoned)?;
        rejected.extend(answered.await.map_err(|_| Ended::Unanswered)?);
        for rejection in &rejected {
            tracing::warn!(%kind, resource = rejection.name, reason = rejection.reason, "resource rejected");
        }
        if let Some((demander, named)) = named {
            demander.settle(named.answers(&rejected));
        }
        Ok(self.state.answer(receipt, &rejected))
    }
}

/// What is to be asked for next, where things are asked for by name. Cancel safe.
async fn next_names(on_demand: Option<&Demander>) -> (Vec<String>, Vec<String>) {
    match on_demand {
        Some(demander) => demander.next().await,
        None => std::future::pending().await,
    }
}

fn stub(channel: Channel) -> AggregatedDiscoveryServiceClient<Channel> {
    AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

fn read(kind: ResourceType, resource: crate::proto::discovery::Resource) -> Update {
    let content = resource.resource.unwrap_or_default();
    let outcome = convert::read(kind, &resource.name, &resource.aliases, &content);
    Update { name: resource.name, version: resource.version, content, outcome }
}

fn unreadable(update: &Update) -> Option<Rejection> {
    let error = update.outcome.as_ref().err()?;
    Some(Rejection { name: update.name.clone(), reason: error.error.to_string() })
}
