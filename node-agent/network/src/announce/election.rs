//! Which node answers for an address: decided by each node on its own from what it hears, without a clock
//! or a socket, so that every turn of it can be tested.
//!
//! A node tells several times a second what it holds. An address that nobody holds is taken by a node that
//! can serve it; of several, the one with the greater [`weight`] goes first, and the others give way as soon
//! as they hear of it. What is held stays where it is: a node that comes (back) takes nothing from anyone,
//! since an address that moves costs the connections that it has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};

use super::frame::Heartbeat;
use crate::interface::Mac;

/// How often a node tells that it is there.
pub(crate) const BEAT: Duration = Duration::from_millis(100);
/// A node that was not heard for so long is taken for dead.
pub(crate) const DEAD: Duration = Duration::from_millis(500);
/// So much later than the one before it a node takes what is free: who goes first is heard by then.
const TURN: Duration = Duration::from_millis(20);
/// At most so many go first: not all of those may be able to serve the address.
const TURNS: usize = 10;

/// What the node has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer for the address from now on, and tell everybody.
    Take(IpAddr),
    /// Answer for it no more.
    Yield(IpAddr),
    /// Tell everybody again: another one answered too.
    Assert(IpAddr),
}

#[derive(Debug)]
pub struct Election {
    own: Mac,
    /// What this node can serve.
    wanted: BTreeSet<IpAddr>,
    held: BTreeSet<IpAddr>,
    /// What others hold, and when they said so last.
    claims: HashMap<IpAddr, (Mac, Instant)>,
    /// When other nodes were heard last.
    peers: BTreeMap<Mac, Instant>,
    /// Since when a wanted address is nobody's.
    free: BTreeMap<IpAddr, Instant>,
    /// Until then it only listens: who holds what has told it by then.
    listens_until: Instant,
}

impl Election {
    pub fn new(own: Mac, now: Instant) -> Self {
        Self {
            own,
            wanted: BTreeSet::new(),
            held: BTreeSet::new(),
            claims: HashMap::new(),
            peers: BTreeMap::new(),
            free: BTreeMap::new(),
            listens_until: now + DEAD,
        }
    }

    pub fn held(&self) -> &BTreeSet<IpAddr> {
        &self.held
    }

    /// Whether this node has anything to say.
    pub(crate) fn takes_part(&self) -> bool {
        !self.wanted.is_empty() || !self.held.is_empty()
    }

    /// Whether who holds what is known yet.
    pub fn listens(&self, now: Instant) -> bool {
        now < self.listens_until
    }

    /// When there may be something to do without anything being heard.
    pub(crate) fn wakes_at(&self, now: Instant) -> Instant {
        match self.free.is_empty() {
            true => now + BEAT,
            false => now + TURN / 2,
        }
    }

    /// What this node can serve from now on.
    pub fn want(&mut self, wanted: BTreeSet<IpAddr>) -> Vec<Action> {
        self.free.retain(|address, _| wanted.contains(address));
        let unwanted: Vec<_> = self.held.difference(&wanted).copied().collect();
        self.wanted = wanted;
        for address in &unwanted {
            self.held.remove(address);
        }
        unwanted.into_iter().map(Action::Yield).collect()
    }

    /// Another node has told what it holds, or no longer holds.
    pub fn hear(&mut self, from: Mac, told: &Heartbeat, now: Instant) -> Vec<Action> {
        if from == self.own {
            return Vec::new();
        }
        self.peers.insert(from, now);
        for address in &told.released {
            if self.claims.get(address).is_some_and(|(by, _)| *by == from) {
                self.claims.remove(address);
            }
        }
        let mut actions = Vec::new();
        for address in &told.held {
            if !self.held.contains(address) {
                self.claim(*address, from, now);
            } else if weight(self.own, *address) > weight(from, *address) {
                actions.push(Action::Assert(*address));
            } else {
                self.held.remove(address);
                self.claim(*address, from, now);
                actions.push(Action::Yield(*address));
            }
        }
        actions
    }

    fn claim(&mut self, address: IpAddr, by: Mac, now: Instant) {
        self.free.remove(&address);
        // Of two who say so for a moment, the one who will keep it.
        if let Some((held_by, _)) = self.claims.get(&address)
            && weight(*held_by, address) > weight(by, address)
        {
            return;
        }
        self.claims.insert(address, (by, now));
    }

    /// Takes what is free and this node's turn.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        let alive = |at: &Instant| now.duration_since(*at) < DEAD;
        self.peers.retain(|_, at| alive(at));
        let peers = &self.peers;
        self.claims
            .retain(|_, (by, at)| alive(at) && peers.contains_key(by));
        let mut actions = Vec::new();
        for address in &self.wanted {
            if self.held.contains(address) || self.claims.contains_key(address) {
                continue;
            }
            let since = *self.free.entry(*address).or_insert(now);
            let own = weight(self.own, *address);
            let before = peers.keys().filter(|peer| weight(**peer, *address) > own);
            let turn = TURN * before.count().min(TURNS) as u32;
            if now >= self.listens_until && now >= since + turn {
                self.held.insert(*address);
                actions.push(Action::Take(*address));
            }
        }
        let held = &self.held;
        self.free.retain(|address, _| !held.contains(address));
        actions
    }
}

/// The greater one keeps an address. Different for each address, so that the addresses are spread.
fn weight(node: Mac, address: IpAddr) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(node.0);
    match address {
        IpAddr::V4(v4) => hash.update(v4.octets()),
        IpAddr::V6(v6) => hash.update(v6.octets()),
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(10);

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// Nodes on one wire.
    struct Wire {
        nodes: Vec<Option<Election>>,
        now: Instant,
        beats: u32,
    }

    impl Wire {
        fn new(nodes: u8) -> Self {
            let now = Instant::now();
            let nodes = (0..nodes)
                .map(|index| Some(Election::new(mac(index), now)))
                .collect();
            Self {
                nodes,
                now,
                beats: 0,
            }
        }

        fn alive(&mut self) -> impl Iterator<Item = &mut Election> {
            self.nodes.iter_mut().flatten()
        }

        fn want(&mut self, node: usize, addresses: &[IpAddr]) {
            let wanted = addresses.iter().copied().collect();
            self.nodes[node].as_mut().unwrap().want(wanted);
        }

        /// Lets time go by. Everyone hears everyone, except those who are apart.
        fn run(&mut self, time: Duration, apart: Option<usize>) {
            let end = self.now + time;
            while self.now < end {
                self.now += STEP;
                self.beats += 1;
                let now = self.now;
                for node in self.alive() {
                    node.tick(now);
                }
                if !self.beats.is_multiple_of(10) {
                    continue;
                }
                let told: Vec<(usize, Mac, Heartbeat)> = (0..self.nodes.len())
                    .filter_map(|index| {
                        let node = self.nodes[index].as_ref()?;
                        let held = node.held().iter().copied().collect();
                        let beat = Heartbeat {
                            held,
                            ..Heartbeat::default()
                        };
                        (node.takes_part() && !node.listens(now)).then_some((index, node.own, beat))
                    })
                    .collect();
                for (from, own, beat) in told {
                    for (index, node) in self.nodes.iter_mut().enumerate() {
                        let separated = apart.is_some_and(|it| (it == from) != (it == index));
                        if let (false, Some(node)) = (separated, node) {
                            node.hear(own, &beat, now);
                        }
                    }
                }
            }
        }

        fn holders(&self, address: IpAddr) -> Vec<usize> {
            let holds = |index: &usize| {
                let node = self.nodes[*index].as_ref();
                node.is_some_and(|node| node.held.contains(&address))
            };
            (0..self.nodes.len()).filter(holds).collect()
        }
    }

    fn mac(index: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, index])
    }

    fn addresses() -> Vec<IpAddr> {
        (1..=30).map(address).collect()
    }

    #[test]
    fn each_address_gets_one_holder_and_the_nodes_share_them() {
        let mut wire = Wire::new(3);
        (0..3).for_each(|node| wire.want(node, &addresses()));
        wire.run(Duration::from_secs(2), None);
        let mut shares = [0; 3];
        for address in addresses() {
            let holders = wire.holders(address);
            assert_eq!(holders.len(), 1, "{address}: {holders:?}");
            shares[holders[0]] += 1;
        }
        assert!(shares.iter().all(|share| *share >= 4), "{shares:?}");
    }

    #[test]
    fn what_a_dead_node_held_is_taken_over_in_time_and_nothing_else_moves() {
        let mut wire = Wire::new(3);
        (0..3).for_each(|node| wire.want(node, &addresses()));
        wire.run(Duration::from_secs(2), None);
        let before: Vec<_> = addresses().iter().map(|it| wire.holders(*it)).collect();
        wire.nodes[0] = None;
        wire.run(Duration::from_millis(800), None);
        for (address, before) in addresses().into_iter().zip(&before) {
            let holders = wire.holders(address);
            assert_eq!(holders.len(), 1, "{address}");
            assert!(before == &[0] || before == &holders, "{address} moved");
        }
        // It comes back, and takes nothing from anyone.
        let now = wire.now;
        wire.nodes[0] = Some(Election::new(mac(0), now));
        wire.want(0, &addresses());
        wire.run(Duration::from_secs(2), None);
        assert!(wire.nodes[0].as_ref().unwrap().held().is_empty());
    }

    #[test]
    fn only_who_can_serve_an_address_takes_it() {
        let mut wire = Wire::new(4);
        (0..4).for_each(|node| wire.want(node, &[address(99)]));
        wire.want(2, &[address(1), address(99)]);
        wire.run(Duration::from_secs(1), None);
        assert_eq!(wire.holders(address(1)), [2]);
        // Its last endpoint moves: the address follows.
        wire.want(3, &[address(1), address(99)]);
        wire.want(2, &[address(99)]);
        wire.run(Duration::from_secs(1), None);
        assert_eq!(wire.holders(address(1)), [3]);
    }

    #[test]
    fn nodes_that_did_not_hear_each_other_agree_again() {
        let mut wire = Wire::new(2);
        (0..2).for_each(|node| wire.want(node, &addresses()));
        wire.run(Duration::from_secs(2), Some(1));
        assert!(addresses().iter().all(|it| wire.holders(*it) == [0, 1]));
        wire.run(Duration::from_millis(300), None);
        for address in addresses() {
            assert_eq!(wire.holders(address).len(), 1, "{address}");
        }
    }

    #[test]
    fn what_is_released_is_free_at_once() {
        let now = Instant::now();
        let mut node = Election::new(mac(1), now);
        let later = now + DEAD;
        node.want([address(1)].into());
        let held = Heartbeat {
            held: vec![address(1)],
            ..Heartbeat::default()
        };
        node.hear(mac(2), &held, later);
        assert_eq!(node.tick(later + TURN), []);
        let released = Heartbeat {
            released: vec![address(1)],
            ..Heartbeat::default()
        };
        node.hear(mac(2), &released, later + TURN);
        node.tick(later + TURN);
        let taken = node.tick(later + TURN * 3);
        assert!(node.held.contains(&address(1)), "{taken:?}");
    }
}
