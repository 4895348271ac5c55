//! An API server as far as lists and watches go, on loopback: collections of objects with versions, and the ways in which it lets a client
//! down.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Config;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::Cluster;

/// Paths of the collections that tests use.
pub(crate) const NAMESPACES: &str = "/api/v1/namespaces";
pub(crate) const PODS: &str = "/api/v1/pods";
pub(crate) const POLICIES: &str = "/apis/security.istio.io/v1/authorizationpolicies";
/// The group that comes with Istio's definitions.
const ISTIO: &str = "/apis/security.istio.io/";

/// The server.
pub(crate) struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    version: u64,
    /// Watches cannot begin before this version.
    oldest: u64,
    collections: BTreeMap<String, Collection>,
    /// How often all watches were cut.
    cuts: u64,
    /// The version when they were cut last: what came after it was not said any more.
    cut_at: u64,
    /// Istio's definitions are not installed.
    without_istio: bool,
    /// Paths that the client may not read.
    forbidden: BTreeSet<String>,
    /// Objects by themselves, by kind and name.
    singles: BTreeMap<String, Value>,
    /// Tokens of the agents, and their nodes.
    tokens: BTreeMap<String, String>,
    /// Path and query of each request.
    requests: Vec<String>,
}

#[derive(Default)]
struct Collection {
    objects: BTreeMap<String, Value>,
    /// Version and line of each event.
    events: Vec<(u64, String)>,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let shared = Shared { state: Mutex::default(), changed: watch::Sender::new(()) };
        let mut server =
            Self { address: ([127, 0, 0, 1], 0).into(), shared: Arc::new(shared), serving: None };
        server.come_back().await;
        server
    }

    /// How a client reaches it.
    pub(crate) fn cluster(&self) -> Cluster {
        Cluster::new(Config::new(format!("http://{}", self.address).parse().unwrap())).unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// Makes or changes an object.
    pub(crate) fn apply(&self, path: &str, object: Value) {
        self.happen(path, |state| {
            state.collections.entry(path.to_owned()).or_default().put(object, state.version);
        });
    }

    /// Takes an object away.
    pub(crate) fn delete(&self, path: &str, name: &str) {
        self.happen(path, |state| {
            let collection = state.collections.entry(path.to_owned()).or_default();
            let mut object = collection.objects.remove(name).unwrap();
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            collection.events.push((state.version, event("DELETED", &object)));
        });
    }

    /// Says a line to those who watch, whatever it is.
    pub(crate) fn say(&self, path: &str, line: &str) {
        self.happen(path, |state| {
            let version = state.version;
            state.collections.entry(path.to_owned()).or_default().events.push((version, line.to_owned()));
        });
    }

    /// Tells those who watch of the version there is now.
    pub(crate) fn bookmark(&self, path: &str) {
        let version = self.state().version + 1;
        let object =
            json!({"kind": "Any", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}});
        self.say(path, &event("BOOKMARK", &object));
    }

    fn happen(&self, path: &str, what: impl FnOnce(&mut State)) {
        let mut state = self.state();
        state.version += 1;
        state.collections.entry(path.to_owned()).or_default();
        what(&mut state);
        drop(state);
        self.shared.changed.send_replace(());
    }

    /// Forgets all events up to now: watches that were behind cannot go on.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.oldest = state.version;
    }

    /// Ends all watches, as a restart of a balancer between the two does.
    pub(crate) fn cut(&self) {
        let mut state = self.state();
        (state.cuts, state.cut_at) = (state.cuts + 1, state.version);
        drop(state);
        self.shared.changed.send_replace(());
    }

    /// Whether Istio's definitions are installed.
    pub(crate) fn has_istio(&self, has: bool) {
        self.state().without_istio = !has;
    }

    /// Whether the client may read what is there.
    pub(crate) fn allow(&self, path: &str, allowed: bool) {
        let forbidden = &mut self.state().forbidden;
        if allowed {
            forbidden.remove(path)
        } else {
            forbidden.insert(path.to_owned())
        };
    }

    /// Gives the agent of a node a token.
    pub(crate) fn give_token(&self, token: &str, node: &str) {
        self.state().tokens.insert(token.to_owned(), node.to_owned());
    }

    /// An object of control's namespace, by kind and name.
    pub(crate) fn single(&self, name: &str) -> Option<Value> {
        self.state().singles.get(name).cloned()
    }

    /// The requests so far that have all of this in them.
    pub(crate) fn requests(&self, parts: &[&str]) -> usize {
        let has_all = |request: &&String| parts.iter().all(|part| request.contains(part));
        self.state().requests.iter().filter(has_all).count()
    }

    /// Ends with all its connections.
    pub(crate) async fn go_away(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Serves, at the same address as before.
    pub(crate) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let shared = Arc::clone(&self.shared);
        self.serving = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&shared);
                let answer = service_fn(move |request: Request<Incoming>| {
                    let shared = Arc::clone(&shared);
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(answer(&shared, &Request::from_parts(parts, body)))
                    }
                });
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        }));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

impl State {
    /// Whose a token is.
    fn review(&self, review: &[u8]) -> Value {
        let review: Value = serde_json::from_slice(review).unwrap();
        let Some(node) = review["spec"]["token"].as_str().and_then(|token| self.tokens.get(token)) else {
            return json!({"status": {"authenticated": false}});
        };
        json!({"status": {"authenticated": true, "audiences": review["spec"]["audiences"], "user": {
            "username": "system:serviceaccount:culvert-system:culvert-agent",
            "extra": {"authentication.kubernetes.io/node-name": [node]},
        }}})
    }

    /// Gets, replaces or makes one object.
    fn single(&mut self, method: &Method, name: &str, body: &[u8]) -> Response<Body> {
        let is_there = self.singles.contains_key(name);
        match (method, serde_json::from_slice::<Value>(body)) {
            (&Method::POST, Ok(object)) => {
                let name = format!("{name}/{}", object["metadata"]["name"].as_str().unwrap());
                self.singles.insert(name, object);
            }
            (&Method::PUT, Ok(object)) if is_there => {
                self.singles.insert(name.to_owned(), object);
            }
            (&Method::GET, _) if is_there => return json_response(StatusCode::OK, &self.singles[name]),
            _ => return failure(StatusCode::NOT_FOUND, "NotFound"),
        }
        json_response(StatusCode::OK, &json!({}))
    }
}

impl Collection {
    fn put(&mut self, mut object: Value, version: u64) {
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let line = event(if self.objects.contains_key(&name) { "MODIFIED" } else { "ADDED" }, &object);
        self.objects.insert(name, object);
        self.events.push((version, line));
    }
}

fn event(kind: &str, object: &Value) -> String {
    json!({"type": kind, "object": object}).to_string()
}

type Body = BoxBody<Bytes, Infallible>;

fn answer(shared: &Arc<Shared>, request: &Request<Bytes>) -> Response<Body> {
    let mut state = shared.state.lock().unwrap();
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default());
    state.requests.push(request.uri().to_string());
    if state.without_istio && path.starts_with(ISTIO) {
        return failure(StatusCode::NOT_FOUND, "NotFound");
    }
    if path.ends_with("/tokenreviews") {
        return json_response(StatusCode::CREATED, &state.review(request.body()));
    }
    if let Some((_, name)) = path.split_once("/namespaces/culvert-system/") {
        return state.single(request.method(), name, request.body());
    }
    if state.forbidden.contains(&path) {
        return failure(StatusCode::FORBIDDEN, "Forbidden");
    }
    let option = |name| {
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.map(|value| value.replace("%3D", "="))
    };
    let selector = option("fieldSelector");
    if option("watch").is_none() {
        let first: usize = option("continue").map_or(0, |token| token.parse().unwrap());
        let limit: usize = option("limit").unwrap().parse().unwrap();
        return json_response(StatusCode::OK, &list(&state, &path, selector.as_deref(), first, limit));
    }
    let from: u64 = option("resourceVersion").unwrap().parse().unwrap();
    if from < state.oldest {
        let gone = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410});
        return Response::new(whole(format!("{}\n", event("ERROR", &gone))));
    }
    let watching = Watching { shared: Arc::clone(shared), path, said: from, cuts: state.cuts };
    let lines = stream::unfold((watching, shared.changed.subscribe()), |(mut watching, mut changed)| async {
        let lines = loop {
            if let Some(lines) = watching.next()? {
                break lines;
            }
            changed.changed().await.ok()?;
        };
        Some((Ok(Frame::data(Bytes::from(lines))), (watching, changed)))
    });
    Response::new(StreamBody::new(lines).boxed())
}

fn list(state: &State, path: &str, selector: Option<&str>, first: usize, limit: usize) -> Value {
    let objects = state.collections.get(path).map(|collection| collection.objects.values());
    let matches = |object: &&Value| match selector.and_then(|selector| selector.split_once('=')) {
        Some((field, value)) => {
            object.pointer(&format!("/{}", field.replace('.', "/"))) == Some(&value.into())
        }
        None => true,
    };
    let objects: Vec<&Value> = objects.into_iter().flatten().filter(matches).collect();
    let next = first + limit;
    let more = if next < objects.len() { next.to_string() } else { String::new() };
    let metadata = json!({"resourceVersion": state.version.to_string(), "continue": more});
    let items: Vec<_> = objects.into_iter().skip(first).take(limit).collect();
    json!({"kind": "AnyList", "apiVersion": "v1", "metadata": metadata, "items": items})
}

/// A watch that is being answered.
struct Watching {
    shared: Arc<Shared>,
    path: String,
    /// The version up to which everything was said.
    said: u64,
    cuts: u64,
}

impl Watching {
    /// What there is to say now; `None` once it was cut.
    fn next(&mut self) -> Option<Option<String>> {
        let state = self.shared.state.lock().unwrap();
        let is_cut = state.cuts != self.cuts;
        let until = if is_cut { state.cut_at } else { state.version };
        let events = state.collections.get(&self.path).map(|collection| collection.events.as_slice());
        let new = |version| version > self.said && version <= until;
        let new = events.unwrap_or_default().iter().filter(|(version, _)| new(*version));
        let lines: String = new.map(|(_, line)| format!("{line}\n")).collect();
        self.said = until;
        match (lines.is_empty(), is_cut) {
            (false, _) => Some(Some(lines)),
            (true, false) => Some(None),
            (true, true) => None,
        }
    }
}

fn failure(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16()});
    json_response(code, &status)
}

fn json_response(code: StatusCode, content: &Value) -> Response<Body> {
    let mut response = Response::new(whole(content.to_string()));
    *response.status_mut() = code;
    response
}

fn whole(content: String) -> Body {
    Full::new(Bytes::from(content)).boxed()
}
