//! Every byte once and in order, and no faster than they are taken.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncWrite};

use super::*;

fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// Writes in pieces of random sizes, now and then letting others run.
async fn write_in_pieces(io: &mut (impl AsyncWrite + Unpin), mut data: &[u8], seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    while !data.is_empty() {
        let largest = if random.random_bool(0.5) { 100 } else { 100_000 };
        let (piece, rest) = data.split_at(random.random_range(1..=largest).min(data.len()));
        io.write_all(piece).await.unwrap();
        data = rest;
        if random.random_bool(0.2) {
            tokio::task::yield_now().await;
        }
    }
    io.shutdown().await.unwrap();
}

async fn read_in_pieces(io: &mut (impl AsyncRead + Unpin), seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut all = Vec::new();
    let mut buffer = vec![0; 100_000];
    loop {
        let size = random.random_range(1..=buffer.len());
        match io.read(&mut buffer[..size]).await.unwrap() {
            0 => return all,
            read => all.extend_from_slice(&buffer[..read]),
        }
        if random.random_bool(0.2) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn both_directions_arrive_byte_exact_whatever_the_pieces() {
    for between in BOTH {
        for (seed, (forth, back)) in (0..).zip([
            (0, 0),
            (1, 0),
            (0, 1),
            (1000, 1),
            (100_000, 300_000),
            (4 << 20, 3 << 20),
            (5 << 20, 0),
        ]) {
            let Topology { mut client, mut server, relays, transferred, .. } = Topology::new(between).await;
            let (question, answer) = (random(seed, forth), random(seed + 100, back));
            let (mut client_in, mut client_out) = client.split();
            let (mut server_in, mut server_out) = server.split();
            let ((), (), got_question, got_answer) = within(async {
                tokio::join!(
                    write_in_pieces(&mut client_out, &question, seed),
                    write_in_pieces(&mut server_out, &answer, seed + 1),
                    read_in_pieces(&mut server_in, seed + 2),
                    read_in_pieces(&mut client_in, seed + 3),
                )
            })
            .await;
            assert!(got_question == question, "{between:?} {forth}");
            assert!(got_answer == answer, "{between:?} {back}");
            assert_eq!(transferred.from_source(), forth as u64);
            assert_eq!(transferred.from_destination(), back as u64);
            for end in ends(relays).await {
                assert!(matches!(end, End::Finished), "{between:?}: {end:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_waits_for_the_end_of_the_question_arrives() {
    for between in BOTH {
        for length in [0, 1, 1 << 20] {
            let Topology { mut client, mut server, relays, .. } = Topology::new(between).await;
            let question = random(1, length);
            let (answer, ()) = within(async {
                tokio::join!(
                    async {
                        write_in_pieces(&mut client, &question, 1).await;
                        read_in_pieces(&mut client, 2).await
                    },
                    async {
                        let question = read_in_pieces(&mut server, 3).await;
                        write_in_pieces(&mut server, &question, 4).await;
                    }
                )
            })
            .await;
            assert!(answer == question, "{between:?} {length}");
            for end in ends(relays).await {
                assert!(matches!(end, End::Finished), "{between:?}: {end:?}");
            }
        }
    }
}

#[tokio::test]
async fn messages_that_answer_each_other_do_not_wait_for_more() {
    for between in BOTH {
        let Topology { mut client, mut server, .. } = Topology::new(between).await;
        within(async {
            for number in 0..200_u8 {
                client.write_all(&[number; 10]).await.unwrap();
                let mut message = [0; 10];
                server.read_exact(&mut message).await.unwrap();
                server.write_all(&message).await.unwrap();
                client.read_exact(&mut message).await.unwrap();
                assert_eq!(message, [number; 10], "{between:?}");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_does_not_read_stops_the_client() {
    for between in BOTH {
        let Topology { client, mut server, relays, .. } = Topology::new(between).await;
        let chunk = [7; 64 << 10];
        let mut written = 0_usize;
        // What fits is gone in far less than this once nothing moves any more.
        while let Ok(ready) = timeout(Duration::from_millis(300), client.writable()).await {
            ready.unwrap();
            match client.try_write(&chunk) {
                Ok(count) => written += count,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            assert!(written < 16 << 20, "{between:?}: nothing stops it");
        }
        // And nothing of it is lost.
        drop(shut(client));
        let (all, result) = read_to_error(&mut server).await;
        drop(server);
        result.unwrap();
        assert_eq!(all.len(), written, "{between:?}");
        ends(relays).await;
    }
}

/// Ends the sending direction and keeps the rest.
fn shut(stream: TcpStream) -> TcpStream {
    SockRef::from(&stream).shutdown(std::net::Shutdown::Write).unwrap();
    stream
}

#[tokio::test]
async fn a_relay_takes_little_memory_of_its_own() {
    let (near, far) = pair().await;
    let transferred = Transferred::default();
    let of_sockets = relay(near, far, &transferred, IDLE, std::future::pending::<()>());
    let (_world, stream) = crate::hbone::tests::stuck_stream().await;
    let into_tunnel = relay(pair().await.0, stream, &transferred, IDLE, std::future::pending::<()>());
    // 100,000 connections are 0.14 GB of these: 1272 and 1400 bytes were measured.
    for (name, size) in [("sockets", size_of_val(&of_sockets)), ("tunnel", size_of_val(&into_tunnel))] {
        assert!(size <= 1600, "{name}: {size} bytes");
    }
}
