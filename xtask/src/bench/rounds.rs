//! A path and a work over all rounds: medians, and the ranges that say how far to trust them.

use std::collections::BTreeMap;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use statrs::statistics::{Data, Max, Median, Min};

use super::sample::{Figure, Sample};

/// A figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of one value at least.
    pub(crate) fn of(values: &[f64]) -> Self {
        let data = Data::new(values.to_vec());
        Self { median: data.median(), min: data.min(), max: data.max() }
    }
}

/// All samples of a path and a work.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// The latencies of all rounds.
    pub(crate) histogram: Option<Histogram<u64>>,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) samples: usize,
    values: BTreeMap<Figure, Vec<f64>>,
}

impl Rounds {
    pub(crate) fn add(&mut self, sample: Sample) -> anyhow::Result<()> {
        match &mut self.histogram {
            Some(all) => all.add(&sample.histogram).context("adding up latencies")?,
            none => *none = Some(sample.histogram),
        }
        self.failed(&sample.failures);
        for (figure, value) in sample.figures {
            self.values.entry(figure).or_default().push(value);
        }
        self.samples += 1;
        Ok(())
    }

    /// Adds the failures of a load, which is not measured itself if it is not added.
    pub(crate) fn failed(&mut self, failures: &BTreeMap<String, u64>) {
        for (error, count) in failures {
            *self.failures.entry(error.clone()).or_default() += count;
        }
    }

    pub(crate) fn spreads(&self) -> BTreeMap<Figure, Spread> {
        self.values.iter().map(|(figure, values)| (*figure, Spread::of(values))).collect()
    }

    /// How much longer a request takes than on another path, in microseconds a hop: round by round, since what slows the machine slows
    /// both of a round.
    pub(crate) fn added_per_hop(&self, baseline: &Self, hops: u32) -> Option<Spread> {
        let (here, there) = (self.values.get(&Figure::P50)?, baseline.values.get(&Figure::P50)?);
        // A round that got nothing has no latency, and no partner.
        if here.len() != self.samples || there.len() != baseline.samples {
            return None;
        }
        let added: Vec<f64> =
            here.iter().zip(there).map(|(here, there)| (here - there) / f64::from(hops)).collect();
        (hops > 0 && !added.is_empty()).then(|| Spread::of(&added))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::tests::report;
    use crate::bench::work::Work;

    fn rounds(of: &[u64]) -> Rounds {
        let work = Work::Ping { size: 1, connections: 1, rate: None };
        let mut rounds = Rounds::default();
        for latency in of {
            rounds.add(Sample::read(&report(&[*latency], 1), work).unwrap()).unwrap();
        }
        rounds
    }

    #[test]
    fn a_spread_is_the_median_and_both_ends() {
        assert_eq!(Spread::of(&[5.0, 1.0, 9.0]), Spread { median: 5.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of(&[1.0, 2.0, 4.0, 9.0]).median, 3.0);
    }

    #[test]
    fn rounds_keep_all_latencies_and_failures() {
        let rounds = rounds(&[10, 20, 90]);
        assert_eq!(
            (rounds.samples, rounds.histogram.as_ref().unwrap().len(), rounds.failures["no"]),
            (3, 3, 3)
        );
        assert!((rounds.spreads()[&Figure::P50].median - 20.0).abs() < 0.1);
    }

    #[test]
    fn drift_that_slows_both_paths_of_a_round_cancels() {
        let added = rounds(&[30, 130, 1030]).added_per_hop(&rounds(&[10, 110, 1010]), 2).unwrap();
        assert!((added.median - 10.0).abs() < 0.5 && (added.max - added.min) < 1.5, "{added:?}");
        assert_eq!(rounds(&[10]).added_per_hop(&rounds(&[10]), 0), None);
    }
}
