//! Listening to an API server: a list of each kind and then its changes, for as long as somebody asks.
//!
//! Lists come in pages. A watch that ends goes on where it was; one that the API server cannot continue (410) begins with a list.
//! While the API server is away the last state stays, and it is asked again after pauses that grow.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream, SelectAll};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Cluster;
use super::decode::Received;
use super::pauses::Pauses;
use super::store::Store;
use crate::manifests::{Kind, Objects};

/// Quiet that must follow a change before it counts: what belongs together comes one by one.
const QUIET: Duration = Duration::from_millis(20);
/// A change waits no longer than this for quiet: it has to be in effect everywhere within 500 ms.
const PATIENCE: Duration = Duration::from_millis(150);
/// How long the API server keeps a watch before it ends it, seconds. A connection that is dead without a sign is noticed 5 s later.
const WATCH_SECONDS: u32 = 120;
/// What Kubernetes makes of selectors says nothing that pods do not.
const NOT_FROM_SELECTORS: &str = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";
/// How often failures of the same kind are told.
const TELL: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that the mesh's state is made of.
    Mesh,
    /// What tells which pods of a node are in the mesh, and how.
    Node(String),
}

impl Scope {
    /// The kinds, and which objects of them.
    fn kinds(&self) -> Vec<(Kind, watcher::Config)> {
        let config = || watcher::Config::default().timeout(WATCH_SECONDS);
        let all = |kinds: &[Kind]| kinds.iter().map(|kind| (*kind, config())).collect::<Vec<_>>();
        match self {
            Self::Mesh => {
                let mut kinds = all(&[
                    Kind::Namespace,
                    Kind::Node,
                    Kind::Pod,
                    Kind::Service,
                    Kind::PeerAuthentication,
                    Kind::AuthorizationPolicy,
                    Kind::RequestAuthentication,
                ]);
                kinds.push((Kind::EndpointSlice, config().labels(NOT_FROM_SELECTORS)));
                kinds
            }
            Self::Node(node) => {
                let mut kinds = all(&[Kind::Namespace, Kind::PeerAuthentication]);
                kinds.push((Kind::Pod, config().fields(&format!("spec.nodeName={node}"))));
                kinds
            }
        }
    }
}

/// Where the API server has a kind.
fn resource(kind: Kind) -> ApiResource {
    let (group, plural) = match kind {
        Kind::Namespace => ("", "namespaces"),
        Kind::Node => ("", "nodes"),
        Kind::ServiceAccount => ("", "serviceaccounts"),
        Kind::Pod => ("", "pods"),
        Kind::Service => ("", "services"),
        Kind::EndpointSlice => ("discovery.k8s.io", "endpointslices"),
        Kind::PeerAuthentication => ("security.istio.io", "peerauthentications"),
        Kind::AuthorizationPolicy => ("security.istio.io", "authorizationpolicies"),
        Kind::RequestAuthentication => ("security.istio.io", "requestauthentications"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind.name()), plural)
}

type Said = (Kind, Result<Event<Received>, watcher::Error>);

/// Objects of an API server, watched.
pub struct Watches {
    said: SelectAll<BoxStream<'static, Said>>,
    store: Store,
    /// Something has changed since the last state was returned.
    changed: bool,
    /// When a failure with a kind was told last.
    told: BTreeMap<Kind, Instant>,
    heard: watch::Sender<bool>,
}

impl Watches {
    /// Begins to watch when it is asked for the first state.
    pub fn new(cluster: &Cluster, scope: &Scope) -> Self {
        let kinds = scope.kinds();
        let store = Store::new(kinds.iter().map(|(kind, _)| *kind));
        let said = kinds.into_iter().map(|(kind, config)| watch(cluster.client(), kind, config)).collect();
        Self { said, store, changed: false, told: BTreeMap::new(), heard: watch::Sender::new(false) }
    }

    /// Whether the last that came was a word of the API server's, and no failure to hear from it.
    pub fn heard(&self) -> watch::Receiver<bool> {
        self.heard.subscribe()
    }

    /// Waits for the next state that differs from the last one returned; the first is returned once every kind was listed.
    ///
    /// Cancel safe: what was noticed but not returned is noticed again.
    pub async fn next(&mut self) -> Objects {
        while !(self.changed && self.store.is_complete()) {
            self.hear().await;
        }
        let latest = Instant::now() + PATIENCE;
        while Instant::now() < latest
            && tokio::time::timeout_at(latest.min(Instant::now() + QUIET), self.hear()).await.is_ok()
        {
        }
        self.changed = false;
        self.store.objects()
    }

    async fn hear(&mut self) {
        let Some((kind, said)) = self.said.next().await else {
            // Watches do not end.
            return std::future::pending().await;
        };
        match said {
            Ok(event) => {
                // That a list begins is said without asking the API server.
                if !matches!(event, Event::Init) {
                    self.heard.send_if_modified(|heard| !std::mem::replace(heard, true));
                }
                self.changed |= self.store.take(kind, event);
            }
            Err(error) => self.fail(kind, &error),
        }
    }

    fn fail(&mut self, kind: Kind, error: &watcher::Error) {
        let resource = resource(kind);
        // Istio's kinds come with Istio's definitions, which a cluster may lack. All others are everywhere.
        if is_missing(error) && resource.group.ends_with(".istio.io") {
            if self.store.lacks(kind) {
                tracing::info!(
                    kind = kind.name(),
                    "the cluster does not know the kind: there are none of it"
                );
                self.changed = true;
            }
            return;
        }
        self.heard.send_if_modified(|heard| std::mem::replace(heard, false));
        let now = Instant::now();
        if self.told.get(&kind).is_none_or(|told| now.duration_since(*told) >= TELL) {
            self.told.insert(kind, now);
            let (group, plural) = (resource.group, resource.plural);
            tracing::warn!(kind = kind.name(), error = %Chain(error), "watching {plural} of the group `{group}` failed; the last state stays");
        }
    }
}

/// The API server has no such kind.
fn is_missing(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// An error with what it comes from: whether a name, a certificate or a connection is at fault stands at the end.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(error) = source {
            let part = error.to_string();
            if !text.contains(&part) {
                text = format!("{text}: {part}");
            }
            source = error.source();
        }
        f.write_str(&text)
    }
}

fn watch(client: Client, kind: Kind, config: watcher::Config) -> BoxStream<'static, Said> {
    let api = Api::<Received>::all_with(client, &resource(kind));
    let events = Box::pin(watcher(api, config));
    let state = (events, Pauses::new(), None::<Duration>);
    let paced = stream::unfold(state, move |(mut events, mut pauses, due)| async move {
        if let Some(pause) = due {
            tokio::time::sleep(pause).await;
        }
        let said = events.next().await?;
        let due = match &said {
            Err(_) => Some(pauses.next(rand::random())),
            // Said without asking the API server, or in the midst of a list that may still fail.
            Ok(Event::Init | Event::InitApply(_)) => None,
            Ok(_) => {
                pauses = Pauses::new();
                None
            }
        };
        Some(((kind, said), (events, pauses, due)))
    });
    paced.boxed()
}
