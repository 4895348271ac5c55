//! One load's report, and the figures made of it.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use serde::Deserialize;

use super::work::Work;

/// The account of the load itself.
pub(crate) const CLIENT: &str = "client";
/// The account of the server.
pub(crate) const SERVER: &str = "server";

/// The failure of a load that got nothing and says of no failure.
const NOTHING: &str = "nothing was answered";

/// As `echo load` prints it.
#[derive(Debug, Deserialize)]
struct Report {
    requests: u64,
    bytes: u64,
    seconds: f64,
    failures: BTreeMap<String, u64>,
    histogram: String,
    costs: BTreeMap<String, Cost>,
}

/// What one of the accounts used.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Cost {
    cpu_seconds: f64,
    wake_ups: u64,
    context_switches: u64,
    resident_bytes: u64,
    resident_growth_bytes: u64,
}

/// What came of one load.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Latencies in nanoseconds.
    pub(crate) histogram: Histogram<u64>,
    /// By their errors.
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) figures: BTreeMap<Figure, f64>,
    /// Requests, or MiB where the work is streams.
    pub(crate) units: f64,
}

/// What is measured. Latencies are in microseconds; `Proxies` are all but the client and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Figure {
    P50,
    P90,
    P99,
    P999,
    RequestsPerSecond,
    GigabitsPerSecond,
    /// Processor seconds for a thousand requests, or for a GiB where the work is streams.
    CpuOfAll,
    CpuOfProxies,
    /// For a request, or for a MiB where the work is streams.
    SwitchesOfProxies,
    /// Those of them that ended a sleep.
    WakeUpsOfProxies,
    /// MiB, at the load's end.
    MemoryOfProxies,
    /// KiB, where connections are held.
    MemoryOfConnection,
}

impl Figure {
    /// As files have it.
    pub(crate) fn name(self, bulk: bool) -> &'static str {
        match (self, bulk) {
            (Self::P50, _) => "latency_p50_us",
            (Self::P90, _) => "latency_p90_us",
            (Self::P99, _) => "latency_p99_us",
            (Self::P999, _) => "latency_p999_us",
            (Self::RequestsPerSecond, _) => "requests_per_second",
            (Self::GigabitsPerSecond, _) => "gigabits_per_second",
            (Self::CpuOfAll, false) => "cpu_seconds_per_1000_requests",
            (Self::CpuOfAll, true) => "cpu_seconds_per_gib",
            (Self::CpuOfProxies, false) => "proxies_cpu_seconds_per_1000_requests",
            (Self::CpuOfProxies, true) => "proxies_cpu_seconds_per_gib",
            (Self::SwitchesOfProxies, false) => "proxies_context_switches_per_request",
            (Self::SwitchesOfProxies, true) => "proxies_context_switches_per_mib",
            (Self::WakeUpsOfProxies, false) => "proxies_wake_ups_per_request",
            (Self::WakeUpsOfProxies, true) => "proxies_wake_ups_per_mib",
            (Self::MemoryOfConnection, _) => "proxies_resident_kib_per_connection",
            (Self::MemoryOfProxies, _) => "proxies_resident_mib",
        }
    }
}

impl Sample {
    /// Reads what a load printed.
    pub(crate) fn read(text: &[u8], work: Work) -> anyhow::Result<Self> {
        let report: Report = serde_json::from_slice(text).context("reading a load's report")?;
        let bytes = STANDARD.decode(&report.histogram)?;
        let mut histogram: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice())?;
        // Later rounds may hold longer latencies.
        histogram.auto(true);
        if histogram.len() != report.requests {
            bail!("a load counts {} requests and {} latencies", report.requests, histogram.len());
        }
        let answered = if work.is_bulk() { report.bytes } else { report.requests };
        if answered == 0 {
            // No figure of it would be true, and no success either.
            let failures = BTreeMap::from([(NOTHING.to_owned(), 1)]);
            let failures = if report.failures.is_empty() { failures } else { report.failures };
            return Ok(Self { histogram, failures, figures: BTreeMap::new(), units: 0.0 });
        }
        let figures = figures(&report, &histogram, work);
        let mib = report.bytes as f64 / f64::from(1 << 20);
        let units = if work.is_bulk() { mib } else { report.requests as f64 };
        Ok(Self { histogram, failures: report.failures, figures, units })
    }
}

fn figures(report: &Report, histogram: &Histogram<u64>, work: Work) -> BTreeMap<Figure, f64> {
    let mut figures = BTreeMap::new();
    let units = if work.is_bulk() {
        figures.insert(Figure::GigabitsPerSecond, report.bytes as f64 * 8.0 / report.seconds / 1e9);
        (report.bytes as f64 / f64::from(1 << 30), report.bytes as f64 / f64::from(1 << 20))
    } else {
        // Works that are one request have no rate.
        if !matches!(work, Work::First | Work::Second) {
            figures.insert(Figure::RequestsPerSecond, report.requests as f64 / report.seconds);
        }
        for (figure, quantile) in
            [(Figure::P50, 0.5), (Figure::P90, 0.9), (Figure::P99, 0.99), (Figure::P999, 0.999)]
        {
            figures.insert(figure, histogram.value_at_quantile(quantile) as f64 / 1000.0);
        }
        (report.requests as f64 / 1000.0, report.requests as f64)
    };
    let sum = |all: bool, of: fn(&Cost) -> f64| -> f64 {
        let ends = [CLIENT, SERVER];
        let costs = report.costs.iter().filter(|(name, _)| all || !ends.contains(&name.as_str()));
        costs.map(|(_, cost)| of(cost)).sum()
    };
    if units.0 > 0.0 {
        figures.insert(Figure::CpuOfAll, sum(true, |cost| cost.cpu_seconds) / units.0);
    }
    if units.0 > 0.0 && report.costs.len() > 2 {
        figures.insert(Figure::CpuOfProxies, sum(false, |cost| cost.cpu_seconds) / units.0);
        let switches = sum(false, |cost| cost.context_switches as f64);
        figures.insert(Figure::SwitchesOfProxies, switches / units.1);
        figures.insert(Figure::WakeUpsOfProxies, sum(false, |cost| cost.wake_ups as f64) / units.1);
        let resident = sum(false, |cost| cost.resident_bytes as f64);
        figures.insert(Figure::MemoryOfProxies, resident / f64::from(1 << 20));
        if matches!(work, Work::Idle { .. }) {
            let growth = sum(false, |cost| cost.resident_growth_bytes as f64);
            figures.insert(Figure::MemoryOfConnection, growth / 1024.0 / units.1);
        }
    }
    figures
}

#[cfg(test)]
pub(crate) mod tests {
    use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
    use serde_json::json;

    use super::*;

    /// A report of requests with these latencies in microseconds.
    pub(crate) fn report(latencies: &[u64], bytes: u64) -> Vec<u8> {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        latencies.iter().for_each(|latency| histogram.record(latency * 1000).unwrap());
        let mut encoded = Vec::new();
        V2DeflateSerializer::new().serialize(&histogram, &mut encoded).unwrap();
        let cost = |cpu: f64| json!({"cpu_seconds": cpu, "wake_ups": 6, "context_switches": 8, "resident_bytes": 3 << 20, "resident_growth_bytes": 1 << 20});
        let report = json!({
            "requests": latencies.len(), "bytes": bytes, "seconds": 2.0, "failures": {"no": 1},
            "histogram": STANDARD.encode(encoded),
            "costs": {"client": cost(1.0), "server": cost(2.0), "ztunnel east": cost(4.0), "ztunnel west": cost(8.0)},
        });
        report.to_string().into_bytes()
    }

    #[test]
    fn requests_are_measured_by_latency_rate_and_cost() {
        let work = Work::Ping { size: 1, connections: 1, rate: None };
        let sample = Sample::read(&report(&[10, 20, 30, 1000], 8), work).unwrap();
        let figure = |figure| sample.figures[&figure];
        assert!((figure(Figure::P50) - 20.0).abs() < 0.1);
        assert!((figure(Figure::P999) - 1000.0).abs() < 1.0);
        assert_eq!(figure(Figure::RequestsPerSecond), 2.0);
        assert_eq!((figure(Figure::CpuOfAll), figure(Figure::CpuOfProxies)), (3750.0, 3000.0));
        assert_eq!((figure(Figure::SwitchesOfProxies), figure(Figure::MemoryOfProxies)), (4.0, 6.0));
        assert_eq!((figure(Figure::WakeUpsOfProxies), sample.units), (3.0, 4.0));
        assert_eq!(sample.failures["no"], 1);
    }

    #[test]
    fn a_load_that_got_nothing_has_failed_and_has_no_figures() {
        let text = String::from_utf8(report(&[], 0)).unwrap().replace(r#"{"no":1}"#, "{}");
        let works = [Work::Ping { size: 1, connections: 1, rate: None }, Work::Bulk { connections: 1 }];
        for work in works {
            let sample = Sample::read(text.as_bytes(), work).unwrap();
            assert_eq!(sample.failures, BTreeMap::from([(NOTHING.to_owned(), 1)]));
            assert!(sample.figures.is_empty(), "{:?}", sample.figures);
        }
    }

    #[test]
    fn held_connections_are_measured_by_what_the_proxies_grew() {
        let sample = Sample::read(&report(&[10; 1024], 8), Work::Idle { connections: 1024 }).unwrap();
        assert_eq!(sample.figures[&Figure::MemoryOfConnection], 2.0);
    }

    #[test]
    fn streams_are_measured_by_bytes() {
        let sample = Sample::read(&report(&[], 1 << 30), Work::Bulk { connections: 1 }).unwrap();
        assert!((sample.figures[&Figure::GigabitsPerSecond] - 4.295).abs() < 0.001);
        assert_eq!(sample.figures[&Figure::CpuOfProxies], 12.0);
        assert_eq!(sample.units, 1024.0);
        assert_eq!(sample.figures.get(&Figure::P50), None);
    }
}
