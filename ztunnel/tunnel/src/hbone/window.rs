//! Flow control: windows such that a stream that nobody reads cannot stall the others on its tunnel.
//!
//! All streams of a connection share its window, and what arrived for a stream that is not read stays charged to
//! it. So the connection's window has to hold all that stalled streams can keep. A stream gets 4 MiB
//! (contract 2.1) as long as there are at most four; with every doubling of their number each gets half, down to
//! 256 KiB. The i-th stream to stall can keep no more than the window that i streams have, hence the sum of
//! these windows bounds what all of them keep: 82 MiB for 200 streams, 57 MiB for 100. That is the
//! connection's window, and the bound of bytes that a connection buffers.
//!
//! A smaller window counts when the peer has heard of it. Streams that open and stall within that one round trip
//! can fill the connection's window; then the others wait until one of them is read or ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The window of a stream among few (contract 2.1): 10 Gb/s over 3 ms.
pub(super) const MAX_STREAM_WINDOW: u32 = 4 << 20;
/// The window of a stream among many: 7 Gb/s over 0.3 ms, 200 Mb/s over 10 ms.
const MIN_STREAM_WINDOW: u32 = 256 << 10;
/// Streams that get the largest window.
const FEW: usize = 4;

/// The window of each of so many streams.
pub(super) fn stream_window(streams: usize) -> u32 {
    let halvings = streams.max(FEW).next_power_of_two().trailing_zeros() - FEW.trailing_zeros();
    MAX_STREAM_WINDOW.checked_shr(halvings).unwrap_or(0).max(MIN_STREAM_WINDOW)
}

/// The window of a connection that carries up to so many streams.
pub(super) fn connection_window(streams: u32) -> u32 {
    // RFC 9113 6.9.1: a window is at most 2^31-1.
    const MAX: u32 = i32::MAX as u32;
    (1..=streams as usize).fold(0u32, |sum, count| sum.saturating_add(stream_window(count))).min(MAX)
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

/// What the driver of a connection announces.
pub(super) struct Announced(u32);

impl Announced {
    /// The initial setting.
    pub(super) fn new() -> Self {
        Self(MAX_STREAM_WINDOW)
    }

    /// Announces the window for so many streams if it is another; `announce` fails while the peer has not
    /// acknowledged the last one, and then the next change of the count tries again.
    pub(super) fn update<E>(&mut self, streams: usize, announce: impl FnOnce(u32) -> Result<(), E>) {
        let wanted = stream_window(streams);
        if wanted != self.0 && announce(wanted).is_ok() {
            self.0 = wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(stream_window(streams), window, "{streams} streams");
        }
    }

    #[test]
    fn the_connection_holds_what_all_but_one_stalled_stream_keep_and_has_room_for_the_last() {
        for limit in [1, 2, 5, 100, 200, 1000] {
            let stalled: u32 = (1..limit as usize).map(stream_window).sum();
            assert!(connection_window(limit) >= stalled + stream_window(limit as usize), "{limit} streams");
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

    #[test]
    fn an_announcement_that_failed_is_made_again() {
        let mut announced = Announced::new();
        announced.update(5, |_| Err(()));
        let mut said = None;
        announced.update(5, |window| -> Result<(), ()> {
            said = Some(window);
            Ok(())
        });
        assert_eq!(said, Some(2 << 20));
        announced.update(5, |_| -> Result<(), ()> { panic!("announced already") });
    }
}
