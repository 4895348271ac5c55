//! What a soak is asked to do.

use std::time::Duration;

use anyhow::Context;
use sandbox::Redirection;

/// How long and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// No turn begins after that.
    pub time: Duration,
    /// What the events and their times are drawn from.
    pub seed: u64,
    /// How packets are taken.
    pub redirection: Redirection,
}

impl Plan {
    /// The plan of `soak SECONDS SEED REDIRECTION`; none if the arguments are not of that kind.
    pub fn from_arguments(arguments: impl IntoIterator<Item = String>) -> Option<anyhow::Result<Self>> {
        let arguments: Vec<String> = arguments.into_iter().collect();
        let [command, time, seed, redirection] = arguments.as_slice() else { return None };
        (command == "soak").then(|| Self::parse(time, seed, redirection))
    }

    fn parse(time: &str, seed: &str, redirection: &str) -> anyhow::Result<Self> {
        let all = [Redirection::Auto, Redirection::Tcx, Redirection::Clsact];
        let redirection = all.into_iter().find(|way| way.as_str() == redirection);
        Ok(Self {
            time: Duration::from_secs(time.parse().with_context(|| format!("seconds: {time:?}"))?),
            seed: seed.parse().with_context(|| format!("seed: {seed:?}"))?,
            redirection: redirection.context("the way of redirection")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_is_asked_for_by_name_and_what_cannot_be_read_is_an_error() {
        let plan = |line: &str| Plan::from_arguments(line.split(' ').map(str::to_owned));
        let asked = plan("soak 60 7 clsact").unwrap().unwrap();
        assert_eq!((asked.time.as_secs(), asked.seed, asked.redirection), (60, 7, Redirection::Clsact));
        assert!(plan("soak x 7 tcx").unwrap().is_err());
        assert!(plan("soak 60 7 nothing").unwrap().is_err());
        assert!(plan("a_short_soak").is_none());
    }
}
