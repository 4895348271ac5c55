//! Ways round capture, all of them shut, with classifiers on clsact.

use std::process::ExitCode;

use e2e::{BYPASS, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Clsact), BYPASS, World::explain)
}
