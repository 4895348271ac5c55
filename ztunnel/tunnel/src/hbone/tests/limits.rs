//! Flow control: what a stream that nobody reads can do to the others.

use std::future::poll_fn;
use std::pin::pin;

use super::pool::{answer_all, foreign};
use super::window::connection_window;
use super::*;

impl World {
    fn of_budget(bytes: u64) -> Self {
        let pool = PoolConfig { budget: Budget::new(bytes), ..PoolConfig::default() };
        Self::with(pool, ServerConfig::default())
    }
}

/// Opens streams on which the client sends without end and nobody reads.
async fn stalled(world: &mut World, count: usize) -> (Vec<TunnelStream>, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let mut servers = Vec::new();
    for _ in 0..count {
        let (client, server) = world.stream().await;
        servers.push(server);
        tokio::spawn(send_without_end(client, sent.clone()));
        settled().await;
    }
    (servers, sent)
}

async fn send_without_end(mut from: TunnelStream, sent: Arc<AtomicUsize>) {
    loop {
        let chunk = bytes(64 << 10);
        let length = chunk.len();
        if from.write(chunk).await.is_err() {
            return;
        }
        sent.fetch_add(length, Ordering::Relaxed);
    }
}

/// Under a paused clock, time passes only when nobody has anything to do.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn moves(client: &mut TunnelStream, server: &mut TunnelStream, data: Bytes) {
    let exchange = async {
        tokio::join!(
            async {
                client.write(data.clone()).await.unwrap();
                client.finish().unwrap();
            },
            async { assert!(read_all(server).await.unwrap() == data) }
        )
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.expect("blocked by the others");
}

#[tokio::test(start_paused = true)]
async fn streams_that_nobody_reads_do_not_stall_the_last_one_on_their_tunnel() {
    for budget in [0, 10 << 20, 100 << 20, Budget::DEFAULT] {
        let mut world = World::of_budget(budget);
        let (servers, _) = stalled(&mut world, 99).await;
        let (mut client, mut server) = world.stream().await;
        assert_eq!(world.remote.dials(), 1);
        moves(&mut client, &mut server, bytes(8 << 20)).await;
        drop(servers);
    }
}

#[tokio::test(start_paused = true)]
async fn four_of_a_hundred_streams_that_nobody_reads_leave_the_others_whole_whichever_way_they_go() {
    for budget in [0, Budget::DEFAULT] {
        for back in [false, true] {
            let mut world = World::of_budget(budget);
            let mut silent = Vec::new();
            for _ in 0..4 {
                let (client, server) = world.stream().await;
                let (from, to) = if back { (server, client) } else { (client, server) };
                tokio::spawn(send_without_end(from, Arc::default()));
                silent.push(to);
                settled().await;
            }
            let mut others = Vec::new();
            for _ in 4..100 {
                others.push(world.stream().await);
            }
            assert_eq!(world.remote.dials(), 1, "all of them on one tunnel");
            // Each has content of its own: it begins elsewhere.
            let exchanges = others.iter_mut().enumerate().map(|(number, (client, server))| {
                let data = bytes((1 << 20) + number).slice(number..);
                let (from, to) = if back { (server, client) } else { (client, server) };
                moves(from, to, data)
            });
            futures::future::join_all(exchanges).await;
            drop(silent);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_budget_a_connection_buffers_no_more_than_small_windows() {
    let mut world = World::of_budget(0);
    let (servers, sent) = stalled(&mut world, 100).await;
    let bound = 100 * ((64 << 10) + SEND_BUFFER);
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent <= bound, "{sent} of at most {bound}");
    let stats = world.pool.budget().stats();
    // Both ends grant as much for as many streams.
    assert_eq!(stats, BudgetStats { total: 0, granted: 2 * 100 * (64 << 10), squeezed: 2, pods: 2 });
    drop(servers);
}

#[tokio::test(start_paused = true)]
async fn the_budget_is_given_back_when_tunnels_end() {
    let mut world = World::new();
    let pair = world.stream().await;
    assert_eq!(world.pool.budget().stats().granted, 2 * (4 << 20));
    drop(pair);
    assert!(world.ends.recv().await.unwrap().is_ok());
    settled().await;
    assert_eq!(world.pool.budget().stats(), BudgetStats { total: Budget::DEFAULT, ..BudgetStats::default() });
}

#[tokio::test(start_paused = true)]
async fn what_a_connection_buffers_is_bounded() {
    let mut world = World::new();
    let (servers, sent) = stalled(&mut world, 100).await;
    let bound = connection_window(200) as usize + 100 * SEND_BUFFER;
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent <= bound, "{sent} of at most {bound}");
    // And the first few streams had their large windows.
    assert!(sent >= 16 << 20, "{sent}");
    drop(servers);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_read_again_goes_on_without_loss() {
    let mut world = World::new();
    let mut pairs = Vec::new();
    for _ in 0..20 {
        let (mut client, server) = world.stream().await;
        let writer = tokio::spawn(async move {
            client.write(bytes(6 << 20)).await.unwrap();
            client.finish().unwrap();
            // Held until the other end has finished too.
            client.read().await
        });
        pairs.push((writer, server));
    }
    settled().await;
    for (writer, mut server) in pairs {
        assert!(read_all(&mut server).await.unwrap() == bytes(6 << 20));
        server.finish().unwrap();
        assert_eq!(writer.await.unwrap(), Ok(None));
    }
}

#[tokio::test(start_paused = true)]
async fn room_that_is_given_back_is_the_other_streams() {
    // A server whose connection has the smallest window there is, 64 KiB less one.
    let (world, remote) = foreign(answer_all);
    let mut first = world.open_at(key(1), &remote).await.unwrap().stream;
    let mut second = world.open_at(key(1), &remote).await.unwrap().stream;
    assert_eq!(remote.dials(), 1);
    let (_, mut waiting) = first.split();
    assert!(poll_fn(|cx| waiting.poll_room(cx, 1 << 20)).await.unwrap() > 60_000);
    waiting.write(bytes(10)).unwrap();
    // A frame does not take quite all of it, so that a third has what is left and wants no more.
    let mut third = world.open_at(key(1), &remote).await.unwrap().stream;
    let (_, mut rest) = third.split();
    assert_eq!(poll_fn(|cx| rest.poll_room(cx, 8)).await.unwrap(), 8);
    let (_, mut writer) = second.split();
    let mut room = pin!(poll_fn(|cx| writer.poll_room(cx, 60_000)));
    assert!(futures::poll!(&mut room).is_pending(), "there was room for both");
    waiting.give_back_room();
    assert!(tokio::time::timeout(Duration::from_secs(1), room).await.unwrap().unwrap() > 50_000);
}

#[tokio::test]
async fn the_windows_grow_back_when_streams_end() {
    let mut world = World::new();
    for _ in 0..3 {
        let mut open = Vec::new();
        for _ in 0..40 {
            open.push(world.stream().await);
        }
        drop(open);
        let (mut client, mut server) = world.stream().await;
        moves(&mut client, &mut server, bytes(8 << 20)).await;
    }
    assert_eq!(world.remote.dials(), 1);
}
