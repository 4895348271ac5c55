//! The server against clients of another make.

use http::{Method, Request};
use tokio::io::AsyncReadExt as _;

use super::*;

type Served = tokio::task::JoinHandle<Result<ServeEnd, ServeError>>;

/// A server without TLS whose requests are answered 503, and the client's end.
fn served(config: ServerConfig) -> (DuplexStream, Served) {
    let (near, far) = duplex(64 << 10);
    let server = tokio::spawn(async move {
        serve(far, &config, &terms(), std::future::pending(), |request| {
            if let Ok(request) = request {
                request.reject(http::StatusCode::SERVICE_UNAVAILABLE);
            }
        })
        .await
    });
    (near, server)
}

#[tokio::test]
async fn what_is_no_connect_with_an_address_is_answered_400() {
    let (near, _server) = served(ServerConfig::default());
    let (mut sender, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    for (method, uri, status) in [
        (Method::CONNECT, "10.0.0.2:80", 503),
        (Method::CONNECT, "echo.demo.svc:80", 503),
        (Method::CONNECT, "echo.demo.svc", 400),
        (Method::CONNECT, "user@echo:80", 400),
        (Method::GET, "https://10.0.0.2:80/", 400),
    ] {
        let request = Request::builder().method(&method).uri(uri).body(()).unwrap();
        let (response, _) = sender.send_request(request, false).unwrap();
        assert_eq!(response.await.unwrap().status(), status, "{method} {uri}");
        sender = sender.ready().await.unwrap();
    }
}

#[tokio::test]
async fn the_settings_are_those_of_the_contract() {
    let (mut near, _server) = served(ServerConfig::default());
    tokio::io::AsyncWriteExt::write_all(&mut near, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    // RFC 9113 6.5: a frame's length, type, flags and stream, then pairs of identifier and value.
    let length = near.read_u24().await;
    let mut head = [0; 6];
    near.read_exact(&mut head).await.unwrap();
    assert_eq!(head, [4, 0, 0, 0, 0, 0]);
    let mut settings = std::collections::BTreeMap::new();
    for _ in 0..length / 6 {
        settings.insert(near.read_u16().await.unwrap(), near.read_u32().await.unwrap());
    }
    // Streams at once, stream window, largest frame, header list.
    let expected = [(3, 200), (4, 4 << 20), (5, 1 << 20), (6, 64 << 10)];
    assert_eq!(settings, expected.into());
}

trait ReadU24 {
    async fn read_u24(&mut self) -> u32;
}

impl ReadU24 for DuplexStream {
    async fn read_u24(&mut self) -> u32 {
        let mut length = [0; 4];
        self.read_exact(&mut length[1..]).await.unwrap();
        u32::from_be_bytes(length)
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_preface_is_left() {
    let (_near, server) = served(ServerConfig::default());
    assert_eq!(server.await.unwrap(), Err(ServeError::PrefaceTimeout(Duration::from_secs(10))));
}

#[tokio::test]
async fn a_client_that_speaks_http_1_is_told_apart_from_a_broken_connection() {
    let (mut near, server) = served(ServerConfig::default());
    let request = b"GET / HTTP/1.1\r\nhost: echo\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut near, request).await.unwrap();
    let error = server.await.unwrap().unwrap_err();
    assert!(matches!(error, ServeError::Protocol(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_pings_is_left() {
    let (near, server) = served(ServerConfig::default());
    let (_sender, mut connection) = h2::client::handshake(near).await.unwrap();
    // Alive for half a minute, then silent.
    let begin = tokio::time::Instant::now();
    let alive = tokio::time::timeout(Duration::from_secs(25), &mut connection).await;
    assert!(alive.is_err());
    assert_eq!(server.await.unwrap(), Err(ServeError::PingTimeout(Duration::from_secs(20))));
    assert_eq!(begin.elapsed().as_secs(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_for_nothing_is_ended() {
    let (near, server) = served(ServerConfig::default());
    let (_sender, connection) = h2::client::handshake(near).await.unwrap();
    let begin = tokio::time::Instant::now();
    let client = tokio::spawn(connection);
    assert_eq!(server.await.unwrap(), Ok(ServeEnd::Idle));
    assert_eq!(begin.elapsed().as_secs(), 600);
    client.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_drained_connection_finishes_its_streams_and_no_more() {
    let mut world = World::new();
    let (mut client, mut server) = world.stream().await;
    world.drain.notify_waiters();
    client.write(bytes(1 << 20)).await.unwrap();
    client.finish().unwrap();
    assert!(read_all(&mut server).await.unwrap() == bytes(1 << 20));
    assert!(world.ends.try_recv().is_err(), "ended before its stream");
    server.finish().unwrap();
    assert_eq!(client.read().await, Ok(None));
    drop((client, server));
    assert_eq!(world.ends.recv().await, Some(Ok(ServeEnd::Drained)));
}
