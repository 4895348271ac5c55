//! How long to wait before an API server that failed is asked again.

use std::time::Duration;

/// Twice the shortest pause after a first failure.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause: how stale the state may be after the API server has come back.
const LAST: Duration = Duration::from_secs(8);

/// Pauses that double, each at a random place in its second half: those who lost the same API server come back one by one.
#[derive(Debug)]
pub(super) struct Pauses(Duration);

impl Pauses {
    /// As after a success.
    pub(super) fn new() -> Self {
        Self(FIRST)
    }

    /// The next pause; `random` is in [0, 1).
    pub(super) fn next(&mut self, random: f64) -> Duration {
        let whole = self.0;
        self.0 = (whole * 2).min(LAST);
        whole.mul_f64(0.5 + random / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_eight_seconds_and_differ_by_chance() {
        let millis = |random| {
            let mut pauses = Pauses::new();
            (0..6).map(|_| pauses.next(random).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(millis(0.0), [250, 500, 1000, 2000, 4000, 4000]);
        assert_eq!(millis(0.5), [375, 750, 1500, 3000, 6000, 6000]);
    }
}
