//! Control as a whole: opens what it needs, serves, and ends in order.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::convert::trust_bundle_resource;
use api::type_url::ResourceType;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::ca::{self, Authority, OpenError};
use crate::configuration::Configuration;
use crate::kubernetes::{Home, HomeError};
use crate::manifests::WatchError;
use crate::nodes::Nodes;
use crate::routes::Routes;
use crate::source::{ObjectSource, Source};
use crate::status::Status;
use crate::tls::{self, OwnCertificate, TlsError};
use crate::tokens::{TokenError, Tokens};
use crate::translate::Settings;
use crate::xds::{self, Entry, ResourceStore};

/// How often and how long a silent connection is asked for a sign of life.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Requests at a time on one connection: a stream and the certificates of a node's pods.
const CONCURRENT_REQUESTS: u32 = 64;
/// How long connections may take to end once asked to.
const GRACE: Duration = Duration::from_secs(5);
/// Long before the root certificate ends it is said so.
const ROOT_WARNING: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// What control needs to know.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Where objects come from.
    pub source: ObjectSource,
    /// The directory of the authority's key and the nodes' tokens, private to this user (0700); made on first use.
    pub state: PathBuf,
    /// Where nodes connect to.
    pub listen: SocketAddr,
    /// The longest that certificates of workloads are valid; see [`Authority::with_lifetime`] for its bounds.
    pub certificate_lifetime: Duration,
    /// What the mesh is called.
    pub settings: Settings,
    /// Where control says how it fares.
    pub status: Status,
}

/// Control cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The authority.
    #[error("the certificate authority cannot be opened: {0}")]
    Authority(#[from] OpenError),
    /// Control's own namespace.
    #[error("the authority's key cannot be had from the cluster: {0}")]
    Home(#[from] HomeError),
    /// The nodes' tokens.
    #[error("the nodes' tokens cannot be used: {0}")]
    Tokens(#[from] TokenError),
    /// The manifests.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The port.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's word.
        error: std::io::Error,
    },
    /// The gRPC server.
    #[error("the server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs control until `cancelled`. Manifests that cannot be read at the start do not end it: nothing is served until
/// they are mended, and nodes keep what they have.
///
/// # Errors
/// See the type; all but the last come before anything is served.
pub async fn run(config: ControlConfig, cancelled: CancellationToken) -> Result<(), ControlError> {
    let listen_error = |error| ControlError::Listen { address: config.listen, error };
    let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
    serve(config, listener, cancelled).await
}

/// As [`run`], on a socket that listens already.
///
/// # Errors
/// See the type.
pub async fn serve(
    config: ControlConfig,
    listener: TcpListener,
    cancelled: CancellationToken,
) -> Result<(), ControlError> {
    let address =
        listener.local_addr().map_err(|error| ControlError::Listen { address: config.listen, error })?;
    let now = SystemTime::now();
    let home = config.source.home();
    if let Some(home) = &home {
        home.restore(&config.state).await?;
    }
    let authority = Authority::open(&config.state, &config.settings.trust_domain, now)?;
    let authority = Arc::new(authority.with_lifetime(config.certificate_lifetime));
    warn_of_old_root(&authority, now);
    let nodes = Arc::new(Nodes::new(
        Tokens::open(&config.state)?,
        config.source.token_reviews(),
        config.status.clone(),
    ));
    let store = ResourceStore::new(ResourceType::AGENT);
    let configuration = Configuration {
        source: Source::open(&config.source)?,
        settings: config.settings,
        store: store.clone(),
        nodes: Arc::clone(&nodes),
        status: config.status.clone(),
        said: BTreeSet::new(),
    };
    let (certificate, renew_at) = OwnCertificate::new(Arc::clone(&authority), own_addresses(address.ip()))?;
    let connections = tls::accept(listener, certificate.acceptor()?, cancelled.clone());
    tracing::info!(%address, objects = %config.source, "control serves nodes");
    let keeping = keep(home, Arc::clone(&authority), config.state.clone());
    let (following, publishing) = (Arc::clone(&authority), publish_roots(&authority, store.clone()));
    let certificates = ca::service(authority, Arc::clone(&nodes), config.status);
    let routes = Routes::new(xds::service(store.clone(), nodes), certificates);
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .max_concurrent_streams(CONCURRENT_REQUESTS)
        .serve_with_incoming_shutdown(
            routes,
            ReceiverStream::new(connections),
            cancelled.clone().cancelled_owned(),
        );
    let overdue = async {
        cancelled.cancelled().await;
        store.close();
        tokio::time::sleep(GRACE).await;
    };
    let outcome = tokio::select! {
        outcome = server => outcome.map_err(ControlError::from),
        // Somebody does not take the goodbye.
        () = overdue => Ok(()),
        () = configuration.follow() => Ok(()),
        () = certificate.keep_fresh(renew_at) => Ok(()),
        () = following.follow() => Ok(()),
        () = publishing => Ok(()),
        () = keeping => Ok(()),
    };
    tracing::info!("control has ended");
    outcome
}

/// Keeps the authority's key where control's successor finds it.
async fn keep(home: Option<Home>, authority: Arc<Authority>, state: PathBuf) {
    match home {
        Some(home) => home.follow(&authority, &state).await,
        None => std::future::pending().await,
    }
}

/// Tells agents of the roots, and of each step of a rotation: they have to trust what will vouch for this server.
fn publish_roots(authority: &Authority, store: ResourceStore) -> impl Future<Output = ()> + use<> {
    let mut issuing = authority.watch();
    async move {
        loop {
            let (name, content) = trust_bundle_resource(&issuing.borrow_and_update().bundle_pem);
            store.update(ResourceType::TrustBundle, vec![Entry::from((name, content))], &[]);
            if issuing.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Addresses for the server's certificate; none for a listener on all of them, where nodes go by the name.
fn own_addresses(listen: IpAddr) -> Vec<IpAddr> {
    if listen.is_unspecified() { Vec::new() } else { vec![listen] }
}

fn warn_of_old_root(authority: &Authority, now: SystemTime) {
    let left = authority.root_expires().duration_since(now).unwrap_or_default();
    if left < ROOT_WARNING {
        let days = left.as_secs() / (24 * 60 * 60);
        tracing::error!(
            days,
            "the root certificate expires soon; afterwards no certificate of this mesh is valid"
        );
    }
}
