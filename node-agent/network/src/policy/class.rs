//! A class: the rules that a set of pods has in common in one direction, in the order in which
//! they decide. What a class says to an identity is a table of verdicts by port.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
};

use sha2::{Digest as _, Sha256};
use windlass_datapath::{
    PolicyPortPrefix,
    types::{PolicyDecision, PolicyPortKey, PolicyVerdict, decision, protocol},
};

use super::{
    cluster::NamedPort,
    spec::{Action, Peer, PortMatch, Tier},
};

/// Numbers are made of contents, so that they mean the same to the next agent. Never 0.
pub(super) fn content_id(content: &impl Hash) -> u64 {
    struct Digest(Sha256);
    impl Hasher for Digest {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            let hash = self.0.clone().finalize();
            let first = hash.iter().take(8);
            first.fold(0, |id, byte| id << 8 | u64::from(*byte))
        }
    }
    let mut digest = Digest(Sha256::new());
    content.hash(&mut digest);
    digest.finish().max(1)
}

/// What a peer matches: the selectors and blocks that a class may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Identity {
    pub peers: BTreeSet<u64>,
    /// Its ports of the names that policies of this node use.
    pub ports: BTreeSet<NamedPort>,
}

impl Identity {
    pub(super) fn id(&self) -> u64 {
        if self.peers.is_empty() && self.ports.is_empty() {
            0
        } else {
            content_id(self)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClassRule {
    pub tier: Tier,
    pub action: Action,
    pub audit: bool,
    /// Ids of [`Peer`]s; None: everybody.
    pub peers: Option<BTreeSet<u64>>,
    pub ports: Option<Vec<PortMatch>>,
    /// Who is named when it drops.
    pub decider: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Class {
    pub rules: Vec<ClassRule>,
    /// What is not accepted is dropped: some NetworkPolicy selects the pods.
    pub isolation: Option<Isolation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Isolation {
    /// All the policies that isolate are under audit.
    pub audit: bool,
    pub decider: u32,
}

/// Where verdicts may differ: one protocol and port, or what has no ports.
#[derive(Clone, Copy)]
enum Point {
    Port(u8, u16),
    Portless,
}

/// What a class says to an identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    pub verdict: PolicyVerdict,
    /// Of the table that the verdict names.
    pub ports: Vec<(PolicyPortPrefix, PolicyDecision)>,
}

impl Class {
    pub(super) fn id(&self) -> u64 {
        content_id(self)
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = u64> + '_ {
        self.rules
            .iter()
            .flat_map(|rule| rule.peers.iter().flatten().copied())
    }

    /// Names of ports that this class asks its peers for.
    pub(super) fn port_names(&self) -> impl Iterator<Item = &str> + '_ {
        let ports = self
            .rules
            .iter()
            .flat_map(|rule| rule.ports.iter().flatten());
        ports.filter_map(|port| match port {
            PortMatch::Named { name, .. } => Some(name.as_str()),
            PortMatch::Range { .. } => None,
        })
    }

    pub(super) fn judge(&self, identity: &Identity) -> Judgement {
        let rules: Vec<Relevant<'_>> = self
            .rules
            .iter()
            .filter(|rule| match &rule.peers {
                None => true,
                Some(peers) => !peers.is_disjoint(&identity.peers),
            })
            .map(|rule| Relevant::new(rule, identity))
            .collect();
        let otherwise = self.decide(&rules, Point::Portless);
        let mut runs: Vec<(u8, u16, u16, PolicyDecision)> = Vec::new();
        for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
            let mut starts = BTreeSet::from([0]);
            for (first, last) in rules.iter().flat_map(|rule| rule.ranges_of(protocol)) {
                starts.insert(first);
                starts.extend(last.checked_add(1));
            }
            let ends = starts.iter().skip(1).map(|next| next - 1);
            for (first, last) in starts.iter().zip(ends.chain([u16::MAX])) {
                let decision = self.decide(&rules, Point::Port(protocol, *first));
                match runs.last_mut() {
                    Some((same, _, end, held)) if *same == protocol && *held == decision => {
                        *end = last;
                    }
                    _ => runs.push((protocol, *first, last, decision)),
                }
            }
        }
        runs.retain(|(.., decision)| *decision != otherwise);
        let mut judgement = Judgement {
            verdict: PolicyVerdict {
                ports: 0,
                decision: otherwise,
            },
            ports: Vec::new(),
        };
        if !runs.is_empty() {
            let table = content_id(&runs);
            judgement.verdict.ports = table;
            for (protocol, first, last, decision) in runs {
                for (port, bits) in prefixes(first, last) {
                    let prefix = PolicyPortPrefix {
                        key: PolicyPortKey::new(table, protocol, port.to_be()),
                        length: PolicyPortKey::HEAD + bits,
                    };
                    judgement.ports.push((prefix, decision));
                }
            }
        }
        judgement
    }

    fn decide(&self, rules: &[Relevant<'_>], point: Point) -> PolicyDecision {
        let mut audited = None;
        for tier in [Tier::Admin, Tier::Namespace, Tier::Baseline] {
            let of_tier = rules.iter().filter(|rule| rule.rule.tier == tier);
            for Relevant { rule, .. } in of_tier.filter(|rule| rule.covers(point)) {
                match rule.action {
                    Action::Accept => return allow(audited),
                    Action::Pass => break,
                    Action::Deny if rule.audit => audited = audited.or(Some(rule.decider)),
                    Action::Deny => return deny(rule.decider),
                }
            }
            if tier == Tier::Namespace
                && let Some(isolation) = &self.isolation
            {
                return if isolation.audit {
                    allow(audited.or(Some(isolation.decider)))
                } else {
                    deny(isolation.decider)
                };
            }
        }
        allow(audited)
    }
}

fn allow(audited: Option<u32>) -> PolicyDecision {
    match audited {
        None => PolicyDecision {
            flags: decision::ALLOW,
            rule: 0,
        },
        Some(rule) => PolicyDecision {
            flags: decision::ALLOW | decision::AUDIT,
            rule,
        },
    }
}

fn deny(rule: u32) -> PolicyDecision {
    PolicyDecision { flags: 0, rule }
}

/// A rule that an identity meets, its ports resolved.
struct Relevant<'a> {
    rule: &'a ClassRule,
    /// Protocol, first, last; None: everything.
    ranges: Option<Vec<(u8, u16, u16)>>,
}

impl<'a> Relevant<'a> {
    fn new(rule: &'a ClassRule, identity: &Identity) -> Self {
        let ranges = rule
            .ports
            .as_ref()
            .map(|ports| resolve(ports, &identity.ports));
        Self { rule, ranges }
    }

    fn ranges_of(&self, wanted: u8) -> impl Iterator<Item = (u16, u16)> + '_ {
        let ranges = self.ranges.iter().flatten();
        let ranges = ranges.filter(move |(protocol, ..)| *protocol == wanted);
        ranges.map(|(_, first, last)| (*first, *last))
    }

    fn covers(&self, point: Point) -> bool {
        match (&self.ranges, point) {
            (None, _) => true,
            (Some(_), Point::Portless) => false,
            (Some(_), Point::Port(protocol, port)) => self
                .ranges_of(protocol)
                .any(|(first, last)| first <= port && port <= last),
        }
    }
}

/// Numbers for ports, by the names that the dialled pod gives them.
pub(super) fn resolve(ports: &[PortMatch], named: &BTreeSet<NamedPort>) -> Vec<(u8, u16, u16)> {
    let mut ranges = Vec::new();
    for port in ports {
        match port {
            PortMatch::Range {
                protocol,
                first,
                last,
            } => ranges.push((*protocol, *first, *last)),
            PortMatch::Named { protocol, name } => {
                let matching = named.iter().filter(|port| {
                    port.name == *name && protocol.is_none_or(|wanted| port.protocol == wanted)
                });
                ranges.extend(matching.map(|port| (port.protocol, port.port, port.port)));
            }
        }
    }
    ranges
}

/// A range of ports as prefixes: port and number of leading bits.
fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let mut prefixes = Vec::new();
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    while next < end {
        // The largest block that starts here and ends within.
        let aligned = if next == 0 { 16 } else { next.trailing_zeros() };
        let fitting = (end - next).ilog2();
        let free = aligned.min(fitting);
        prefixes.push((next as u16, 16 - free));
        next += 1 << free;
    }
    prefixes
}

/// Ids of peers, and the peers.
pub(super) type Peers = BTreeMap<u64, Peer>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_a_range_and_nothing_else() {
        for (first, last) in [
            (0, u16::MAX),
            (0, 0),
            (80, 80),
            (1, u16::MAX),
            (8_000, 9_000),
            (u16::MAX, u16::MAX),
        ] {
            let prefixes = prefixes(first, last);
            assert!(prefixes.len() <= 30, "{first}-{last}: {prefixes:?}");
            for port in 0..=u16::MAX {
                let covering = prefixes.iter().filter(|(start, bits)| {
                    let free = 16 - bits;
                    u32::from(port) >> free == u32::from(*start) >> free
                });
                let expected = usize::from(first <= port && port <= last);
                assert_eq!(covering.count(), expected, "{port} in {first}-{last}");
            }
        }
    }

    #[test]
    fn equal_contents_have_equal_ids_and_different_ones_others() {
        let class = |decider| Class {
            rules: Vec::new(),
            isolation: Some(Isolation {
                audit: false,
                decider,
            }),
        };
        assert_eq!(class(1).id(), class(1).id());
        assert_ne!(class(1).id(), class(2).id());
        assert_eq!(Identity::default().id(), 0);
    }
}
