//! Scripts of successes and failures, each with the time.

use super::*;
use crate::fixtures::{endpoint_of, service_name, workload};
use crate::service::LoadBalancing;

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::from(name)
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What happens to the endpoint at a second, or what is asked about it.
enum Step {
    Fails(u64),
    Refuses(u64),
    Works,
    Ejected(u64, bool),
}
use Step::{Ejected, Fails, Refuses, Works};

fn fails(ejections: &mut Ejections, name: &str, port: u16, now: Duration) -> Option<Duration> {
    ejections.failed(&uid(name), port, Fault::Other, None, now)
}

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
            "a row of refusals is one as well",
            &[Refuses(0), Refuses(1), Ejected(1, false), Refuses(2), Ejected(2, true)],
        ),
        (
            "a refusal after other failures counts, once it is no pod that joins",
            &[Fails(0), Fails(0), Refuses(0), Ejected(0, false), Refuses(1), Ejected(1, true)],
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
                Fails(second) => _ = fails(&mut ejections, "web", 80, at(*second)),
                Refuses(second) => {
                    ejections.failed(&web, 80, Fault::Refused, None, at(*second));
                }
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
    let mut ejections = Ejections::default();
    let mut now = at(0);
    let mut lengths = Vec::new();
    for _ in 0..40 {
        if let Some(length) = fails(&mut ejections, "web", 80, now) {
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
        fails(&mut ejections, "web", 80, at(0));
    }
    assert!(ejections.is_ejected(&uid("web"), 80, at(1)));
    assert!(!ejections.is_ejected(&uid("web"), 81, at(1)));
    assert!(!ejections.is_ejected(&uid("db"), 80, at(1)));
}

#[test]
fn memory_is_bounded_and_the_ejected_outlast_those_that_failed_once() {
    let mut ejections = Ejections::default();
    for _ in 0..3 {
        fails(&mut ejections, "ejected", 80, at(0));
    }
    for number in 0..5 * REMEMBERED {
        fails(&mut ejections, &format!("once-{number}"), 80, at(1));
        assert!(ejections.entries.len() <= REMEMBERED);
        assert_eq!(ejections.entries.len(), ejections.by_age.len());
    }
    assert!(ejections.is_ejected(&uid("ejected"), 80, at(9)));
    assert!(ejections.is_suspect(&uid("ejected"), 80) && !ejections.is_suspect(&uid("other"), 80));
    fails(&mut ejections, "late", 80, at(1000));
    assert_eq!(ejections.entries.len(), 1, "what has been silent for long is forgotten");
}

#[test]
fn a_pod_that_has_just_joined_is_not_ejected_for_not_listening_yet() {
    let mut ejections = Ejections::default();
    let refuses = |ejections: &mut Ejections, millis| {
        let now = Duration::from_millis(millis);
        ejections.failed(&uid("web"), 80, Fault::Refused, None, now).is_some()
    };
    assert!((0..500).step_by(10).all(|millis| !refuses(&mut ejections, millis)));
    assert!(!refuses(&mut ejections, 500));
    assert!(refuses(&mut ejections, 501));
}

#[test]
fn of_a_services_endpoints_half_are_ejected_at_most_and_the_next_failure_does_it_when_there_is_room_again() {
    let web = service_name("shop", "web");
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)] {
        let mut endpoints = Endpoints::new(LoadBalancing::default());
        let names: Vec<String> = (0..count).map(|n| format!("w{n}")).collect();
        for name in &names {
            endpoints.upsert(endpoint_of(workload(name, &["10.0.0.1"]), &web, &[(80, 80)]).into());
        }
        let mut ejections = Ejections::default();
        // Those of others do not count.
        for other in ["x", "y"] {
            (0..3).for_each(|_| _ = fails(&mut ejections, other, 80, at(0)));
        }
        let mut ejected = 0;
        for name in &names {
            for _ in 0..4 {
                let uid = WorkloadUid::clone(&workload(name, &[]).uid);
                ejected +=
                    usize::from(ejections.failed(&uid, 80, Fault::Other, Some(&endpoints), at(1)).is_some());
            }
        }
        assert_eq!(ejected, most, "of {count}");
        let last = workload(names.last().unwrap(), &[]).uid;
        let again = ejections.failed(&last, 80, Fault::Other, Some(&endpoints), at(12));
        assert_eq!(again.is_some(), count > 1, "of {count}, when the others are back");
    }
}
