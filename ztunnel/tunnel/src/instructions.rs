//! What a tunnelled connection costs. `cargo xtask bench --instructions` counts the instructions of what each test measures.
//!
//! Everything is in memory and on one thread, and no time passes, so that the same instructions are executed each time.

use std::future::pending;
use std::hint::black_box;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::runtime::{Builder, Runtime};

use crate::copy::{End, Endpoint, Reader, SendFailure, Taken, Transferred, Writer, relay};
use crate::hbone::tests::World;
use crate::hbone::{Authority, ConnectHeaders, forwarded};

/// How often small things are done.
const TIMES: usize = 1000;

/// What is relayed, and in what pieces an application sends it.
const MEBIBYTE: usize = 1 << 20;
const PIECE: usize = 64 << 10;

const IDLE: Duration = Duration::from_secs(3600);

/// Only what happens within is counted.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

#[test]
fn a_thousand_authorities_are_read() {
    let read = || (0..TIMES).filter(|_| black_box("10.42.1.17:8080").parse::<Authority>().is_ok()).count();
    assert_eq!(measured(read), TIMES);
}

#[test]
fn a_thousand_requests_headers_are_written_and_read() {
    let client = "10.42.1.17:40001".parse().unwrap();
    let headers = ConnectHeaders {
        baggage: Some(HeaderValue::from_static("k8s.cluster.name=Kubernetes,k8s.namespace.name=shop")),
        forwarded: None,
        traceparent: None,
        forwarded_network: None,
    };
    let pass = || {
        let forwarded = Some(forwarded(black_box(client), Some("web.shop.svc.cluster.local")));
        let sent = ConnectHeaders { forwarded, ..headers.clone() };
        let mut map = HeaderMap::new();
        sent.write(&mut map);
        ConnectHeaders::read(&map) == sent
    };
    assert_eq!(measured(|| (0..TIMES).filter(|_| pass()).count()), TIMES);
}

#[test]
fn a_mebibyte_through_two_relays_and_a_tunnel() {
    assert_eq!(carried(MEBIBYTE, PIECE), MEBIBYTE);
}

#[test]
fn a_thousand_small_messages_through_two_relays_and_a_tunnel() {
    assert_eq!(carried(TIMES * 64, 64), TIMES * 64);
}

/// Carries so many bytes in such pieces from an application's end to another's, and tells how many arrived.
fn carried(bytes: usize, piece: usize) -> usize {
    let runtime = runtime();
    // It holds the tunnel. Handshakes are not counted: their numbers are random, and so is what they take.
    let (_world, entry, exit) = runtime.block_on(async {
        let mut world = World::new();
        let (entry, exit) = world.stream().await;
        (world, entry, exit)
    });
    let mut arrived = 0;
    let source = Application { left: bytes, piece: vec![7; piece].into(), arrived: &mut 0 };
    let sink = Application { left: 0, piece: Bytes::new(), arrived: &mut arrived };
    let (near, far) = (Transferred::default(), Transferred::default());
    let ends = measured(|| {
        runtime.block_on(async {
            tokio::join!(
                relay(source, entry, &near, IDLE, pending::<()>()),
                relay(exit, sink, &far, IDLE, pending::<()>())
            )
        })
    });
    assert!(matches!(ends, (End::Finished, End::Finished)), "{ends:?}");
    arrived
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// An application that sends at once and takes everything, in the place of a socket.
struct Application<'a> {
    left: usize,
    piece: Bytes,
    arrived: &'a mut usize,
}

/// What the application has yet to send.
struct Source<'a> {
    left: &'a mut usize,
    piece: &'a Bytes,
}

/// How much it got.
struct Sink<'a>(&'a mut usize);

impl Endpoint for Application<'_> {
    type Reader<'a>
        = Source<'a>
    where
        Self: 'a;
    type Writer<'a>
        = Sink<'a>
    where
        Self: 'a;

    fn split(&mut self) -> (Source<'_>, Sink<'_>) {
        (Source { left: &mut self.left, piece: &self.piece }, Sink(self.arrived))
    }

    fn guard(&self) {}

    fn close(self) {}

    fn reset(self) {}
}

impl Reader for Source<'_> {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, limit: usize) -> io::Result<Taken> {
        let count = limit.min(self.piece.len()).min(*self.left);
        *self.left -= count;
        Ok(if count == 0 { Taken::End } else { Taken::Data(self.piece.slice(..count)) })
    }

    fn release(&mut self, _: usize) {}
}

impl Writer for Sink<'_> {
    fn poll_room(&mut self, _: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, SendFailure>> {
        Poll::Ready(Ok(wanted))
    }

    fn give_back_room(&mut self) {}

    fn poll_write(&mut self, _: &mut Context<'_>, data: &mut Bytes) -> Poll<Result<usize, SendFailure>> {
        let count = std::mem::take(data).len();
        *self.0 += count;
        Poll::Ready(Ok(count))
    }

    fn finish(&mut self) -> Result<(), SendFailure> {
        Ok(())
    }

    fn poll_flushed(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SendFailure>> {
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, _: &mut Context<'_>) -> Poll<SendFailure> {
        Poll::Pending
    }
}
