//! What a stream carries, and how it ends.

use tokio_util::sync::CancellationToken;

use super::*;

#[tokio::test]
async fn a_connect_carries_its_headers_there_and_the_baggage_back() {
    let mut world = World::new();
    let headers = ConnectHeaders {
        baggage: Some("k8s.namespace.name=demo".parse().unwrap()),
        forwarded: Some(forwarded("10.0.0.1:1234".parse().unwrap(), None)),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap()),
        forwarded_network: Some("east".parse().unwrap()),
    };
    let (pool, remote, certificate) = (world.pool.clone(), world.remote.clone(), world.certificate.clone());
    let (key, target) = (key(1), target());
    let open = pool.open(&key, &certificate, &target, &headers, || remote.dial());
    let (opened, _stream) = tokio::join!(open, async {
        let request = world.requests.recv().await.unwrap();
        assert_eq!(request.authority(), &target);
        assert_eq!(request.headers(), &headers);
        request.accept(Some("k8s.pod.name=echo".parse().unwrap())).unwrap()
    });
    let opened = opened.unwrap();
    assert_eq!(opened.baggage.unwrap(), "k8s.pod.name=echo");
    assert_eq!(opened.peer.identity(), &identity("echo"));
    assert_eq!(opened.peer.tls().group, "X25519MLKEM768");
    assert!(!opened.reused);
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let mut world = World::new();
    let (mut client, mut server) = world.stream().await;
    let question = bytes(1 << 20);
    let (asked, answered) = tokio::join!(
        async {
            client.write(question.clone()).await.unwrap();
            client.finish().unwrap();
            read_all(&mut client).await.unwrap()
        },
        async {
            let question = read_all(&mut server).await.unwrap();
            server.write(Bytes::from_static(b"after your end")).await.unwrap();
            server.finish().unwrap();
            question
        }
    );
    assert_eq!(asked, b"after your end");
    assert!(answered == question);
}

#[tokio::test]
async fn a_reset_or_dropped_stream_is_a_reset_at_the_other_end_and_no_end() {
    let mut world = World::new();
    type End = fn(TunnelStream);
    for (name, end) in [("reset", TunnelStream::reset as End), ("dropped", drop)] {
        let (client, mut server) = world.stream().await;
        end(client);
        assert_eq!(server.read().await, Err(StreamError::Reset(h2::Reason::CONNECT_ERROR)), "client {name}");
        let (mut client, server) = world.stream().await;
        end(server);
        assert_eq!(client.read().await, Err(StreamError::Reset(h2::Reason::CONNECT_ERROR)), "server {name}");
    }
    assert_eq!(world.remote.dials(), 1);
}

#[tokio::test]
async fn a_stream_that_has_ended_both_ways_is_not_reset_by_its_drop() {
    let mut world = World::new();
    let (mut client, mut server) = world.stream().await;
    client.finish().unwrap();
    assert_eq!(server.read().await, Ok(None));
    server.write(bytes(10)).await.unwrap();
    server.finish().unwrap();
    drop(server);
    assert_eq!(read_all(&mut client).await.unwrap(), bytes(10));
}

#[tokio::test]
async fn a_refusal_reaches_the_client_with_its_status() {
    let mut world = World::new();
    for status in [400, 401, 503] {
        let status = http::StatusCode::from_u16(status).unwrap();
        let (opened, ()) = tokio::join!(world.open(1), async {
            world.requests.recv().await.unwrap().reject(status);
        });
        assert!(matches!(opened, Err(OpenError::Rejected(got)) if got == status), "{status}");
    }
    // The tunnel is none the worse for it.
    assert_eq!(world.remote.dials(), 1);
}

#[tokio::test]
async fn a_request_that_is_dropped_is_reset() {
    let mut world = World::new();
    let (opened, ()) = tokio::join!(world.open(1), async {
        drop(world.requests.recv().await.unwrap());
    });
    assert!(matches!(opened, Err(OpenError::Reset(h2::Reason::INTERNAL_ERROR))));
}

#[tokio::test]
async fn the_server_learns_that_a_client_gave_up_waiting() {
    let mut world = World::new();
    let mut request = tokio::select! {
        _ = world.open(1) => panic!("nobody has answered"),
        request = world.requests.recv() => request.unwrap(),
    };
    request.cancelled().await;
}

#[tokio::test]
async fn streams_break_with_their_tunnel() {
    let mut world = World::new();
    let ca = authority::Authority::new();
    let kill = CancellationToken::new();
    let token = kill.clone();
    let remote = Remote::new(&ca, move |io| {
        let token = token.clone();
        async move {
            let (asked, mut requests) = mpsc::unbounded_channel();
            let accept = async {
                let stream: ConnectRequest = requests.recv().await.unwrap();
                let _stream = stream.accept(None).unwrap();
                std::future::pending::<()>().await;
            };
            let (config, terms) = (ServerConfig::default(), terms());
            let serve = serve(io, &config, &terms, std::future::pending(), |request| {
                if let Ok(request) = request {
                    let _ = asked.send(request);
                }
            });
            tokio::select! {
                () = accept => {}
                _ = serve => {}
                () = token.cancelled() => {}
            }
        }
    });
    world.certificate = ca.workload("curl");
    let mut stream = world.open_at(key(1), &remote).await.unwrap().stream;
    kill.cancel();
    let error = stream.read().await.unwrap_err();
    assert!(matches!(error, StreamError::Tunnel(_)), "{error}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ConnectionReset);
}
