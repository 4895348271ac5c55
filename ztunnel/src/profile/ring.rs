//! Where a signal's handler leaves stacks and a task takes them: fixed places, no lock and no allocation, for a handler may
//! interrupt anything.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// Frames that are kept of a stack; those farthest out are left away.
const DEPTH: usize = 96;

const FREE: u8 = 0;
const WRITTEN_TO: u8 = 1;
const FULL: u8 = 2;

struct Place {
    state: AtomicU8,
    depth: AtomicUsize,
    addresses: [AtomicUsize; DEPTH],
}

/// `PLACES` stacks. In a static it is all zeros, and takes no memory before it is used.
pub(super) struct Ring<const PLACES: usize> {
    next: AtomicUsize,
    lost: AtomicU64,
    places: [Place; PLACES],
}

impl<const PLACES: usize> Ring<PLACES> {
    pub(super) const fn new() -> Self {
        const { assert!(PLACES.is_power_of_two()) };
        Self {
            next: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            places: [const {
                Place {
                    state: AtomicU8::new(FREE),
                    depth: AtomicUsize::new(0),
                    addresses: [const { AtomicUsize::new(0) }; DEPTH],
                }
            }; PLACES],
        }
    }

    /// Has `fill` push a stack's addresses, the innermost first; a push is answered with whether there is room for more. A stack
    /// that finds its place taken is lost. Async-signal-safe if `fill` is.
    pub(super) fn put(&self, fill: impl FnOnce(&mut dyn FnMut(usize) -> bool)) {
        let place = &self.places[self.next.fetch_add(1, Ordering::Relaxed) % PLACES];
        let mine = place.state.compare_exchange(FREE, WRITTEN_TO, Ordering::Acquire, Ordering::Relaxed);
        if mine.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut depth = 0;
        fill(&mut |address| {
            if let Some(slot) = place.addresses.get(depth) {
                slot.store(address, Ordering::Relaxed);
                depth += 1;
            }
            depth < DEPTH
        });
        place.depth.store(depth, Ordering::Relaxed);
        place.state.store(FULL, Ordering::Release);
    }

    /// Hands all stacks that are there to `each`. For one caller at a time.
    pub(super) fn take(&self, mut each: impl FnMut(Vec<usize>)) {
        for place in &self.places {
            if place.state.load(Ordering::Acquire) == FULL {
                let depth = place.depth.load(Ordering::Relaxed);
                let stack = place.addresses[..depth].iter().map(|one| one.load(Ordering::Relaxed)).collect();
                place.state.store(FREE, Ordering::Release);
                each(stack);
            }
        }
    }

    /// How many were lost since it was asked last.
    pub(super) fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put<const N: usize>(ring: &Ring<N>, stack: &[usize]) {
        ring.put(|push| {
            let _ = stack.iter().all(|address| push(*address));
        });
    }

    fn taken<const N: usize>(ring: &Ring<N>) -> Vec<Vec<usize>> {
        let mut stacks = Vec::new();
        ring.take(|stack| stacks.push(stack));
        stacks
    }

    #[test]
    fn what_is_put_is_taken_once_and_makes_room() {
        let ring = Ring::<2>::new();
        for _ in 0..3 {
            put(&ring, &[1, 2]);
            put(&ring, &[3]);
            assert_eq!(taken(&ring), [vec![1, 2], vec![3]]);
        }
        assert!(taken(&ring).is_empty());
        assert_eq!(ring.lost(), 0);
    }

    #[test]
    fn what_finds_no_place_is_counted_and_takes_nobody_elses() {
        let ring = Ring::<2>::new();
        for stack in [[1], [2], [3]] {
            put(&ring, &stack);
        }
        assert_eq!(taken(&ring), [[1], [2]]);
        assert_eq!((ring.lost(), ring.lost()), (1, 0));
    }

    #[test]
    fn a_deep_stack_keeps_its_innermost_frames() {
        let ring = Ring::<1>::new();
        put(&ring, &(0..2 * DEPTH).collect::<Vec<_>>());
        assert_eq!(taken(&ring), [(0..DEPTH).collect::<Vec<_>>()]);
    }

    #[test]
    fn threads_that_put_at_once_mix_nothing_up() {
        let ring = Ring::<16>::new();
        std::thread::scope(|scope| {
            for thread in 1..5 {
                let ring = &ring;
                scope.spawn(move || (0..1000).for_each(|_| put(ring, &[thread; 20])));
            }
            let mut seen = 0;
            while seen + ring.lost.load(Ordering::Relaxed) < 4000 {
                for stack in taken(&ring) {
                    assert!(
                        stack.len() == 20 && stack.iter().all(|address| *address == stack[0]),
                        "{stack:?}"
                    );
                    seen += 1;
                }
            }
        });
    }
}
