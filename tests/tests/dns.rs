//! The pods' DNS, with what the kernel offers.

use std::process::ExitCode;

use e2e::{DNS_ANSWERED, DNS_LED, DNS_SEALED, World};
use sandbox::Redirection;

fn main() -> ExitCode {
    e2e::run(
        || World::start(Redirection::Auto),
        &[DNS_LED, DNS_ANSWERED, DNS_SEALED].concat(),
        World::explain,
    )
}
