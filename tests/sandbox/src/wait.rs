//! Waiting for a condition of the outside world, always with a deadline.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The pause between two looks: short beside every deadline used, long beside the cost of a look.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `look` finds something, or `deadline` has passed; `what` names the condition in the error.
pub fn until<T>(
    deadline: Duration,
    what: impl FnOnce() -> String,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T> {
    try_until(deadline, what, || look().ok_or_else(String::new))
}

/// Like [`until`], for looks that can say why the condition does not hold yet: the error tells the last reason.
pub fn try_until<T>(
    deadline: Duration,
    what: impl FnOnce() -> String,
    mut look: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(reason) if start.elapsed() >= deadline => {
                let detail = if reason.is_empty() { reason } else { format!(": {reason}") };
                return Err(Error::Timeout { what: what(), after: deadline, detail });
            }
            Err(_) => pause(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that polls: other processes' state has no event to wait for"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_holds_is_found_without_waiting() {
        assert_eq!(until(Duration::ZERO, || "it".into(), || Some(7)).unwrap(), 7);
    }

    #[test]
    fn a_condition_that_never_holds_is_an_error_that_says_what_was_seen() {
        let error = try_until::<()>(Duration::ZERO, || "the answer".into(), || Err("port closed".into()))
            .unwrap_err();
        assert_eq!(error.to_string(), "the answer did not happen within 0ns: port closed");
    }
}
