//! Which of a resolver's servers to ask, given which have answered lately. Pure: `now` comes in.
//!
//! A server that does not answer is passed over for a while, longer each time. When that is over one query, which goes to another server,
//! is sent to it as well; so what a dead server costs is one time-out in all, and none of whoever asks later waits for it. Where no server
//! answers all are asked in turn.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

/// For how long a server is passed over that did not answer, the first time and at most.
const AWAY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

#[derive(Clone, Copy, Debug)]
enum Health {
    /// Since when that is known, if it is.
    Answering { last: Option<Instant> },
    /// It is passed over since `since`; after `until` it is tried. `pause` lies between two trials.
    Away { since: Instant, until: Instant, pause: Duration },
}

impl Health {
    const UNKNOWN: Self = Self::Answering { last: None };
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Upstreams {
    servers: Vec<(SocketAddr, Health)>,
}

/// Whom to ask.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// One after the other, until one answers.
    pub(crate) order: Vec<SocketAddr>,
    /// To be asked beside them, to learn whether it answers again.
    pub(crate) trial: Option<SocketAddr>,
}

impl Upstreams {
    /// Of all of them nothing is known yet.
    pub(crate) fn new(servers: &[SocketAddr]) -> Self {
        Self { servers: servers.iter().map(|server| (*server, Health::UNKNOWN)).collect() }
    }

    /// Whether `server` is one of them.
    pub(crate) fn contains(&self, server: SocketAddr) -> bool {
        self.servers.iter().any(|(one, _)| *one == server)
    }

    /// Other servers from now on; of those that stay, what is known stays too.
    pub(crate) fn replace(&mut self, servers: &[SocketAddr]) {
        let known = std::mem::take(&mut self.servers);
        let health = |server| {
            known.iter().find(|(one, _)| *one == server).map_or(Health::UNKNOWN, |(_, health)| *health)
        };
        self.servers = servers.iter().map(|server| (*server, health(*server))).collect();
    }

    /// Whom to ask for a query that was sent to `preferred`.
    pub(crate) fn plan(&mut self, preferred: Option<SocketAddr>, now: Instant) -> Plan {
        let by_preference = |servers: &mut Vec<SocketAddr>| {
            // Stable: the others stay in the order of the file.
            servers.sort_by_key(|server| Some(*server) != preferred);
        };
        let answering = |(server, health): &(SocketAddr, Health)| {
            matches!(health, Health::Answering { .. }).then_some(*server)
        };
        let mut order: Vec<_> = self.servers.iter().filter_map(answering).collect();
        by_preference(&mut order);
        if order.is_empty() {
            let mut order = self.servers.iter().map(|(server, _)| *server).collect();
            by_preference(&mut order);
            return Plan { order, trial: None };
        }
        let trial = self.servers.iter_mut().find_map(|(server, health)| match health {
            Health::Away { until, pause, .. } if *until <= now => {
                // Nobody else tries it meanwhile.
                *until = now + *pause;
                Some(*server)
            }
            _ => None,
        });
        Plan { order, trial }
    }

    /// `server` has answered.
    pub(crate) fn answered(&mut self, server: SocketAddr, now: Instant) {
        if let Some(health) = self.health(server) {
            *health = Health::Answering { last: Some(now) };
        }
    }

    /// `server` has not answered what it was asked at `asked`. If it has answered something else since, a packet was lost; and
    /// queries that waited at the same time count once.
    pub(crate) fn silent(&mut self, server: SocketAddr, asked: Instant, now: Instant) {
        let (first, most) = AWAY;
        let Some(health) = self.health(server) else { return };
        let pause = match *health {
            Health::Answering { last } if last.is_some_and(|last| last >= asked) => return,
            Health::Answering { .. } => first,
            Health::Away { since, .. } if asked <= since => return,
            Health::Away { pause, .. } => (pause * 2).min(most),
        };
        *health = Health::Away { since: now, until: now + pause, pause };
    }

    fn health(&mut self, server: SocketAddr) -> Option<&mut Health> {
        self.servers.iter_mut().find(|(one, _)| *one == server).map(|(_, health)| health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 53))
    }

    fn three() -> Upstreams {
        Upstreams::new(&[server(1), server(2), server(3)])
    }

    fn order(numbers: &[u8]) -> Plan {
        Plan { order: numbers.iter().copied().map(server).collect(), trial: None }
    }

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_server_that_was_asked_comes_first_and_the_others_in_their_order() {
        let now = Instant::now();
        let mut servers = three();
        assert_eq!(servers.plan(None, now), order(&[1, 2, 3]));
        assert_eq!(servers.plan(Some(server(3)), now), order(&[3, 1, 2]));
        assert_eq!(servers.plan(Some(server(9)), now), order(&[1, 2, 3]));
    }

    #[test]
    fn a_silent_server_is_passed_over_until_one_query_tries_it_beside_another() {
        let start = Instant::now();
        let mut servers = three();
        servers.silent(server(1), start, start + seconds(2));
        assert_eq!(servers.plan(Some(server(1)), start + seconds(3)), order(&[2, 3]));
        let trial = servers.plan(None, start + seconds(7));
        assert_eq!(trial, Plan { trial: Some(server(1)), ..order(&[2, 3]) });
        assert_eq!(servers.plan(None, start + seconds(8)), order(&[2, 3]), "one trial at a time");
        servers.answered(server(1), start + seconds(9));
        assert_eq!(servers.plan(None, start + seconds(9)), order(&[1, 2, 3]));
    }

    #[test]
    fn it_is_passed_over_for_longer_each_time_it_fails_a_trial_and_never_for_ever() {
        let mut now = Instant::now();
        let mut servers = three();
        servers.silent(server(1), now, now);
        for pause in [5, 10, 20, 40, 60, 60] {
            now += seconds(pause) - Duration::from_millis(1);
            assert_eq!(servers.plan(None, now).trial, None, "{pause}");
            now += Duration::from_millis(1);
            assert_eq!(servers.plan(None, now).trial, Some(server(1)), "{pause}");
            servers.silent(server(1), now, now);
        }
    }

    #[test]
    fn queries_that_waited_together_count_once() {
        let start = Instant::now();
        let mut servers = three();
        for late in 0..10 {
            servers.silent(
                server(1),
                start + Duration::from_millis(late),
                start + seconds(2) + Duration::from_millis(late),
            );
        }
        assert_eq!(servers.plan(None, start + seconds(7)).trial, Some(server(1)), "after the first pause");
    }

    #[test]
    fn a_lost_packet_is_no_silence_of_a_server_that_answers_others() {
        let start = Instant::now();
        let mut servers = three();
        servers.answered(server(1), start + seconds(1));
        servers.silent(server(1), start, start + seconds(2));
        assert_eq!(servers.plan(None, start + seconds(2)), order(&[1, 2, 3]));
    }

    #[test]
    fn with_no_server_left_all_are_asked() {
        let now = Instant::now();
        let mut servers = three();
        for number in 1..=3 {
            servers.silent(server(number), now, now);
        }
        assert_eq!(servers.plan(Some(server(2)), now), order(&[2, 1, 3]));
    }

    #[test]
    fn what_is_known_of_a_server_outlasts_a_change_of_the_others() {
        let now = Instant::now();
        let mut servers = three();
        servers.silent(server(1), now, now);
        servers.replace(&[server(1), server(4)]);
        assert_eq!(servers.plan(None, now), order(&[4]));
        assert!(servers.contains(server(4)) && !servers.contains(server(2)));
    }
}
