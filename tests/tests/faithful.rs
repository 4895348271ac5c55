//! What an application cannot tell from a connection without the mesh, with packets taken the best way the kernel has.

use std::process::ExitCode;

use e2e::{BUFFERS, Case, FAITHFUL, OCCUPIED, UNREACHABLE, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    let cases: Vec<Case<World>> = [FAITHFUL, OCCUPIED, BUFFERS, UNREACHABLE].concat();
    e2e::run(|| World::start(Redirection::Auto), &cases, World::explain)
}
