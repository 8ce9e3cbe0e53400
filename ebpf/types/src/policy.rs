//! Policy: who may talk to whom, in a form whose lookup costs the same at any number of
//! policies.
//!
//! ```text
//! POLICY_PODS     local pod's address -> its class in each direction
//! POLICY_PEERS    pod's or node's address -> identity
//! POLICY_NETWORKS prefix -> identity of every other address in it
//! POLICY_VERDICTS (class, identity) -> verdict, or a table of verdicts by port
//! POLICY_PORTS    (table, protocol, port prefix) -> verdict
//! ```
//!
//! An identity is a set of selectors and blocks that a peer matches, a class a list of rules
//! that pods have in common. Both, and the tables of ports, are numbered by a hash of what
//! they contain. So the numbers mean the same to an agent that has just started, and nothing
//! has to remember who got which.

use crate::Addr;

/// Element 0 of the array `POLICY_STATE`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PolicyState {
    /// Grows with every change of the tables. A connection carries the one under which it was
    /// admitted, and is judged again when that is not the present one. Never 0.
    pub revision: u32,
    /// Pod addresses with a class. 0: everything is allowed, and nothing is looked up.
    pub enforced: u32,
}

/// The classes of a local pod; 0 in a direction in which nothing restricts it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PolicyPod {
    pub ingress: u64,
    pub egress: u64,
}

/// What an address is to policies.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PolicyPeer {
    /// 0: known, and no selector or block matches it.
    pub identity: u64,
    /// Bits of [`policy_peer`].
    pub flags: u32,
    pub pad: u32,
}

/// Bits of [`PolicyPeer::flags`].
pub mod policy_peer {
    /// Inside the networks that pods get their addresses from.
    pub const POD_NETWORK: u32 = 1 << 0;
}

/// Identity 0 stands for all peers that have no element of their own under a class.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VerdictKey {
    pub class: u64,
    pub identity: u64,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PolicyVerdict {
    /// Table of the ports with a verdict of their own; 0: none.
    pub ports: u64,
    pub decision: PolicyDecision,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct PolicyDecision {
    /// Bits of [`decision`].
    pub flags: u32,
    /// Which policy, or which policies' isolation, decided; user space knows its name. 0: none.
    pub rule: u32,
}

/// Bits of [`PolicyDecision::flags`].
pub mod decision {
    pub const ALLOW: u32 = 1 << 0;
    /// A policy under audit would have dropped it.
    pub const AUDIT: u32 = 1 << 1;
}

/// The data of a prefix in `POLICY_PORTS`, most significant bit first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PolicyPortKey {
    /// Network byte order, high word first.
    pub table: [u32; 2],
    pub protocol: u8,
    pub pad: u8,
    /// Network byte order.
    pub port: u16,
}

impl PolicyPortKey {
    /// Bits in front of the port.
    pub const HEAD: u32 = 80;
    pub const BITS: u32 = Self::HEAD + 16;

    /// `port` in network byte order.
    #[inline(always)]
    pub const fn new(table: u64, protocol: u8, port: u16) -> Self {
        Self {
            table: [((table >> 32) as u32).to_be(), (table as u32).to_be()],
            protocol,
            pad: 0,
            port,
        }
    }
}

/// An address with its length as prefix, as `POLICY_NETWORKS` is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PolicyNetwork {
    pub addr: Addr,
    /// 0..=128; IPv4 networks lie under `::ffff:0:0/96`.
    pub length: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<PolicyState>(), 8);
        assert_eq!(size_of::<PolicyPod>(), 16);
        assert_eq!(size_of::<PolicyPeer>(), 16);
        assert_eq!(size_of::<VerdictKey>(), 16);
        assert_eq!(size_of::<PolicyVerdict>(), 16);
        assert_eq!(size_of::<PolicyPortKey>(), 12);
    }

    #[test]
    fn a_port_key_reads_as_one_big_number() {
        let key = PolicyPortKey::new(0x0102_0304_0506_0708, 6, 0x1234_u16.to_be());
        let mut octets = Vec::new();
        for word in key.table {
            octets.extend(word.to_ne_bytes());
        }
        octets.extend([key.protocol, key.pad]);
        octets.extend(key.port.to_ne_bytes());
        assert_eq!(octets, [1, 2, 3, 4, 5, 6, 7, 8, 6, 0, 0x12, 0x34]);
    }
}
