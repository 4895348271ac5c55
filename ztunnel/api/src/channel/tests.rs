//! Who is connected to, and who is not.

use std::error::Error;
use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataMap;

use super::*;

const NAME: &str = "culvert-control.culvert-system.svc";

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A TLS server for [`NAME`] vouched for by `issuer`. Its task ends with the protocol that one connection has
/// agreed on.
async fn serve(
    issuer: &CertifiedIssuer<'static, KeyPair>,
) -> (String, JoinHandle<io::Result<Option<Vec<u8>>>>) {
    serve_with(issuer, rustls::crypto::aws_lc_rs::default_provider()).await
}

async fn serve_with(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    provider: rustls::crypto::CryptoProvider,
) -> (String, JoinHandle<io::Result<Option<Vec<u8>>>>) {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await?;
        let mut tls = acceptor.accept(tcp).await?;
        // The client's alert comes after the server's side of a TLS 1.3 handshake is done.
        tls.read_u8().await?;
        Ok(tls.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
    });
    (authority, task)
}

fn tls(authority: String, name: &str, roots: PathBuf) -> Server {
    let key_exchange = KeyExchange::default();
    Server::Tls { authority, name: name.to_owned(), roots: roots.into(), key_exchange }
}

#[tokio::test]
async fn a_server_is_taken_only_for_its_name_under_our_roots() {
    let directory = TempDir::new().unwrap();
    let (ours, theirs) = (authority(), authority());
    let roots = directory.path().join("root.pem");
    fs::write(&roots, ours.pem()).unwrap();
    let cases = [
        ("ours", &ours, NAME, true),
        ("of another name", &ours, "other.culvert-system.svc", false),
        ("under another root", &theirs, NAME, false),
    ];
    for (sentence, issuer, name, taken) in cases {
        let (authority, server) = serve(issuer).await;
        let connected = connect(&tls(authority, name, roots.clone())).await;
        assert_eq!(connected.is_ok(), taken, "{sentence}: {connected:?}");
        let accepted = server.await.unwrap();
        assert_eq!(accepted.ok(), taken.then(|| Some(b"h2".to_vec())), "{sentence}");
    }
}

#[tokio::test]
async fn a_control_plane_without_the_hybrid_key_exchange_is_taken_unless_that_is_demanded() {
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
    let directory = TempDir::new().unwrap();
    let issuer = authority();
    let roots = directory.path().join("root.pem");
    fs::write(&roots, issuer.pem()).unwrap();
    for (group, wanted, taken) in [
        (kx_group::X25519, KeyExchange::HybridPreferred, true),
        (kx_group::X25519MLKEM768, KeyExchange::HybridPreferred, true),
        (kx_group::X25519, KeyExchange::HybridOnly, false),
        (kx_group::X25519MLKEM768, KeyExchange::HybridOnly, true),
    ] {
        let provider = rustls::crypto::CryptoProvider { kx_groups: vec![group], ..default_provider() };
        let (at, _server) = serve_with(&issuer, provider).await;
        let mut server = tls(at, NAME, roots.clone());
        if let Server::Tls { key_exchange, .. } = &mut server {
            *key_exchange = wanted;
        }
        assert_eq!(connect(&server).await.is_ok(), taken, "{:?} where {wanted:?}", group.name());
    }
}

#[tokio::test]
async fn several_roots_may_stand_in_one_file() {
    let directory = TempDir::new().unwrap();
    let (old, new) = (authority(), authority());
    let roots = directory.path().join("root.pem");
    fs::write(&roots, old.pem() + &new.pem()).unwrap();
    for issuer in [&old, &new] {
        let (authority, _server) = serve(issuer).await;
        assert!(connect(&tls(authority, NAME, roots.clone())).await.is_ok());
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_work_says_what_is_wrong_with_it() {
    let directory = TempDir::new().unwrap();
    let at = |file: &str| directory.path().join(file);
    fs::write(at("empty"), "").unwrap();
    fs::write(at("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    fs::write(at("good"), authority().pem()).unwrap();
    let attempt = async |roots: &str, name: &str| {
        connect(&tls("127.0.0.1:1".to_owned(), name, at(roots))).await.unwrap_err()
    };
    assert!(
        matches!(attempt("missing", NAME).await, ConnectError::Roots(RootsError::Read { what, .. }) if what == at("missing").display().to_string())
    );
    assert!(
        matches!(attempt("empty", NAME).await, ConnectError::Roots(RootsError::Unusable(what)) if what == at("empty").display().to_string())
    );
    assert!(
        matches!(attempt("broken", NAME).await, ConnectError::Roots(RootsError::Unusable(what)) if what == at("broken").display().to_string())
    );
    assert!(matches!(attempt("good", "no name").await, ConnectError::ServerName(name) if name == "no name"));
    let refused = attempt("good", NAME).await;
    assert_eq!(refused.to_string(), "cannot connect to https://127.0.0.1:1");
    assert!(refused.source().is_some());
}

#[tokio::test]
async fn the_token_is_trimmed_sent_as_a_bearer_and_never_shown() {
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    let credentials = Credentials {
        token: Some(token.clone().into()),
        cluster_id: Some("c1".to_owned()),
        headers: vec![
            Header::new("X-Tenant", "blue").unwrap(),
            Header::new("authorization", "another").unwrap(),
        ],
    };
    let mut headers = MetadataMap::new();
    assert!(matches!(credentials.apply(&mut headers).await, Err(ConnectError::Read { .. })));
    fs::write(&token, " secret \n").unwrap();
    credentials.apply(&mut headers).await.unwrap();
    assert_eq!(headers.get("authorization").unwrap(), "Bearer secret");
    assert_eq!(headers.get("clusterid").unwrap(), "c1");
    assert_eq!(headers.get("x-tenant").unwrap(), "blue");
    assert_eq!(headers.len(), 3, "a further header takes the token's place: {headers:?}");
    assert!(!format!("{headers:?}").contains("secret"));
    fs::write(&token, "two\nlines").unwrap();
    assert!(matches!(credentials.apply(&mut headers).await, Err(ConnectError::Header("the token"))));
    let literal =
        Credentials { token: Some(Token::Literal("hidden\n".to_owned())), ..Credentials::default() };
    literal.apply(&mut headers).await.unwrap();
    assert_eq!(headers.get("authorization").unwrap(), "Bearer hidden");
    assert!(!format!("{literal:?}").contains("hidden"));
    let mut none = MetadataMap::new();
    Credentials::default().apply(&mut none).await.unwrap();
    assert!(none.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_read_in_time_is_an_error_and_no_hang() {
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    // Nobody writes to it, so opening it blocks.
    rustix::fs::mkfifoat(rustix::fs::CWD, &token, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let credentials = Credentials { token: Some(token.clone().into()), ..Credentials::default() };
    let applied = tokio::spawn(async move { credentials.apply(&mut MetadataMap::new()).await });
    tokio::task::yield_now().await;
    tokio::time::advance(CONNECT_TIMEOUT * 2).await;
    let error = applied.await.unwrap().unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "it cannot be read within 5 s");
    // Lets the thread go that still waits.
    fs::OpenOptions::new().write(true).open(&token).unwrap();
}

#[test]
fn what_no_header_can_carry_is_refused_by_its_name_and_without_its_value() {
    assert_eq!(Header::new("", "v"), Err(InvalidHeader::Name(String::new())));
    assert_eq!(Header::new("a b", "v"), Err(InvalidHeader::Name("a b".to_owned())));
    assert_eq!(Header::new("data-bin", "v"), Err(InvalidHeader::Name("data-bin".to_owned())));
    let error = Header::new("X-Key", "sec\nret").unwrap_err();
    assert_eq!(error.to_string(), "the value of the header x-key has characters that none can carry");
}

#[test]
fn an_address_is_a_socket_or_a_host_and_port_over_tls() {
    let cases = [
        ("unix:///run/culvert/xds.sock", Some(ServerAddress::Unix("/run/culvert/xds.sock".into()))),
        ("https://10.0.0.1:15012", Some(ServerAddress::Https("10.0.0.1:15012".to_owned()))),
        ("https://[fd00::1]:15012/", Some(ServerAddress::Https("[fd00::1]:15012".to_owned()))),
        ("https://istiod.istio-system.svc:15012", {
            Some(ServerAddress::Https("istiod.istio-system.svc:15012".to_owned()))
        }),
        ("istiod.istio-system.svc:15012", {
            Some(ServerAddress::Https("istiod.istio-system.svc:15012".to_owned()))
        }),
        ("http://10.0.0.1:15012", None),
        ("istiod.istio-system.svc", None),
        ("https://10.0.0.1", None),
        ("https://user@10.0.0.1:15012", None),
        ("https://", None),
        ("unix://relative", None),
        ("unix:", None),
        ("", None),
    ];
    for (text, expected) in cases {
        let parsed: Option<ServerAddress> = text.parse().ok();
        assert_eq!(parsed, expected, "{text}");
        if let Some(address) = parsed {
            assert!(address.to_string().ends_with(text.trim_end_matches('/')), "{address}");
        }
    }
}
