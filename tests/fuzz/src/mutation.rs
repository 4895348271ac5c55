//! Changes of inputs that a test repeats exactly: no coverage to go by, but the seeds are near what is interesting.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

/// Inputs grow no longer, bytes.
const MAX_LENGTH: usize = 4096;
/// Numbers at which code forks: ends of ranges, and what protobuf and HTTP/2 use as tags, lengths and types.
const SHARP: [u8; 12] = [0, 1, 2, 4, 7, 8, 0x10, 0x1a, 0x7f, 0x80, 0xfe, 0xff];

/// Makes inputs of seeds.
#[derive(Debug)]
pub struct Mutator {
    random: StdRng,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    /// One that goes by `random`, over and over through `seeds`, of which there is at least one.
    pub fn new(random: StdRng, seeds: Vec<Vec<u8>>) -> Self {
        Self { random, seeds }
    }

    /// The next input: a seed with one to eight changes.
    pub fn mutate(&mut self) -> Vec<u8> {
        let mut input = self.seeds.choose(&mut self.random).cloned().unwrap_or_default();
        for _ in 0..self.random.random_range(1..=8) {
            self.change(&mut input);
        }
        input.truncate(MAX_LENGTH);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.random_range(0..=input.len());
        let end = random.random_range(at..=input.len().min(at + 64));
        match random.random_range(0..8) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 if at < input.len() => input[at] = SHARP.choose(random).copied().unwrap_or_default(),
            3 => input.insert(at, random.random()),
            4 => drop(input.drain(at..end)),
            5 => {
                let piece = input[at..end].to_vec();
                let to = random.random_range(0..=input.len());
                input.splice(to..to, piece);
            }
            6 => {
                let other = self.seeds.choose(random).map(Vec::as_slice).unwrap_or_default();
                let from = random.random_range(0..=other.len());
                let piece = other[from..other.len().min(from + 64)].to_vec();
                input.splice(at..end, piece);
            }
            _ => input.truncate(at.max(input.len() / 2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn the_same_number_brings_the_same_inputs_back_and_they_differ_from_the_seed() {
        let inputs = |number| {
            let mut mutator =
                Mutator::new(StdRng::seed_from_u64(number), vec![b"a seed of some length".to_vec()]);
            (0..100).map(|_| mutator.mutate()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        let changed = inputs(1).iter().filter(|input| *input != b"a seed of some length").count();
        assert!(changed > 90, "{changed}");
    }
}
