//! What a large mesh costs a node: Services with a pod each, none of them here, and one that is called.

use std::net::Ipv4Addr;

use anyhow::Context;
use serde::Serialize;

use super::super::manifests::{FAR, MESHED, pod};
use super::super::report::Row;
use super::super::rounds::Spread;
use super::super::sample::Figure;
use super::super::work::ONCE;
use super::ground::{Ground, Part};
use super::{Effort, columns, failures, points, seconds, short};
use crate::cargo::Built;
use crate::output;
use crate::progress::Progress;

/// Where the pods of the services that nobody calls run: no node of the sandbox.
const ELSEWHERE: &str = "elsewhere";

/// The service that is called; its addresses, one a step, so that an answer tells that the step is known.
const CALLED: &str = "called";
const CALLED_AT: Ipv4Addr = Ipv4Addr::new(10, 127, 0, 0);

/// The other services' addresses, and their pods'.
const SERVICES_AT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const PODS_AT: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 0);

/// So many of them.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    services: u32,
    /// From the manifests' writing to an answer through the new service.
    known_seconds: f64,
    /// From the start of ztunnel until it is ready.
    ready_seconds: Spread,
    control_resident_mib: f64,
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
    let mut progress = Progress::begin("measuring services");
    let mut all = Vec::new();
    for (number, services) in (1..).zip(points::choose(&points::SERVICES, effort.quick)) {
        progress.at(&format!("{services} of them"));
        let called_at = nth(CALLED_AT, number);
        ground.write("services.yaml", &manifest(services, called_at))?;
        let known_seconds = ground.answered((called_at, ONCE).into())?.as_secs_f64();
        let ready_seconds = ground.restart(Part::Ztunnel, effort.rounds)?;
        let connects = ground.connects(&format!("{services} services"), called_at.into(), effort)?;
        all.push(Step {
            services,
            known_seconds,
            ready_seconds,
            control_resident_mib: ground.resident(Part::Control)?,
            agent_resident_mib: ground.resident(Part::Agent)?,
            ztunnel_resident_mib: ground.resident(Part::Ztunnel)?,
            connects,
        });
    }
    progress.done(&format!("{} steps", all.len()));
    Ok(all)
}

fn nth(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + number)
}

/// So many services: the one that is called, before the server on the other node, and others with a pod each.
fn manifest(services: u32, called_at: Ipv4Addr) -> String {
    let mut text = service(CALLED, FAR, called_at);
    for number in 1..services {
        let name = format!("other-{number}");
        text.push_str(&service(&name, &name, nth(SERVICES_AT, number)));
        text.push_str(&pod(MESHED, &name, ELSEWHERE, nth(PODS_AT, number), true));
    }
    text
}

fn service(name: &str, app: &str, address: Ipv4Addr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {MESHED}\nspec:\n  clusterIP: {address}\n  \
         clusterIPs:\n    - {address}\n  selector:\n    app: {app}\n  ports:\n    - port: {ONCE}\n---\n"
    )
}

pub(super) fn rows(steps: &[Step]) -> impl Iterator<Item = &Row> {
    steps.iter().map(|step| &step.connects)
}

pub(super) fn print(steps: &[Step]) {
    let heads =
        ["services", "known", "ztunnel ready", "control", "agent", "ztunnel", "connect p50", "p99", "failed"];
    let rows = steps.iter().map(|step| {
        let [p50, p99] = columns(&step.connects, [Figure::P50, Figure::P99]);
        let mib = |mib| format!("{} MiB", short(mib));
        [
            step.services.to_string(),
            format!("{} s", short(step.known_seconds)),
            seconds(step.ready_seconds),
            mib(step.control_resident_mib),
            mib(step.agent_resident_mib),
            mib(step.ztunnel_resident_mib),
            p50,
            p99,
            failures(&step.connects),
        ]
    });
    println!(
        "\nServices, each with a pod of its own. Known: from their manifests' writing to an answer from a new one. Ready: a new ztunnel. The\n\
         processes' resident memory; connections to a service before a pod of the other node.\n{}",
        output::rows(heads, rows)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_an_address_and_a_pod_of_its_own_and_one_is_before_the_server() {
        let text = manifest(300, nth(CALLED_AT, 1));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("services.yaml"), &text).unwrap();
        let read = sandbox::Manifests::read(directory.path()).unwrap();
        assert_eq!((read.services.len(), read.pods.len()), (300, 299));
        let addresses = read.services.iter().flat_map(|service| &service.addresses);
        let addresses = addresses.chain(read.pods.iter().flat_map(|pod| &pod.addresses));
        let distinct: std::collections::BTreeSet<_> = addresses.collect();
        assert_eq!(distinct.len(), 599);
        let uids: std::collections::BTreeSet<_> = read.pods.iter().map(|pod| &pod.uid).collect();
        assert_eq!(uids.len(), 299);
        assert!(read.pods.iter().all(|pod| pod.node == ELSEWHERE));
        assert!(text.contains(&format!("app: {FAR}\n")));
    }
}
