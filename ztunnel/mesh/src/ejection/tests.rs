//! Scripts of successes and failures, each with the time.

use super::*;

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::from(name)
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What happens to the endpoint at a second, or what is asked about it.
enum Step {
    Fails(u64),
    Works,
    Ejected(u64, bool),
}
use Step::{Ejected, Fails, Works};

#[test]
fn an_endpoint_is_ejected_comes_back_and_is_cleared_as_its_connections_go() {
    let cases: &[(&str, &[Step])] = &[
        ("what was never heard of works", &[Ejected(0, false)]),
        ("two failures are no pattern", &[Fails(0), Fails(1), Ejected(1, false)]),
        ("three in a row are", &[Fails(0), Fails(1), Fails(2), Ejected(2, true)]),
        (
            "a success between breaks the row",
            &[Fails(0), Fails(1), Works, Fails(3), Fails(4), Ejected(4, false)],
        ),
        (
            "so does a long silence",
            &[Fails(0), Fails(1), Fails(31), Ejected(31, false), Fails(32), Fails(33), Ejected(33, true)],
        ),
        ("it comes back by itself", &[Fails(0), Fails(0), Fails(0), Ejected(9, true), Ejected(10, false)]),
        (
            "on probation one failure ejects it, for twice as long",
            &[
                Fails(0),
                Fails(0),
                Fails(0),
                Fails(10),
                Ejected(29, true),
                Ejected(30, false),
                Fails(30),
                Ejected(69, true),
                Ejected(70, false),
            ],
        ),
        (
            "a success on probation clears it of everything",
            &[
                Fails(0),
                Fails(0),
                Fails(0),
                Works,
                Fails(11),
                Fails(12),
                Ejected(12, false),
                Fails(13),
                Ejected(22, true),
                Ejected(23, false),
            ],
        ),
        (
            "a failure while it is ejected makes it no longer",
            &[Fails(0), Fails(0), Fails(0), Fails(1), Fails(9), Ejected(9, true), Ejected(10, false)],
        ),
        (
            "a success while it is ejected ends that",
            &[Fails(0), Fails(0), Fails(0), Works, Ejected(1, false)],
        ),
        (
            "after a long time without a word it is as good as new",
            &[Fails(0), Fails(0), Fails(0), Fails(310), Ejected(310, false)],
        ),
    ];
    for (sentence, steps) in cases {
        let (mut ejections, web) = (Ejections::default(), uid("web"));
        for step in *steps {
            match step {
                Fails(second) => _ = ejections.failed(&web, 80, at(*second)),
                Works => ejections.succeeded(&web, 80),
                Ejected(second, expected) => {
                    let found = ejections.is_ejected(&web, 80, at(*second));
                    assert_eq!(found, *expected, "{sentence}: at {second}");
                }
            }
        }
    }
}

#[test]
fn ejections_grow_to_five_minutes_and_no_further() {
    let (mut ejections, web) = (Ejections::default(), uid("web"));
    let mut now = at(0);
    let mut lengths = Vec::new();
    for _ in 0..40 {
        if let Some(length) = ejections.failed(&web, 80, now) {
            lengths.push(length.as_secs());
            now += length;
        }
    }
    assert_eq!(lengths[..7], [10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(lengths.len(), 38);
    assert_eq!(lengths.last(), Some(&300));
}

#[test]
fn another_port_of_the_workload_and_other_workloads_are_not_ejected_with_it() {
    let mut ejections = Ejections::default();
    for _ in 0..3 {
        ejections.failed(&uid("web"), 80, at(0));
    }
    assert!(ejections.is_ejected(&uid("web"), 80, at(1)));
    assert!(!ejections.is_ejected(&uid("web"), 81, at(1)));
    assert!(!ejections.is_ejected(&uid("db"), 80, at(1)));
}

#[test]
fn memory_is_bounded_and_the_ejected_outlast_those_that_failed_once() {
    let mut ejections = Ejections::default();
    for _ in 0..3 {
        ejections.failed(&uid("ejected"), 80, at(0));
    }
    for number in 0..5 * REMEMBERED {
        ejections.failed(&uid(&format!("once-{number}")), 80, at(1));
        assert!(ejections.entries.len() <= REMEMBERED);
        assert_eq!(ejections.entries.len(), ejections.by_age.len());
    }
    assert!(ejections.is_ejected(&uid("ejected"), 80, at(9)));
    assert!(ejections.is_suspect(&uid("ejected"), 80) && !ejections.is_suspect(&uid("other"), 80));
    ejections.failed(&uid("late"), 80, at(1000));
    assert_eq!(ejections.entries.len(), 1, "what has been silent for long is forgotten");
}
