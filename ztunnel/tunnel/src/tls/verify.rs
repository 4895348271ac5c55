//! Whom the two sides accept. Everything is decided inside of the handshake: a peer that is refused is told by
//! an alert, and a server that is not who was expected never sees our certificate.

use std::sync::Arc;

use mesh::TrustDomain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::error::PeerCertificateError;
use super::handshake::ExpectedPeers;
use super::identity::{Leaf, Role};
use super::policy::TlsPolicy;
use super::revocation::{Chain, Verified};

/// A second look at a chain that leads to our roots: those who are accepted otherwise know nothing of lists that change.
fn check_revocation(
    policy: &TlsPolicy,
    roots: &RootCertStore,
    chain: Chain<'_>,
    at: UnixTime,
    role: Role,
) -> Result<(), PeerCertificateError> {
    let algorithms = policy.provider.signature_verification_algorithms;
    policy.revocations.check(&chain, &Verified { roots, algorithms, at, role })
}

/// Accepts clients of our roots and our trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    policy: TlsPolicy,
    trust_domain: TrustDomain,
}

impl ClientVerifier {
    /// Fails if there are no roots.
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        policy: TlsPolicy,
        trust_domain: TrustDomain,
    ) -> Result<Self, rustls::server::VerifierBuilderError> {
        // No hints: each client has one certificate, and the list would only name our CA to strangers.
        let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), policy.provider.clone())
            .clear_root_hint_subjects()
            .build()?;
        Ok(Self { chain, roots, policy, trust_domain })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        check_revocation(&self.policy, &self.roots, Chain { leaf, intermediates }, now, Role::Client)?;
        let leaf = Leaf::read(leaf)?;
        leaf.meant_for(Role::Client)?;
        if leaf.identity.trust_domain != self.trust_domain {
            return Err(PeerCertificateError::WrongTrustDomain {
                ours: self.trust_domain.clone(),
                theirs: leaf.identity.trust_domain,
            }
            .into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Accepts servers of our roots that are one of the expected.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) policy: TlsPolicy,
    pub(super) expected: ExpectedPeers,
}

impl ServerCertVerifier for ServerVerifier {
    /// The server's name plays no part: it is its SPIFFE id that counts (contract 2.1).
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            now,
            self.policy.provider.signature_verification_algorithms.all,
        )?;
        check_revocation(&self.policy, &self.roots, Chain { leaf, intermediates }, now, Role::Server)?;
        let leaf = Leaf::read(leaf)?;
        leaf.meant_for(Role::Server)?;
        let got = leaf.identity.to_string();
        if !self.expected.contains(&got) {
            return Err(PeerCertificateError::Unexpected { got, expected: self.expected.to_string() }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.policy.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.policy.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.policy.provider.signature_verification_algorithms.supported_schemes()
    }
}
