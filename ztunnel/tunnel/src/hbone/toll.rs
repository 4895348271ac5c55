//! What a client's frames cost it: a bound on frames that move nothing.
//!
//! Flow control bounds what a client may send, and `h2` what it may have us keep: streams, header fields, small DATA frames, resets of
//! streams that nobody has looked at, one PING and one SETTINGS unanswered. Neither bounds how often it may have us do something for
//! nothing: answer PINGs and SETTINGS, move windows by a byte, open streams and take them back. Frames are cheap to make, so one client
//! could keep a worker busy with them, at the cost of every connection there.
//!
//! So such a frame costs a token, and a request that came to nothing ten. Work earns them: a new stream two (its reset and its
//! window), each 256 bytes of data one, in either direction; and a thousand come with every second, up to [`MOST`]. A peer that carries
//! traffic never runs out, whatever it does about windows; who runs out is told to calm down (RFC 9113 10.5) and left.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Tokens to begin with, and the most there may be: ten seconds' worth.
pub(super) const MOST: u32 = 10_000;
/// Tokens of a second.
const PER_SECOND: u32 = 1000;
/// Bytes of data that earn a token: less than any peer moves between two updates of a window.
const BYTES_PER_TOKEN: usize = 256;
/// Tokens that a new stream earns.
const OF_STREAM: u32 = 2;
/// What a request costs that was given up or should not have been made.
const OF_WASTED_REQUEST: u32 = 10;

/// Length of a frame's head (RFC 9113 4.1).
const HEAD: usize = 9;
/// Length of what a client says first (RFC 9113 3.4).
const PREFACE: usize = 24;

/// The account of one connection. Clones are of the same.
#[derive(Clone, Debug)]
pub(super) struct Toll(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    account: Mutex<Account>,
    overdrawn: Notify,
}

#[derive(Debug)]
struct Account {
    tokens: u32,
    /// To when the tokens of time are in `tokens`.
    paid_until: Instant,
    /// Bytes that have not made a token yet.
    bytes: usize,
    overdrawn: bool,
}

impl Toll {
    pub(super) fn new() -> Self {
        let account = Account { tokens: MOST, paid_until: Instant::now(), bytes: 0, overdrawn: false };
        Self(Arc::new(Inner { account: Mutex::new(account), overdrawn: Notify::new() }))
    }

    /// A request was given up before its answer, or should not have been made.
    pub(super) fn wasted_request(&self) {
        self.with(|account| account.spend(OF_WASTED_REQUEST));
    }

    /// Ends when more was spent than there was.
    pub(super) async fn overdrawn(&self) {
        self.0.overdrawn.notified().await;
    }

    fn with(&self, act: impl FnOnce(&mut Account)) {
        let mut account = self.account();
        let before = account.overdrawn;
        act(&mut account);
        if account.overdrawn && !before {
            self.0.overdrawn.notify_one();
        }
    }

    // A panic cannot happen between two changes that belong together.
    fn account(&self) -> MutexGuard<'_, Account> {
        self.0.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn earn(&mut self, tokens: u32) {
        self.tokens = self.tokens.saturating_add(tokens).min(MOST);
    }

    fn earn_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.earn(u32::try_from(self.bytes / BYTES_PER_TOKEN).unwrap_or(MOST));
        self.bytes %= BYTES_PER_TOKEN;
    }

    fn spend(&mut self, tokens: u32) {
        if self.tokens < tokens {
            self.earn_time();
        }
        match self.tokens.checked_sub(tokens) {
            Some(rest) => self.tokens = rest,
            None => self.overdrawn = true,
        }
    }

    /// The clock is asked only when tokens run out.
    fn earn_time(&mut self) {
        let now = Instant::now();
        let due = now.saturating_duration_since(self.paid_until).as_millis() * u128::from(PER_SECOND) / 1000;
        if let Ok(due) = u32::try_from(due) {
            // Parts of a token stay to be earned.
            self.paid_until += Duration::from_millis(u64::from(due) * 1000 / u64::from(PER_SECOND));
            self.earn(due);
        } else {
            self.paid_until = now;
            self.earn(MOST);
        }
    }
}

/// A connection whose frames are counted as they come in. Once the account is overdrawn nothing comes any more; what goes out still does.
pub(super) struct Tolled<IO> {
    io: IO,
    toll: Toll,
    frames: Frames,
}

impl<IO> Tolled<IO> {
    /// The server's end of a connection on which nothing was read yet.
    pub(super) fn server(io: IO, toll: Toll) -> Self {
        Self { io, toll, frames: Frames { skip: PREFACE, ..Frames::default() } }
    }
}

/// Where in the stream of frames the reader is.
#[derive(Debug, Default)]
struct Frames {
    /// What is there of the next head.
    head: [u8; HEAD],
    known: usize,
    /// Bytes before the next head.
    skip: usize,
}

impl Frames {
    /// Goes on by `bytes`, and books what begins in them.
    fn read(&mut self, mut bytes: &[u8], account: &mut Account) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.known).min(bytes.len());
            if self.skip > 0 || taken == 0 {
                return;
            }
            self.head[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known < HEAD {
                return;
            }
            self.known = 0;
            let [high, middle, low, kind, flags, ..] = self.head;
            self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            book(kind, flags, self.skip, account);
        }
    }
}

/// Books one frame (RFC 9113 6).
fn book(kind: u8, flags: u8, length: usize, account: &mut Account) {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_STREAM: u8 = 1;
    const ACK: u8 = 1;
    match kind {
        DATA if length > 0 => account.earn_bytes(length),
        DATA if flags & END_STREAM != 0 => {}
        HEADERS => account.earn(OF_STREAM),
        // The answer to ours; one that answers nothing is an error to h2.
        SETTINGS if flags & ACK != 0 => {}
        _ => account.spend(1),
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Tolled<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.toll.account().overdrawn {
            // The driver is told otherwise, and ends this.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let frames = &mut this.frames;
        this.toll.with(|account| frames.read(&buf.filled()[before..], account));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Tolled<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.toll.with(|account| account.earn_bytes(written));
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        self.toll.with(|account| account.earn_bytes(written));
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account { tokens: MOST, paid_until: Instant::now(), bytes: 0, overdrawn: false }
    }

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD + usize::from(length), 0xff);
        frame
    }

    #[tokio::test(start_paused = true)]
    async fn each_frame_is_booked_once_however_the_bytes_are_cut() {
        let frames = [
            frame(1, 4, 20),
            frame(6, 0, 8),
            frame(0, 0, 255),
            frame(0, 0, 0),
            frame(0, 1, 0),
            frame(4, 1, 0),
        ];
        let stream = [vec![b'P'; PREFACE], frames.concat()].concat();
        for piece in 1..=stream.len() {
            let mut account = Account { tokens: 100, ..account() };
            let mut frames = Frames { skip: PREFACE, ..Frames::default() };
            stream.chunks(piece).for_each(|bytes| frames.read(bytes, &mut account));
            // A stream earned two, the PING and the empty DATA cost one each.
            assert_eq!(
                (account.tokens, account.bytes, frames.known, frames.skip),
                (100, 255, 0, 0),
                "{piece}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_with_time_and_with_bytes_and_are_never_more_than_the_most() {
        let mut account = account();
        account.spend(MOST);
        assert!(!account.overdrawn);
        tokio::time::advance(Duration::from_millis(1500)).await;
        account.spend(1500);
        assert!(!account.overdrawn);
        account.earn_bytes(BYTES_PER_TOKEN * 7 - 1);
        account.spend(6);
        account.earn_bytes(1);
        account.spend(1);
        assert!(!account.overdrawn);
        tokio::time::advance(Duration::from_secs(1 << 40)).await;
        account.spend(1);
        assert_eq!(account.tokens, MOST - 1);
        account.spend(MOST);
        assert!(account.overdrawn);
    }
}
