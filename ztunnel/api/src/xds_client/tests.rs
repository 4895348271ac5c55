//! The client against a control plane that says what the test wants, over a unix socket.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use mesh::authorize::{Attempt, Reason, authorize};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Response, Streaming};

use super::*;
use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::discovery::{DeltaDiscoveryResponse, Resource as WireResource};
use crate::type_url::{ADDRESS, AUTHORIZATION};

/// What a test waits for happens, or the test fails instead of hanging.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), event).await.expect("it never happened")
}

/// A stream a client has opened.
struct Opened {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    authorization: Option<String>,
    cluster_id: Option<String>,
}

impl Opened {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        soon(self.requests.message()).await.unwrap().unwrap()
    }

    async fn push(&self, nonce: &str, kind: &str, resources: Vec<(String, Any)>, removed: &[&str]) {
        self.send(nonce, kind, resources, removed, &[]).await;
    }

    /// The same; with names and what these are also called by.
    async fn push_with_aliases(
        &self,
        nonce: &str,
        kind: &str,
        resources: Vec<(String, Any)>,
        aliases: &[(&str, &str)],
    ) {
        self.send(nonce, kind, resources, &[], aliases).await;
    }

    async fn send(
        &self,
        nonce: &str,
        kind: &str,
        resources: Vec<(String, Any)>,
        removed: &[&str],
        aliases: &[(&str, &str)],
    ) {
        let resource = |(name, content): (String, Any)| WireResource {
            aliases: aliases.iter().filter(|(of, _)| *of == name).map(|(_, one)| one.to_string()).collect(),
            name,
            version: "1".to_owned(),
            resource: Some(content),
        };
        let response = DeltaDiscoveryResponse {
            type_url: kind.to_owned(),
            nonce: nonce.to_owned(),
            resources: resources.into_iter().map(resource).collect(),
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
    }
}

struct ControlPlane(mpsc::Sender<Opened>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for ControlPlane {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let header = |name| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (responses, outgoing) = mpsc::channel(8);
        let (authorization, cluster_id) = (header("authorization"), header("clusterid"));
        let opened = Opened { authorization, cluster_id, requests: request.into_inner(), responses };
        self.0.send(opened).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A control plane at a socket of its own and a client of it.
struct World {
    directory: TempDir,
    opened: mpsc::Receiver<Opened>,
    subscription: Subscription,
    client: JoinHandle<()>,
    _server: JoinHandle<()>,
}

fn serve(socket: &Path) -> (mpsc::Receiver<Opened>, JoinHandle<()>) {
    let (opened, opened_out) = mpsc::channel(8);
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let service = AggregatedDiscoveryServiceServer::new(ControlPlane(opened));
    let server = tonic::transport::Server::builder().add_service(service);
    let task = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    (opened_out, task)
}

fn config(directory: &Path) -> XdsConfig {
    XdsConfig {
        server: Server::Unix(directory.join("xds.sock")),
        credentials: Credentials {
            token: Some(directory.join("token").into()),
            cluster_id: Some("Kubernetes".to_owned()),
            ..Credentials::default()
        },
        node: node("ztunnel~east", [("NODE_NAME".to_owned(), "east".into())]),
        types: ResourceType::ZTUNNEL.to_vec(),
        on_demand: None,
    }
}

impl World {
    fn new() -> Self {
        Self::asking(None)
    }

    fn asking(on_demand: Option<Demander>) -> Self {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("token"), "first\n").unwrap();
        let (opened, server) = serve(&directory.path().join("xds.sock"));
        let (client, subscription) = client(XdsConfig { on_demand, ..config(directory.path()) });
        Self { directory, opened, subscription, client: tokio::spawn(client.run()), _server: server }
    }

    /// The next stream, its subscriptions heard.
    async fn open(&mut self) -> (Opened, [DeltaDiscoveryRequest; 2]) {
        let mut opened = soon(self.opened.recv()).await.unwrap();
        let requests = [opened.request().await, opened.request().await];
        assert_eq!([&requests[0].type_url, &requests[1].type_url], [AUTHORIZATION, ADDRESS]);
        (opened, requests)
    }

    async fn batch(&mut self) -> Batch {
        soon(self.subscription.batches.recv()).await.unwrap()
    }

    async fn status(&mut self, wanted: impl Fn(&XdsStatus) -> bool) -> XdsStatus {
        *soon(self.subscription.status.wait_for(wanted)).await.unwrap()
    }
}

fn web() -> (String, Any) {
    let wire = crate::proto::workload::Workload {
        uid: "web".to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![vec![10, 0, 0, 2]],
        ..Default::default()
    };
    convert::workload_resource(&convert::workload_from_proto(wire).unwrap())
}

fn attempt() -> Attempt {
    Attempt {
        source: None,
        source_ip: "10.0.0.1".parse().unwrap(),
        workload: "web".into(),
        destination: "10.0.0.2:80".parse().unwrap(),
    }
}

#[tokio::test]
async fn a_node_is_synced_when_a_push_of_every_type_is_applied_and_not_before() {
    let mut world = World::new();
    let (mut opened, requests) = world.open().await;
    assert_eq!(opened.authorization.as_deref(), Some("Bearer first"));
    assert_eq!(opened.cluster_id.as_deref(), Some("Kubernetes"));
    assert_eq!(requests[0].node.as_ref().unwrap().id, "ztunnel~east");
    let status = world.status(|status| status.connected).await;
    assert!(!status.synced);
    let mut state = State::new();
    opened.push("n1", AUTHORIZATION, vec![], &[]).await;
    let batch = world.batch().await;
    batch.apply_to(&mut state);
    batch.accept();
    assert_eq!(opened.request().await.response_nonce, "n1");
    assert!(!world.subscription.status.borrow().synced);
    opened.push("n2", ADDRESS, vec![web()], &[]).await;
    let batch = world.batch().await;
    batch.apply_to(&mut state);
    batch.accept();
    let answer = opened.request().await;
    assert_eq!((answer.response_nonce.as_str(), answer.error_detail), ("n2", None));
    world.status(|status| status.synced).await;
    assert!(state.workload(&"web".into()).is_some());
    opened.push("n3", ADDRESS, vec![], &["web", "never/was"]).await;
    let batch = world.batch().await;
    batch.apply_to(&mut state);
    batch.accept();
    assert!(state.workload(&"web".into()).is_none());
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_is_named_in_the_answer_and_refuses_while_the_rest_works() {
    let mut world = World::new();
    let (mut opened, _) = world.open().await;
    let wire = crate::proto::security::Authorization {
        name: "p".to_owned(),
        namespace: "shop".to_owned(),
        scope: 1,
        action: 9,
        ..Default::default()
    };
    let broken = Any { type_url: AUTHORIZATION.to_owned(), value: wire.encode_to_vec() };
    let mut state = State::new();
    opened.push("n1", ADDRESS, vec![web()], &[]).await;
    let batch = world.batch().await;
    batch.apply_to(&mut state);
    batch.accept();
    opened.request().await;
    assert!(authorize(&state, attempt()).decision.is_ok());
    opened.push("n2", AUTHORIZATION, vec![("shop/p".to_owned(), broken.clone())], &[]).await;
    let batch = world.batch().await;
    assert_eq!(batch.updates[0].content, broken, "an agent hands on what it cannot read");
    batch.apply_to(&mut state);
    batch.accept();
    let detail = opened.request().await.error_detail.unwrap();
    assert!(detail.message.starts_with("shop/p: action has 9"), "{}", detail.message);
    let refusal = authorize(&state, attempt()).decision.unwrap_err();
    assert_eq!(refusal.policy.unwrap().to_string(), "shop/p");
    assert!(matches!(refusal.reason, Reason::UnreadablePolicy(_)));
    world.status(|status| status.synced).await;
    opened.push("n3", AUTHORIZATION, vec![], &["shop/p"]).await;
    let batch = world.batch().await;
    batch.apply_to(&mut state);
    batch.accept();
    assert!(authorize(&state, attempt()).decision.is_ok());
}

/// What a connection of a client at 10.0.0.1 to an address comes to.
fn route_to(state: &State, to: &str) -> mesh::route::Route {
    let client = crate::proto::workload::Workload {
        uid: "client".to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    };
    let client = convert::workload_from_proto(client).unwrap();
    mesh::route::route(state, &client, to.parse().unwrap(), 1)
}

#[tokio::test]
async fn an_address_that_cannot_be_read_is_named_and_refused_and_the_node_serves_all_the_same() {
    use mesh::route::{Refused, Route};
    let mut world = World::new();
    let (mut opened, _) = world.open().await;
    let mut state = State::new();
    opened.push("n1", AUTHORIZATION, vec![], &[]).await;
    world.batch().await.accept();
    opened.request().await;
    let broken = |name: &str, address: u8| {
        let wire = crate::proto::workload::Workload {
            uid: name.to_owned(),
            addresses: vec![vec![10, 0, 0, address]],
            tunnel_protocol: 2,
            ..Default::default()
        };
        let content = crate::proto::workload::address::Type::Workload(wire);
        let address = crate::proto::workload::Address { r#type: Some(content) };
        (name.to_owned(), Any { type_url: ADDRESS.to_owned(), value: address.encode_to_vec() })
    };
    let noise = Any { type_url: ADDRESS.to_owned(), value: vec![0xff] };
    let resources = vec![broken("old", 7), web(), ("shop/noise".to_owned(), noise)];
    opened.push_with_aliases("n2", ADDRESS, resources, &[("shop/noise", "/10.9.0.1")]).await;
    let batch = world.batch().await;
    batch.apply_to(&mut state);
    batch.accept();
    let detail = opened.request().await.error_detail.unwrap().message;
    assert!(detail.contains("old: its tunnel protocol is sidecar mTLS"), "{detail}");
    assert!(detail.contains("shop/noise: not a message"), "{detail}");
    assert!(!detail.contains("web"), "{detail}");
    world.status(|status| status.synced).await;
    for (to, resource) in [("10.0.0.7:80", "old"), ("10.9.0.1:80", "shop/noise")] {
        let Route::Refused(Refused::Unreadable(rejected)) = route_to(&state, to) else { panic!("{to}") };
        assert_eq!(rejected.resource, resource);
    }
    assert!(matches!(route_to(&state, "10.0.0.2:80"), Route::Plaintext(_)), "the rest of the push holds");
    opened.push("n3", ADDRESS, vec![], &["old", "shop/noise"]).await;
    let batch = world.batch().await;
    batch.apply_to(&mut state);
    batch.accept();
    for to in ["10.0.0.7:80", "10.9.0.1:80"] {
        assert!(matches!(route_to(&state, to), Route::Passthrough(_)), "{to}");
    }
}

#[tokio::test]
async fn what_the_consumer_rejects_is_named_in_the_answer() {
    let mut world = World::new();
    let (mut opened, _) = world.open().await;
    opened.push("n1", ADDRESS, vec![web()], &[]).await;
    let rejection = Rejection { name: "web".to_owned(), reason: "too many".to_owned() };
    world.batch().await.reject(vec![rejection]);
    assert_eq!(opened.request().await.error_detail.unwrap().message, "web: too many");
}

#[tokio::test]
async fn a_new_stream_says_what_is_held_and_carries_the_token_of_now() {
    let mut world = World::new();
    let (mut opened, requests) = world.open().await;
    assert!(requests[1].initial_resource_versions.is_empty());
    opened.push("n1", ADDRESS, vec![web()], &[]).await;
    world.batch().await.accept();
    opened.request().await;
    fs::write(world.directory.path().join("token"), "second").unwrap();
    opened.responses.send(Err(Status::unavailable("rolling over"))).await.unwrap();
    let (opened, requests) = world.open().await;
    assert_eq!(opened.authorization.as_deref(), Some("Bearer second"));
    let held = BTreeMap::from([("web".to_owned(), "1".to_owned())]);
    assert_eq!(requests[1].initial_resource_versions, held);
    let status = world.status(|status| status.connected && status.terminations > 0).await;
    assert_eq!(status.terminations, 1);
}

/// A task that waits for what `name` is.
fn ask(demander: &Demander, name: &'static str) -> JoinHandle<Result<(), DemandError>> {
    let demander = demander.clone();
    tokio::spawn(async move { demander.demand(name, Duration::from_secs(20)).await })
}

#[tokio::test]
async fn on_demand_nothing_is_asked_for_before_somebody_needs_it_and_readiness_does_not_wait_for_it() {
    let demander = Demander::default();
    let mut world = World::asking(Some(demander.clone()));
    let (mut opened, requests) = world.open().await;
    let star = ["*".to_owned()];
    assert_eq!(
        (&requests[0].resource_names_subscribe[..], &requests[0].resource_names_unsubscribe[..]),
        (&[][..], &[][..])
    );
    assert_eq!(
        (&requests[1].resource_names_subscribe[..], &requests[1].resource_names_unsubscribe[..]),
        (&star[..], &star[..])
    );
    opened.push("n1", AUTHORIZATION, vec![], &[]).await;
    world.batch().await.accept();
    opened.request().await;
    world.status(|status| status.synced).await;
    let (first, second) = (ask(&demander, "/10.0.0.2"), ask(&demander, "/10.0.0.2"));
    assert_eq!(opened.request().await.resource_names_subscribe, ["/10.0.0.2"]);
    opened.push_with_aliases("n2", ADDRESS, vec![web()], &[("web", "/10.0.0.2")]).await;
    let batch = world.batch().await;
    assert!(!first.is_finished() && !second.is_finished(), "it is not applied yet");
    batch.accept();
    assert_eq!(soon(first).await.unwrap(), Ok(()));
    assert_eq!(soon(second).await.unwrap(), Ok(()));
    assert_eq!(opened.request().await.response_nonce, "n2");
    let nothing = ask(&demander, "/10.9.9.9");
    assert_eq!(opened.request().await.resource_names_subscribe, ["/10.9.9.9"]);
    opened.push("n3", ADDRESS, vec![], &["/10.9.9.9"]).await;
    world.batch().await.accept();
    assert_eq!(soon(nothing).await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_name_that_was_asked_for_when_the_stream_broke_is_asked_for_on_the_next() {
    let demander = Demander::default();
    let mut world = World::asking(Some(demander.clone()));
    let (mut opened, _) = world.open().await;
    let waiting = ask(&demander, "/10.0.0.2");
    opened.request().await;
    opened.responses.send(Err(Status::unavailable("rolling over"))).await.unwrap();
    let (mut opened, requests) = world.open().await;
    assert_eq!(requests[1].resource_names_subscribe, ["*", "/10.0.0.2"]);
    let broken = Any { type_url: ADDRESS.to_owned(), value: vec![0xff] };
    opened.push_with_aliases("n1", ADDRESS, vec![("web".to_owned(), broken)], &[("web", "/10.0.0.2")]).await;
    world.batch().await.accept();
    let unreadable = DemandError::Rejected { name: "/10.0.0.2".to_owned() };
    assert_eq!(soon(waiting).await.unwrap(), Err(unreadable));
    assert!(opened.request().await.error_detail.is_some());
}

#[tokio::test]
async fn a_batch_that_is_dropped_comes_again() {
    let mut world = World::new();
    let (opened, _) = world.open().await;
    opened.push("n1", ADDRESS, vec![web()], &[]).await;
    drop(world.batch().await);
    let (mut opened, requests) = world.open().await;
    let held = BTreeMap::from([("web".to_owned(), String::new())]);
    assert_eq!(requests[1].initial_resource_versions, held, "held under no known version");
    opened.push("n1", ADDRESS, vec![web()], &[]).await;
    world.batch().await.accept();
    assert_eq!(opened.request().await.response_nonce, "n1");
}

#[tokio::test]
async fn a_push_nobody_asked_for_ends_the_stream() {
    let mut world = World::new();
    let (opened, _) = world.open().await;
    opened.push("n1", "type.googleapis.com/envoy.config.cluster.v3.Cluster", vec![], &[]).await;
    world.open().await;
}

#[tokio::test]
async fn the_client_waits_for_a_control_plane_that_is_not_there_yet() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("token"), "t").unwrap();
    let (client, mut subscription) = client(config(directory.path()));
    let client = tokio::spawn(client.run());
    soon(subscription.status.wait_for(|status| status.terminations >= 2)).await.unwrap();
    let (mut opened, _server) = serve(&directory.path().join("xds.sock"));
    assert!(soon(opened.recv()).await.is_some());
    drop(subscription);
    soon(client).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_does_not_answer_the_call_is_given_up() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("token"), "t").unwrap();
    let listener = UnixListener::bind(directory.path().join("xds.sock")).unwrap();
    let (client, mut subscription) = client(config(directory.path()));
    let _client = tokio::spawn(client.run());
    let begun = Instant::now();
    let (_silent, _) = listener.accept().await.unwrap();
    subscription.status.wait_for(|status| status.terminations == 1).await.unwrap();
    assert!(begun.elapsed() >= OPEN_TIMEOUT && begun.elapsed() < OPEN_TIMEOUT + Duration::from_secs(1));
}

#[test]
fn why_a_stream_ended_is_told_to_its_first_cause() {
    let broken = Status::from_error(Box::new(io::Error::new(io::ErrorKind::BrokenPipe, "the pipe broke")));
    let told = Causes(&Ended::from(broken)).to_string();
    assert!(told.contains("the pipe broke"), "{told}");
    let path = "/nowhere/token".into();
    let unreadable = ConnectError::Read { path, source: io::Error::other("no such file") };
    assert_eq!(Causes(&Ended::from(unreadable)).to_string(), "cannot read /nowhere/token: no such file");
}

#[tokio::test]
async fn without_its_token_a_client_opens_no_stream() {
    let directory = TempDir::new().unwrap();
    let (mut opened, _server) = serve(&directory.path().join("xds.sock"));
    let (client, mut subscription) = client(config(directory.path()));
    let _client = tokio::spawn(client.run());
    soon(subscription.status.wait_for(|status| status.terminations >= 2)).await.unwrap();
    assert!(opened.try_recv().is_err());
    fs::write(directory.path().join("token"), "late").unwrap();
    assert_eq!(soon(opened.recv()).await.unwrap().authorization.as_deref(), Some("Bearer late"));
}

#[tokio::test]
async fn the_client_ends_with_its_subscription() {
    let mut world = World::new();
    let _stream = world.open().await;
    drop(world.subscription);
    soon(world.client).await.unwrap();
}

#[test]
fn pauses_double_from_10_ms_to_15_s() {
    let mut backoff = Backoff(Backoff::MIN);
    let pauses: Vec<u128> = (0..13).map(|_| backoff.next().as_millis()).collect();
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 15000, 15000]);
}
