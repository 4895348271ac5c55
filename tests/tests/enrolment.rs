//! Joining and leaving that is interrupted or turned round, with what the kernel offers.

use std::process::ExitCode;

use e2e::ENROLMENT;
use e2e::world::World;
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Auto), ENROLMENT, World::explain)
}
