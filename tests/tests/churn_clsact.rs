//! Pods that join and leave again and again, with classifiers on clsact.

use std::process::ExitCode;

use e2e::{CHURN, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Clsact), CHURN, World::explain)
}
