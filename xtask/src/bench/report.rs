//! What the benchmark prints and writes.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use comfy_table::{CellAlignment, Table};
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::capture;
use super::machine::Machine;
use super::path::Path;
use super::rounds::{Rounds, Spread};
use super::sample::Figure;
use super::work::Work;
use crate::output;

/// All of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) measured_ms: u128,
    pub(crate) rows: Vec<Row>,
}

/// A path and a work.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) path: String,
    pub(crate) rounds: usize,
    pub(crate) failures: BTreeMap<String, u64>,
    /// By their names.
    pub(crate) figures: BTreeMap<String, Spread>,
    /// Latencies of all rounds in nanoseconds: an HdrHistogram (V2, deflated) in base64.
    pub(crate) histogram: Option<String>,
}

/// The name of what a proxy adds to a request.
const ADDED: &str = "added_latency_per_hop_us";

impl Row {
    pub(crate) fn new(
        work: Work,
        path: Path,
        rounds: &Rounds,
        baseline: Option<&Rounds>,
    ) -> anyhow::Result<Self> {
        let added = baseline.and_then(|baseline| rounds.added_per_hop(baseline, path.hops()));
        Self::named(work.name(), path.name(), work.is_bulk(), rounds, added)
    }

    /// Of what is no work of [`Work`] or no path of [`Path`].
    pub(crate) fn named(
        work: String,
        path: String,
        is_bulk: bool,
        rounds: &Rounds,
        added: Option<Spread>,
    ) -> anyhow::Result<Self> {
        let spreads = rounds.spreads();
        let mut figures: BTreeMap<String, Spread> =
            spreads.into_iter().map(|(figure, spread)| (figure.name(is_bulk).to_owned(), spread)).collect();
        figures.extend(added.map(|added| (ADDED.to_owned(), added)));
        let histogram = rounds.histogram.as_ref().filter(|all| !all.is_empty()).map(|all| {
            let mut bytes = Vec::new();
            V2DeflateSerializer::new().serialize(all, &mut bytes).map(|_| STANDARD.encode(bytes))
        });
        Ok(Self {
            work,
            path,
            rounds: rounds.samples,
            failures: rounds.failures.clone(),
            figures,
            histogram: histogram.transpose()?,
        })
    }

    fn cells(&self) -> Vec<String> {
        let bulk = self.figures.contains_key(Figure::GigabitsPerSecond.name(true));
        let figure = |figure: Figure| self.figures.get(figure.name(bulk));
        let with_range = |spread: Option<&Spread>| {
            spread.map_or_else(String::new, |spread| {
                let Spread { median, min, max } = *spread;
                format!("{} [{}-{}]", short(median), short(min), short(max))
            })
        };
        let plain = |spread: Option<&Spread>| spread.map_or_else(String::new, |spread| short(spread.median));
        let rate = figure(if bulk { Figure::GigabitsPerSecond } else { Figure::RequestsPerSecond });
        vec![
            self.work.clone(),
            self.path.clone(),
            rate.map_or_else(String::new, |_| with_range(rate) + if bulk { " Gbit/s" } else { "/s" }),
            with_range(figure(Figure::P50)),
            plain(figure(Figure::P90)),
            plain(figure(Figure::P99)),
            plain(figure(Figure::P999)),
            with_range(self.figures.get(ADDED)),
            plain(figure(Figure::CpuOfAll)),
            plain(figure(Figure::CpuOfProxies)),
            plain(figure(Figure::SwitchesOfProxies)),
            match figure(Figure::MemoryOfConnection) {
                Some(spread) => format!("{} KiB each", short(spread.median)),
                None => plain(figure(Figure::MemoryOfProxies)),
            },
            match self.failures.values().sum::<u64>() {
                0 => String::new(),
                count => count.to_string(),
            },
        ]
    }
}

/// Three digits, more where they stand before the point.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        above if above >= 100.0 => 0,
        above if above >= 10.0 => 1,
        above if above >= 1.0 => 2,
        above if above >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

impl Report {
    pub(crate) fn print(&self) {
        println!("\n{}", self.table());
        println!(
            "Medians over {} rounds of {} ms, [least-most]; latencies in microseconds, of streams none. A hop is a proxy a byte passes; added\n\
             latency is against the same pods without proxies (or who dials the server itself), in the same round. CPU: seconds per 1,000 requests, or per GiB, of all\n\
             (client, server, proxies) and of the proxies; switches: the proxies', per request, or per MiB; memory: theirs, in MiB, or of a connection.",
            self.rounds, self.measured_ms
        );
        if self.rows.iter().any(|row| row.work.starts_with(capture::PREFIX)) {
            println!(
                "{}...: a client and a bare server in its proxy's place, on one processor; loads of {} ms at most.",
                capture::PREFIX,
                capture::LONGEST.measure.as_millis()
            );
        }
        println!("{}", self.machine);
        for row in self.rows.iter().filter(|row| !row.failures.is_empty()) {
            println!("Failures of {} on {}: {:?}", row.work, row.path, row.failures);
        }
    }

    /// Whether everything that was begun succeeded.
    pub(crate) fn ok(&self) -> bool {
        self.rows.iter().all(|row| row.failures.is_empty())
    }

    fn table(&self) -> Table {
        let mut table = output::table();
        table.set_header([
            "work",
            "path",
            "rate",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "added/hop",
            "CPU",
            "proxies",
            "switches",
            "memory",
            "failed",
        ]);
        table.add_rows(self.rows.iter().map(Row::cells));
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 1));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::Sample;
    use crate::bench::sample::tests::report;

    #[test]
    fn a_row_has_its_figures_by_name_and_in_the_table() {
        let work = Work::Ping { size: 1, connections: 1, rate: None };
        let rounds = |latency| {
            let mut rounds = Rounds::default();
            rounds.add(Sample::read(&report(&[latency], 1), work).unwrap()).unwrap();
            rounds
        };
        let row = Row::new(work, Path::CulvertOther, &rounds(50), Some(&rounds(10))).unwrap();
        let value = serde_json::to_value(&row).unwrap();
        assert!((value["figures"][ADDED]["median"].as_f64().unwrap() - 20.0).abs() < 0.1);
        let cells = row.cells();
        assert_eq!((cells[0].as_str(), cells[1].as_str()), ("ping-1B-x1", "culvert-other"));
        assert!(cells[3].starts_with("50.0 ["), "{cells:?}");
        assert_eq!(cells[12], "1");
    }

    #[test]
    fn numbers_are_as_long_as_they_are_exact() {
        for (value, expected) in [
            (0.0, "0"),
            (12345.6, "12346"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.1234, "0.123"),
            (0.01234, "0.0123"),
        ] {
            assert_eq!(short(value), expected);
        }
    }
}
