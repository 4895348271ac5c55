//! Kubelet's probes and hooks, with packets taken by classifiers on clsact.

use std::process::ExitCode;

use e2e::{PROBES, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::of("probes", Redirection::Clsact), PROBES, World::explain)
}
