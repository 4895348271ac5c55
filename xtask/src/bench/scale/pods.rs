//! What a full node costs: pods that are in the mesh and do nothing, beside two that talk.

use std::net::Ipv4Addr;

use anyhow::Context;
use serde::Serialize;

use super::super::manifests::{HERE, MESHED, pod};
use super::super::report::Row;
use super::super::rounds::Spread;
use super::super::sample::Figure;
use super::ground::{Ground, Part};
use super::{Effort, columns, failures, points, seconds, short};
use crate::cargo::Built;
use crate::output;
use crate::progress::Progress;

/// Addresses of those that do nothing.
const PODS_AT: Ipv4Addr = Ipv4Addr::new(10, 44, 0, 0);

/// The client and the server, which are there from the beginning.
const TALKING: u32 = 2;

/// So many of them.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    pods: u32,
    /// Of these, beyond the step before.
    added: u32,
    /// Until those are in the mesh.
    enrolled_seconds: Option<f64>,
    /// Until a new agent has them all.
    agent_seconds: Spread,
    /// Until a new ztunnel has them all.
    ztunnel_seconds: Spread,
    agent_resident_mib: f64,
    ztunnel_resident_mib: f64,
    #[serde(flatten)]
    connects: Row,
}

pub(super) fn measure(built: &Built, effort: Effort, log: &str) -> anyhow::Result<Vec<Step>> {
    let mut ground = Ground::set(built, log)?;
    let measured = steps(&mut ground, effort).with_context(|| ground.keep_logs())?;
    ground.end()?;
    Ok(measured)
}

fn steps(ground: &mut Ground, effort: Effort) -> anyhow::Result<Vec<Step>> {
    let mut progress = Progress::begin("measuring pods");
    let to = ground.near()?;
    let mut all = Vec::new();
    let mut pods = TALKING;
    for wanted in points::choose(&points::PODS, effort.quick) {
        progress.at(&format!("{wanted} of them"));
        let added = wanted - pods;
        let mut enrolled_seconds = None;
        if added > 0 {
            let took = ground.add_pods(&format!("pods-{wanted}.yaml"), &manifest(pods, wanted))?;
            enrolled_seconds = Some(took.as_secs_f64());
        }
        pods = wanted;
        let agent_seconds = ground.restart(Part::Agent, effort.rounds)?;
        let ztunnel_seconds = ground.restart(Part::Ztunnel, effort.rounds)?;
        let connects = ground.connects(&format!("{pods} pods"), to, effort)?;
        all.push(Step {
            pods,
            added,
            enrolled_seconds,
            agent_seconds,
            ztunnel_seconds,
            agent_resident_mib: ground.resident(Part::Agent)?,
            ztunnel_resident_mib: ground.resident(Part::Ztunnel)?,
            connects,
        });
    }
    progress.done(&format!("{} steps", all.len()));
    Ok(all)
}

/// The pods after so many, up to so many.
fn manifest(after: u32, upto: u32) -> String {
    let address = |number| Ipv4Addr::from_bits(PODS_AT.to_bits() + number);
    let pod = |number| pod(MESHED, &format!("idle-{number}"), HERE, address(number), false);
    (after + 1..=upto).map(pod).collect()
}

pub(super) fn rows(steps: &[Step]) -> impl Iterator<Item = &Row> {
    steps.iter().map(|step| &step.connects)
}

pub(super) fn print(steps: &[Step]) {
    let heads = [
        "pods",
        "added",
        "in the mesh after",
        "each",
        "agent again",
        "ztunnel again",
        "agent",
        "ztunnel",
        "connect p50",
        "p99",
        "failed",
    ];
    let rows = steps.iter().map(|step| {
        let [p50, p99] = columns(&step.connects, [Figure::P50, Figure::P99]);
        let took = |of: f64, unit: &str| {
            step.enrolled_seconds.map_or_else(String::new, |took| format!("{} {unit}", short(took * of)))
        };
        [
            step.pods.to_string(),
            step.added.to_string(),
            took(1.0, "s"),
            took(1000.0 / f64::from(step.added.max(1)), "ms"),
            seconds(step.agent_seconds),
            seconds(step.ztunnel_seconds),
            format!("{} MiB", short(step.agent_resident_mib)),
            format!("{} MiB", short(step.ztunnel_resident_mib)),
            p50,
            p99,
            failures(&step.connects),
        ]
    });
    println!(
        "\nPods of one node. In the mesh: from their manifests' writing, all those that were added at once. Again: until a new process has all\n\
         pods. The processes' resident memory; connections between two of the pods.\n{}",
        output::rows(heads, rows)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_pods_that_are_not_there_yet() {
        let directory = tempfile::tempdir().unwrap();
        for (after, upto) in [(2, 50), (50, 300)] {
            std::fs::write(directory.path().join(format!("{upto}.yaml")), manifest(after, upto)).unwrap();
        }
        let pods = sandbox::Manifests::read(directory.path()).unwrap().pods;
        let names: std::collections::BTreeSet<_> = pods.iter().map(|pod| &pod.name).collect();
        let uids: std::collections::BTreeSet<_> = pods.iter().map(|pod| &pod.uid).collect();
        assert_eq!((pods.len(), names.len(), uids.len()), (298, 298, 298));
    }
}
