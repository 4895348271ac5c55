//! Pods that join and leave again and again, with what the kernel offers.

use std::process::ExitCode;

use e2e::{CHURN, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Auto), CHURN, World::explain)
}
