//! The core guarantees, with packets taken by classifiers on clsact, as on kernels before 6.6.

use std::process::ExitCode;

use e2e::{GUARANTEES, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Clsact), GUARANTEES, World::explain)
}
