//! Flow control: windows such that a stream that nobody reads cannot stall the others on its tunnel.
//!
//! All streams of a connection share its window, and what arrived for a stream that is not read stays charged to
//! it. So the connection's window has to hold all that stalled streams can keep. A stream gets 4 MiB
//! (contract 2.1; [`super::Http2`] can say otherwise) as long as there are at most four; with every doubling of their number each gets half, down to
//! 256 KiB. The i-th stream to stall can keep no more than the window that i streams have, hence the sum of
//! these windows bounds what all of them keep: 82 MiB for 200 streams, 57 MiB for 100. So much a connection's
//! window grows to, with the streams that it has carried at once (4 MiB for one, 16 MiB for four), and that is the
//! bound of bytes that it buffers.
//!
//! Each growth is taken from a [`super::budget`]. A stream for which there is none left brings 64 KiB, always, and as
//! long as there are so many streams 64 KiB is the window of each: slower, and no stream stalls another all the same.
//!
//! A smaller window counts when the peer has heard of it. Streams that open and stall within that one round trip
//! can fill the connection's window; then the others wait until one of them is read or ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::budget::{Grant, Share};

/// The window of a stream among few (contract 2.1), unless it is set: 10 Gb/s over 3 ms.
pub(super) const STREAM_WINDOW: u32 = 4 << 20;
/// The window of a stream among many: 7 Gb/s over 0.3 ms, 200 Mb/s over 10 ms.
const MIN_STREAM_WINDOW: u32 = 256 << 10;
/// The window of a stream that there is no budget for: 1.7 Gb/s over 0.3 ms, 50 Mb/s over 10 ms.
pub(super) const SMALL_WINDOW: u32 = 64 << 10;
/// Streams that get the largest window.
const FEW: usize = 4;

/// The window of each of so many streams, of which `most` is the largest.
fn stream_window(most: u32, streams: usize) -> u32 {
    let halvings = streams.max(FEW).next_power_of_two().trailing_zeros() - FEW.trailing_zeros();
    most.checked_shr(halvings).unwrap_or(0).max(MIN_STREAM_WINDOW.min(most))
}

/// The window of a connection that has carried so many streams, with budget for all.
#[cfg(test)]
pub(super) fn connection_window(streams: u32) -> u32 {
    // RFC 9113 6.9.1: a window is at most 2^31-1.
    const MAX: u32 = i32::MAX as u32;
    let window = |count| stream_window(STREAM_WINDOW, count);
    (1..=streams as usize).fold(0u32, |sum, count| sum.saturating_add(window(count))).min(MAX)
}

/// The streams of a connection, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    count: AtomicUsize,
    changed: Notify,
}

/// A stream's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Inner>);

impl Streams {
    /// A place if fewer than `limit` are taken.
    pub(super) fn take(&self, limit: usize) -> Option<Place> {
        let taken = |count: usize| (count < limit).then_some(count + 1);
        self.0.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).ok()?;
        self.0.changed.notify_one();
        Some(Place(self.0.clone()))
    }

    /// How many are taken.
    pub(super) fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }

    /// Ends when the count has changed since the last call. For one waiter: the connection's driver.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

/// Where the driver of a connection announces windows.
pub(super) trait FlowControl {
    /// The connection's.
    fn set_connection_window(&mut self, bytes: u32);
    /// Each stream's. Whether it was taken: not while the peer has not acknowledged the last one.
    fn set_stream_window(&mut self, bytes: u32) -> bool;
}

impl<IO: AsyncRead + AsyncWrite + Unpin, B: Buf> FlowControl for h2::client::Connection<IO, B> {
    fn set_connection_window(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }

    fn set_stream_window(&mut self, bytes: u32) -> bool {
        self.set_initial_window_size(bytes).is_ok()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, B: Buf> FlowControl for h2::server::Connection<IO, B> {
    fn set_connection_window(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }

    fn set_stream_window(&mut self, bytes: u32) -> bool {
        self.set_initial_window_size(bytes).is_ok()
    }
}

/// The windows of one connection.
#[derive(Debug)]
pub(super) struct Windows {
    grant: Grant,
    /// The largest window of a stream.
    most: u32,
    /// The most streams at once so far, at least 1: each has brought its part to `connection`.
    brought: usize,
    /// How many of them have brought [`stream_window`]; those after them [`SMALL_WINDOW`].
    full: usize,
    connection: u32,
    /// The stream window that the peer was told last.
    announced: u32,
}

impl Windows {
    /// For a new connection: what one stream brings.
    pub(super) fn new(share: &Share, most: u32) -> Self {
        let grant = Grant::new(share);
        let most = most.max(SMALL_WINDOW);
        let mut windows = Self { grant, most, brought: 0, full: 0, connection: 0, announced: 0 };
        windows.grow(1);
        windows.announced = windows.wanted(1);
        windows
    }

    /// The connection's window now.
    pub(super) fn connection(&self) -> u32 {
        self.connection
    }

    /// The stream window that is announced.
    pub(super) fn stream(&self) -> u32 {
        self.announced
    }

    /// Announces what is another for so many streams. What fails, or what there is no budget for, is tried again at
    /// the next change of their number.
    pub(super) fn update(&mut self, streams: usize, peer: &mut impl FlowControl) {
        let before = self.connection;
        self.grow(streams);
        if self.connection != before {
            peer.set_connection_window(self.connection);
        }
        let wanted = self.wanted(streams);
        if wanted != self.announced && peer.set_stream_window(wanted) {
            self.announced = wanted;
        }
    }

    fn wanted(&self, streams: usize) -> u32 {
        if streams.max(1) <= self.full { stream_window(self.most, streams) } else { SMALL_WINDOW }
    }

    /// In order: what a stream may keep is no more than what as many streams have brought.
    fn grow(&mut self, streams: usize) {
        let streams = streams.max(1);
        for _ in self.brought..streams {
            self.grant.take_anyway(SMALL_WINDOW);
            self.connection = self.connection.saturating_add(SMALL_WINDOW);
            self.brought += 1;
        }
        while self.full < streams {
            let more = stream_window(self.most, self.full + 1) - SMALL_WINDOW;
            if !self.grant.take(more) {
                break;
            }
            self.full += 1;
            // RFC 9113 6.9.1: a window is at most 2^31-1.
            self.connection = self.connection.saturating_add(more).min(i32::MAX as u32);
        }
        self.grant.set_squeezed(self.full < streams);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hbone::Budget;

    #[test]
    fn windows_halve_with_each_doubling_of_streams() {
        let mib = 1 << 20;
        for (streams, window) in [
            (0, 4 * mib),
            (1, 4 * mib),
            (4, 4 * mib),
            (5, 2 * mib),
            (8, 2 * mib),
            (9, mib),
            (64, mib / 4),
            (65, mib / 4),
            (1000, mib / 4),
        ] {
            assert_eq!(stream_window(4 * mib, streams), window, "{streams} streams");
        }
    }

    #[test]
    fn the_largest_window_is_what_was_asked_for_also_below_that_of_many_streams() {
        for (most, streams, window) in [
            (16 << 20, 1, 16 << 20),
            (16 << 20, 5, 8 << 20),
            (16 << 20, 1000, 256 << 10),
            (128 << 10, 1, 128 << 10),
            (128 << 10, 1000, 128 << 10),
            (SMALL_WINDOW, 5, SMALL_WINDOW),
        ] {
            assert_eq!(stream_window(most, streams), window, "{most} for {streams}");
        }
        let windows = Windows::new(&Budget::default().share([10, 0, 0, 1].into()), 16 << 20);
        assert_eq!((windows.stream(), windows.connection()), (16 << 20, 16 << 20));
    }

    #[test]
    fn the_connection_holds_what_all_but_one_stalled_stream_keep_and_has_room_for_the_last() {
        for limit in [1, 2, 5, 100, 200, 1000] {
            let window = |count| stream_window(STREAM_WINDOW, count);
            let stalled: u32 = (1..limit as usize).map(window).sum();
            assert!(connection_window(limit) >= stalled + window(limit as usize), "{limit} streams");
        }
        assert_eq!(connection_window(200), 82 << 20);
        assert_eq!(connection_window(100), 57 << 20);
    }

    #[test]
    fn a_place_is_given_back() {
        let streams = Streams::default();
        let first = streams.take(2).unwrap();
        let _second = streams.take(2).unwrap();
        assert!(streams.take(2).is_none());
        drop(first);
        assert_eq!(streams.count(), 1);
        assert!(streams.take(2).is_some());
    }

    /// A peer that has been told these windows: the connection's, the streams'.
    #[derive(Default)]
    struct Told {
        connection: u32,
        stream: u32,
        refuses: bool,
    }

    impl FlowControl for Told {
        fn set_connection_window(&mut self, bytes: u32) {
            assert!(bytes > self.connection, "{bytes} after {}", self.connection);
            self.connection = bytes;
        }

        fn set_stream_window(&mut self, bytes: u32) -> bool {
            assert_ne!(bytes, self.stream, "announced already");
            if !self.refuses {
                self.stream = bytes;
            }
            !self.refuses
        }
    }

    fn windows(budget: &Budget) -> Windows {
        Windows::new(&budget.share([10, 0, 0, 1].into()), STREAM_WINDOW)
    }

    #[test]
    fn an_announcement_that_failed_is_made_again() {
        let mut windows = windows(&Budget::default());
        let mut peer = Told { refuses: true, ..Told::default() };
        windows.update(5, &mut peer);
        peer.refuses = false;
        windows.update(5, &mut peer);
        assert_eq!(peer.stream, 2 << 20);
        windows.update(5, &mut peer);
    }

    #[test]
    fn the_connections_window_grows_with_the_streams_it_has_carried_and_stays() {
        let (budget, mut peer) = (Budget::default(), Told::default());
        let mut windows = windows(&budget);
        assert_eq!((windows.connection(), windows.stream()), (4 << 20, 4 << 20));
        for (streams, connection) in
            [(0, 4), (1, 4), (4, 16), (8, 24), (100, 57), (3, 57), (200, 82), (1, 82)]
        {
            windows.update(streams, &mut peer);
            assert_eq!(windows.connection(), connection << 20, "{streams} streams");
        }
        assert_eq!(budget.stats().granted, 82 << 20);
        drop(windows);
        assert_eq!(budget.stats().granted, 0);
    }

    #[test]
    fn without_budget_a_connection_holds_all_the_same_what_its_stalled_streams_keep() {
        // Of these bytes one pod gets at most half.
        for total in [0, 1 << 20, 8 << 20, 24 << 20, 64 << 20, 512 << 20] {
            let (budget, mut peer) = (Budget::new(total), Told::default());
            let mut windows = windows(&budget);
            let (mut kept, limit) = (0, 200);
            for streams in 1..=limit {
                windows.update(streams, &mut peer);
                assert!(windows.stream() >= SMALL_WINDOW);
                // The last one stalls with what it was given.
                kept += u64::from(windows.stream());
                assert!(u64::from(windows.connection()) >= kept, "{streams} streams of {total} bytes");
            }
            let bound = total / 2 + limit as u64 * u64::from(SMALL_WINDOW);
            assert!(budget.stats().granted <= bound, "{:?}", budget.stats());
            assert_eq!(budget.stats().squeezed, usize::from(total < 512 << 20));
        }
    }

    #[test]
    fn windows_grow_when_there_is_budget_again() {
        let budget = Budget::new(9 << 20);
        let (mut first, mut second) = (windows(&budget), windows(&budget));
        assert_eq!((first.stream(), second.stream()), (4 << 20, SMALL_WINDOW));
        first.update(1, &mut Told::default());
        drop(first);
        let mut peer = Told::default();
        second.update(1, &mut peer);
        assert_eq!((peer.stream, peer.connection), (4 << 20, 4 << 20));
        assert_eq!(budget.stats().squeezed, 0);
    }
}
