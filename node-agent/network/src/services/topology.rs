//! Which ready endpoints a node's clients are meant for: the hints that the EndpointSlice
//! controller writes for `trafficDistribution` and topology-aware routing.
//!
//! A hint narrows the choice only when every ready endpoint has one and this node or its
//! zone is named by at least one: otherwise the hints are of another time or another
//! cluster, and all endpoints serve (kube-proxy's rule; a hint never refuses a client).

use super::parse::{EndpointSpec, NodeHint};

/// How the ready endpoints of a port are narrowed on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topology<'a> {
    All,
    ThisNode,
    Zone(&'a str),
}

impl<'a> Topology<'a> {
    /// From all endpoints of one port and family, ready or not.
    pub(super) fn of<'e>(
        endpoints: impl Iterator<Item = &'e EndpointSpec> + Clone,
        zone: Option<&'a str>,
    ) -> Self {
        let ready = endpoints.filter(|endpoint| endpoint.ready);
        if applies(
            ready.clone(),
            |it| it.node_hint != NodeHint::Absent,
            Self::ThisNode,
        ) {
            return Self::ThisNode;
        }
        match zone.map(Self::Zone) {
            Some(zone) if applies(ready, |it| it.zone_hints.is_some(), zone) => zone,
            _ => Self::All,
        }
    }

    pub(super) fn admits(self, endpoint: &EndpointSpec) -> bool {
        match self {
            Self::All => true,
            Self::ThisNode => endpoint.node_hint == NodeHint::ThisNode,
            Self::Zone(zone) => endpoint
                .zone_hints
                .as_deref()
                .is_some_and(|zones| zones.0.iter().any(|hint| hint == zone)),
        }
    }
}

/// Every ready endpoint is hinted, and one of them for us.
fn applies<'e>(
    mut ready: impl Iterator<Item = &'e EndpointSpec> + Clone,
    is_hinted: impl Fn(&EndpointSpec) -> bool,
    topology: Topology<'_>,
) -> bool {
    ready.clone().all(is_hinted) && ready.any(|endpoint| topology.admits(endpoint))
}

#[cfg(test)]
mod tests {
    use super::{super::parse::ZoneHints, *};
    use std::sync::Arc;

    /// `node@zone`, either of which may be missing; `!` before it: not ready.
    fn endpoints(texts: &[&str]) -> Vec<EndpointSpec> {
        let parse = |text: &&str| {
            let (ready, text) = match text.strip_prefix('!') {
                Some(rest) => (false, rest),
                None => (true, *text),
            };
            let (node, zone) = text.split_once('@').unwrap();
            EndpointSpec {
                address: [10, 0, 0, 1].into(),
                on_this_node: false,
                ready,
                serving: ready,
                terminating: false,
                node_hint: match node {
                    "" => NodeHint::Absent,
                    "here" => NodeHint::ThisNode,
                    _ => NodeHint::OtherNodes,
                },
                zone_hints: (!zone.is_empty())
                    .then(|| Arc::new(ZoneHints(zone.split(',').map(String::from).collect()))),
            }
        };
        texts.iter().map(parse).collect()
    }

    #[test]
    fn hints_count_only_when_all_have_one_and_one_is_ours() {
        let a = Some("a");
        for (given, zone, expected) in [
            (&["@a", "@b"][..], a, Topology::Zone("a")),
            (&["@a,b", "@b"], Some("b"), Topology::Zone("b")),
            (&["@a", "@"], a, Topology::All),
            (&["@b", "@c"], a, Topology::All),
            (&["@a", "@b"], None, Topology::All),
            (&["here@a", "there@a"], a, Topology::ThisNode),
            (&["there@a", "there@b"], a, Topology::Zone("a")),
            (&["here@a", "@a"], a, Topology::Zone("a")),
            // What is not ready has no say.
            (&["@a", "!@"], a, Topology::Zone("a")),
            (&["!here@a", "there@b"], a, Topology::All),
            (&["!@a"], a, Topology::All),
            (&[], a, Topology::All),
        ] {
            let endpoints = endpoints(given);
            assert_eq!(
                Topology::of(endpoints.iter(), zone),
                expected,
                "{given:?} {zone:?}"
            );
        }
    }
}
