//! Identities and exemptions that somebody tries to borrow, with packets taken by classifiers on clsact.

use std::process::ExitCode;

use e2e::FORGED;
use e2e::world::World;
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Clsact), FORGED, World::explain)
}
