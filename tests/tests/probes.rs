//! Kubelet's probes and hooks, with packets taken the best way the kernel has.

use std::process::ExitCode;

use e2e::{PROBES, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::of("probes", Redirection::Auto), PROBES, World::explain)
}
