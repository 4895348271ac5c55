//! The report as one file for a browser: what it was measured on, a plot of each work's latencies, rates and costs, and all figures.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;

use super::plot::{self, Curve};
use super::report::{Report, Row};
use super::rounds::Spread;

/// The figures that get a plot: their names, and what is under the plot.
const PLOTTED: [(&str, &str); 5] = [
    ("requests_per_second", "requests in a second: more is better"),
    ("gigabits_per_second", "Gbit/s: more is better"),
    (
        "cpu_seconds_per_1000_requests",
        "processor seconds for 1,000 requests, of client, server and proxies: less is better",
    ),
    ("cpu_seconds_per_gib", "processor seconds for a GiB, of client, server and proxies: less is better"),
    ("proxies_context_switches_per_request", "context switches of the proxies for a request: less is better"),
];

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse;font-size:13px}td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:right}\
    td:first-child,th:first-child{text-align:left}svg{display:block;margin:8px 0}";

/// The whole file.
pub(crate) fn page(report: &Report) -> anyhow::Result<String> {
    let mut page = String::new();
    write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Culvert: what the mesh costs</title><style>{STYLE}</style>\
         <h1>What the mesh costs</h1><p>{}</p><p>Medians over {} rounds of {} ms, the paths in turns in each round; ranges are the least and \
         the most of the rounds. Latencies are those of all rounds together.</p>",
        escape(&report.machine.to_string()),
        report.rounds,
        report.measured_ms
    )?;
    for work in works(&report.rows) {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.work == work).collect();
        write!(page, "<h2>{}</h2>", escape(work))?;
        plots(&mut page, &rows)?;
        table(&mut page, &rows)?;
    }
    Ok(page + "</html>\n")
}

/// Each once, in the rows' order.
fn works(rows: &[Row]) -> Vec<&str> {
    let mut works: Vec<&str> = rows.iter().map(|row| row.work.as_str()).collect();
    works.dedup();
    works
}

fn plots(page: &mut String, rows: &[&Row]) -> anyhow::Result<()> {
    let mut curves = Vec::new();
    for row in rows {
        if let Some(histogram) = &row.histogram {
            curves.push((row.path.clone(), curve(histogram)?));
        }
    }
    if !curves.is_empty() {
        page.push_str(&plot::latencies(&curves)?);
    }
    for (figure, unit) in PLOTTED {
        let bars: Vec<(String, Spread)> =
            rows.iter().filter_map(|row| Some((row.path.clone(), *row.figures.get(figure)?))).collect();
        if !bars.is_empty() {
            page.push_str(&plot::bars(unit, &bars)?);
        }
    }
    Ok(())
}

fn curve(encoded: &str) -> anyhow::Result<Curve> {
    let bytes = STANDARD.decode(encoded)?;
    let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice())?;
    let at = |rarity: f64| histogram.value_at_quantile(1.0 - 1.0 / rarity) as f64 / 1000.0;
    Ok(plot::rarities().map(|rarity| (rarity, at(rarity))).collect())
}

fn table(page: &mut String, rows: &[&Row]) -> anyhow::Result<()> {
    let mut names: Vec<&String> = rows.iter().flat_map(|row| row.figures.keys()).collect();
    names.sort();
    names.dedup();
    page.push_str("<table><tr><th>figure");
    rows.iter().try_for_each(|row| write!(page, "<th>{}", escape(&row.path)))?;
    for name in names {
        write!(page, "<tr><td>{}", escape(&name.replace('_', " ")))?;
        for row in rows {
            page.push_str("<td>");
            if let Some(Spread { median, min, max }) = row.figures.get(name) {
                write!(page, "{median:.3} [{min:.3}-{max:.3}]")?;
            }
        }
    }
    page.push_str("<tr><td>failures");
    rows.iter().try_for_each(|row| write!(page, "<td>{}", row.failures.values().sum::<u64>()))?;
    page.push_str("</table>");
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::path::Path;
    use crate::bench::rounds::Rounds;
    use crate::bench::sample::{Sample, tests::report};
    use crate::bench::work::Work;

    #[test]
    fn the_page_holds_machine_plots_and_figures_and_nothing_from_elsewhere() {
        let work = Work::Ping { size: 1, connections: 1, rate: None };
        let mut rounds = Rounds::default();
        rounds.add(Sample::read(&report(&[10, 20, 4000], 1), work).unwrap()).unwrap();
        let rows =
            [Path::Direct, Path::CulvertOther].map(|path| Row::new(work, path, &rounds, None).unwrap());
        let machine = Machine { processor: "A <B> & C".into(), ..Machine::look() };
        let report = Report { machine, rounds: 1, measured_ms: 5, rows: rows.into() };
        let page = page(&report).unwrap();
        for part in ["A &lt;B&gt; &amp; C", "<h2>ping-1B-x1</h2>", "<th>culvert-other", "latency p50 us"] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<h2>").count(), 1);
        assert_eq!(page.matches("<svg").count(), 4, "latencies, rate, processor time and switches");
        let links = ["src=", "href=", "@import", "url("];
        assert!(links.iter().all(|link| !page.contains(link)));
    }
}
