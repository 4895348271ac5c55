//! What the demo prints and writes at its end.

use sandbox::Traffic;
use serde::Serialize;

use super::call::STRICT;
use super::observe::Fact;
use crate::output;

/// Shown short in the table; the caption says so.
const IDENTITY_PREFIX: &str = "spiffe://cluster.local/";

/// The demo's facts.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether every expectation held.
    pub(crate) ok: bool,
    calls: Vec<Fact>,
    wire: Wire,
}

/// What crossed the link between the nodes.
#[derive(Debug, Serialize)]
struct Wire {
    packets: u64,
    bytes: u64,
    plaintext_markers: u64,
    /// Packets the capture could not look at.
    missed: u64,
}

impl Report {
    pub(crate) fn new(calls: Vec<Fact>, traffic: Traffic) -> Self {
        let Traffic { packets, bytes, markers, missed } = traffic;
        let wire = Wire { packets, bytes, plaintext_markers: markers, missed };
        let ok = wire.is_sealed() && calls.iter().all(|fact| fact.problems.is_empty());
        Self { ok, calls, wire }
    }

    pub(crate) fn print(&self) {
        println!("\n{}", self.table());
        println!(
            "Identities, after {IDENTITY_PREFIX}, are what the two ends verified of each other. Pods of the same node meet inside\n\
             ztunnel, which knows both by their network namespaces: no TLS there. STRICT is PeerAuthentication's mode."
        );
        let Wire { packets, bytes, plaintext_markers, missed } = &self.wire;
        println!(
            "Wire: {packets} packets ({} KiB) crossed the link between the nodes; {plaintext_markers} of them carried the plaintext marker.",
            bytes / 1024
        );
        if *missed > 0 {
            println!("Wire: {missed} packets could not be looked at.");
        }
        for fact in self.calls.iter().filter(|fact| !fact.problems.is_empty()) {
            println!("\nNot as expected: {} -> {} ({}):", fact.source, fact.called, fact.family);
            fact.problems.iter().for_each(|problem| println!("  - {problem}"));
        }
    }

    fn table(&self) -> String {
        let heads = [
            "",
            "source",
            "destination",
            "over",
            "source identity",
            "destination identity",
            "TLS",
            "key exchange",
            "path",
            "outcome",
            "latency",
        ];
        output::rows(heads, self.calls.iter().map(row))
    }
}

impl Wire {
    /// Whether something crossed, all of it was seen, and none of it in plaintext.
    fn is_sealed(&self) -> bool {
        self.packets > 0 && self.missed == 0 && self.plaintext_markers == 0
    }
}

fn row(fact: &Fact) -> [String; 11] {
    let identity = |id: &Option<String>| match id {
        Some(id) => id.strip_prefix(IDENTITY_PREFIX).unwrap_or(id).to_owned(),
        None => "-".to_owned(),
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let path = match (fact.path.as_str(), &fact.policy) {
        ("refused_by_policy", Some(policy)) if policy == STRICT => "refused by STRICT".to_owned(),
        ("refused_by_policy", Some(policy)) => format!("refused by {policy}"),
        (path, _) => path.replace('_', " "),
    };
    let called = fact.called.trim_start_matches("http://").trim_end_matches('/');
    [
        if fact.problems.is_empty() { "ok" } else { "WRONG" }.to_owned(),
        fact.source.clone(),
        if called.starts_with(&fact.destination) {
            called.to_owned()
        } else {
            format!("{} ({called})", fact.destination)
        },
        fact.family.clone(),
        identity(&fact.source_identity),
        identity(&fact.destination_identity),
        text(&fact.tls_version),
        text(&fact.key_exchange),
        path,
        fact.outcome.clone(),
        format!("{:.1} ms", std::time::Duration::from_micros(fact.latency_us).as_secs_f64() * 1000.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(packets: u64, markers: u64, missed: u64) -> Traffic {
        Traffic { packets, bytes: 0, markers, missed }
    }

    #[test]
    fn a_run_is_good_only_if_packets_crossed_all_were_seen_and_none_held_the_marker() {
        for (name, seen, expected) in [
            ("sealed", traffic(9, 0, 0), true),
            ("nothing crossed", traffic(0, 0, 0), false),
            ("plaintext", traffic(9, 1, 0), false),
            ("packets missed", traffic(9, 0, 1), false),
        ] {
            assert_eq!(Report::new(Vec::new(), seen).ok, expected, "{name}");
        }
    }

    #[test]
    fn the_facts_have_the_documented_names() {
        let value = serde_json::to_value(Report::new(Vec::new(), traffic(9, 0, 0))).unwrap();
        assert_eq!(value["wire"]["packets"], 9);
        assert_eq!(value["wire"]["plaintext_markers"], 0);
        assert_eq!((&value["ok"], &value["calls"]), (&serde_json::json!(true), &serde_json::json!([])));
    }
}
