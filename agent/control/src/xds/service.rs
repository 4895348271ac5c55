//! The gRPC service: who may ask for what, and one task a stream.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::delta::Heard;
use api::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::type_url::ResourceType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::store::ResourceStore;
use super::stream::Conversation;

/// Streams one client may hold at a time. One is in use; the others are those of a client that died without a word, until
/// the transport's keepalive notices, and of one that is being replaced.
const STREAMS_PER_CLIENT: usize = 8;
/// A request: a subscription names every resource the client holds, some 100 bytes each.
const REQUEST_LIMIT: usize = 64 << 20;
/// A push the transport does not take for this long ends the stream.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is asked whether the client may still be here.
const STANDING_PERIOD: Duration = Duration::from_secs(2);

/// Who is at the other end, as the server has made sure of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// For people, and for counting streams.
    pub name: String,
    /// The node whose own resources it sees; `None`: only those that are for all.
    pub node: Option<String>,
    /// The types it may subscribe to.
    pub kinds: &'static [ResourceType],
}

/// Decides who may ask.
#[tonic::async_trait]
pub trait Access: Send + Sync + 'static {
    /// The client that sends this metadata, on a connection that `extensions` tell of.
    ///
    /// # Errors
    /// What an unknown one is told.
    async fn admit(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<Client, Status>;

    /// Whether a stream that was begun with this metadata may go on.
    async fn still_admits(&self, metadata: &MetadataMap) -> bool;
}

/// Everybody who reaches the socket is the node's proxy: for a socket that checks who connects.
#[derive(Clone, Copy, Debug)]
pub struct Local;

#[tonic::async_trait]
impl Access for Local {
    async fn admit(&self, _metadata: &MetadataMap, _extensions: &Extensions) -> Result<Client, Status> {
        Ok(Client { name: "local".to_owned(), node: None, kinds: &ResourceType::ZTUNNEL })
    }

    async fn still_admits(&self, _metadata: &MetadataMap) -> bool {
        true
    }
}

/// The service over a store.
#[derive(Debug)]
pub struct DeltaAds<A> {
    store: ResourceStore,
    access: Arc<A>,
    streams: Streams,
}

/// The gRPC service that tells clients let in by `access` of what is in `store`.
pub fn service<A: Access>(store: ResourceStore, access: A) -> AggregatedDiscoveryServiceServer<DeltaAds<A>> {
    let service = DeltaAds { store, access: Arc::new(access), streams: Streams::default() };
    AggregatedDiscoveryServiceServer::new(service).max_decoding_message_size(REQUEST_LIMIT)
}

#[tonic::async_trait]
impl<A: Access> AggregatedDiscoveryService for DeltaAds<A> {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn futures::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (metadata, extensions, requests) = request.into_parts();
        let client = self.access.admit(&metadata, &extensions).await?;
        drop(extensions);
        let place = self.streams.enter(&client.name)?;
        // One push a type is under way at a time, so that these places never all fill up but by a broken client.
        let (sender, receiver) = mpsc::channel(ResourceType::AGENT.len());
        let stream = Stream { access: Arc::clone(&self.access), metadata, sender, _place: place };
        tracing::info!(client = %client.name, "a client of the mesh's state has connected");
        tokio::spawn(stream.serve(client, self.store.clone(), requests));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Stream<A> {
    access: Arc<A>,
    metadata: MetadataMap,
    sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    _place: Place,
}

impl<A: Access> Stream<A> {
    async fn serve(self, client: Client, store: ResourceStore, requests: Streaming<DeltaDiscoveryRequest>) {
        let name = client.name.clone();
        match self.converse(client, &store, requests).await {
            Ok(()) => tracing::info!(client = %name, "a client of the mesh's state has left"),
            Err(status) => {
                tracing::warn!(client = %name, code = ?status.code(), "a client's stream ends: {}", status.message());
                // The transport may be what fails; then nobody is there to be told.
                let _ = tokio::time::timeout(SEND_TIMEOUT, self.sender.send(Err(status))).await;
            }
        }
    }

    async fn converse(
        &self,
        client: Client,
        store: &ResourceStore,
        mut requests: Streaming<DeltaDiscoveryRequest>,
    ) -> Result<(), Status> {
        let mut snapshots = store.watch();
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if snapshot.is_closed() {
            return Err(going_down());
        }
        let mut conversation = Conversation::new(client, snapshot);
        let mut standing = tokio::time::interval(STANDING_PERIOD);
        loop {
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => hear(&mut conversation, request)?,
                    None => return Ok(()),
                },
                changed = snapshots.changed() => {
                    let latest = Arc::clone(&snapshots.borrow_and_update());
                    if changed.is_err() || latest.is_closed() {
                        return Err(going_down());
                    }
                    conversation.follow(latest);
                }
                _ = standing.tick() => {
                    if !self.access.still_admits(&self.metadata).await {
                        return Err(Status::unauthenticated("the token was revoked"));
                    }
                }
                () = self.sender.closed() => return Ok(()),
            }
            while let Some(push) = conversation.next_push() {
                let resources = push.resources.len();
                let removed = push.removed_resources.len();
                tracing::debug!(client = %conversation.client().name, kind = %push.type_url, resources, removed, "push");
                match tokio::time::timeout(SEND_TIMEOUT, self.sender.send(Ok(push))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(Status::deadline_exceeded("pushes are not taken")),
                }
            }
        }
    }
}

fn going_down() -> Status {
    Status::unavailable("the server is going down")
}

fn hear(conversation: &mut Conversation, request: DeltaDiscoveryRequest) -> Result<(), Status> {
    let client = conversation.client();
    if ResourceType::from_url(&request.type_url).is_some_and(|kind| !client.kinds.contains(&kind)) {
        return Err(Status::permission_denied(format!("{} is not for {}", request.type_url, client.name)));
    }
    let name = client.name.clone();
    match conversation.state.receive(request) {
        Ok(Heard::Nack { kind, message }) => {
            tracing::warn!(client = %name, %kind, "a client rejects resources and keeps its last good state of them: {message}");
            Ok(())
        }
        Ok(Heard::Subscribed(kind)) => {
            tracing::debug!(client = %name, %kind, "subscribed");
            Ok(())
        }
        Ok(Heard::Ack(_) | Heard::Stale(_)) => Ok(()),
        Err(violation) => Err(Status::invalid_argument(violation.to_string())),
    }
}

/// How many streams each client holds.
#[derive(Clone, Debug, Default)]
struct Streams(Arc<Mutex<HashMap<String, usize>>>);

impl Streams {
    fn enter(&self, client: &str) -> Result<Place, Status> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client.to_owned()).or_default();
        if *count >= STREAMS_PER_CLIENT {
            let message =
                format!("{client} has {count} streams already, which is as many as a client may have");
            return Err(Status::resource_exhausted(message));
        }
        *count += 1;
        Ok(Place { streams: self.clone(), client: client.to_owned() })
    }
}

/// A stream that counts until it ends.
#[derive(Debug)]
struct Place {
    streams: Streams,
    client: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}
