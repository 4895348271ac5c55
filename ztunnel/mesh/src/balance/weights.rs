//! Weights by position, to draw from: a Fenwick tree, whose every operation takes O(log n).

/// A list of weights, held as sums alone: `sums[i]` covers the positions `i + 1 - lowest_bit(i + 1) ..= i`.
#[derive(Debug, Default)]
pub(super) struct Weights {
    sums: Vec<u64>,
}

/// Where a point of the sum of all weights falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) position: usize,
    /// The sum of the weights before the position.
    pub(super) before: u64,
}

impl Weights {
    pub(super) fn push(&mut self, weight: u64) {
        let node = self.sums.len() + 1;
        let lowest = node & node.wrapping_neg();
        let mut sum = weight;
        // The nodes directly below this one are node - 1, node - 2, node - 4, ... down to its lowest bit.
        let mut step = 1;
        while step < lowest {
            sum += self.sums[node - step - 1];
            step <<= 1;
        }
        self.sums.push(sum);
    }

    pub(super) fn pop(&mut self) {
        self.sums.pop();
    }

    pub(super) fn get(&self, position: usize) -> u64 {
        self.before(position + 1) - self.before(position)
    }

    pub(super) fn set(&mut self, position: usize, weight: u64) {
        let old = self.get(position);
        let mut node = position + 1;
        while node <= self.sums.len() {
            self.sums[node - 1] = self.sums[node - 1] - old + weight;
            node += node & node.wrapping_neg();
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.before(self.sums.len())
    }

    /// The sum of the weights before the position.
    fn before(&self, position: usize) -> u64 {
        let (mut node, mut sum) = (position, 0);
        while node > 0 {
            sum += self.sums[node - 1];
            node &= node - 1;
        }
        sum
    }

    /// The position whose share of `0..total` holds `point`.
    pub(super) fn find(&self, point: u64) -> Option<Hit> {
        let (mut position, mut before) = (0, 0);
        let mut step = self.sums.len().checked_ilog2().map_or(0, |bits| 1 << bits);
        while step > 0 {
            if let Some(&sum) = self.sums.get(position + step - 1)
                && before + sum <= point
            {
                before += sum;
                position += step;
            }
            step >>= 1;
        }
        (position < self.sums.len()).then_some(Hit { position, before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Numbers;

    #[test]
    fn weights_are_those_of_a_plain_list_after_any_changes() {
        for seed in 1..=100 {
            let mut numbers = Numbers::from_seed(seed);
            let (mut weights, mut plain) = (Weights::default(), Vec::<u64>::new());
            for _ in 0..120 {
                let weight = numbers.next() % 5;
                match numbers.below(3) {
                    0 if !plain.is_empty() => {
                        weights.pop();
                        plain.pop();
                    }
                    1 if !plain.is_empty() => {
                        let position = numbers.below(plain.len());
                        weights.set(position, weight);
                        plain[position] = weight;
                    }
                    _ => {
                        weights.push(weight);
                        plain.push(weight);
                    }
                }
                let mut before = 0;
                let mut expected = Vec::new();
                for (position, weight) in plain.iter().enumerate() {
                    assert_eq!(weights.get(position), *weight, "seed {seed}");
                    expected.extend((0..*weight).map(|_| Hit { position, before }));
                    before += weight;
                }
                assert_eq!(weights.total(), before, "seed {seed}");
                let found: Vec<Hit> =
                    (0..weights.total()).map(|point| weights.find(point).unwrap()).collect();
                assert_eq!(found, expected, "seed {seed}");
            }
        }
    }
}
