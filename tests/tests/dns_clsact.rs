//! The pods' DNS, with classifiers on clsact.

use std::process::ExitCode;

use e2e::{DNS_LED, DNS_SEALED, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(|| World::start(Redirection::Clsact), &[DNS_LED, DNS_SEALED].concat(), World::explain)
}
