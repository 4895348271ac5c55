//! The pods' DNS, with what the kernel offers.

use std::process::ExitCode;

use e2e::{DNS, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Auto), DNS, World::explain)
}
