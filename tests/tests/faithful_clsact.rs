//! What an application cannot tell from a connection without the mesh, with packets taken by classifiers on clsact.

use std::process::ExitCode;

use e2e::{FAITHFUL, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Clsact), FAITHFUL, World::explain)
}
