//! The core guarantees, with packets taken the best way the kernel has.

use std::process::ExitCode;

use e2e::{GUARANTEES, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Auto), GUARANTEES, World::explain)
}
