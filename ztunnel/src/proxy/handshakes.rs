//! Handshakes in progress on a pod's HBONE listener: strangers, until they have proved who they are.
//!
//! They have places of their own, apart from the connections of peers that are known, so that nobody can shut a pod
//! off by opening connections and saying nothing. When all places are taken, the oldest handshake gives way to the
//! newest: an honest one takes milliseconds, so it is through long before a flood has worked its way to it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Handshakes a pod may have in progress. At 10,000 silent connections a second the oldest is 50 ms old when it has to
/// go; a handshake across nodes takes 2 to 5 ms.
const PLACES: usize = 512;

/// The places of one pod.
#[derive(Debug)]
pub(crate) struct Handshakes {
    /// The oldest first.
    waiting: Mutex<VecDeque<Place>>,
    places: usize,
}

#[derive(Debug)]
struct Place {
    number: u64,
    evicted: CancellationToken,
}

/// A handshake's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Handshake {
    of: Arc<Handshakes>,
    number: u64,
    evicted: CancellationToken,
}

impl Handshakes {
    /// With the usual number of places.
    pub(crate) fn new() -> Arc<Self> {
        Self::with_places(PLACES)
    }

    fn with_places(places: usize) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), places })
    }

    /// A place for a new handshake; the oldest loses its own when there is none left.
    pub(crate) fn begin(self: &Arc<Self>) -> Handshake {
        let mut waiting = self.lock();
        if waiting.len() >= self.places
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.evicted.cancel();
        }
        let number = waiting.back().map_or(0, |newest| newest.number + 1);
        let evicted = CancellationToken::new();
        waiting.push_back(Place { number, evicted: evicted.clone() });
        Handshake { of: self.clone(), number, evicted }
    }

    // Each change of the queue is a single step, so a panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Place>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
    /// Resolves when the place is lost to a newer handshake.
    pub(crate) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut waiting = self.of.lock();
        // Numbers grow along the queue. An evicted place is gone from it, and its number may have been given anew
        // only after the queue was empty.
        if let Ok(index) = waiting.binary_search_by_key(&self.number, |place| place.number)
            && !self.evicted.is_cancelled()
        {
            waiting.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_silent_strangers_loses_its_places_to_newer_handshakes() {
        let handshakes = Handshakes::with_places(3);
        let silent: Vec<Handshake> = (0..3).map(|_| handshakes.begin()).collect();
        let honest = handshakes.begin();
        let evicted: Vec<bool> = silent.iter().map(|handshake| handshake.evicted.is_cancelled()).collect();
        assert_eq!(evicted, [true, false, false]);
        assert!(!honest.evicted.is_cancelled());
        assert_eq!(handshakes.lock().len(), 3);
    }

    #[test]
    fn a_handshake_that_is_done_gives_its_place_back() {
        let handshakes = Handshakes::with_places(2);
        let first = handshakes.begin();
        drop(handshakes.begin());
        let third = handshakes.begin();
        assert!(!first.evicted.is_cancelled());
        drop((first, third));
        assert!(handshakes.lock().is_empty());
    }

    #[test]
    fn an_evicted_handshake_takes_nobody_elses_place_along() {
        let handshakes = Handshakes::with_places(1);
        let evicted = handshakes.begin();
        let newer = handshakes.begin();
        drop(newer);
        let newest = handshakes.begin();
        drop(evicted);
        assert_eq!(handshakes.lock().len(), 1);
        drop(newest);
    }
}
