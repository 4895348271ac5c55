//! Endpoints of one rank, and the draw among them.
//!
//! A group knows numbers and weights of endpoints, not the endpoints: whoever draws is asked about each one that
//! the draw falls on, and about no other.

use super::weights::{Hit, Weights};
use super::{mix, scale};

/// An endpoint's number among those of its service.
pub(super) type Number = usize;

/// So many draws fall on endpoints that are not eligible before all are asked about. With a quarter of the weight
/// eligible that comes about once in ten thousand draws.
const MISSES: usize = 32;

/// What an endpoint counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// In draws among the ready ones; 0 if it is not ready.
    pub(super) ready: u64,
    /// In draws among all.
    pub(super) any: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Group {
    numbers: Vec<Number>,
    ready: Weights,
    any: Weights,
}

impl Group {
    /// Adds the endpoint. Returns its position.
    pub(super) fn push(&mut self, number: Number, weight: Weight) -> usize {
        self.ready.push(weight.ready);
        self.any.push(weight.any);
        self.numbers.push(number);
        self.numbers.len() - 1
    }

    /// Takes out the endpoint at the position. The last one takes its position, and is returned if it is another.
    pub(super) fn remove(&mut self, position: usize) -> Option<Number> {
        let last = self.numbers.len() - 1;
        self.ready.set(position, self.ready.get(last));
        self.any.set(position, self.any.get(last));
        self.ready.pop();
        self.any.pop();
        self.numbers.swap_remove(position);
        self.numbers.get(position).copied()
    }

    /// Gives the endpoint at the position another number.
    pub(super) fn renumber(&mut self, position: usize, number: Number) {
        self.numbers[position] = number;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Draws one of those that are `eligible`, with a probability proportional to its weight; `random` is uniform.
    /// An endpoint without weight is never drawn.
    ///
    /// One that turns out not to be eligible is put aside, and the next draw is among the others: so each eligible
    /// one has its share of what they weigh together.
    pub(super) fn draw(
        &self,
        unready_too: bool,
        mut random: u64,
        eligible: &mut impl FnMut(Number) -> bool,
    ) -> Option<Number> {
        let weights = if unready_too { &self.any } else { &self.ready };
        let mut left = weights.total();
        let mut aside = Aside::default();
        for _ in 0..MISSES {
            let hit = weights.find(aside.skip(scale(random, left)?))?;
            let number = self.numbers[hit.position];
            if eligible(number) {
                return Some(number);
            }
            let weight = weights.get(hit.position);
            left -= weight;
            aside.put(hit, weight);
            random = mix(random);
        }
        self.draw_from_all(weights, &aside, random, eligible)
    }

    /// Asks about each one that is not put aside.
    fn draw_from_all(
        &self,
        weights: &Weights,
        aside: &Aside,
        random: u64,
        eligible: &mut impl FnMut(Number) -> bool,
    ) -> Option<Number> {
        // Each with the sum of the weights up to it.
        let mut candidates: Vec<(u64, Number)> = Vec::new();
        let mut total = 0;
        for (position, number) in self.numbers.iter().enumerate() {
            let weight = weights.get(position);
            if weight > 0 && !aside.holds(position) && eligible(*number) {
                total += weight;
                candidates.push((total, *number));
            }
        }
        let point = scale(random, total)?;
        let drawn = candidates.partition_point(|(sum, _)| *sum <= point);
        candidates.get(drawn).map(|(_, number)| *number)
    }
}

/// Endpoints that a draw fell on in vain, in the order of their positions, with their weights.
#[derive(Debug, Default)]
struct Aside(Vec<(Hit, u64)>);

impl Aside {
    fn put(&mut self, hit: Hit, weight: u64) {
        let place = self.0.partition_point(|(other, _)| other.position < hit.position);
        self.0.insert(place, (hit, weight));
    }

    /// The point among all weights for a point among those that are not put aside.
    fn skip(&self, mut point: u64) -> u64 {
        for (hit, weight) in &self.0 {
            if hit.before > point {
                break;
            }
            point += weight;
        }
        point
    }

    fn holds(&self, position: usize) -> bool {
        self.0.binary_search_by_key(&position, |(hit, _)| hit.position).is_ok()
    }
}
