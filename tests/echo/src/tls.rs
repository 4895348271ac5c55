//! TLS as probes meet it: a server whose certificate nobody has signed, and a client that does not mind.

use std::io;
use std::net::TcpStream;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};

use crate::http;

/// Serves HTTP/1.1 over TLS.
pub(crate) fn serve(stream: TcpStream) -> io::Result<()> {
    static CONFIG: LazyLock<Result<Arc<ServerConfig>, String>> =
        LazyLock::new(|| server().map_err(|error| error.to_string()));
    let config = CONFIG.as_ref().map_err(|error| io::Error::other(error.as_str()))?;
    let ends = (stream.local_addr()?, stream.peer_addr()?);
    let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
    http::serve_over(StreamOwned::new(connection, stream), ends)
}

fn server() -> anyhow::Result<Arc<ServerConfig>> {
    let own = rcgen::generate_simple_self_signed(vec!["echo".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let config = ServerConfig::builder().with_no_client_auth();
    Ok(Arc::new(config.with_single_cert(vec![own.cert.der().clone()], key.into())?))
}

/// Speaks TLS over a connection, with whoever is there: kubelet verifies no certificates.
pub(crate) fn connect(stream: TcpStream) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let provider = ClientConfig::builder().crypto_provider().clone();
    let config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(
            provider.signature_verification_algorithms.supported_schemes(),
        )))
        .with_no_client_auth();
    let name = ServerName::from(stream.peer_addr()?.ip());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

/// Takes every certificate.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
