//! A workload's certificate with its key, and the TLS configurations made of it once.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use mesh::SpiffeId;
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::error::CertificateError;
use super::handshake::ExpectedPeers;
use super::identity::Leaf;
use super::policy::TlsPolicy;
use super::verify::{ClientVerifier, ServerVerifier};

/// The only application protocol of HBONE over TCP.
const ALPN: &[u8] = b"h2";

/// A workload's certificate, its key and its roots of trust, ready for handshakes. Cheap to clone.
#[derive(Clone)]
pub struct WorkloadCertificate(Arc<Inner>);

struct Inner {
    leaf: Leaf,
    key_pem: String,
    chain_pem: Vec<String>,
    roots_pem: Vec<String>,
    roots: Arc<RootCertStore>,
    policy: TlsPolicy,
    server: Arc<ServerConfig>,
    /// Accepts no server: each connection has its own expectation.
    client: ClientConfig,
}

impl Inner {
    fn same_pem(&self, other: &Self) -> bool {
        self.chain_pem == other.chain_pem && self.roots_pem == other.roots_pem
    }
}

impl WorkloadCertificate {
    /// From a PKCS#8 PEM key and a PEM chain: first the leaf, then intermediates, last the roots. What handshakes with it
    /// agree on is `policy`'s.
    pub fn from_pem<S: AsRef<str>>(
        key: &str,
        chain: &[S],
        policy: &TlsPolicy,
    ) -> Result<Self, CertificateError> {
        let [leaf, intermediates @ .., roots] = chain else {
            return Err(CertificateError::Incomplete(chain.len()));
        };
        let mut chain_pem = Vec::new();
        let mut chain_der = Vec::new();
        for (index, element) in std::iter::once(leaf).chain(intermediates).enumerate() {
            for (pem, der) in certificates(index, element.as_ref())? {
                chain_pem.push(pem);
                chain_der.push(der);
            }
        }
        let mut roots_pem = Vec::new();
        let mut store = RootCertStore::empty();
        let index = chain.len() - 1;
        for (pem, der) in certificates(index, roots.as_ref())? {
            store
                .add(der)
                .map_err(|error| CertificateError::Malformed { index, reason: error.to_string() })?;
            roots_pem.push(pem);
        }
        let leaf = Leaf::read(&chain_der[0]).map_err(CertificateError::Leaf)?;
        let key_pem = key.to_owned();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| CertificateError::Key(error.to_string()))?;
        let certified =
            CertifiedKey::from_der(chain_der, key, &policy.provider).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => CertificateError::WrongKey,
                other => CertificateError::Key(other.to_string()),
            })?;
        let certified = Arc::new(SingleCertAndKey::from(certified));
        let roots = Arc::new(store);
        let server = server_config(&roots, policy, certified.clone(), &leaf.identity)?;
        let client = client_config(&roots, policy, certified)?;
        let (server, policy) = (Arc::new(server), policy.clone());
        Ok(Self(Arc::new(Inner { leaf, key_pem, chain_pem, roots_pem, roots, policy, server, client })))
    }

    /// Key and chain as [`WorkloadCertificate::from_pem`] takes them, for the successor of this process alone.
    pub fn to_pem(&self) -> (String, Vec<String>) {
        let chain = self.0.chain_pem.iter().cloned().chain([self.0.roots_pem.concat()]);
        (self.0.key_pem.clone(), chain.collect())
    }

    /// Whom it names.
    pub fn identity(&self) -> &SpiffeId {
        &self.0.leaf.identity
    }

    /// The start of its validity.
    pub fn not_before(&self) -> SystemTime {
        self.0.leaf.not_before
    }

    /// The end of its validity.
    pub fn not_after(&self) -> SystemTime {
        self.0.leaf.not_after
    }

    /// The serial number, decimal.
    pub fn serial(&self) -> &str {
        &self.0.leaf.serial
    }

    /// Whether it has been replaced by `other`, another certificate of the same identity: the one that was issued
    /// later, or the other one if that cannot be told.
    pub(crate) fn is_replaced_by(&self, other: &Self) -> bool {
        let same =
            Arc::ptr_eq(&self.0, &other.0) || (self.serial() == other.serial() && self.0.same_pem(&other.0));
        !same && (self.not_before(), self.not_after()) <= (other.not_before(), other.not_after())
    }

    /// The leaf and the intermediates, one PEM each.
    pub fn chain_pem(&self) -> &[String] {
        &self.0.chain_pem
    }

    /// The roots, one PEM each.
    pub fn roots_pem(&self) -> &[String] {
        &self.0.roots_pem
    }

    pub(super) fn roots(&self) -> &Arc<RootCertStore> {
        &self.0.roots
    }

    pub(super) fn policy(&self) -> &TlsPolicy {
        &self.0.policy
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        self.0.server.clone()
    }

    /// The configuration for one connection. The copy is of reference counts.
    pub(super) fn client_config(&self, expected: &ExpectedPeers) -> Arc<ClientConfig> {
        let mut config = self.0.client.clone();
        config.dangerous().set_certificate_verifier(Arc::new(ServerVerifier {
            roots: self.0.roots.clone(),
            policy: self.0.policy.clone(),
            expected: expected.clone(),
        }));
        Arc::new(config)
    }
}

/// Says who and until when; never the key.
impl fmt::Debug for WorkloadCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadCertificate")
            .field("identity", self.identity())
            .field("serial", &self.serial())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

fn server_config(
    roots: &Arc<RootCertStore>,
    policy: &TlsPolicy,
    certified: Arc<SingleCertAndKey>,
    identity: &SpiffeId,
) -> Result<ServerConfig, CertificateError> {
    let verifier = ClientVerifier::new(roots.clone(), policy.clone(), identity.trust_domain.clone())
        .map_err(|error| CertificateError::Tls(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(policy.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| CertificateError::Tls(error.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(certified);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Clients of the mesh do not resume; tickets would be bytes and state for nothing.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    roots: &Arc<RootCertStore>,
    policy: &TlsPolicy,
    certified: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, CertificateError> {
    let mut config = ClientConfig::builder_with_provider(policy.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| CertificateError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier {
            roots: roots.clone(),
            policy: policy.clone(),
            expected: ExpectedPeers::none(),
        }))
        .with_client_cert_resolver(certified);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// The certificates of one element of a chain, at least one, each with its text.
fn certificates(
    index: usize,
    text: &str,
) -> Result<Vec<(String, CertificateDer<'static>)>, CertificateError> {
    const END: &str = "-----END CERTIFICATE-----";
    let malformed = |reason: String| CertificateError::Malformed { index, reason };
    let mut found = Vec::new();
    for block in text.split_inclusive(END) {
        if block.trim().is_empty() {
            continue;
        }
        let der =
            CertificateDer::from_pem_slice(block.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        found.push((format!("{}\n", block.trim()), der));
    }
    if found.is_empty() {
        return Err(malformed("no certificate".to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::{Authority, LeafSpec, identity};

    const ECHO: &str = "spiffe://cluster.local/ns/demo/sa/echo";

    #[test]
    fn a_certificate_tells_who_until_when_and_its_number_and_never_its_key() {
        let issued = Authority::new().issue(&LeafSpec { years: (2026, 2027), ..LeafSpec::of(ECHO) });
        let certificate =
            WorkloadCertificate::from_pem(&issued.key, &issued.chain, &TlsPolicy::default()).unwrap();
        assert_eq!(certificate.identity(), &identity("echo"));
        let year = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * days);
        assert_eq!(certificate.not_before(), year(20_454));
        assert_eq!(certificate.not_after(), year(20_819));
        assert!(certificate.serial().bytes().all(|byte| byte.is_ascii_digit()), "{}", certificate.serial());
        assert_eq!(certificate.chain_pem().len(), 1);
        assert_eq!(certificate.roots_pem().len(), 1);
        assert!(!format!("{certificate:?}").contains("PRIVATE"));
    }

    #[test]
    fn intermediates_and_several_roots_are_taken_as_the_ca_sends_them() {
        let (authority, other) = (Authority::new(), Authority::new());
        let (intermediate, certificate) = authority.intermediate();
        let mut issued = intermediate.issue(&LeafSpec::of(ECHO));
        let roots = issued.chain.pop().unwrap() + &other.root;
        issued.chain.extend([certificate, roots]);
        let certificate =
            WorkloadCertificate::from_pem(&issued.key, &issued.chain, &TlsPolicy::default()).unwrap();
        assert_eq!(certificate.chain_pem().len(), 2);
        assert_eq!(certificate.roots_pem().len(), 2);
    }

    #[test]
    fn a_chain_that_cannot_be_used_says_why() {
        let authority = Authority::new();
        let good = authority.issue(&LeafSpec::of(ECHO));
        let leaf = good.chain[0].as_str();
        let nameless = authority.issue(&LeafSpec { uris: vec![], ..LeafSpec::of(ECHO) });
        let refused = |key: &str, chain: &[&str]| {
            WorkloadCertificate::from_pem(key, chain, &TlsPolicy::default()).unwrap_err()
        };
        assert_eq!(refused(&good.key, &[]), CertificateError::Incomplete(0));
        assert_eq!(refused(&good.key, &[leaf]), CertificateError::Incomplete(1));
        for (index, chain) in [["", &authority.root], ["text", &authority.root]].iter().enumerate() {
            let error = refused(&good.key, chain);
            assert!(matches!(error, CertificateError::Malformed { index: 0, .. }), "{index}: {error}");
        }
        assert!(matches!(refused(&good.key, &[leaf, " \n"]), CertificateError::Malformed { index: 1, .. }));
        assert!(matches!(refused("no key", &[leaf, &authority.root]), CertificateError::Key(_)));
        assert_eq!(refused(&nameless.key, &[leaf, &authority.root]), CertificateError::WrongKey);
        let error = refused(&nameless.key, &[nameless.chain[0].as_str(), &authority.root]);
        assert!(matches!(error, CertificateError::Leaf(_)), "{error}");
    }
}
