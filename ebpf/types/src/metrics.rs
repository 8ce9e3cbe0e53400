//! Counters by reason and hook: a per-CPU array, index = reason * hooks + hook.

/// Why a packet or a connection was counted. The names are the metric labels.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Left the program untranslated.
    Forwarded = 0,
    /// Rewritten to or from a Service.
    Translated = 1,
    /// Source replaced by an address of the node.
    Masqueraded = 2,
    /// A new connection was given a backend.
    NewConnection = 3,
    /// Service without an eligible endpoint: the client was answered with a reset or ICMP.
    RejectedNoEndpoint = 4,
    /// A packet in mid-connection that no entry knows: answered with a reset.
    RejectedUnknownFlow = 5,
    /// A pod sent from an address that is not its own.
    DroppedSpoofedSource = 6,
    /// The conntrack map is full.
    DroppedConntrackFull = 7,
    /// No free source port towards this destination.
    DroppedPortsExhausted = 8,
    /// Shorter than its headers say.
    DroppedMalformed = 9,
    /// A rewrite or a redirect failed in the kernel.
    DroppedError = 10,
    /// A fragment without ports; passed to the host untranslated.
    FragmentPassed = 11,
    /// Untranslated and, the conntrack map being full, not tracked either.
    PassedUntracked = 12,
    /// The service has endpoints, but none on this node, and its policy is `Local`.
    DroppedNoLocalEndpoint = 13,
    /// The client is in none of the service's source ranges.
    DroppedSourceRange = 14,
    /// The client is on the node's deny list.
    DroppedDenied = 15,
    /// A pod, or all clients outside together, have too many unanswered connections.
    DroppedHalfOpenQuota = 16,
    /// No policy that selects the target lets this source in.
    PolicyDeniedIngress = 17,
    /// No policy that selects the source lets it out to this target.
    PolicyDeniedEgress = 18,
    /// As denied, and the other end is an address of the pod networks that nothing is known
    /// of (yet): only policies that admit networks or everybody can have admitted it.
    IdentityUnknown = 19,
    /// Let through, because the policy that would have dropped it is under audit.
    PolicyAudited = 20,
    /// It had come as far as its time to live allows: the sender was told by ICMP.
    RejectedHopLimit = 21,
    /// About to leave the node for an address of the Services' networks that no Service has.
    DroppedNoService = 22,
}

impl Reason {
    pub const ALL: [Self; 23] = [
        Self::Forwarded,
        Self::Translated,
        Self::Masqueraded,
        Self::NewConnection,
        Self::RejectedNoEndpoint,
        Self::RejectedUnknownFlow,
        Self::DroppedSpoofedSource,
        Self::DroppedConntrackFull,
        Self::DroppedPortsExhausted,
        Self::DroppedMalformed,
        Self::DroppedError,
        Self::FragmentPassed,
        Self::PassedUntracked,
        Self::DroppedNoLocalEndpoint,
        Self::DroppedSourceRange,
        Self::DroppedDenied,
        Self::DroppedHalfOpenQuota,
        Self::PolicyDeniedIngress,
        Self::PolicyDeniedEgress,
        Self::IdentityUnknown,
        Self::PolicyAudited,
        Self::RejectedHopLimit,
        Self::DroppedNoService,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Translated => "translated",
            Self::Masqueraded => "masqueraded",
            Self::NewConnection => "new-connection",
            Self::RejectedNoEndpoint => "rejected-no-endpoint",
            Self::RejectedUnknownFlow => "rejected-unknown-flow",
            Self::DroppedSpoofedSource => "dropped-spoofed-source",
            Self::DroppedConntrackFull => "dropped-conntrack-full",
            Self::DroppedPortsExhausted => "dropped-ports-exhausted",
            Self::DroppedMalformed => "dropped-malformed",
            Self::DroppedError => "dropped-error",
            Self::FragmentPassed => "fragment-passed",
            Self::PassedUntracked => "passed-untracked",
            Self::DroppedNoLocalEndpoint => "dropped-no-local-endpoint",
            Self::DroppedSourceRange => "dropped-source-range",
            Self::DroppedDenied => "dropped-denied",
            Self::DroppedHalfOpenQuota => "dropped-half-open-quota",
            Self::PolicyDeniedIngress => "policy-denied-ingress",
            Self::PolicyDeniedEgress => "policy-denied-egress",
            Self::IdentityUnknown => "identity-unknown",
            Self::PolicyAudited => "policy-audited",
            Self::RejectedHopLimit => "rejected-hop-limit",
            Self::DroppedNoService => "dropped-no-service",
        }
    }
}

/// The hook that counted.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    FromPod = 0,
    ToPod = 1,
    FromUplink = 2,
    ToUplink = 3,
    Socket = 4,
    /// XDP on an uplink, before anything else.
    Xdp = 5,
}

impl Direction {
    pub const ALL: [Self; 6] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromUplink,
        Self::ToUplink,
        Self::Socket,
        Self::Xdp,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from-pod",
            Self::ToPod => "to-pod",
            Self::FromUplink => "from-uplink",
            Self::ToUplink => "to-uplink",
            Self::Socket => "socket",
            Self::Xdp => "xdp",
        }
    }
}

/// Size of the array.
pub const METRIC_SLOTS: u32 = (Reason::ALL.len() * Direction::ALL.len()) as u32;

#[inline(always)]
pub const fn metric_index(reason: Reason, direction: Direction) -> u32 {
    reason as u32 * Direction::ALL.len() as u32 + direction as u32
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_its_own_slot() {
        let mut seen = std::collections::HashSet::new();
        for reason in Reason::ALL {
            for direction in Direction::ALL {
                let index = metric_index(reason, direction);
                assert!(index < METRIC_SLOTS);
                assert!(seen.insert(index));
            }
        }
    }
}
