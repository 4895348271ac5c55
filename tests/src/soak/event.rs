//! What happens to the mesh during a soak, drawn from a seed: the same seed gives the same events in the same order, with the same
//! pauses.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A node with pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `east`.
    East,
    /// `west`.
    West,
}

impl Place {
    /// The node's name.
    pub(super) fn node(self) -> &'static str {
        match self {
            Self::East => "east",
            Self::West => "west",
        }
    }
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing does, for as long.
    Calm(Duration),
    /// An agent dies, and another starts after a while.
    AgentDies(Place, Duration),
    /// A ztunnel dies, and another starts after a while.
    ZtunnelDies(Place, Duration),
    /// Agent and ztunnel die together, so that nobody holds the listeners.
    BothDie(Place, Duration),
    /// A ztunnel drains while its successor serves.
    ZtunnelIsReplaced(Place),
    /// A ztunnel stands still, as when its machine swaps.
    ZtunnelFreezes(Place, Duration),
    /// The control plane dies, and another starts after a while.
    ControlDies(Duration),
    /// The policy against guests goes and comes back.
    PolicyChanges,
    /// STRICT becomes PERMISSIVE, and STRICT again.
    ModeChanges,
    /// A pod leaves the mesh and joins it again.
    PodLeavesAndJoins,
    /// Pods start, call, and end.
    PodsComeAndGo(u32),
    /// Kubelet restarts, in a cgroup made anew.
    KubeletRestarts(Place),
    /// The client's kernel answers every connection with a SYN cookie for a while.
    SynCookies,
    /// A client sets the marks that ztunnel uses.
    MarksAreForged,
}

/// What connections may meet while something happens. They may never get a wrong answer, or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toll {
    /// Every one is made, and answered.
    Nothing,
    /// Every one is made; those that were being carried may be reset.
    Resets,
    /// They may be refused, or reset.
    Refusals,
}

impl Event {
    /// What it may cost connections between pods that stay in the mesh.
    pub(super) fn toll(self) -> Toll {
        match self {
            Self::ZtunnelDies(..) => Toll::Resets,
            Self::BothDie(..) => Toll::Refusals,
            _ => Toll::Nothing,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Calm(time) => write!(f, "nothing for {time:?}"),
            Self::AgentDies(place, away) => write!(f, "the agent of {} dies for {away:?}", place.node()),
            Self::ZtunnelDies(place, away) => write!(f, "the ztunnel of {} dies for {away:?}", place.node()),
            Self::BothDie(place, away) => write!(f, "agent and ztunnel of {} die for {away:?}", place.node()),
            Self::ZtunnelIsReplaced(place) => write!(f, "the ztunnel of {} is replaced", place.node()),
            Self::ZtunnelFreezes(place, time) => {
                write!(f, "the ztunnel of {} freezes for {time:?}", place.node())
            }
            Self::ControlDies(away) => write!(f, "control dies for {away:?}"),
            Self::PolicyChanges => f.write_str("the policy against guests goes and comes back"),
            Self::ModeChanges => f.write_str("STRICT becomes PERMISSIVE and STRICT again"),
            Self::PodLeavesAndJoins => f.write_str("a pod leaves and joins again"),
            Self::PodsComeAndGo(count) => write!(f, "{count} pods come and go"),
            Self::KubeletRestarts(place) => write!(f, "kubelet of {} restarts", place.node()),
            Self::SynCookies => f.write_str("SYN cookies for everybody"),
            Self::MarksAreForged => f.write_str("a client forges marks"),
        }
    }
}

/// The endless sequence of events of a seed.
pub(super) struct Events(StdRng);

impl Events {
    pub(super) fn of(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    fn time(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.0.random_range(0..=most))
    }

    fn place(&mut self) -> Place {
        if self.0.random() { Place::East } else { Place::West }
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        const SHORT: Duration = Duration::from_secs(2);
        const LONG: Duration = Duration::from_secs(10);
        // A ztunnel's death is the likeliest, since it can go wrong in the most ways.
        Some(match self.0.random_range(0..17) {
            0 => Event::Calm(self.time(SHORT)),
            1 | 2 => Event::AgentDies(self.place(), self.time(SHORT)),
            3..=5 => Event::ZtunnelDies(self.place(), self.time(SHORT)),
            6 => Event::BothDie(self.place(), self.time(SHORT)),
            7 => Event::ZtunnelIsReplaced(self.place()),
            8 => Event::ZtunnelFreezes(self.place(), self.time(SHORT)),
            9 => Event::ControlDies(self.time(LONG)),
            10 => Event::PolicyChanges,
            11 => Event::ModeChanges,
            12 => Event::PodLeavesAndJoins,
            13 => Event::PodsComeAndGo(self.0.random_range(1..=20)),
            14 => Event::KubeletRestarts(self.place()),
            15 => Event::SynCookies,
            _ => Event::MarksAreForged,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_events_each_time_and_another_seed_others() {
        let events = |seed| Events::of(seed).take(200).collect::<Vec<_>>();
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
    }

    #[test]
    fn every_kind_of_event_comes_up() {
        let kinds: std::collections::HashSet<_> =
            Events::of(1).take(500).map(|event| std::mem::discriminant(&event)).collect();
        assert_eq!(kinds.len(), 14);
    }
}
