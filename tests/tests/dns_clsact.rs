//! The pods' DNS, with classifiers on clsact.

use std::process::ExitCode;

use e2e::{DNS, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Clsact), DNS, World::explain)
}
