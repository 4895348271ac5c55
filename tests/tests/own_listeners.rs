//! ztunnels that take no listeners from the agent, as Istio's take none, with packets taken the best way the kernel has: what they are
//! told of a pod's connections, and the core guarantees.
//!
//! With `ZTUNNEL_BIN` another ztunnel takes the place of ours, such as Istio's. What it writes of connections is its own in part, so that
//! only the first list fits it.

use std::process::ExitCode;

use e2e::{GUARANTEES, OWN_LISTENERS, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    let cases = [OWN_LISTENERS, GUARANTEES].concat();
    e2e::run(|| World::as_istios(Redirection::Auto), &cases, World::explain)
}
