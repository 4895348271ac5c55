//! TLS towards the nodes: the server's certificate, renewed while it runs, and handshakes that hold nobody up.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::ca::{Authority, SignError};
use crate::connections::{Bounds, Connection};

/// The name nodes verify, whatever address they dial.
pub const SERVER_NAME: &str = "culvert-control.culvert-system.svc";
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that have been made and not taken up yet.
const BACKLOG: usize = 16;
/// After a failed renewal.
const RETRY: Duration = Duration::from_secs(60);

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authority does not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The TLS library refuses what it is given.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// The server's certificate of the moment.
#[derive(Debug)]
pub(crate) struct OwnCertificate {
    current: RwLock<Arc<CertifiedKey>>,
    authority: Arc<Authority>,
    addresses: Vec<IpAddr>,
    provider: Arc<CryptoProvider>,
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl OwnCertificate {
    /// A certificate for `addresses`, and when to renew it.
    pub(crate) fn new(
        authority: Arc<Authority>,
        addresses: Vec<IpAddr>,
    ) -> Result<(Arc<Self>, SystemTime), TlsError> {
        let provider = Arc::new(provider());
        let (key, renew_at) = make(&authority, &addresses, &provider)?;
        Ok((Arc::new(Self { current: RwLock::new(key), authority, addresses, provider }), renew_at))
    }

    /// Renews it at half of its life and when another root issues, for as long as it is polled.
    pub(crate) async fn keep_fresh(&self, mut renew_at: SystemTime) {
        let mut issuing = self.authority.watch();
        loop {
            let due = tokio::time::sleep(renew_at.duration_since(SystemTime::now()).unwrap_or_default());
            tokio::select! {
                () = due => {}
                // Its sender is the authority, which is ours.
                Ok(()) = issuing.changed() => {}
            }
            match make(&self.authority, &self.addresses, &self.provider) {
                Ok((key, next)) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = key;
                    renew_at = next;
                    tracing::info!("the server's certificate was renewed");
                }
                Err(error) => {
                    tracing::error!(
                        "the server's certificate cannot be renewed; it is tried again in a minute: {error}"
                    );
                    renew_at = SystemTime::now() + RETRY;
                }
            }
        }
    }

    /// TLS 1.3, HTTP/2 and nothing else.
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<TlsAcceptor, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The hybrid group first: what is recorded today stays secret from the machines of later.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.sort_by_key(|group| group.name() != rustls::NamedGroup::X25519MLKEM768);
    provider
}

fn make(
    authority: &Authority,
    addresses: &[IpAddr],
    provider: &CryptoProvider,
) -> Result<(Arc<CertifiedKey>, SystemTime), TlsError> {
    let made = authority.server_certificate(&[SERVER_NAME], addresses, SystemTime::now())?;
    let key = CertifiedKey::from_der(vec![made.certificate], made.key, provider)?;
    Ok((Arc::new(key), made.renew_at))
}

/// A connection whose handshake is done.
pub(crate) type NodeConnection = Connection<TlsStream<TcpStream>>;

/// Accepts on `listener` until cancelled; connections come out of the channel once their handshake is done.
pub(crate) fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    cancelled: CancellationToken,
) -> mpsc::Receiver<Result<NodeConnection, std::io::Error>> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(cancelled.run_until_cancelled_owned(accept_all(listener, acceptor, sender)));
    receiver
}

async fn accept_all(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<Result<NodeConnection, std::io::Error>>,
) {
    let bounds = Bounds::new();
    loop {
        let place = bounds.place().await;
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: others may give some back.
                tracing::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let _ = sender.send(Ok(Connection::new(stream, place.taken_by(peer)))).await;
                }
                Ok(Err(error)) => tracing::info!(%peer, "a TLS handshake failed: {error}"),
                Err(_) => tracing::info!(%peer, "a TLS handshake took too long"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use mesh::TrustDomain;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_servers_certificate_is_another_one_from_half_of_its_life_on() {
        let directory = tempfile::tempdir().unwrap();
        let authority =
            Authority::open(&directory.path().join("state"), &TrustDomain::default(), SystemTime::now());
        let (certificate, renew_at) =
            OwnCertificate::new(Arc::new(authority.unwrap()), vec![[192, 0, 2, 1].into()]).unwrap();
        let current = || certificate.current.read().unwrap().cert[0].clone();
        let keeper = Arc::clone(&certificate);
        let keeping = tokio::spawn(async move { keeper.keep_fresh(renew_at).await });
        let first = current();
        // The wall's clock does not pause: a minute is more than this test takes.
        let (half, minute) = (renew_at.duration_since(SystemTime::now()).unwrap(), Duration::from_secs(60));
        tokio::time::sleep(half - minute).await;
        assert_eq!(current(), first, "not before");
        tokio::time::sleep(2 * minute).await;
        let second = current();
        assert_ne!(second, first);
        tokio::time::sleep(half + 2 * minute).await;
        assert_ne!(current(), second, "and again");
        let (_, parsed) = x509_parser::parse_x509_certificate(&second).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        let names = format!("{:?}", names.value.general_names);
        assert!(names.contains(SERVER_NAME) && names.contains("IPAddress"), "{names}");
        keeping.abort();
    }
}
