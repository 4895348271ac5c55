//! The order of enrolment and of leaving, as one pure decision: given what stands for a pod, what is to be done
//! next. The pod's task asks, does the step, looks again and asks again, so it makes no difference whether a
//! step failed half way, the agent was restarted, or somebody else undid part of it.
//!
//! Enrolment: listeners, plumbing, ztunnel's acknowledgement, inbound, outbound, gate. Leaving is the reverse, drained:
//! new connections go direct at once, captured ones keep ztunnel until they end or the deadline passes.

use serde::{Deserialize, Serialize};

/// What control wants of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It is in the mesh.
    Member,
    /// It is no longer: let its captured connections end.
    Leave,
    /// It is gone altogether, or the drain deadline has passed: take everything down now.
    Gone,
}

/// What the outbound programs of a pod do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outbound {
    /// Not attached on any device.
    Detached,
    /// Attached to let everything pass while the pod's connections are listed, and no further: that was interrupted.
    Joining,
    /// Attached, but not known to be on every device the pod has now.
    Partial,
    /// Attached everywhere; new connections pass, captured ones stay captured.
    Draining,
    /// Attached everywhere and capturing.
    Capturing,
}

/// What stands for a pod, as last read from the kernel and from ztunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// What control wants.
    pub(crate) wanted: Wanted,
    /// The pod's namespace is held open and verified.
    pub(crate) netns: bool,
    /// The agent holds the three listeners.
    pub(crate) listeners: bool,
    /// Rules, routes and sysctls stand; for a leaving pod: some of them stand.
    pub(crate) plumbing: bool,
    /// The active ztunnel takes listeners of ours. (Istio's makes its own, in whose way ours would be, and has them once it has acknowledged
    /// the pod.)
    pub(crate) ztunnel_takes_listeners: bool,
    /// The active ztunnel has acknowledged the pod.
    pub(crate) announced: bool,
    /// The inbound link stands and the pod's addresses lead to its listener.
    pub(crate) inbound: bool,
    /// What the outbound programs do.
    pub(crate) outbound: Outbound,
    /// TCP finds no way over devices that are not captured.
    pub(crate) gated: bool,
    /// The pod takes no plaintext on some port, or is to have none from before it joined, and such connections have not been cut.
    pub(crate) cut_due: bool,
    /// Connections that ztunnel still carries for a leaving pod.
    pub(crate) captured_connections: bool,
}

/// What is to be done next for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Find and verify its namespace.
    FindNetns,
    /// Get the listeners back from ztunnel, or make them.
    ObtainListeners,
    /// Close ours: ztunnel makes its own.
    CloseListeners,
    /// Write what is missing of rules, routes and sysctls.
    Plumb,
    /// Tell ztunnel and wait for its acknowledgement.
    Announce,
    /// Attach the inbound link, and lead the addresses to the listener.
    AttachInbound,
    /// Attach to every device, record the connections that live, then capture.
    AttachOutbound,
    /// Make TCP unreachable over devices that are not captured, and reachable over those that are.
    Gate,
    /// End the connections from before the pod joined.
    CutPreMesh,
    /// Enrolled; nothing to do.
    Enrolled,
    /// Let new connections pass.
    StartDraining,
    /// Remove the inbound link: new connections reach the application directly.
    DetachInbound,
    /// Tell every ztunnel that the pod left.
    Withdraw,
    /// Wait for captured connections to end.
    AwaitDrain,
    /// Remove the outbound links.
    DetachOutbound,
    /// Remove rules and routes, restore sysctls.
    Unplumb,
    /// Close the listeners and forget the pod.
    Forget,
}

/// How far a pod is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Its namespace is not found yet.
    Searching,
    /// Being set up, or being repaired.
    Preparing,
    /// Waits for ztunnel to connect or to acknowledge it.
    AwaitingZtunnel,
    /// Captured.
    Enrolled,
    /// Its captured connections are ending.
    Draining,
}

impl State {
    /// All, for metrics that list each.
    pub(crate) const ALL: [Self; 5] =
        [Self::Searching, Self::Preparing, Self::AwaitingZtunnel, Self::Enrolled, Self::Draining];

    /// As in the status and in metric labels.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Searching => "searching",
            Self::Preparing => "preparing",
            Self::AwaitingZtunnel => "awaiting-ztunnel",
            Self::Enrolled => "enrolled",
            Self::Draining => "draining",
        }
    }
}

impl From<Step> for State {
    fn from(step: Step) -> Self {
        match step {
            Step::FindNetns => Self::Searching,
            Step::ObtainListeners
            | Step::CloseListeners
            | Step::Plumb
            | Step::AttachInbound
            | Step::AttachOutbound
            | Step::Gate
            | Step::CutPreMesh => Self::Preparing,
            Step::Announce => Self::AwaitingZtunnel,
            Step::Enrolled => Self::Enrolled,
            Step::StartDraining
            | Step::DetachInbound
            | Step::Withdraw
            | Step::AwaitDrain
            | Step::DetachOutbound
            | Step::Unplumb
            | Step::Forget => Self::Draining,
        }
    }
}

/// The next step for a pod about which `facts` hold.
pub(crate) fn next(facts: &Facts) -> Step {
    match facts.wanted {
        Wanted::Member => joining(facts),
        Wanted::Leave => leaving(facts),
        Wanted::Gone => taking_down(facts),
    }
}

fn joining(facts: &Facts) -> Step {
    if !facts.netns {
        return Step::FindNetns;
    }
    if matches!(facts.outbound, Outbound::Partial | Outbound::Joining) {
        // What is captured stays captured on every device, whatever else is missing: refused, not bypassed.
        return Step::AttachOutbound;
    }
    match (facts.listeners, facts.ztunnel_takes_listeners) {
        (false, true) => return Step::ObtainListeners,
        (true, false) => return Step::CloseListeners,
        (true, true) | (false, false) => {}
    }
    if !facts.plumbing {
        return Step::Plumb;
    }
    // Listeners that ztunnel makes are there when it has acknowledged the pod.
    if !facts.announced && (facts.outbound == Outbound::Detached || !facts.ztunnel_takes_listeners) {
        return Step::Announce;
    }
    if !facts.inbound {
        return Step::AttachInbound;
    }
    match facts.outbound {
        Outbound::Detached | Outbound::Joining | Outbound::Partial | Outbound::Draining => {
            Step::AttachOutbound
        }
        // Before ztunnel is waited for: a new device is of no use until then.
        Outbound::Capturing if !facts.gated => Step::Gate,
        Outbound::Capturing if !facts.announced => Step::Announce,
        Outbound::Capturing if facts.cut_due => Step::CutPreMesh,
        Outbound::Capturing => Step::Enrolled,
    }
}

fn leaving(facts: &Facts) -> Step {
    match facts.outbound {
        Outbound::Capturing | Outbound::Partial => Step::StartDraining,
        // What has captured nothing yet has nothing to drain.
        _ if facts.inbound => Step::DetachInbound,
        Outbound::Draining | Outbound::Detached if facts.captured_connections => Step::AwaitDrain,
        Outbound::Joining | Outbound::Draining | Outbound::Detached => taking_down(facts),
    }
}

fn taking_down(facts: &Facts) -> Step {
    if facts.inbound {
        return Step::DetachInbound;
    }
    if facts.announced {
        return Step::Withdraw;
    }
    if facts.outbound != Outbound::Detached {
        return Step::DetachOutbound;
    }
    if facts.netns && facts.plumbing { Step::Unplumb } else { Step::Forget }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Facts = Facts {
        wanted: Wanted::Member,
        netns: false,
        listeners: false,
        plumbing: false,
        ztunnel_takes_listeners: true,
        announced: false,
        inbound: false,
        outbound: Outbound::Detached,
        gated: false,
        cut_due: false,
        captured_connections: false,
    };
    const WHOLE: Facts = Facts {
        netns: true,
        listeners: true,
        plumbing: true,
        announced: true,
        inbound: true,
        outbound: Outbound::Capturing,
        gated: true,
        ..NOTHING
    };

    /// What stands once `step` has succeeded.
    fn done(step: Step, mut facts: Facts) -> Facts {
        match step {
            Step::FindNetns => facts.netns = true,
            Step::ObtainListeners => facts.listeners = true,
            Step::CloseListeners => facts.listeners = false,
            Step::Plumb => facts.plumbing = true,
            Step::Announce => facts.announced = true,
            Step::AttachInbound => facts.inbound = true,
            Step::AttachOutbound => facts.outbound = Outbound::Capturing,
            Step::Gate => facts.gated = true,
            Step::CutPreMesh => facts.cut_due = false,
            Step::StartDraining => facts.outbound = Outbound::Draining,
            Step::DetachInbound => facts.inbound = false,
            Step::Withdraw => facts.announced = false,
            Step::AwaitDrain => facts.captured_connections = false,
            Step::DetachOutbound => facts.outbound = Outbound::Detached,
            Step::Unplumb => facts.plumbing = false,
            Step::Enrolled | Step::Forget => {}
        }
        facts
    }

    fn walk(mut facts: Facts) -> Vec<Step> {
        let mut steps = vec![next(&facts)];
        while !matches!(steps.last(), Some(Step::Enrolled | Step::Forget)) {
            assert!(steps.len() < 20, "no end: {steps:?}");
            facts = done(steps[steps.len() - 1], facts);
            steps.push(next(&facts));
        }
        steps
    }

    #[test]
    fn a_new_pod_is_enrolled_in_the_order_of_the_design() {
        let expected = [
            Step::FindNetns,
            Step::ObtainListeners,
            Step::Plumb,
            Step::Announce,
            Step::AttachInbound,
            Step::AttachOutbound,
            Step::Gate,
            Step::Enrolled,
        ];
        assert_eq!(walk(NOTHING), expected);
    }

    #[test]
    fn for_a_ztunnel_that_makes_its_listeners_a_pod_is_captured_once_it_has_them() {
        let expected = [
            Step::FindNetns,
            Step::Plumb,
            Step::Announce,
            Step::AttachInbound,
            Step::AttachOutbound,
            Step::Gate,
            Step::Enrolled,
        ];
        let theirs = Facts { ztunnel_takes_listeners: false, ..NOTHING };
        assert_eq!(walk(theirs), expected);
        let after_ours = Facts { listeners: true, netns: true, ..theirs };
        assert_eq!(next(&after_ours), Step::CloseListeners);
        let restarted = Facts { listeners: false, announced: false, inbound: false, ..WHOLE };
        let restarted = Facts { ztunnel_takes_listeners: false, ..restarted };
        assert_eq!(walk(restarted), [Step::Announce, Step::AttachInbound, Step::Enrolled]);
    }

    #[test]
    fn a_pod_that_leaves_is_drained_before_it_is_taken_down() {
        let expected = [
            Step::StartDraining,
            Step::DetachInbound,
            Step::AwaitDrain,
            Step::Withdraw,
            Step::DetachOutbound,
            Step::Unplumb,
            Step::Forget,
        ];
        assert_eq!(walk(Facts { wanted: Wanted::Leave, captured_connections: true, ..WHOLE }), expected);
    }

    #[test]
    fn a_pod_that_leaves_in_the_midst_of_joining_is_let_go_and_never_captured() {
        let expected =
            [Step::DetachInbound, Step::Withdraw, Step::DetachOutbound, Step::Unplumb, Step::Forget];
        assert_eq!(walk(Facts { wanted: Wanted::Leave, outbound: Outbound::Joining, ..WHOLE }), expected);
    }

    #[test]
    fn a_pod_that_is_gone_is_not_waited_for() {
        let expected =
            [Step::DetachInbound, Step::Withdraw, Step::DetachOutbound, Step::Unplumb, Step::Forget];
        assert_eq!(walk(Facts { wanted: Wanted::Gone, captured_connections: true, ..WHOLE }), expected);
    }

    #[test]
    fn whatever_was_undone_is_what_is_done_again() {
        let cases = [
            (
                "the agent was restarted",
                Facts { netns: false, listeners: false, announced: false, ..WHOLE },
                Step::FindNetns,
            ),
            (
                "the listeners are with ztunnel",
                Facts { listeners: false, announced: false, ..WHOLE },
                Step::ObtainListeners,
            ),
            ("a rule was deleted", Facts { plumbing: false, ..WHOLE }, Step::Plumb),
            ("ztunnel was restarted", Facts { announced: false, ..WHOLE }, Step::Announce),
            ("the inbound link was removed", Facts { inbound: false, ..WHOLE }, Step::AttachInbound),
            ("a device appeared", Facts { outbound: Outbound::Partial, ..WHOLE }, Step::AttachOutbound),
            (
                "a device that appeared is captured, and no ztunnel is there",
                Facts { announced: false, gated: false, ..WHOLE },
                Step::Gate,
            ),
            (
                "a device appeared while no ztunnel was there",
                Facts { listeners: false, announced: false, outbound: Outbound::Partial, ..WHOLE },
                Step::AttachOutbound,
            ),
            (
                "an agent died while it listed the connections",
                Facts { listeners: false, announced: false, outbound: Outbound::Joining, ..WHOLE },
                Step::AttachOutbound,
            ),
            (
                "it came back while draining",
                Facts { outbound: Outbound::Draining, ..WHOLE },
                Step::AttachOutbound,
            ),
            ("it turned strict", Facts { cut_due: true, ..WHOLE }, Step::CutPreMesh),
            ("all is well", WHOLE, Step::Enrolled),
        ];
        for (name, facts, expected) in cases {
            assert_eq!(next(&facts), expected, "{name}");
        }
    }

    #[test]
    fn nothing_is_captured_before_ztunnel_has_acknowledged_the_pod() {
        for ztunnel_takes_listeners in [true, false] {
            let facts = Facts {
                announced: false,
                listeners: ztunnel_takes_listeners,
                ztunnel_takes_listeners,
                inbound: false,
                outbound: Outbound::Detached,
                ..WHOLE
            };
            let step = next(&facts);
            assert!(!matches!(step, Step::AttachInbound | Step::AttachOutbound), "{facts:?}: {step:?}");
        }
    }
}
