//! The harness of the end-to-end tests: one sandbox for the tests of a file, which run one after the other.
//!
//! A test is a named function that returns or panics. It is skipped only for a kernel feature that is not there, by
//! returning [`Skip`], which is printed and counted; whatever else is missing is a failure. The output's shape is the
//! standard harness's, so that one reader serves both.
#![forbid(unsafe_code)]

mod abandoned;
mod bypass;
mod captured;
mod churn;
pub mod cluster;
pub mod connects;
mod dial;
mod dns;
mod enrolment;
mod faithful;
mod forged;
mod guarantees;
pub mod istio;
mod old_connections;
mod own_listeners;
mod packets;
mod places;
mod probes;
pub mod root;
mod same_ends;
mod select;
pub mod soak;
pub mod steady;
pub mod stories;
mod stranger;
mod talk;
pub mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use self::select::Wanted;

pub use abandoned::ABANDONED;
pub use bypass::BYPASS;
pub use captured::{PERMISSIVE as CAPTURED_UNDER_PERMISSIVE, STRICT as CAPTURED_UNDER_STRICT};
pub use churn::CHURN;
pub use dns::{DNS_ANSWERED, DNS_LED, DNS_SEALED, DNS_UNDER_RULES};
pub use enrolment::ENROLMENT;
pub use faithful::{BUFFERS, FAITHFUL, OCCUPIED, UNREACHABLE};
pub use forged::FORGED;
pub use guarantees::GUARANTEES;
pub use old_connections::OLD_CONNECTIONS;
pub use own_listeners::OWN_LISTENERS;
pub use places::{binaries, echo, options, run_directory};
pub use probes::PROBES;
pub use same_ends::SAME_ENDS;
pub use world::World;

/// A test: what holds, as a sentence in snake case, and the check.
pub type Case<C> = (&'static str, fn(&mut C) -> anyhow::Result<()>);

/// The reason a test cannot run on this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The kernel feature that is not there.
    pub kernel_feature: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel feature missing: {}", self.kernel_feature)
    }
}

impl std::error::Error for Skip {}

/// Makes the context, runs every case whose name contains the first command line argument, and takes the context down.
pub fn run<C>(
    start: impl FnOnce() -> anyhow::Result<C>,
    cases: &[Case<C>],
    explain: impl Fn(&C) -> String,
) -> ExitCode {
    let wanted = Wanted::from_arguments(std::env::args().skip(1));
    if wanted.list {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let selected = wanted.select(cases);
    println!("\nrunning {} tests", selected.len());
    let begin = Instant::now();
    let mut tally = Tally { filtered: cases.len() - selected.len(), ..Tally::default() };
    if selected.is_empty() {
        return tally.finish(begin);
    }
    match start() {
        Ok(mut context) => {
            for (name, check) in selected {
                tally.record(name, catch_unwind(AssertUnwindSafe(|| check(&mut context))));
            }
            if tally.failed > 0 {
                println!("{}", explain(&context));
            }
        }
        Err(error) => {
            println!("the sandbox could not be made: {error:#}");
            for (name, _) in selected {
                println!("test {name} ... FAILED");
                tally.failed += 1;
            }
        }
    }
    tally.finish(begin)
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    filtered: usize,
}

impl Tally {
    /// Counts and prints the outcome of a test.
    fn record(&mut self, name: &str, outcome: std::thread::Result<anyhow::Result<()>>) {
        match outcome {
            Ok(Ok(())) => {
                println!("test {name} ... ok");
                self.passed += 1;
            }
            Ok(Err(error)) if error.is::<Skip>() => {
                println!("test {name} ... ignored, {error}");
                self.skipped += 1;
            }
            Ok(Err(error)) => {
                println!("test {name} ... FAILED\n{error:#}");
                self.failed += 1;
            }
            // The panic's message was printed by the panic hook.
            Err(_) => {
                println!("test {name} ... FAILED");
                self.failed += 1;
            }
        }
    }

    fn finish(&self, begin: Instant) -> ExitCode {
        let Self { passed, failed, skipped, filtered } = self;
        let result = if *failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {result}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; {filtered} filtered out; finished in {:.2}s",
            begin.elapsed().as_secs_f64()
        );
        if *failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_kernel_feature_counts_as_skipped() {
        let mut tally = Tally::default();
        let skip = Skip { kernel_feature: "TCX (6.6)".into() };
        tally.record("a", Ok(Ok(())));
        tally.record("b", Ok(Err(skip.into())));
        tally.record("c", Ok(Err(anyhow::anyhow!("no binary"))));
        tally.record("d", Err(Box::new("panic")));
        assert_eq!((tally.passed, tally.failed, tally.skipped), (1, 2, 1));
    }
}
