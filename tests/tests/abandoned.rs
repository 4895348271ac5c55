//! What applications send when nobody carries it any more, with what the kernel offers.

use std::process::ExitCode;

use e2e::{ABANDONED, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Auto), ABANDONED, World::explain)
}
