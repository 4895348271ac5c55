//! Certificates that are revoked while connections live.

use super::*;
use crate::telemetry::{Reporter, ReporterLabel};

/// The number of the certificate that a pod has now.
async fn serial(pod: &std::sync::Arc<crate::pods::Pod>) -> String {
    let own = pod.own().await.unwrap();
    own.certificate().await.unwrap().serial().to_owned()
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_connections_at_both_ends_and_the_lines_say_why() {
    for client_is_revoked in [true, false] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        let server = world.pod(At::West, "server", SERVER).await;
        let application = world.listen(SERVER_APP).await;
        world.complete();
        let mut live = world.dial(At::East, &client, SERVER_APP).await;
        live.write_all(b"x").await.unwrap();
        let (mut served, _) = application.accept().await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
        let revoked = serial(if client_is_revoked { &client } else { &server }).await;
        world.ca.revoke(&revoked);
        assert!(is_reset(&mut live).await);
        assert!(is_reset(&mut served).await);
        // The end that does not look at the revoked certificate may see no more than that the other has cut.
        let looks = if client_is_revoked { "inbound" } else { "outbound" };
        let lines = world.lines(2).await;
        let line = lines.iter().find(|line| line["direction"] == looks).unwrap();
        assert_eq!(line["response_flags"], "CERT_REVOKED", "{line:?}");
        assert!(line["error"].contains("was revoked"), "{line:?}");
        let reporter = if client_is_revoked { Reporter::Destination } else { Reporter::Source };
        let at = if client_is_revoked { At::West } else { At::East };
        let rejections =
            world.node(at).metrics.crl_rejections.get_or_create(&ReporterLabel { reporter }).get();
        assert_eq!(rejections, 1);
    }
}

#[tokio::test]
async fn a_revoked_client_opens_nothing_and_a_revoked_server_is_not_connected_to() {
    for (revoked, direction) in [("client", "inbound"), ("server", "outbound")] {
        let world = World::new();
        let client = world.pod(At::East, "client", CLIENT).await;
        let server = world.pod(At::West, "server", SERVER).await;
        world.echo(SERVER_APP).await;
        world.complete();
        let number = serial(if revoked == "client" { &client } else { &server }).await;
        world.ca.revoke(&number);
        assert!(is_reset(&mut world.dial(At::East, &client, SERVER_APP).await).await);
        let lines = world.lines(2).await;
        let line = lines.iter().find(|line| line["direction"] == direction).unwrap();
        assert_eq!((&*line["path"], &*line["response_flags"]), ("refused", "CERT_REVOKED"), "{line:?}");
        assert_eq!(line["tls.error"], "certificate_revoked");
        assert!(!world.wires.dials().contains(&SERVER_APP.parse().unwrap()));
    }
}

#[tokio::test]
async fn connections_within_a_node_show_no_certificate_and_go_on() {
    let world = World::new();
    let client = world.pod(At::East, "client", CLIENT).await;
    world.pod(At::East, "server", SERVER).await;
    world.echo(SERVER_APP).await;
    world.complete();
    world.ca.revoke(&serial(&client).await);
    let answer = exchange(world.dial(At::East, &client, SERVER_APP).await, b"hello").await.unwrap();
    assert_eq!(answer, b"hello");
}
