//! Which tests of a program are run, and in which order.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::Case;

/// What the names of tests have that take long because they do something that many times.
const MANY: [&str; 5] = ["ten_thousand_", "a_thousand_", "two_hundred_", "a_hundred_", "soak"];

/// What the command line asks for; the same options as `cargo xtask test` has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Only say what there is.
    pub(crate) list: bool,
    filter: String,
    fast: bool,
    shuffle: Option<u64>,
}

impl Wanted {
    /// Options it does not know belong to the standard harness, and mean nothing here.
    pub(crate) fn from_arguments(arguments: impl IntoIterator<Item = String>) -> Self {
        let mut wanted = Self::default();
        for argument in arguments {
            match argument.as_str() {
                "--list" => wanted.list = true,
                "--fast" => wanted.fast = true,
                option if option.starts_with('-') => {
                    if let Some(seed) = option.strip_prefix("--shuffle=") {
                        wanted.shuffle = seed.parse().ok();
                    }
                }
                _ if wanted.filter.is_empty() => wanted.filter = argument,
                _ => {}
            }
        }
        wanted
    }

    /// Those tests. The last one of a program stays the last: it may look at the whole run.
    pub(crate) fn select<'a, C>(&self, cases: &'a [Case<C>]) -> Vec<&'a Case<C>> {
        let is_wanted = |name: &str| {
            name.contains(&self.filter) && !(self.fast && MANY.iter().any(|many| name.contains(many)))
        };
        let mut order: Vec<&Case<C>> = cases.iter().collect();
        if let (Some(seed), Some((_, others))) = (self.shuffle, order.split_last_mut()) {
            others.shuffle(&mut StdRng::seed_from_u64(seed));
        }
        order.into_iter().filter(|(name, _)| is_wanted(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASES: &[Case<()>] = &[
        ("one", |_| Ok(())),
        ("two", |_| Ok(())),
        ("ten_thousand_things", |_| Ok(())),
        ("three", |_| Ok(())),
        ("the_whole_run", |_| Ok(())),
    ];

    fn names(arguments: &[&str]) -> Vec<&'static str> {
        let wanted = Wanted::from_arguments(arguments.iter().map(|argument| (*argument).to_owned()));
        wanted.select(CASES).into_iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn without_options_all_are_run_as_they_stand() {
        assert_eq!(names(&["--nocapture"]), ["one", "two", "ten_thousand_things", "three", "the_whole_run"]);
    }

    #[test]
    fn a_filter_and_fast_leave_out() {
        assert_eq!(names(&["t"]), ["two", "ten_thousand_things", "three", "the_whole_run"]);
        assert_eq!(names(&["--fast", "t"]), ["two", "three", "the_whole_run"]);
    }

    #[test]
    fn a_seed_gives_one_order_and_seeds_give_several_but_the_last_stays_last() {
        assert_eq!(names(&["--shuffle=3"]), names(&["--shuffle=3"]));
        let orders: std::collections::HashSet<_> =
            (0..20).map(|seed| names(&[&format!("--shuffle={seed}")])).collect();
        assert!(orders.len() > 5, "{orders:?}");
        assert!(orders.iter().all(|order| order.last() == Some(&"the_whole_run")));
    }
}
