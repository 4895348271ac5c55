//! What a profile prints and writes.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::parts::Part;
use super::watch::Proxy;
use super::{Seen, fold, syscalls};
use crate::bench::machine::Machine;
use crate::bench::path::Path;
use crate::bench::rounds::Spread;
use crate::bench::sample::Figure;
use crate::bench::work::Work;
use crate::output;

/// All of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) work: String,
    /// What costs are told for: a request, or a MiB where the work is streams.
    pub(super) unit: &'static str,
    pub(super) rounds: usize,
    pub(super) measured_ms: u128,
    pub(super) paths: Vec<PathReport>,
    /// What could not be looked at, and why.
    pub(super) missing: Vec<String>,
}

/// What was seen of one path's proxies.
#[derive(Debug, Serialize)]
pub(super) struct PathReport {
    path: Path,
    hops: u32,
    failures: BTreeMap<String, u64>,
    /// The benchmark's, of loads nobody looked at.
    figures: BTreeMap<String, Spread>,
    cpu_us: Option<Spread>,
    wake_ups: Option<Spread>,
    context_switches: Option<Spread>,
    samples: u64,
    parts: Vec<PartRow>,
    system_calls: Vec<CallRow>,
}

/// A part's share of the proxies' processor time.
#[derive(Debug, Serialize)]
struct PartRow {
    part: Part,
    samples: u64,
    /// Of all samples, in percent.
    share: f64,
    /// For a unit of work.
    cpu_us: f64,
    cpu_us_by_proxy: BTreeMap<String, f64>,
}

/// Calls for a unit of work.
#[derive(Debug, Serialize)]
struct CallRow {
    name: String,
    calls: f64,
    failed: f64,
}

/// Costs of a unit of work, in the benchmark's figures' units: seconds for a thousand requests, or for a GiB.
fn microseconds(spread: Spread, work: Work) -> Spread {
    let factor = if work.is_bulk() { 1e6 / 1024.0 } else { 1e6 / 1000.0 };
    let Spread { median, min, max } = spread;
    Spread { median: median * factor, min: min * factor, max: max * factor }
}

impl PathReport {
    pub(super) fn new(path: Path, work: Work, proxies: &[Proxy], seen: &Seen) -> Self {
        let spreads = seen.rounds.spreads();
        let cpu_us = spreads.get(&Figure::CpuOfProxies).map(|cpu| microseconds(*cpu, work));
        let parts = parts(&seen.samples, proxies, cpu_us.map_or(0.0, |cpu| cpu.median));
        let bulk = work.is_bulk();
        Self {
            path,
            hops: path.hops(),
            failures: seen.rounds.failures.clone(),
            figures: spreads.iter().map(|(figure, spread)| (figure.name(bulk).to_owned(), *spread)).collect(),
            cpu_us,
            wake_ups: spreads.get(&Figure::WakeUpsOfProxies).copied(),
            context_switches: spreads.get(&Figure::SwitchesOfProxies).copied(),
            samples: parts.iter().map(|row| row.samples).sum(),
            parts,
            system_calls: calls(&seen.calls, seen.units_of_calls),
        }
    }

    fn print(&self, work: &str, unit: &str) {
        let spread = |spread: Option<Spread>| {
            spread.map_or_else(
                || "?".to_owned(),
                |Spread { median, min, max }| format!("{median:.1} [{min:.1}-{max:.1}]"),
            )
        };
        println!(
            "\n{work} on {}: {} us of processor time for a {unit}, {} wake-ups, {} context switches; {} samples",
            self.path.name(),
            spread(self.cpu_us),
            spread(self.wake_ups),
            spread(self.context_switches),
            self.samples
        );
        if !self.parts.is_empty() {
            println!("{}", self.table_of_parts());
        }
        if !self.system_calls.is_empty() {
            println!("\nSystem calls for a {unit}:\n{}", self.table_of_calls());
        }
    }

    fn table_of_parts(&self) -> Table {
        let proxies: Vec<&str> = self.parts[0].cpu_us_by_proxy.keys().map(String::as_str).collect();
        let mut table = output::table();
        let heads = ["part", "share", "us"].into_iter().chain(proxies.iter().copied());
        table.set_header(heads.collect::<Vec<_>>());
        for row in self.parts.iter().filter(|row| row.samples > 0) {
            let by_proxy = row.cpu_us_by_proxy.values().map(|us| format!("{us:.1}"));
            let own =
                [row.part.name().to_owned(), format!("{:.1} %", row.share), format!("{:.1}", row.cpu_us)];
            table.add_row(own.into_iter().chain(by_proxy).collect::<Vec<_>>());
        }
        numbers_to_the_right(&mut table, 1);
        table
    }

    fn table_of_calls(&self) -> Table {
        let mut table = output::table();
        table.set_header(["call", "number", "of these failed"]);
        // What happens once for a connection says nothing of a request.
        for row in self.system_calls.iter().filter(|row| row.calls >= 0.005) {
            table.add_row([row.name.clone(), format!("{:.2}", row.calls), format!("{:.2}", row.failed)]);
        }
        numbers_to_the_right(&mut table, 1);
        table
    }

    fn us_per_hop(&self, part: Part) -> f64 {
        let row = self.parts.iter().find(|row| row.part == part);
        row.map_or(0.0, |row| row.cpu_us / f64::from(self.hops.max(1)))
    }
}

/// The parts with their shares, which add up to 100 %, and what that is of the processor time.
fn parts(samples: &fold::Counts, proxies: &[Proxy], cpu_us: f64) -> Vec<PartRow> {
    let of_proxy = |proxy: &Proxy, part: Part| -> u64 {
        let processes = proxy.pids.iter().filter_map(|pid| samples.get(pid));
        processes.filter_map(|counts| counts.get(&part)).sum()
    };
    let all: u64 = proxies.iter().flat_map(|proxy| Part::ALL.map(|part| of_proxy(proxy, part))).sum();
    if all == 0 {
        return Vec::new();
    }
    let share = |count: u64| count as f64 / all as f64;
    let row = |part| {
        let counts: Vec<(&str, u64)> =
            proxies.iter().map(|proxy| (proxy.name.as_str(), of_proxy(proxy, part))).collect();
        let samples = counts.iter().map(|(_, count)| count).sum();
        PartRow {
            part,
            samples,
            share: share(samples) * 100.0,
            cpu_us: share(samples) * cpu_us,
            cpu_us_by_proxy: counts
                .into_iter()
                .map(|(name, count)| (name.to_owned(), share(count) * cpu_us))
                .collect(),
        }
    };
    Part::ALL.into_iter().map(row).collect()
}

/// Calls for a unit of work, the most frequent first.
fn calls(counts: &syscalls::Counts, units: f64) -> Vec<CallRow> {
    if units <= 0.0 {
        return Vec::new();
    }
    let row = |(name, calls): (&String, &syscalls::Calls)| CallRow {
        name: name.clone(),
        calls: calls.all as f64 / units,
        failed: calls.failed as f64 / units,
    };
    let mut rows: Vec<CallRow> = counts.iter().map(row).collect();
    rows.sort_by(|one, other| other.calls.total_cmp(&one.calls));
    rows
}

fn numbers_to_the_right(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

impl Report {
    pub(super) fn print(&self) {
        for path in &self.paths {
            path.print(&self.work, self.unit);
        }
        if self.paths.iter().any(|path| path.samples > 0) {
            println!(
                "\nMicroseconds of processor time of one hop for a {} ({}):\n{}",
                self.unit,
                self.work,
                self.per_hop()
            );
        }
        println!(
            "\nOver {} rounds of {} ms for each way of looking. Times are of loads nobody looked at, shares of samples; system calls were counted in loads that the\n\
             counting slowed. A hop is a proxy a byte passes. A wake-up is a thread that slept and was woken; inlined functions count as their callers.",
            self.rounds, self.measured_ms
        );
        println!("{}", self.machine);
        self.missing.iter().for_each(|missing| println!("Not seen: {missing}"));
        for path in self.paths.iter().filter(|path| !path.failures.is_empty()) {
            println!("Failures on {}: {:?}", path.path.name(), path.failures);
        }
    }

    /// Whether everything that was begun succeeded.
    pub(super) fn ok(&self) -> bool {
        self.paths.iter().all(|path| path.failures.is_empty())
    }

    fn per_hop(&self) -> Table {
        let mut table = output::table();
        let names = self.paths.iter().map(|path| path.path.name());
        table.set_header(std::iter::once("part".to_owned()).chain(names).collect::<Vec<_>>());
        let mut row = |name: &str, of: &dyn Fn(&PathReport) -> f64| {
            let values: Vec<f64> = self.paths.iter().map(of).collect();
            if values.iter().any(|value| *value > 0.0) {
                let cells = values.iter().map(|value| format!("{value:.1}"));
                table.add_row(std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>());
            }
        };
        for part in Part::ALL {
            row(part.name(), &|path| path.us_per_hop(part));
        }
        let sum = |path: &PathReport, kernel: bool| -> f64 {
            let parts = Part::ALL.into_iter().filter(|part| part.in_kernel() == kernel);
            parts.map(|part| path.us_per_hop(part)).sum()
        };
        row("all of the kernel", &|path| sum(path, true));
        row("all of user space", &|path| sum(path, false));
        row("all", &|path| sum(path, true) + sum(path, false));
        numbers_to_the_right(&mut table, 1);
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(name: &str, pids: &[u32]) -> Proxy {
        Proxy { name: name.into(), pids: pids.into() }
    }

    #[test]
    fn shares_add_up_to_a_hundred_and_times_to_what_the_proxies_took() {
        let samples = fold::Counts::from([
            (7, [(Part::Send, 5), (Part::Tls, 1)].into()),
            (8, [(Part::Send, 2)].into()),
            (9, [(Part::Own, 2)].into()),
            // Nobody's of ours.
            (10, [(Part::Own, 1000)].into()),
        ]);
        let rows = parts(&samples, &[proxy("here", &[7, 8]), proxy("there", &[9])], 200.0);
        let sum = |of: fn(&PartRow) -> f64| rows.iter().map(of).sum::<f64>();
        assert!((sum(|row| row.share) - 100.0).abs() < 1e-9);
        assert!((sum(|row| row.cpu_us) - 200.0).abs() < 1e-9);
        let send = rows.iter().find(|row| row.part == Part::Send).unwrap();
        assert!((send.share - 70.0).abs() < 1e-9 && (send.cpu_us - 140.0).abs() < 1e-9, "{send:?}");
        assert!((send.cpu_us_by_proxy["here"] - 140.0).abs() < 1e-9 && send.cpu_us_by_proxy["there"] == 0.0);
    }

    #[test]
    fn without_samples_there_are_no_parts_and_without_work_no_calls() {
        assert!(parts(&fold::Counts::new(), &[proxy("here", &[7])], 200.0).is_empty());
        assert!(calls(&[("read".to_owned(), syscalls::Calls::default())].into(), 0.0).is_empty());
    }

    #[test]
    fn calls_are_told_for_a_request_and_the_most_frequent_first() {
        let counts = syscalls::Counts::from([
            ("epoll_wait".into(), syscalls::Calls { all: 10, failed: 0 }),
            ("recvfrom".into(), syscalls::Calls { all: 40, failed: 20 }),
        ]);
        let rows = calls(&counts, 10.0);
        let found: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.calls, row.failed)).collect();
        assert_eq!(found, [("recvfrom", 4.0, 2.0), ("epoll_wait", 1.0, 0.0)]);
    }

    #[test]
    fn processor_seconds_of_a_thousand_requests_are_milliseconds_of_one() {
        let spread = Spread { median: 0.05, min: 0.04, max: 1.0 };
        let ping = Work::Ping { size: 1, connections: 1, rate: None };
        assert!((microseconds(spread, ping).median - 50.0).abs() < 1e-9);
        assert!((microseconds(spread, Work::Bulk { connections: 1 }).max - 976.5625).abs() < 1e-9);
    }
}
