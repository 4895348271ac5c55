//! Latencies and failures of a run, from all its threads.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};

/// Three digits: a thousandth is less than any two runs differ by.
const DIGITS: u8 = 3;

/// What became of a run, or of one thread's part in it.
pub(super) struct Outcomes {
    /// Nanoseconds.
    pub(super) histogram: Histogram<u64>,
    pub(super) bytes: u64,
    /// How long the bytes took, where that is not the time of the run.
    pub(super) seconds: Option<Duration>,
    pub(super) failures: BTreeMap<String, u64>,
    /// Connections that are not to end before the costs have been read.
    pub(super) held: Vec<TcpStream>,
}

impl Outcomes {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            histogram: Histogram::new(DIGITS)?,
            bytes: 0,
            seconds: None,
            failures: BTreeMap::new(),
            held: Vec::new(),
        })
    }

    pub(super) fn record(&mut self, latency: Duration, bytes: usize) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Err(error) = self.histogram.record(nanoseconds) {
            self.fail("recording a latency", &io::Error::other(error));
        }
        self.bytes += bytes as u64;
    }

    pub(super) fn fail(&mut self, step: &str, error: &io::Error) {
        *self.failures.entry(format!("{step}: {error}")).or_default() += 1;
    }

    /// Adds another thread's part. The longest time counts: the parts go on side by side.
    pub(super) fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.histogram.add(&other.histogram)?;
        self.bytes += other.bytes;
        self.seconds = self.seconds.max(other.seconds);
        for (error, count) in other.failures {
            *self.failures.entry(error).or_default() += count;
        }
        self.held.extend(other.held);
        Ok(())
    }
}

/// Runs `part` on as many threads and adds up what they say.
pub(super) fn on_threads(
    threads: usize,
    part: impl Fn(usize) -> anyhow::Result<Outcomes> + Sync,
) -> anyhow::Result<Outcomes> {
    std::thread::scope(|scope| {
        let part = &part;
        let parts: Vec<_> = (0..threads).map(|number| scope.spawn(move || part(number))).collect();
        let mut all = Outcomes::new()?;
        for one in parts {
            all.add(one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)?;
        }
        Ok(all)
    })
}

/// As the report carries it.
pub(super) fn encode(histogram: &Histogram<u64>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes)?;
    Ok(STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_saw_adds_up_and_the_longest_time_counts() {
        let part = |number: usize| {
            let mut outcomes = Outcomes::new()?;
            outcomes.record(Duration::from_micros(10), 5);
            outcomes.seconds = Some(Duration::from_secs(number as u64));
            outcomes.fail("connect", &io::Error::other("no"));
            Ok(outcomes)
        };
        let all = on_threads(3, part).unwrap();
        assert_eq!((all.histogram.len(), all.bytes, all.seconds), (3, 15, Some(Duration::from_secs(2))));
        assert_eq!(all.failures, [("connect: no".to_owned(), 3)].into());
    }

    #[test]
    fn a_histogram_survives_its_way_through_the_report() {
        let mut outcomes = Outcomes::new().unwrap();
        outcomes.record(Duration::from_millis(7), 0);
        let bytes = STANDARD.decode(encode(&outcomes.histogram).unwrap()).unwrap();
        let read: Histogram<u64> =
            hdrhistogram::serialization::Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(read, outcomes.histogram);
    }
}
