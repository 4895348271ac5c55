//! Who dials, who waits, who may share, and what is left afterwards.

use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;

/// Dials that end as told, counted.
fn failing(dials: &AtomicUsize) -> impl Future<Output = io::Result<DuplexStream>> + Send + use<> {
    dials.fetch_add(1, Ordering::Relaxed);
    async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

/// A server of another make behind TLS: it does as `behave` says for each connection.
pub(super) fn foreign<F>(
    behave: impl Fn(h2::server::Connection<ServerIo, Bytes>) -> F + Send + Sync + Copy + 'static,
) -> (World, Remote)
where
    F: Future<Output = ()> + Send + 'static,
{
    let ca = authority::Authority::new();
    let remote = Remote::new(&ca, move |io| async move {
        behave(h2::server::handshake(io).await.unwrap()).await;
    });
    let mut world = World::new();
    world.certificate = ca.workload("curl");
    (world, remote)
}

/// Answers every request with 200 and keeps the streams, until the connection ends.
pub(super) async fn answer_all(mut connection: h2::server::Connection<ServerIo, Bytes>) {
    let mut streams = Vec::new();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        streams.push(respond.send_response(http::Response::new(()), false));
    }
}

#[tokio::test]
async fn streams_share_a_tunnel_up_to_its_limit() {
    let mut world =
        World::with(PoolConfig { streams_per_tunnel: 2, ..PoolConfig::default() }, ServerConfig::default());
    let mut streams = Vec::new();
    for (open, dials) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)] {
        streams.push(world.stream().await);
        assert_eq!(world.remote.dials(), dials, "{open} streams");
    }
    assert_eq!(world.pool.stats(), PoolStats { tunnels: 3, streams: 5, keys: 1 });
    drop(streams.remove(0));
    streams.push(world.stream().await);
    assert_eq!(world.remote.dials(), 3);
}

#[tokio::test]
async fn a_server_that_takes_fewer_streams_gets_no_more() {
    let server = ServerConfig { max_streams: 2, ..ServerConfig::default() };
    let mut world = World::with(PoolConfig::default(), server);
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(world.stream().await);
    }
    assert_eq!(world.remote.dials(), 3);
}

#[tokio::test(start_paused = true)]
async fn requests_that_outrun_the_servers_settings_go_to_another_tunnel() {
    let mut world = World::new();
    let ca = authority::Authority::new();
    let remote = Remote::new(&ca, |io| async move {
        let connection = h2::server::Builder::new().max_concurrent_streams(1).handshake(io).await.unwrap();
        answer_all(connection).await;
    });
    world.certificate = ca.workload("curl");
    let (first, second) = tokio::join!(world.open_at(key(1), &remote), world.open_at(key(1), &remote));
    let _both = (first.unwrap(), second.unwrap());
    assert_eq!(remote.dials(), 2);
}

#[tokio::test]
async fn callers_with_the_same_key_share_one_dial_and_others_do_not() {
    let mut world = World::new();
    let opens: JoinSet<_> = (0..50).map(|number| world.open(number / 25)).collect();
    let mut servers = Vec::new();
    for _ in 0..50 {
        servers.push(world.accepted().await);
    }
    let opened: Vec<Opened> = opens.join_all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(world.remote.dials(), 2);
    assert!(opened.iter().all(|opened| !opened.reused));
    assert_eq!(world.pool.stats(), PoolStats { tunnels: 2, streams: 50, keys: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_fails_all_who_waited_for_it_and_leaves_nothing() {
    let world = World::new();
    let dials = AtomicUsize::new(0);
    let open = || world.open_by(key(1), || failing(&dials));
    let begin = Instant::now();
    for opened in futures::future::join_all((0..20).map(|_| open())).await {
        let Err(OpenError::Dial(error)) = opened else { panic!("no dial error") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
    assert_eq!((dials.load(Ordering::Relaxed), begin.elapsed().as_secs()), (1, 1));
    assert_eq!(world.pool.stats(), PoolStats::default());
    // The next caller tries anew.
    assert!(open().await.is_err());
    assert_eq!(dials.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_takes_the_dial_from_nobody() {
    let mut world = World::new();
    let release = Arc::new(Notify::new());
    let remote = world.remote.clone();
    let dial = || {
        let (dialed, release) = (remote.dial(), release.clone());
        async move {
            release.notified().await;
            dialed.await
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), world.open_by(key(1), dial)).await.is_err());
    let again = world.open_by(key(1), dial);
    release.notify_one();
    let (opened, _stream) = tokio::join!(again, world.accepted());
    opened.unwrap();
    assert_eq!(world.remote.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_stage_ends_in_time() {
    let mut world = World::new();
    let ca = authority::Authority::new();
    let seconds = Duration::from_secs;

    let begin = Instant::now();
    let never = || std::future::pending::<io::Result<DuplexStream>>();
    let opened = world.open_by(key(1), never).await;
    assert!(matches!(opened, Err(OpenError::DialTimeout(after)) if after == seconds(10)));
    assert_eq!(begin.elapsed(), seconds(10));

    let (near, _silent) = duplex(64 << 10);
    let near = std::sync::Mutex::new(Some(near));
    let opened = world.open_by(key(1), || std::future::ready(Ok(near.lock().unwrap().take().unwrap()))).await;
    assert!(matches!(opened, Err(OpenError::Tls(tls::TlsError::Timeout(_)))));
    assert_eq!(begin.elapsed(), seconds(20));

    let mute = Remote::new(&ca, |io| async move {
        let mut connection = h2::server::handshake(io).await.unwrap();
        let mut unanswered = Vec::new();
        while let Some(request) = connection.accept().await {
            unanswered.push(request);
        }
    });
    world.certificate = ca.workload("curl");
    let opened = world.open_at(key(1), &mute).await;
    assert!(matches!(opened, Err(OpenError::ReplyTimeout(after)) if after == seconds(15)));
    assert_eq!(begin.elapsed(), seconds(35));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_breaks_its_streams_after_half_a_minute() {
    let (world, remote) = foreign(|mut connection| async move {
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let _stream = respond.send_response(http::Response::new(()), false).unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(5), connection.accept()).await;
        // The connection stands, and nobody is behind it.
        std::future::pending::<()>().await;
    });
    let mut opened = world.open_at(key(1), &remote).await.unwrap();
    let begin = Instant::now();
    assert!(opened.stream.read().await.is_err());
    assert_eq!(begin.elapsed().as_secs(), 30);
    assert_eq!(world.pool.stats().tunnels, 0);
}

#[tokio::test]
async fn a_tunnel_that_was_drained_is_not_used_again() {
    let mut world = World::new();
    let (mut client, mut server) = world.stream().await;
    world.drain.notify_waiters();
    // The client has seen the GOAWAY when an answer sent after it arrives.
    server.write(bytes(1)).await.unwrap();
    client.read().await.unwrap();
    let (opened, _stream) = tokio::join!(world.open(1), world.accepted());
    assert!(!opened.unwrap().reused);
    assert_eq!(world.remote.dials(), 2);
    drop(client);
}

#[tokio::test]
async fn a_server_that_closes_every_tunnel_at_once_is_not_dialled_for_ever() {
    let (world, remote) = foreign(|_connection| async {});
    let opens: JoinSet<_> = (0..10).map(|_| world.open_at(key(1), &remote)).collect();
    assert!(opens.join_all().await.iter().all(Result::is_err));
    assert!(remote.dials() <= 10, "{} dials for 10 callers", remote.dials());
    assert_eq!(world.pool.stats(), PoolStats::default());
}

#[tokio::test]
async fn a_request_that_a_reused_tunnel_refused_is_made_again_on_a_fresh_one_once() {
    // Each connection takes one request and refuses all that follow.
    let (world, remote) = foreign(|mut connection| async move {
        let mut first = None;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            match first {
                None => first = Some(respond.send_response(http::Response::new(()), false).unwrap()),
                Some(_) => respond.send_reset(h2::Reason::REFUSED_STREAM),
            }
        }
    });
    let _first = world.open_at(key(1), &remote).await.unwrap();
    let second = world.open_at(key(1), &remote).await.unwrap();
    assert!(!second.reused);
    assert_eq!(remote.dials(), 2);
}

#[tokio::test]
async fn a_request_that_a_fresh_tunnel_turned_away_is_made_again_once() {
    type Behave = fn(ServerIo) -> BoxFuture<'static, ()>;
    let refuse: Behave = |io| {
        Box::pin(async move {
            let mut connection: h2::server::Connection<_, Bytes> = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
        })
    };
    let dismiss: Behave = |mut io| {
        Box::pin(async move {
            // RFC 9113 6.5 and 6.8: SETTINGS without any, and GOAWAY after no stream, NO_ERROR.
            io.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
            io.write_all(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0").await.unwrap();
            let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
        })
    };
    for (name, behave) in [("REFUSED_STREAM", refuse), ("GOAWAY", dismiss)] {
        let ca = authority::Authority::new();
        for turned_away in [1, usize::MAX] {
            let connections = AtomicUsize::new(0);
            let remote = Remote::new(&ca, move |io| {
                let number = connections.fetch_add(1, Ordering::Relaxed);
                async move {
                    match number < turned_away {
                        true => behave(io).await,
                        false => answer_all(h2::server::handshake(io).await.unwrap()).await,
                    }
                }
            });
            let mut world = World::new();
            world.certificate = ca.workload("curl");
            let opened = world.open_at(key(1), &remote).await;
            assert_eq!(opened.is_ok(), turned_away == 1, "{name}: {:?}", opened.err());
            assert_eq!(remote.dials(), 2, "{name}");
        }
    }
}

#[tokio::test]
async fn a_request_that_was_decided_is_not_made_again() {
    let (world, remote) = foreign(|mut connection| async move {
        let mut first = None;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            match first {
                None => first = Some(respond.send_response(http::Response::new(()), false).unwrap()),
                Some(_) => respond.send_reset(h2::Reason::CONNECT_ERROR),
            }
        }
    });
    let _first = world.open_at(key(1), &remote).await.unwrap();
    let second = world.open_at(key(1), &remote).await;
    assert!(matches!(second, Err(OpenError::Reset(h2::Reason::CONNECT_ERROR))));
    assert_eq!(remote.dials(), 1);
}

#[tokio::test]
async fn a_tunnel_whose_server_died_is_replaced() {
    // Each connection answers one request and dies at the second.
    let (world, remote) = foreign(|mut connection| async move {
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let _first = respond.send_response(http::Response::new(()), false).unwrap();
        let _ = connection.accept().await;
    });
    let _first = world.open_at(key(1), &remote).await.unwrap();
    assert!(!world.open_at(key(1), &remote).await.unwrap().reused);
    assert_eq!(remote.dials(), 2);
}

#[tokio::test]
async fn a_server_that_refuses_our_certificate_is_an_error_of_tls() {
    let mut world = World::new();
    let ca = authority::Authority::new();
    let remote = Remote::new(&ca, |_| async { panic!("the client is of another trust domain") });
    let issued = ca.issue(&authority::LeafSpec::of("spiffe://other.org/ns/demo/sa/curl"));
    world.certificate = ca.ready(&issued);
    let error = world.open_at(key(1), &remote).await.err().unwrap();
    assert!(matches!(&error, OpenError::Tls(tls::TlsError::Alert(_))), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed_after_five_minutes_and_leaves_nothing() {
    let mut world = World::new();
    let (client, server) = world.stream().await;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(world.pool.stats().tunnels, 1, "it was not idle");
    drop((client, server));
    let begin = Instant::now();
    assert_eq!(world.ends.recv().await, Some(Ok(ServeEnd::Closed)));
    assert_eq!(begin.elapsed().as_secs(), 300);
    assert_eq!(world.pool.stats(), PoolStats::default());
}

#[tokio::test(start_paused = true)]
async fn destinations_that_come_and_go_leave_nothing() {
    let (world, remote) = foreign(answer_all);
    for port in 0..200 {
        drop(world.open_at(key(port), &remote).await.unwrap());
    }
    assert_eq!(world.pool.stats().keys, 200);
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(world.pool.stats(), PoolStats::default());
}

#[tokio::test]
async fn at_the_bound_idle_tunnels_make_room_and_busy_ones_do_not() {
    let (mut world, remote) = foreign(answer_all);
    for config in [
        PoolConfig { max_tunnels: 2, ..PoolConfig::default() },
        PoolConfig { max_tunnels_per_source: 2, ..PoolConfig::default() },
    ] {
        world.pool = Pool::new(config);
        let first = world.open_at(key(1), &remote).await.unwrap();
        let second = world.open_at(key(2), &remote).await.unwrap();
        let third = world.open_at(key(3), &remote).await;
        assert!(matches!(third, Err(OpenError::PoolFull(2))));
        drop(first);
        let _third = world.open_at(key(3), &remote).await.unwrap();
        assert_eq!(world.pool.stats(), PoolStats { tunnels: 2, streams: 2, keys: 2 });
        drop(second);
    }
}

#[tokio::test]
async fn one_sources_bound_is_not_anothers() {
    let (mut world, remote) = foreign(answer_all);
    world.pool = Pool::new(PoolConfig { max_tunnels_per_source: 1, ..PoolConfig::default() });
    let _first = world.open_at(key(1), &remote).await.unwrap();
    let other = PoolKey { source_ip: "10.0.0.9".parse().unwrap(), ..key(2) };
    assert!(world.open_at(key(2), &remote).await.is_err());
    world.open_at(other, &remote).await.unwrap();
}

#[tokio::test]
async fn a_runtimes_streams_go_by_tunnels_that_it_drives_itself() {
    let (world, remote) = foreign(answer_all);
    let first = world.open_at(key(1), &remote).await.unwrap();
    let there = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (opened, again) = (world.open_at(key(1), &remote), world.open_at(key(1), &remote));
    let (there, reused) = std::thread::spawn(move || {
        let reused = there.block_on(async { [opened.await.unwrap().reused, again.await.unwrap().reused] });
        (there, reused)
    })
    .join()
    .unwrap();
    assert_eq!((first.reused, reused), (false, [false, true]));
    assert_eq!(world.pool.stats().tunnels, 2);
    world.pool.retire(|key| key.source_ip == SOURCE);
    assert_eq!(world.pool.stats().tunnels, 0);
    there.shutdown_background();
}

#[tokio::test]
async fn a_retired_tunnel_ends_with_its_last_stream() {
    let mut world = World::new();
    let (mut client, mut server) = world.stream().await;
    world.pool.retire(|key| key.source_ip == SOURCE);
    assert_eq!(world.pool.stats(), PoolStats::default());
    client.write(bytes(10)).await.unwrap();
    client.finish().unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), bytes(10));
    server.finish().unwrap();
    assert_eq!(client.read().await, Ok(None));
    drop((client, server));
    assert_eq!(world.ends.recv().await, Some(Ok(ServeEnd::Closed)));
}
