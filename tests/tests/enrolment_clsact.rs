//! Joining and leaving that is interrupted or turned round, with classifiers on clsact.

use std::process::ExitCode;

use e2e::{ENROLMENT, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Clsact), ENROLMENT, World::explain)
}
