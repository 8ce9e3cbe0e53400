//! How fast nodes of a zone may be driven empty: one every ten seconds, slower or not at all when so much
//! is silent that the network is the likelier culprit.

use std::time::Duration;

use ahash::AHashMap;
use tokio::time::Instant;

use super::judge::Eviction;

/// Upstream's rates: 0.1 nodes a second, 0.01 in a large zone that is partly down.
const USUAL: Duration = Duration::from_secs(10);
const DISRUPTED: Duration = Duration::from_secs(100);
const LARGE_ZONE: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Normal,
    /// At least 55 % and more than two nodes are not ready.
    Partial,
    /// No node is ready.
    Full,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    ready: usize,
    not_ready: usize,
}

impl Count {
    fn total(self) -> usize {
        self.ready + self.not_ready
    }

    fn state(self) -> State {
        if self.ready == 0 && self.not_ready > 0 {
            State::Full
        } else if self.not_ready > 2 && self.not_ready * 100 >= self.total() * 55 {
            State::Partial
        } else {
            State::Normal
        }
    }
}

/// The zones as they are in one round.
#[derive(Default)]
pub(crate) struct Zones {
    counts: AHashMap<String, Count>,
    /// When the last node of a zone was allowed.
    allowed: AHashMap<String, Instant>,
}

impl Zones {
    /// Starts a round with the readiness of every node by zone.
    pub(crate) fn count(&mut self, nodes: impl Iterator<Item = (String, bool)>) {
        self.counts.clear();
        for (zone, ready) in nodes {
            let count = self.counts.entry(zone).or_default();
            if ready {
                count.ready += 1;
            } else {
                count.not_ready += 1;
            }
        }
        let counts = &self.counts;
        self.allowed.retain(|zone, _| counts.contains_key(zone));
    }

    /// Whether one more node of `zone` may be driven empty; spends the permission.
    pub(crate) fn ask(&mut self, zone: &str, now: Instant) -> Eviction {
        if self
            .counts
            .values()
            .all(|count| count.state() == State::Full)
        {
            return Eviction::Revoked;
        }
        let count = self.counts.get(zone).copied().unwrap_or_default();
        let pause = match count.state() {
            State::Normal | State::Full => USUAL,
            State::Partial if count.total() > LARGE_ZONE => DISRUPTED,
            State::Partial => return Eviction::Held,
        };
        let rested = self
            .allowed
            .get(zone)
            .is_none_or(|last| now.duration_since(*last) >= pause);
        if !rested {
            return Eviction::Held;
        }
        self.allowed.insert(zone.to_owned(), now);
        Eviction::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(nodes: &[(&str, usize, usize)]) -> Zones {
        let mut zones = Zones::default();
        zones.count(nodes.iter().flat_map(|(zone, ready, not_ready)| {
            let all = (0..*ready)
                .map(|_| true)
                .chain((0..*not_ready).map(|_| false));
            all.map(|ready| ((*zone).to_owned(), ready))
        }));
        zones
    }

    #[test]
    fn one_node_every_ten_seconds_leaves_a_zone() {
        let mut zones = zones(&[("a", 8, 2)]);
        let now = Instant::now();
        assert_eq!(zones.ask("a", now), Eviction::Allowed);
        assert_eq!(zones.ask("a", now + Duration::from_secs(9)), Eviction::Held);
        assert_eq!(
            zones.ask("a", now + Duration::from_secs(10)),
            Eviction::Allowed
        );
    }

    #[test]
    fn when_everything_is_silent_nothing_is_driven_off() {
        let now = Instant::now();
        assert_eq!(zones(&[("a", 0, 1)]).ask("a", now), Eviction::Revoked);
        assert_eq!(
            zones(&[("a", 0, 3), ("b", 1, 0)]).ask("a", now),
            Eviction::Allowed
        );
    }

    #[test]
    fn a_partly_silent_zone_waits_if_small_and_goes_slowly_if_large() {
        let now = Instant::now();
        assert_eq!(zones(&[("a", 4, 6)]).ask("a", now), Eviction::Held);
        let mut large = zones(&[("a", 40, 60)]);
        assert_eq!(large.ask("a", now), Eviction::Allowed);
        assert_eq!(
            large.ask("a", now + Duration::from_secs(50)),
            Eviction::Held
        );
        assert_eq!(
            large.ask("a", now + Duration::from_secs(100)),
            Eviction::Allowed
        );
    }
}
