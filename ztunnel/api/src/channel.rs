//! Connections to the control plane and to the certificate authority: gRPC over TLS that is always verified,
//! or over a unix socket.
//!
//! Roots and token are read anew for every connection, because both are rotated under a running process.

mod credentials;
mod roots;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::key_exchange::KeyExchange;

pub use credentials::{Credentials, Header, InvalidHeader, Token};
pub use roots::{LearnError, Roots, RootsError};

/// How long the connection and its TLS handshake may take together. Istio allows 5 s for the former alone
/// (contract 2.8).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an h2 PING asks whether the peer is there, also while nothing else is said (contract 2.8).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long its answer may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// A unix socket, written `unix:///path`.
    Unix(PathBuf),
    /// A host and port, written `https://host:port` or, as Istio does, `host:port`.
    Https(String),
}

/// A text that is no server's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of unix:///path, https://host:port and host:port")]
pub struct InvalidServerAddress(String);

impl FromStr for ServerAddress {
    type Err = InvalidServerAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidServerAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(invalid()) };
        }
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let authority: http::uri::Authority = rest.trim_end_matches('/').parse().map_err(|_| invalid())?;
        let plain = authority.port_u16().is_some() && !authority.as_str().contains('@');
        if plain { Ok(Self::Https(authority.to_string())) } else { Err(invalid()) }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Https(authority) => write!(f, "https://{authority}"),
        }
    }
}

/// A server and how it is known to be the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A unix socket: whoever may create it there is trusted.
    Unix(PathBuf),
    /// TLS 1.3, verified.
    Tls {
        /// `host:port` to connect to.
        authority: String,
        /// The name its certificate must be for, whatever the address.
        name: String,
        /// The roots one of which must vouch for it.
        roots: Roots,
        /// How keys are agreed on with it.
        key_exchange: KeyExchange,
    },
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tls { authority, .. } => write!(f, "https://{authority}"),
        }
    }
}

/// Why there is no connection, or no call on it.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The token cannot be read: our configuration is at fault.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are no roots to verify with: our configuration is at fault.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The token or cluster id has characters that no header can carry.
    #[error("{0} cannot be sent in a header")]
    Header(&'static str),
    /// The server's name is none.
    #[error("`{0}` is no server name")]
    ServerName(String),
    /// The connection, its handshake or its verification failed.
    #[error("cannot connect to {server}")]
    Transport {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects now.
pub async fn connect(server: &Server) -> Result<Channel, ConnectError> {
    // Read here, so that a misconfiguration is told apart from a server that is away.
    if let Server::Tls { name, roots, key_exchange, .. } = server {
        tls_config(roots, *key_exchange).await?;
        server_name(name)?;
    }
    let owned = server.clone();
    endpoint()
        .connect_with_connector(service_fn(move |_: Uri| dial(owned.clone())))
        .await
        .map_err(|source| ConnectError::Transport { server: server.to_string(), source })
}

/// Connects with the first call, and again with the first one after a connection has ended.
pub fn connect_lazily(server: Server) -> Channel {
    endpoint().connect_with_connector_lazy(service_fn(move |_: Uri| dial(server.clone())))
}

/// The connector decides where a connection goes; the URI gives h2 its authority alone.
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://control")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// Either kind of stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn dial(server: Server) -> io::Result<TokioIo<Box<dyn Stream>>> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection to {server} within 5 s"));
    timeout(CONNECT_TIMEOUT, dial_within(&server)).await.map_err(late)?.map(TokioIo::new)
}

async fn dial_within(server: &Server) -> io::Result<Box<dyn Stream>> {
    match server {
        Server::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Server::Tls { authority, name, roots, key_exchange } => {
            let config = tls_config(roots, *key_exchange).await.map_err(io::Error::other)?;
            let name = server_name(name).map_err(io::Error::other)?;
            let tcp = TcpStream::connect(authority.as_str()).await?;
            tcp.set_nodelay(true)?;
            let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
            Ok(Box::new(tls))
        }
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, ConnectError> {
    ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::ServerName(name.to_owned()))
}

async fn tls_config(
    roots: &Roots,
    key_exchange: KeyExchange,
) -> Result<Arc<rustls::ClientConfig>, ConnectError> {
    let asked = roots.clone();
    let certificates = tokio::task::spawn_blocking(move || asked.certificates())
        .await
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;
    let unusable = || RootsError::Unusable(roots.to_string());
    let mut store = rustls::RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate).map_err(|_| unusable())?;
    }
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: key_exchange.groups(),
        ..rustls::crypto::aws_lc_rs::default_provider()
    };
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|_| unusable())?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
