//! Ends as ends, resets as resets.

use super::*;
use crate::hbone::TunnelStream;
use crate::socket::reset;

#[tokio::test]
async fn a_reset_reaches_the_other_application_as_a_reset() {
    for between in BOTH {
        let Topology { client, mut server, relays, .. } = Topology::new(between).await;
        reset(client);
        assert!(is_reset(&read_to_error(&mut server).await.1), "{between:?}: the server");
        for end in ends(relays).await {
            assert!(matches!(end, End::Broken { side: Side::Source, .. }), "{between:?}: {end:?}");
        }

        let Topology { mut client, server, relays, .. } = Topology::new(between).await;
        reset(server);
        assert!(is_reset(&read_to_error(&mut client).await.1), "{between:?}: the client");
        for end in ends(relays).await {
            assert!(matches!(end, End::Broken { side: Side::Destination, .. }), "{between:?}: {end:?}");
        }
    }
}

#[tokio::test]
async fn a_reset_after_its_own_end_reaches_the_other_application() {
    for between in BOTH {
        let Topology { mut client, mut server, relays, .. } = Topology::new(between).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_to_error(&mut server).await.0, b"question");
        // The server still thinks when the client goes away. Nobody reads or writes: it has to be noticed.
        reset(client);
        let broken = within(server.ready(tokio::io::Interest::ERROR)).await;
        assert!(broken.unwrap().is_error(), "{between:?}");
        drop(server);
        ends(relays).await;
    }
}

#[tokio::test]
async fn a_server_that_has_said_its_end_and_is_gone_is_no_failure_to_a_client_that_ends_as_well() {
    for answer_is_read in [true, false] {
        let Topology { mut client, mut server, relays, .. } = Topology::new(Between::Relay).await;
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        if answer_is_read {
            client.read_exact(&mut [0; 6]).await.unwrap();
        }
        // The relay runs on this thread: it finds the client's end and the server's reset at once.
        reset(server);
        client.shutdown().await.unwrap();
        assert!(matches!(ends(relays).await[..], [End::Finished]), "{answer_is_read}");
        assert_eq!(read_to_error(&mut client).await.0, if answer_is_read { &b""[..] } else { b"answer" });
    }
}

#[tokio::test]
async fn a_server_that_is_gone_without_an_end_of_its_own_is_a_failure_even_when_the_client_ends() {
    let Topology { mut client, server, relays, .. } = Topology::new(Between::Relay).await;
    reset(server);
    client.shutdown().await.unwrap();
    let ends = ends(relays).await;
    let [End::Broken { side: Side::Destination, error }] = &ends[..] else { panic!("{ends:?}") };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_a_server_said_before_it_broke_arrives() {
    for between in BOTH {
        for length in [1, 30_000] {
            let Topology { mut client, mut server, relays, .. } = Topology::new(between).await;
            // An answer before the question was read: the close is a reset, as the kernel sees unread bytes.
            client.write_all(&[1; 20_000]).await.unwrap();
            within(server.readable()).await.unwrap();
            server.write_all(&vec![2; length]).await.unwrap();
            drop(server);
            let (answer, result) = read_to_error(&mut client).await;
            assert!(answer == vec![2; length], "{between:?}: {} of {length}", answer.len());
            assert!(is_reset(&result), "{between:?}");
            ends(relays).await;
        }
    }
}

#[tokio::test]
async fn a_server_that_reset_while_the_client_writes_stops_it() {
    for between in BOTH {
        let Topology { mut client, server, relays, .. } = Topology::new(between).await;
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = client.write_all(&[1; 64 << 10]).await {
                    return error;
                }
            }
        });
        within(server.readable()).await.unwrap();
        reset(server);
        let error = within(writing).await.unwrap();
        let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(kinds.contains(&error.kind()), "{between:?}: {error}");
        ends(relays).await;
    }
}

#[tokio::test]
async fn a_cut_resets_both_sides_at_once() {
    for between in BOTH {
        let Topology { mut client, mut server, relays, transferred, cut, .. } = Topology::new(between).await;
        client.write_all(b"allowed so far").await.unwrap();
        server.read_exact(&mut [0; 14]).await.unwrap();
        assert!(cut.cut("policy"));
        assert!(is_reset(&read_to_error(&mut client).await.1), "{between:?}");
        assert!(is_reset(&read_to_error(&mut server).await.1), "{between:?}");
        let ends = ends(relays).await;
        assert!(matches!(ends[0], End::Cut("policy")), "{between:?}");
        assert_eq!(transferred.from_source(), 14);
    }
}

#[tokio::test]
async fn a_dropped_handle_cuts_nothing_and_a_late_one_says_so() {
    let Topology { mut client, mut server, relays, cut: handle, .. } = Topology::new(Between::Relay).await;
    drop(handle);
    client.write_all(b"alive").await.unwrap();
    server.read_exact(&mut [0; 5]).await.unwrap();
    drop((client, server));
    ends(relays).await;

    let (handle, cut) = cut::<()>();
    drop(cut);
    assert!(!handle.cut(()));
}

#[tokio::test]
async fn a_relay_that_is_dropped_resets_both_sides() {
    for between in BOTH {
        let Topology { mut client, mut server, relays, .. } = Topology::new(between).await;
        // Both relays have begun.
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        relays[0].abort();
        assert!(is_reset(&read_to_error(&mut client).await.1), "{between:?}");
        assert!(is_reset(&read_to_error(&mut server).await.1), "{between:?}");
    }
}

/// A relay of two tunnelled connections, which need no kernel and so can run on a paused clock.
struct InMemory {
    client: TunnelStream,
    server: TunnelStream,
    relay: JoinHandle<End<()>>,
    _worlds: (World, World),
}

impl InMemory {
    async fn new(idle: Duration) -> Self {
        let (mut first, mut second) = (World::new(), World::new());
        let (client, near) = first.stream().await;
        let (far, server) = second.stream().await;
        let relay = tokio::spawn(async move {
            relay(near, far, &Transferred::default(), idle, std::future::pending()).await
        });
        Self { client, server, relay, _worlds: (first, second) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_moves_is_reset_and_no_other() {
    let idle = Duration::from_secs(60);
    let InMemory { mut client, mut server, relay, _worlds } = InMemory::new(idle).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        client.write(b"x".as_slice().into()).await.unwrap();
        assert_eq!(server.read().await.unwrap().unwrap().len(), 1);
    }
    let begin = tokio::time::Instant::now();
    assert!(client.read().await.is_err());
    assert!(server.read().await.is_err());
    assert!(matches!(relay.await.unwrap(), End::Idle(after) if after == idle));
    let after = begin.elapsed();
    assert!((idle..=idle * 5 / 4).contains(&after), "{after:?}");
}

/// Under a paused clock, time passes only when nobody has anything to do.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_lets_go_has_said_all_it_had_to_say() {
    // As Istio's peers do: they drop a stream that they have finished with. A server says NO_ERROR then.
    let InMemory { mut client, mut server, relay, _worlds } = InMemory::new(IDLE).await;
    server.write(b"answer".as_slice().into()).await.unwrap();
    server.finish().unwrap();
    settled().await;
    server.close();
    assert_eq!(client.read().await.unwrap().unwrap().as_ref(), b"answer");
    assert_eq!(client.read().await, Ok(None));
    assert!(matches!(relay.await.unwrap(), End::Finished));

    // And a client says CANCEL.
    let InMemory { mut client, mut server, relay, _worlds } = InMemory::new(IDLE).await;
    client.write(b"question".as_slice().into()).await.unwrap();
    client.finish().unwrap();
    settled().await;
    client.close();
    assert_eq!(server.read().await.unwrap().unwrap().as_ref(), b"question");
    assert_eq!(server.read().await, Ok(None));
    assert!(matches!(relay.await.unwrap(), End::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_relay_is_not_finished_while_its_last_bytes_wait_in_the_process() {
    let mut first = World::new();
    let (mut client, near) = first.stream().await;
    let (_second, far) = crate::hbone::tests::stuck_stream().await;
    let relay = tokio::spawn(async move {
        relay(near, far, &Transferred::default(), IDLE, std::future::pending::<()>()).await
    });
    client.write(vec![1; 200_000].into()).await.unwrap();
    client.finish().unwrap();
    assert_eq!(client.read().await, Ok(None));
    settled().await;
    assert!(!relay.is_finished());
    // The connection is found dead in the end, and the bytes lost: that is no good end.
    assert!(matches!(relay.await.unwrap(), End::Broken { side: Side::Destination, .. }));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_the_peer_never_takes_delay_a_reset_by_no_more_than_the_grace() {
    let InMemory { mut client, server, relay, _worlds } = InMemory::new(IDLE).await;
    // More than the windows on the way take.
    let write = tokio::spawn(async move {
        let _ = client.write(vec![1; 20 << 20].into()).await;
        client.reset();
    });
    let begin = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    write.abort();
    assert!(matches!(relay.await.unwrap(), End::Broken { side: Side::Source, .. }));
    assert!(begin.elapsed() <= Duration::from_secs(1) + RESET_GRACE, "{:?}", begin.elapsed());
    drop(server);
}
