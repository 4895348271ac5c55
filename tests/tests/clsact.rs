//! The core guarantees, with packets taken by classifiers on clsact, as on kernels before 6.6.

use std::process::ExitCode;

use anyhow::ensure;
use e2e::{Case, GUARANTEES, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    let mut cases: Vec<Case<World>> = vec![("every_agent_takes_packets_by_clsact", clsact)];
    cases.extend_from_slice(GUARANTEES);
    e2e::run(|| World::start(Redirection::Clsact), &cases, World::explain)
}

fn clsact(world: &mut World) -> anyhow::Result<()> {
    for node in world.sandbox.pod_nodes() {
        let status = world.mesh.status(node)?;
        let redirection = status["redirection"].as_str().unwrap_or_default();
        ensure!(redirection.contains("clsact"), "{}: {redirection:?}", node.name());
    }
    Ok(())
}
