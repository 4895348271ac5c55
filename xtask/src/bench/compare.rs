//! This run against an earlier one's file: ratios of medians, and whether the ranges say that there is a difference at all.

use comfy_table::{CellAlignment, Table, presets};

use super::report::{Report, Row};
use super::rounds::Spread;

/// What is compared, by the figures' names.
const FIGURES: [(&str, &str); 6] = [
    ("requests_per_second", "requests/s"),
    ("gigabits_per_second", "Gbit/s"),
    ("latency_p50_us", "p50"),
    ("latency_p99_us", "p99"),
    ("proxies_cpu_seconds_per_1000_requests", "proxies' CPU"),
    ("proxies_cpu_seconds_per_gib", "proxies' CPU per GiB"),
];

/// How a figure has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Change {
    /// New by old.
    ratio: f64,
    /// Whether no round of one run is within the other's range.
    apart: bool,
}

impl Change {
    fn between(old: Spread, new: Spread) -> Option<Self> {
        let apart = new.min > old.max || new.max < old.min;
        (old.median > 0.0).then(|| Self { ratio: new.median / old.median, apart })
    }

    fn shown(self) -> String {
        format!("{:.2}{}", self.ratio, if self.apart { " *" } else { "" })
    }
}

/// Prints what both have.
pub(crate) fn print(old: &Report, new: &Report) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(
        ["work", "path"].into_iter().chain(FIGURES.iter().map(|(_, shown)| *shown)).collect::<Vec<_>>(),
    );
    table.add_rows(rows(old, new));
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\nNew by old, medians; * where the ranges are apart, so that it is more than noise:\n{table}");
    if old.machine != new.machine {
        println!("Not the same machine, build or load before the run: old {}", old.machine);
    }
}

fn rows(old: &Report, new: &Report) -> Vec<Vec<String>> {
    let same = |row: &Row| old.rows.iter().find(|other| (&other.work, &other.path) == (&row.work, &row.path));
    let row = |new: &Row, old: &Row| {
        let change = |(name, _): &(&str, &str)| {
            let (old, new) = (old.figures.get(*name)?, new.figures.get(*name)?);
            Change::between(*old, *new).map(Change::shown)
        };
        let figures = FIGURES.iter().map(|figure| change(figure).unwrap_or_default());
        [new.work.clone(), new.path.clone()].into_iter().chain(figures).collect()
    };
    new.rows.iter().filter_map(|new| Some(row(new, same(new)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(path: &str, p50: [f64; 3]) -> Report {
        let [min, median, max] = p50;
        let machine = json!({
            "kernel": "6", "processor": "x", "cores": 2, "memory_mib": 1, "load_before": 0.0, "version": "1",
        });
        let row = json!({
            "work": "ping-1B-x1", "path": path, "rounds": 3, "failures": {}, "histogram": null,
            "figures": {"latency_p50_us": {"min": min, "median": median, "max": max}},
        });
        let report = json!({"machine": machine, "rounds": 3, "measured_ms": 1, "rows": [row]});
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn ratios_are_of_the_same_rows_and_marked_where_ranges_are_apart() {
        let old = report("direct", [9.0, 10.0, 11.0]);
        for (name, new, expected) in [
            ("apart", report("direct", [19.0, 20.0, 21.0]), Some("2.00 *")),
            ("overlapping", report("direct", [10.0, 12.0, 14.0]), Some("1.20")),
            ("another path", report("relay", [1.0, 1.0, 1.0]), None),
        ] {
            let rows = rows(&old, &new);
            assert_eq!(rows.first().map(|row| row[4].as_str()), expected, "{name}");
        }
    }

    #[test]
    fn nothing_is_compared_with_nothing() {
        let spread = |median| Spread { median, min: median, max: median };
        assert_eq!(Change::between(spread(0.0), spread(1.0)), None);
    }
}
