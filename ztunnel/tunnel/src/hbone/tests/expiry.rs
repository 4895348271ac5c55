//! What becomes of a tunnel when a certificate it was made with expires or is replaced.
//!
//! The paused clock runs ahead; certificates are checked against the real one, so that a dial succeeds at any time.

use std::time::SystemTime;

use tokio::time::Instant;

use super::pool::answer_all;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// A client and a server of another make, which looks at no certificate's end.
fn lasting(client: Duration, server: Duration) -> (World, Remote) {
    let pool = PoolConfig { expiry_grace: Some(HOUR), ..PoolConfig::default() };
    let mut world = World::with(pool, ServerConfig::default());
    let mut remote = Remote::new(&world.ca, |io| async move {
        answer_all(h2::server::handshake(io).await.unwrap()).await;
    });
    remote.certificate = world.ca.certify("echo", |leaf| leaf.lifetime = Some(server));
    world.certificate = world.ca.certify("curl", |leaf| leaf.lifetime = Some(client));
    (world, remote)
}

/// Seconds, to the nearest ten: the real clock has moved a little.
fn about(duration: Duration) -> u64 {
    (duration.as_secs() + 5) / 10 * 10
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_known_until_the_first_of_the_two_certificates_expires() {
    for (client, server) in [(HOUR, 5 * HOUR), (5 * HOUR, HOUR)] {
        let (world, remote) = lasting(client, server);
        let opened = world.open_at(key(1), &remote).await.unwrap();
        assert_eq!(opened.peer.not_after(), remote.certificate.not_after());
        assert_eq!(about(opened.peer.expires() - Instant::now()), 3600);
        let left = opened.peer.not_after().duration_since(SystemTime::now()).unwrap();
        assert_eq!(about(left), server.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_takes_no_streams_after_either_certificate_and_what_it_carries_for_no_longer_than_the_grace()
{
    for (client, server) in [(HOUR, 5 * HOUR), (5 * HOUR, HOUR)] {
        let (world, remote) = lasting(client, server);
        let begin = Instant::now();
        let mut first = world.open_at(key(1), &remote).await.unwrap();
        tokio::time::sleep(HOUR - Duration::from_secs(10)).await;
        assert!(world.open_at(key(1), &remote).await.unwrap().reused);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(world.pool.stats(), PoolStats::default());
        assert!(!world.open_at(key(1), &remote).await.unwrap().reused);
        assert_eq!(remote.dials(), 2);
        first.stream.write(bytes(10)).await.unwrap();
        let error = first.stream.read().await.unwrap_err();
        assert!(matches!(error, StreamError::Tunnel(_)), "{error}");
        assert_eq!(about(begin.elapsed()), 7200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_takes_no_requests_after_its_clients_certificate_and_ends_its_streams_after_the_grace() {
    for ends_in_time in [true, false] {
        let (near, far) = duplex(64 << 10);
        let (asked, mut requests) = mpsc::unbounded_channel();
        let begin = Instant::now();
        let terms = Terms { expires: begin + HOUR, ..terms() };
        let server = tokio::spawn(async move {
            let on_connect = |request: Result<ConnectRequest, Malformed>| {
                if let Ok(request) = request {
                    let _ = asked.send(request);
                }
            };
            let config = ServerConfig { expiry_grace: Some(HOUR), ..ServerConfig::default() };
            serve(far, &config, &terms, std::future::pending(), on_connect).await
        });
        let (mut sender, connection) = h2::client::handshake(near).await.unwrap();
        let client = tokio::spawn(connection);
        let connect = || http::Request::connect("10.0.0.2:80").body(()).unwrap();
        let (response, mut send) = sender.send_request(connect(), false).unwrap();
        let mut stream = requests.recv().await.unwrap().accept(None).unwrap();
        response.await.unwrap();

        tokio::time::sleep(HOUR + Duration::from_secs(1)).await;
        assert!(sender.clone().ready().await.is_err(), "there was no GOAWAY");
        send.send_data(bytes(10), ends_in_time).unwrap();
        assert_eq!(stream.read().await, Ok(Some(bytes(10))));
        let expected = match ends_in_time {
            true => {
                assert_eq!(stream.read().await, Ok(None));
                stream.finish().unwrap();
                drop((stream, send));
                3600
            }
            false => {
                let error = stream.read().await.unwrap_err();
                assert!(matches!(error, StreamError::Tunnel(_)), "{error}");
                7200
            }
        };
        assert_eq!(server.await.unwrap(), Ok(ServeEnd::Expired));
        assert_eq!(about(begin.elapsed()), expected);
        drop((sender, client));
    }
}

#[tokio::test]
async fn a_tunnel_of_a_certificate_that_was_renewed_is_not_used_again() {
    let pool = PoolConfig { expiry_grace: Some(HOUR), ..PoolConfig::default() };
    let mut world = World::with(pool, ServerConfig::default());
    let old = world.certificate.clone();
    let (mut client, mut server) = world.stream().await;
    world.certificate = world.ca.certify("curl", |leaf| leaf.years.0 += 1);
    let (opened, _second) = tokio::join!(world.open(1), world.accepted());
    assert!(!opened.unwrap().reused);
    assert_eq!(world.remote.dials(), 2);
    assert_eq!(world.pool.stats().tunnels, 1);
    // What it carries goes on.
    client.write(bytes(10)).await.unwrap();
    assert_eq!(server.read().await, Ok(Some(bytes(10))));
    // Who still has the old one takes the new tunnel.
    world.certificate = old;
    let (opened, _third) = tokio::join!(world.open(1), world.accepted());
    assert!(opened.unwrap().reused);
}

#[tokio::test]
async fn a_dial_under_way_with_the_certificate_before_serves_nobody_who_has_the_new_one() {
    let pool = PoolConfig { expiry_grace: Some(HOUR), ..PoolConfig::default() };
    let mut world = World::with(pool, ServerConfig::default());
    let release = Arc::new(Notify::new());
    let remote = world.remote.clone();
    let slow = || {
        let (dialed, release) = (remote.dial(), release.clone());
        async move {
            release.notified().await;
            dialed.await
        }
    };
    let mut first = Box::pin(world.open_by(key(1), slow));
    assert!(futures::poll!(&mut first).is_pending());
    world.certificate = world.ca.certify("curl", |leaf| leaf.years.0 += 1);
    let mut second = Box::pin(world.open(1));
    assert!(futures::poll!(&mut second).is_pending());
    assert_eq!(remote.dials(), 1, "it waits for the dial");
    release.notify_one();
    let (opened, _servers) = tokio::join!(
        async { tokio::try_join!(first, second).map(|_both| ()) },
        tokio::time::timeout(Duration::from_secs(1), async {
            let mut servers = Vec::new();
            while servers.len() < 2 {
                servers.push(world.requests.recv().await.unwrap().accept(None).unwrap());
            }
            servers
        })
    );
    opened.unwrap();
    assert_eq!((remote.dials(), world.pool.stats().tunnels), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_a_tunnel_carries_outlives_its_certificates_unless_a_grace_is_set() {
    let mut world = World::new();
    let mut remote = Remote::new(&world.ca, |io| async move {
        answer_all(h2::server::handshake(io).await.unwrap()).await;
    });
    remote.certificate = world.ca.certify("echo", |leaf| leaf.lifetime = Some(HOUR));
    world.certificate = world.ca.certify("curl", |leaf| leaf.lifetime = Some(HOUR));
    let mut opened = world.open_at(key(1), &remote).await.unwrap();
    tokio::time::sleep(72 * HOUR).await;
    assert_eq!(world.pool.stats(), PoolStats::default());
    opened.stream.write(bytes(10)).await.unwrap();
    let silent = tokio::time::timeout(HOUR, opened.stream.read()).await;
    assert!(silent.is_err(), "the stream ended: {silent:?}");
}
