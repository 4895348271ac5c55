//! The counters of decisions: one slot of a per-CPU array for each reason.

/// What was done with a packet or, for inbound connections, with a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// Handed to the proxy's listener.
    Captured,
    /// Left alone because of who sent it or whom it is for.
    Exempt,
    /// Left alone because capture does not concern it.
    Passed,
    /// Dropped: it is, or may be, TCP that could not be handed to the proxy.
    Dropped,
}

impl Decision {
    /// The value of the metric's `decision` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Exempt => "exempt",
            Self::Passed => "passed",
            Self::Dropped => "dropped",
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $index:literal => $decision:ident, $reason:literal;)*) => {
        /// A reason for a decision, and its slot in the `COUNTERS` map. Those that are values in `OUTSIDE` keep their numbers over all
        /// layouts, whose programs have that map in common.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Counter {
            $($(#[$doc])* $name = $index,)*
        }

        impl Counter {
            /// All counters, in the order of their slots.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What was done.
            pub const fn decision(self) -> Decision {
                match self { $(Self::$name => Decision::$decision,)* }
            }

            /// The value of the metric's `reason` label.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)* }
            }
        }
    };
}

counters! {
    /// Packets of applications turned to `lo`.
    CapturedOutbound = 0 => Captured, "outbound";
    /// New connections from outside given to the inbound listener.
    CapturedInbound = 1 => Captured, "inbound";
    /// Packets sent by ztunnel's and the agent's sockets, recognised by their cgroup.
    ExemptProxy = 2 => Exempt, "proxy";
    /// Replies of applications to kubelet's probes.
    ExemptProbeReply = 3 => Exempt, "probe_reply";
    /// New connections from kubelet to a port declared for a probe.
    ExemptProbe = 4 => Exempt, "probe";
    /// Packets that are not TCP, fragments of them included.
    PassedNotTcp = 5 => Passed, "not_tcp";
    /// Packets of connections that were open before the pod joined.
    PassedPreMesh = 6 => Passed, "pre_mesh";
    /// Packets of connections that began while the pod was leaving.
    PassedDraining = 7 => Passed, "draining";
    /// Resets and acknowledgements without payload that the kernel sends for no application's socket.
    PassedControlReply = 8 => Passed, "control_reply";
    /// Connections of a pod to its own address.
    PassedSelf = 9 => Passed, "self";
    /// Connections from outside to the HBONE port.
    PassedHbone = 10 => Passed, "hbone";
    /// Fragments of TCP segments.
    DroppedFragment = 11 => Dropped, "fragment";
    /// Headers that end before the TCP header does.
    DroppedTruncated = 12 => Dropped, "truncated";
    /// Headers that contradict themselves.
    DroppedMalformed = 13 => Dropped, "malformed";
    /// IPv6 extension headers that are unknown or too many, behind which TCP may hide.
    DroppedExtension = 14 => Dropped, "extension_header";
    /// TCP in a VLAN tag; it is captured on the VLAN's own device, before it is tagged.
    DroppedTagged = 15 => Dropped, "vlan_tagged";
    /// No listener for connections of applications in this namespace; they are refused.
    DroppedNoOutboundListener = 16 => Dropped, "no_outbound_listener";
    /// No listener for connections from outside to this address.
    DroppedNoInboundListener = 17 => Dropped, "no_inbound_listener";
    /// The kernel refused to hand the packet to the listener.
    DroppedAssign = 18 => Dropped, "assign";
    /// The kernel refused to turn the packet to `lo`.
    DroppedRedirect = 19 => Dropped, "redirect";
    /// Packets from outside that claim to come from the very address they are for.
    DroppedOwnSource = 20 => Dropped, "own_source";
    /// Packets of applications that carry one of our marks, which exempts them from nothing: captured all the same.
    CapturedForgedMark = 21 => Captured, "forged_mark";
    /// New connections with the very ends of one that ztunnel has to the application; they are reset.
    DroppedEndsTaken = 22 => Dropped, "ends_taken";
    /// DNS queries of applications turned to `lo`, over UDP.
    CapturedDns = 23 => Captured, "dns";
    /// No listener for DNS in this namespace.
    DroppedNoDnsListener = 24 => Dropped, "no_dns_listener";
}

impl Counter {
    /// Whether it is counted for the pod as well, which costs a look-up: not for each packet of what goes its usual way.
    #[inline(always)]
    pub const fn is_of_pods(self) -> bool {
        !matches!(self, Self::CapturedOutbound | Self::ExemptProxy | Self::PassedNotTcp)
    }

    /// Number of slots of the `COUNTERS` map.
    #[expect(clippy::cast_possible_truncation, reason = "there are a few dozen")]
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

/// Value of `POD_COUNTERS`, for each CPU: a slot for each counter. Those that are not of pods ([`Counter::is_of_pods`]) stay 0.
pub type PodCounts = [u64; Counter::COUNT as usize];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Counter;

    #[test]
    fn every_counter_has_its_own_slot_and_its_own_labels() {
        let slots: Vec<u32> = Counter::ALL.iter().map(|counter| *counter as u32).collect();
        assert_eq!(slots, (0..Counter::COUNT).collect::<Vec<_>>());
        let labels: BTreeSet<_> = Counter::ALL.iter().map(|c| (c.decision().label(), c.reason())).collect();
        assert_eq!(labels.len(), Counter::ALL.len());
    }
}
