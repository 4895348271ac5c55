//! A stream that never has to wait leaves others their turn.

use std::task::Context;

use bytes::Bytes;

use super::*;

/// What is always ready: so many bytes to read, and room for any number.
struct Ready(usize);

struct ReadySource<'a>(&'a mut usize);

struct ReadySink;

impl Endpoint for Ready {
    type Reader<'a> = ReadySource<'a>;
    type Writer<'a> = ReadySink;

    fn split(&mut self) -> (ReadySource<'_>, ReadySink) {
        (ReadySource(&mut self.0), ReadySink)
    }

    fn guard(&self) {}

    fn close(self) {}

    fn reset(self) {}
}

impl Reader for ReadySource<'_> {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, limit: usize) -> io::Result<Taken> {
        let count = limit.min(*self.0);
        *self.0 -= count;
        Ok(if count == 0 { Taken::End } else { Taken::Data(Bytes::from(vec![0; count])) })
    }

    fn release(&mut self, _: usize) {}
}

impl Writer for ReadySink {
    fn poll_room(&mut self, _: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, SendFailure>> {
        Poll::Ready(Ok(wanted))
    }

    fn give_back_room(&mut self) {}

    fn poll_write(&mut self, _: &mut Context<'_>, data: &mut Bytes) -> Poll<Result<usize, SendFailure>> {
        Poll::Ready(Ok(std::mem::take(data).len()))
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

#[tokio::test]
async fn a_stream_that_never_waits_lets_others_run_after_each_quarter_of_a_mebibyte() {
    const ALL: usize = 64 << 20;
    const MOST: u64 = 512 << 10;
    let transferred = Transferred::default();
    let relay = relay(Ready(ALL), Ready(0), &transferred, IDLE, std::future::pending::<()>());
    let mut relay = pin!(relay);
    let mut before = 0;
    loop {
        // One turn of the relay's task, then everybody else's.
        let polled = futures::poll!(relay.as_mut());
        let moved = transferred.from_source() - before;
        assert!(moved <= MOST, "{moved} bytes in one turn");
        if let Poll::Ready(end) = polled {
            assert!(matches!(end, End::Finished));
            break;
        }
        before += moved;
        tokio::task::yield_now().await;
    }
    assert_eq!(transferred.from_source(), ALL as u64);
}
