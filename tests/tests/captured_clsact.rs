//! The rows of the README's table under STRICT and PERMISSIVE, with packets taken by classifiers on clsact.

use std::process::ExitCode;

use e2e::{CAPTURED_UNDER_PERMISSIVE, CAPTURED_UNDER_STRICT, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    let cases = [CAPTURED_UNDER_STRICT, CAPTURED_UNDER_PERMISSIVE].concat();
    e2e::run(|| World::start(Redirection::Clsact), &cases, World::explain)
}
