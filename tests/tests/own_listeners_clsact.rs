//! The same as `own_listeners`, with classifiers on a clsact queueing discipline.

use std::process::ExitCode;

use e2e::{GUARANTEES, OWN_LISTENERS, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    let cases = [OWN_LISTENERS, GUARANTEES].concat();
    e2e::run(|| World::as_istios(Redirection::Clsact), &cases, World::explain)
}
