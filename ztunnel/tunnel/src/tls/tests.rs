//! Handshakes between ourselves, and with peers that are wrong in one way each.

use std::sync::Arc;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::Instant;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor, TlsConnector};

use super::verify::ServerVerifier;
use super::*;
use crate::authority::{Authority, Issued, LeafSpec, identity};

const TIMEOUT: Duration = Duration::from_secs(10);
const ECHO: &str = "spiffe://cluster.local/ns/demo/sa/echo";

fn pair() -> (DuplexStream, DuplexStream) {
    duplex(64 << 10)
}

fn der(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let leaf = CertificateDer::from_pem_slice(issued.chain[0].as_bytes()).unwrap();
    (vec![leaf], PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap())
}

/// A verifier that is wrong in nothing: for foreign clients that expect `echo`.
fn verifier(authority: &Authority) -> Arc<ServerVerifier> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.root.as_bytes()).unwrap()).unwrap();
    let (roots, policy) = (Arc::new(roots), TlsPolicy::default());
    Arc::new(ServerVerifier { roots, policy, expected: ExpectedPeers::new([ECHO]) })
}

/// A client that is not ours: it shows whatever it was given.
fn foreign_client(authority: &Authority, issued: Option<&Issued>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier(authority));
    let mut config = match issued.map(der) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn foreign_server(issued: &Issued) -> ServerConfig {
    let (chain, key) = der(issued);
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// How our server takes a foreign client.
async fn accepted(authority: &Authority, client: ClientConfig) -> Result<VerifiedPeer, TlsError> {
    let (near, far) = pair();
    let name = ServerName::try_from("anything").unwrap();
    let client = tokio::spawn(TlsConnector::from(Arc::new(client)).connect(name, far));
    let result = accept(near, &authority.workload("echo"), TIMEOUT).await;
    // What the client makes of it is its own matter, but it must come to an end.
    let _ = client.await.unwrap();
    result.map(|(_, peer)| peer)
}

/// How our client takes a foreign server.
async fn connected(authority: &Authority, server: ServerConfig) -> Result<VerifiedPeer, TlsError> {
    let (near, far) = pair();
    let server = tokio::spawn(TlsAcceptor::from(Arc::new(server)).accept(far).into_fallible());
    let expected = ExpectedPeers::new([ECHO, "spiffe://cluster.local/ns/demo/sa/other"]);
    let result = connect(near, &authority.workload("curl"), &expected, TIMEOUT).await;
    drop(server.await.unwrap());
    result.map(|(_, peer)| peer)
}

fn leaf(change: impl FnOnce(&mut LeafSpec)) -> LeafSpec {
    let mut spec = LeafSpec::of(ECHO);
    change(&mut spec);
    spec
}

/// Leaves with one fault each, and the fault. `purpose` is the wrong one.
fn faulty(purpose: rcgen::ExtendedKeyUsagePurpose) -> Vec<(&'static str, LeafSpec, &'static str)> {
    vec![
        ("expired", leaf(|spec| spec.years = (2020, 2021)), "certificate_expired"),
        ("not yet valid", leaf(|spec| spec.years = (4000, 4096)), "certificate_not_yet_valid"),
        ("two ids", leaf(|spec| spec.uris.push(ECHO.replace("echo", "admin"))), "several_identities"),
        (
            "two ids, one in capitals",
            leaf(|spec| spec.uris.push(ECHO.replace("spiffe", "SPIFFE"))),
            "several_identities",
        ),
        ("no id", leaf(|spec| spec.uris = vec!["https://echo.demo".to_owned()]), "no_identity"),
        ("no names at all", leaf(|spec| spec.uris.clear()), "no_identity"),
        (
            "an id of another form",
            leaf(|spec| spec.uris = vec!["spiffe://cluster.local/echo".to_owned()]),
            "malformed_identity",
        ),
        ("meant for the other side", leaf(|spec| spec.purposes = vec![purpose.clone()]), "wrong_purpose"),
        ("meant for nothing", leaf(|spec| spec.purposes.clear()), "wrong_purpose"),
    ]
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is_and_how_they_are_protected() {
    let authority = Authority::new();
    let (client, server) = (authority.workload("curl"), authority.workload("echo"));
    let (near, far) = pair();
    let expected = ExpectedPeers::from(&identity("echo"));
    let (connected, accepted) =
        tokio::join!(connect(near, &client, &expected, TIMEOUT), accept(far, &server, TIMEOUT));
    let (stream, echo) = connected.unwrap();
    let (_, curl) = accepted.unwrap();
    assert_eq!(echo.identity(), &identity("echo"));
    assert_eq!(curl.identity(), &identity("curl"));
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    for peer in [echo, curl] {
        assert_eq!(
            peer.tls(),
            TlsFacts { version: "TLSv1.3", group: "X25519MLKEM768", cipher: "TLS_AES_256_GCM_SHA384" }
        );
    }
}

#[tokio::test]
async fn a_client_with_a_faulty_certificate_is_refused_for_that_fault() {
    let authority = Authority::new();
    let good = authority.issue(&leaf(|spec| spec.purposes = vec![ClientAuth]));
    accepted(&authority, foreign_client(&authority, Some(&good))).await.unwrap();
    for (name, spec, reason) in faulty(ServerAuth) {
        let client = foreign_client(&authority, Some(&authority.issue(&spec)));
        assert_eq!(accepted(&authority, client).await.unwrap_err().reason(), reason, "{name}");
    }
    let stranger = Authority::new().issue(&LeafSpec::of(ECHO));
    let foreign = authority.issue(&LeafSpec::of("spiffe://other.org/ns/demo/sa/echo"));
    for (name, issued, reason) in [
        ("another root", Some(&stranger), "unknown_issuer"),
        ("another trust domain", Some(&foreign), "wrong_trust_domain"),
        ("no certificate", None, "certificate_missing"),
    ] {
        let error = accepted(&authority, foreign_client(&authority, issued)).await.unwrap_err();
        assert_eq!((error.reason(), error.blame()), (reason, Blame::Peer), "{name}");
    }
}

#[tokio::test]
async fn a_server_with_a_faulty_certificate_is_refused_for_that_fault() {
    let authority = Authority::new();
    let good = authority.issue(&leaf(|spec| spec.purposes = vec![ServerAuth]));
    assert_eq!(connected(&authority, foreign_server(&good)).await.unwrap().identity(), &identity("echo"));
    for (name, spec, reason) in faulty(ClientAuth) {
        let error = connected(&authority, foreign_server(&authority.issue(&spec))).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{name}");
    }
    let stranger = Authority::new().issue(&LeafSpec::of(ECHO));
    let unexpected = authority.issue(&LeafSpec::of("spiffe://cluster.local/ns/demo/sa/admin"));
    for (name, issued, reason) in
        [("another root", &stranger, "unknown_issuer"), ("somebody else", &unexpected, "unexpected_identity")]
    {
        let error = connected(&authority, foreign_server(issued)).await.unwrap_err();
        assert_eq!((error.reason(), error.blame()), (reason, Blame::Peer), "{name}");
    }
}

#[tokio::test]
async fn nobody_satisfies_an_empty_expectation() {
    let authority = Authority::new();
    let (near, far) = pair();
    let nobody = ExpectedPeers::new(Vec::<String>::new());
    let (client, server) = (authority.workload("curl"), authority.workload("echo"));
    let (connected, accepted) =
        tokio::join!(connect(near, &client, &nobody, TIMEOUT), accept(far, &server, TIMEOUT));
    assert_eq!(connected.map(|_| ()).unwrap_err().reason(), "unexpected_identity");
    // The other side is told by an alert, and blames nobody rashly.
    let told = accepted.map(|_| ()).unwrap_err();
    assert_eq!((told.reason(), told.blame()), ("refused_by_peer", Blame::Either));
}

#[tokio::test]
async fn other_application_protocols_are_refused_and_none_is_not() {
    let authority = Authority::new();
    let issued = authority.issue(&LeafSpec::of(ECHO));
    for (protocols, expected) in [
        (vec![], Ok(())),
        (vec![b"http/1.1".to_vec(), b"h2".to_vec()], Ok(())),
        (vec![b"http/1.1".to_vec()], Err(TlsError::NoCommonProtocol)),
    ] {
        let mut client = foreign_client(&authority, Some(&issued));
        client.alpn_protocols.clone_from(&protocols);
        assert_eq!(accepted(&authority, client).await.map(|_| ()), expected, "{protocols:?}");
        let mut server = foreign_server(&issued);
        server.alpn_protocols = protocols;
        assert_eq!(connected(&authority, server).await.map(|_| ()), expected);
    }
}

#[tokio::test]
async fn peers_without_the_hybrid_group_are_met_on_another() {
    let authority = Authority::new();
    let issued = authority.issue(&LeafSpec::of(ECHO));
    for (group, name) in
        [(aws_lc_rs::kx_group::X25519, "X25519"), (aws_lc_rs::kx_group::SECP256R1, "secp256r1")]
    {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![group];
        let (chain, key) = der(&issued);
        let server = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        assert_eq!(connected(&authority, server).await.unwrap().tls().group, name);
    }
}

/// One that is wrong in nothing but that it knows this key exchange alone.
fn with_group(group: &'static dyn rustls::crypto::SupportedKxGroup) -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() })
}

#[tokio::test]
async fn where_the_hybrid_group_is_demanded_peers_without_it_are_refused_both_ways() {
    let mut authority = Authority::new();
    authority.policy = TlsPolicy::new(KeyExchange::HybridOnly, Revocations::none());
    let issued = authority.issue(&LeafSpec::of(ECHO));
    for (group, agreed) in [
        (aws_lc_rs::kx_group::X25519MLKEM768, true),
        (aws_lc_rs::kx_group::X25519, false),
        (aws_lc_rs::kx_group::SECP256R1, false),
    ] {
        let (chain, key) = der(&issued);
        let client = ClientConfig::builder_with_provider(with_group(group))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier(&authority))
            .with_client_auth_cert(chain, key)
            .unwrap();
        let (chain, key) = der(&issued);
        let server = ServerConfig::builder_with_provider(with_group(group))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        for (side, met) in
            [("server", accepted(&authority, client).await), ("client", connected(&authority, server).await)]
        {
            let name = group.name();
            match met {
                Ok(peer) => assert!(agreed && peer.tls().group == "X25519MLKEM768", "{name:?}, as {side}"),
                Err(error) => {
                    assert!(!agreed, "{name:?}, as {side}: {error}");
                    assert!(["incompatible", "refused_by_peer"].contains(&error.reason()), "{error}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_server_may_be_any_one_of_those_expected_and_nobody_else() {
    let authority = Authority::new();
    // `connected` expects `echo` or `other`.
    for (account, expected) in [("echo", "ok"), ("other", "ok"), ("ech", "unexpected_identity")] {
        let issued = authority.issue(&LeafSpec::of(&identity(account).to_string()));
        let met = connected(&authority, foreign_server(&issued)).await;
        assert_eq!(met.map_or_else(|error| error.reason(), |_| "ok"), expected, "{account}");
    }
    let elsewhere = authority.issue(&LeafSpec::of("spiffe://other.org/ns/demo/sa/echo"));
    let met = connected(&authority, foreign_server(&elsewhere)).await;
    assert_eq!(met.unwrap_err().reason(), "unexpected_identity", "the same account of another trust domain");
}

#[tokio::test]
async fn a_client_with_other_cipher_suites_only_is_incompatible() {
    let authority = Authority::new();
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    let client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier(&authority))
        .with_no_client_auth();
    let error = accepted(&authority, client).await.unwrap_err();
    assert_eq!((error.reason(), error.blame()), ("incompatible", Blame::Either));
}

#[tokio::test]
async fn our_client_names_no_server_and_offers_h2_alone() {
    let (near, far) = pair();
    let certificate = Authority::new().workload("curl");
    let expected = ExpectedPeers::new([ECHO]);
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), far);
    let connecting = connect(near, &certificate, &expected, TIMEOUT);
    let start = tokio::select! {
        start = hello => start.unwrap(),
        _ = connecting => panic!("nobody has answered"),
    };
    let hello = start.client_hello();
    assert_eq!(hello.server_name(), None);
    assert_eq!(hello.alpn().unwrap().collect::<Vec<_>>(), [b"h2"]);
}

#[tokio::test]
async fn what_is_not_tls_is_the_peers_fault() {
    let (near, mut far) = pair();
    far.write_all(b"GET / HTTP/1.1\r\nhost: echo\r\n\r\n").await.unwrap();
    let error = accept(near, &Authority::new().workload("echo"), TIMEOUT).await.map(|_| ()).unwrap_err();
    assert_eq!((error.reason(), error.blame()), ("protocol", Blame::Peer));
}

#[tokio::test]
async fn a_peer_that_goes_away_is_the_networks_fault() {
    let (near, far) = pair();
    drop(far);
    let error = accept(near, &Authority::new().workload("echo"), TIMEOUT).await.map(|_| ()).unwrap_err();
    assert_eq!((error.reason(), error.blame()), ("connection", Blame::Network));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_holds_neither_side_for_longer_than_the_timeout() {
    let authority = Authority::new();
    let certificate = authority.workload("echo");
    let begin = Instant::now();
    let (near, _far) = pair();
    let error = accept(near, &certificate, TIMEOUT).await.map(|_| ()).unwrap_err();
    assert_eq!(error, TlsError::Timeout(TIMEOUT));
    let (near, _far) = pair();
    let error = connect(near, &certificate, &ExpectedPeers::new([ECHO]), TIMEOUT).await.map(|_| ());
    assert_eq!(error.unwrap_err(), TlsError::Timeout(TIMEOUT));
    assert_eq!(begin.elapsed(), TIMEOUT * 2);
}

#[test]
fn expectations_are_sets() {
    assert_eq!(ExpectedPeers::new(["b", "a", "b"]), ExpectedPeers::new(["a", "b"]));
    assert_eq!(ExpectedPeers::new(["b", "a"]).to_string(), "a, b");
}
