//! Connections from before a pod joined, and connections with ends that are or were another's.

use std::process::ExitCode;

use e2e::{OLD_CONNECTIONS, SAME_ENDS, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    let cases = [OLD_CONNECTIONS, SAME_ENDS].concat();
    e2e::run(|| World::start(Redirection::Auto), &cases, World::explain)
}
