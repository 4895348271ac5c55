//! Certificates at a real ztunnel's port 15008, and at the port that a real ztunnel dials.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use sandbox::{Direction, Family, wait};

use super::{Count, Log, ZTUNNEL};
use crate::root::{Signer, root};
use crate::world::{SETTLE, World, identity, pods, ports};

/// How soon after a client's connection its tunnel is dialled.
const TRY: Duration = Duration::from_secs(1);

type Certificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The fault, who signs, the URIs of the certificate or none of either, and the years of its validity.
type Shown<'a> = (&'a str, &'a Signer, Option<&'a [&'a str]>, (i32, i32));

/// What HTTP/2 begins with (RFC 9113 3.4), and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn self_made() -> anyhow::Result<Signer> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "self-made");
    Ok(Issuer::new(params, KeyPair::generate()?))
}

/// A certificate for these URIs, valid in these years.
fn issue(signer: &Signer, uris: &[&str], years: (i32, i32)) -> anyhow::Result<Certificate> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        uris.iter().map(|uri| Ok(SanType::URI((*uri).try_into()?))).collect::<anyhow::Result<_>>()?;
    params.extended_key_usages = vec![ClientAuth, ServerAuth];
    params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
    let certificate = params.signed_by(&key, signer)?;
    Ok((vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
}

/// Takes any server: whom the client believes to talk to is not what is tested.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Shows a certificate, or none, at an address from inside of a pod. The client's end, and whether HTTP/2 was spoken then.
fn show(
    world: &World,
    from: &str,
    certificate: Option<Certificate>,
    to: SocketAddr,
) -> anyhow::Result<(SocketAddr, bool)> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("anything")?)?;
    let mut stream = world.connect(from, to)?;
    let local = stream.local_addr()?;
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    let spoken = tls.write_all(PREFACE).and_then(|()| tls.read(&mut [0; 9]));
    Ok((local, spoken.is_ok_and(|count| count > 0)))
}

pub(super) fn clients(world: &mut World) -> anyhow::Result<()> {
    const NOW: (i32, i32) = (2020, 2100);
    let (root, self_made) = (root(world)?, self_made()?);
    let (client, far) = (identity("shop", "client"), identity("shop", "far"));
    let (client, far) = (client.as_str(), far.as_str());
    let cases: [Shown<'_>; 9] = [
        ("several_identities", &root, Some(&[client, far]), NOW),
        ("wrong_trust_domain", &root, Some(&["spiffe://elsewhere.org/ns/shop/sa/client"]), NOW),
        ("certificate_expired", &root, Some(&[client]), (2020, 2021)),
        ("certificate_not_yet_valid", &root, Some(&[client]), (2090, 2100)),
        ("unknown_issuer", &self_made, Some(&[client]), NOW),
        ("no_identity", &root, Some(&[]), NOW),
        ("no_identity", &root, Some(&["https://client.shop"]), NOW),
        ("malformed_identity", &root, Some(&["spiffe://cluster.local/client"]), NOW),
        ("certificate_missing", &root, None, NOW),
    ];
    for family in Family::BOTH {
        let hbone = world.address(pods::NEAR, family, 15008)?;
        let (_, spoken) = show(world, pods::OUTSIDER_WEST, Some(issue(&root, &[client], NOW)?), hbone)?;
        ensure!(spoken, "{family}: a good certificate is refused");
        for (reason, signer, uris, years) in cases {
            let what = || format!("{family}, {reason}");
            let label = format!("reason=\"{reason}\"");
            let labels = ["reporter=\"destination\"", &label];
            let counted = Count::from_now(world, ZTUNNEL, "culvert_tls_failures_total", &labels)?;
            let log = world.mesh.access_log().from_now();
            let certificate = uris.map(|uris| issue(signer, uris, years)).transpose()?;
            let (local, spoken) = show(world, pods::OUTSIDER_WEST, certificate, hbone).with_context(what)?;
            ensure!(!spoken, "{} is let in", what());
            let entry = log.of(local, Direction::Inbound, SETTLE).with_context(what)?;
            ensure!(
                entry.others.get("tls.error").is_some_and(|error| error == reason),
                "{}: {entry:?}",
                what()
            );
            ensure!(entry.path.as_deref() == Some("refused"), "{}: {entry:?}", what());
            ensure!(entry.source_identity.is_none() && entry.error.is_some(), "{}: {entry:?}", what());
            counted.grows_by(world, 1).with_context(what)?;
        }
    }
    Ok(())
}

/// Whoever has bound the mesh's port in a pod before the pod joined answers there in the mesh's place, with whatever certificate.
pub(super) fn servers(world: &mut World) -> anyhow::Result<()> {
    const OUT: &str = "labels: {app: outsider-west}";
    const IN: &str = "labels: {app: outsider-west, istio.io/dataplane-mode: ambient}";
    let (root, self_made) = (root(world)?, self_made()?);
    let (own, other) = (identity("plain", "outsider"), identity("shop", "far"));
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15008));
    let listener = world.sandbox.pod(pods::OUTSIDER_WEST)?.net().run(|| TcpListener::bind(address))??;
    world.edit("plain.yaml", OUT, IN)?;
    let cases: [(&str, &Signer, &[&str]); 3] = [
        ("unexpected_identity", &root, &[other.as_str()]),
        ("unknown_issuer", &self_made, &[own.as_str()]),
        ("no_identity", &root, &[]),
    ];
    for family in Family::BOTH {
        for (reason, signer, uris) in cases {
            let what = || format!("{family}, {reason}");
            let certificate = issue(signer, uris, (2020, 2100))?;
            let label = format!("reason=\"{reason}\"");
            let labels = ["reporter=\"source\"", &label];
            let counted = Count::from_now(world, ZTUNNEL, "culvert_tls_failures_total", &labels)?;
            let log = Log::from_now(world, "ztunnel-east");
            impersonate(world, &listener, certificate, family).with_context(what)?;
            counted.grows_by(world, 1).with_context(what)?;
            let server = world.address(pods::OUTSIDER_WEST, family, 15008)?;
            log.tells(&[reason, &server.to_string(), "\"path\":\"refused\""]).with_context(what)?;
        }
    }
    drop(listener);
    world.edit("plain.yaml", IN, OUT)?;
    let node = world.sandbox.node("west")?;
    let left = || world.pod_state(node, "outsider-west").is_ok_and(|state| state.is_none()).then_some(());
    wait::until(SETTLE, || "outsider-west to have left".into(), left)?;
    Ok(())
}

/// Answers one handshake in the pod's place, while a client dials the pod.
fn impersonate(
    world: &World,
    listener: &TcpListener,
    (chain, key): Certificate,
    family: Family,
) -> anyhow::Result<()> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    listener.set_nonblocking(true)?;
    let to = world.address(pods::OUTSIDER_WEST, family, ports::HTTP)?;
    // Until the change of the manifest is known, the pod itself answers in plaintext.
    let (mut client, accepted) = wait::try_until(
        SETTLE,
        || "a tunnel to the pod".into(),
        || {
            let client = world.connect(pods::CLIENT, to).map_err(|error| error.to_string())?;
            let dialled = || listener.accept().ok().map(|(stream, _)| stream);
            let accepted = wait::until(TRY, || "a dial of the mesh's port".into(), dialled);
            accepted.map(|accepted| (client, accepted)).map_err(|error| error.to_string())
        },
    )?;
    let spoken = shake(accepted, config);
    ensure!(spoken.is_err(), "the client's side went on: {spoken:?}");
    let mut answer = Vec::new();
    // The connection may have been reset already.
    let _ = client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    match client.read_to_end(&mut answer) {
        Ok(0) | Err(_) => Ok(()),
        Ok(_) => bail!("the application got an answer: {}", String::from_utf8_lossy(&answer)),
    }
}

fn shake(mut stream: TcpStream, config: Arc<ServerConfig>) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SETTLE))?;
    let mut connection = ServerConnection::new(config)?;
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    ensure!(tls.read(&mut [0; 24])? > 0, "the client closed");
    Ok(())
}
