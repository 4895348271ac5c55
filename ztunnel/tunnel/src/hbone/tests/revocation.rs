//! A certificate that is revoked while its tunnel stands.

use super::*;
use crate::authority::{Authority, Issued, LeafSpec};
use crate::tls::{KeyExchange, PeerCertificateError, RevocationLists, Revocations, TlsError, TlsPolicy};

/// A world whose certificates are looked up in lists, and the certificates of its two ends.
struct Revocable {
    world: World,
    revocations: Revocations,
    client: Issued,
    server: Issued,
}

impl Revocable {
    fn new() -> Self {
        let mut ca = Authority::new();
        let revocations = Revocations::new(list(&ca, &[]));
        ca.policy = TlsPolicy::new(KeyExchange::default(), revocations.clone());
        let [client, server] =
            ["curl", "echo"].map(|account| ca.issue(&LeafSpec::of(&identity(account).to_string())));
        let certificates = [&client, &server].map(|issued| ca.ready(issued));
        let mut world = World::of(ca, PoolConfig::default(), ServerConfig::default());
        [world.certificate, world.remote.certificate] = certificates;
        Self { world, revocations, client, server }
    }

    fn revoke(&self, serials: &[u64]) {
        self.revocations.replace(list(&self.world.ca, serials));
    }
}

fn list(ca: &Authority, serials: &[u64]) -> RevocationLists {
    RevocationLists::parse(ca.list(serials, false).der()).unwrap()
}

#[tokio::test]
async fn the_tunnel_of_a_revoked_client_is_cut_by_its_server() {
    let mut revocable = Revocable::new();
    let (mut client, mut server) = revocable.world.stream().await;
    revocable.revoke(&[revocable.client.serial]);
    assert_eq!(revocable.world.ends.recv().await.unwrap(), Ok(ServeEnd::Revoked));
    assert!(matches!(server.read().await, Err(StreamError::Tunnel(_))));
    assert!(client.read().await.is_err());
}

#[tokio::test]
async fn the_tunnel_to_a_revoked_server_is_cut_and_another_is_refused() {
    let mut revocable = Revocable::new();
    let opened = revocable.world.open(1);
    let (opened, _server) = tokio::join!(opened, revocable.world.accepted());
    let Opened { mut stream, peer, .. } = opened.unwrap();
    revocable.revoke(&[revocable.server.serial]);
    assert!(matches!(stream.read().await, Err(StreamError::Tunnel(_))));
    assert!(peer.standing().is_lost(), "so that it can be told why");
    let error = revocable.world.open(1).await.err().unwrap();
    let revoked = TlsError::PeerCertificate(PeerCertificateError::Revoked);
    assert!(matches!(&error, OpenError::Tls(error) if *error == revoked), "{error}");
    assert_eq!(revocable.world.pool.stats().tunnels, 0);
}

#[tokio::test]
async fn other_tunnels_go_on_when_somebody_is_revoked() {
    let mut revocable = Revocable::new();
    let (mut client, mut server) = revocable.world.stream().await;
    revocable.revoke(&[u64::MAX]);
    for _ in 0..3 {
        client.write(bytes(1000)).await.unwrap();
        assert_eq!(server.read().await.unwrap(), Some(bytes(1000)));
    }
}
