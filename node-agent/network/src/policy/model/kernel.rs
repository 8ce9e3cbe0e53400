//! The tables, asked as the kernel asks them.

use std::net::IpAddr;

use windlass_datapath::{
    PolicyPortPrefix, PolicyWrite,
    types::{Addr, PolicyPeer, PolicyPortKey, VerdictKey, decision},
};

use super::{
    super::{edits::Held, spec::Direction},
    Probe, number,
};

#[derive(Default)]
pub(super) struct Kernel {
    pub tables: Held,
}

impl Kernel {
    pub(super) fn apply(&mut self, write: &PolicyWrite) {
        let tables = &mut self.tables;
        match *write {
            PolicyWrite::PutPort(key, value) => drop(tables.ports.insert(key, value)),
            PolicyWrite::PutVerdict(key, value) => drop(tables.verdicts.insert(key, value)),
            PolicyWrite::PutPeer(key, value) => drop(tables.peers.insert(key, value)),
            PolicyWrite::PutNetwork(key, value) => drop(tables.networks.insert(key, value)),
            PolicyWrite::PutPod(key, value) => drop(tables.pods.insert(key, value)),
            PolicyWrite::PutState(state) => tables.state = state,
            PolicyWrite::DeletePod(key) => drop(tables.pods.remove(&key)),
            PolicyWrite::DeletePeer(key) => drop(tables.peers.remove(&key)),
            PolicyWrite::DeleteNetwork(key) => drop(tables.networks.remove(&key)),
            PolicyWrite::DeleteVerdict(key) => drop(tables.verdicts.remove(&key)),
            PolicyWrite::DeletePort(key) => drop(tables.ports.remove(&key)),
        }
    }

    pub(super) fn allows(&self, pod: IpAddr, direction: Direction, probe: Probe) -> bool {
        let Some(classes) = self.tables.pods.get(&Addr::from(pod)) else {
            return true;
        };
        let class = match direction {
            Direction::Ingress => classes.ingress,
            Direction::Egress => classes.egress,
        };
        if class == 0 {
            return true;
        }
        let identity = self.peer(probe.peer).identity;
        let verdicts = &self.tables.verdicts;
        let verdict = verdicts
            .get(&VerdictKey { class, identity })
            .or_else(|| verdicts.get(&VerdictKey { class, identity: 0 }));
        let Some(verdict) = verdict else {
            return false;
        };
        let mut decision = verdict.decision;
        let protocol = number(probe.protocol);
        for bits in (0..=16).rev() {
            let port = probe.port & (u32::MAX << (16 - bits)) as u16;
            let prefix = PolicyPortPrefix {
                key: PolicyPortKey::new(verdict.ports, protocol, port.to_be()),
                length: PolicyPortKey::HEAD + bits,
            };
            if let Some(found) = self.tables.ports.get(&prefix) {
                decision = *found;
                break;
            }
        }
        decision.flags & decision::ALLOW != 0
    }

    fn peer(&self, address: IpAddr) -> PolicyPeer {
        let octets = Addr::from(address).octets();
        if let Some(peer) = self.tables.peers.get(&Addr::from(address)) {
            return *peer;
        }
        let holding = self.tables.networks.iter().filter(|(network, _)| {
            let (own, length) = (network.addr.octets(), network.length as usize);
            (0..length).all(|bit| (own[bit / 8] ^ octets[bit / 8]) & (0x80 >> (bit % 8)) == 0)
        });
        let longest = holding.max_by_key(|(network, _)| network.length);
        longest.map_or_else(PolicyPeer::default, |(_, peer)| *peer)
    }
}
