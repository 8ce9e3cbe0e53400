//! Services: `SERVICES` finds a service by what a client dials, `SLOTS` numbers its
//! eligible backends 0..count, `BACKENDS` says where one lives, `MEMBERS` says
//! whether a backend still belongs to a service.
//!
//! The maps are flat. A map of maps would need an RCU grace period (about 15 ms)
//! for every change of one endpoint; here it is a handful of element writes.

use crate::Addr;

/// What a client dials.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceKey {
    /// The virtual address, or the unspecified address of its family for a NodePort: it
    /// answers on every node address, and a change of those must not rewrite every NodePort.
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    pub protocol: u8,
    /// One of [`scope`].
    pub scope: u8,
}

/// Whose dialling a [`ServiceKey`] is about.
pub mod scope {
    /// Everyone's, unless the service says [`super::service_flags::OUTSIDE_APART`].
    pub const ANY: u8 = 0;
    /// Clients outside the cluster, where they have endpoints of their own
    /// (externalTrafficPolicy `Local`: pods and the node itself are served by all).
    pub const OUTSIDE: u8 = 1;
}

impl ServiceKey {
    pub const fn new(addr: Addr, port: u16, protocol: u8) -> Self {
        Self {
            addr,
            port: port.to_be(),
            protocol,
            scope: scope::ANY,
        }
    }

    /// The same for clients outside the cluster only.
    pub const fn outside(self) -> Self {
        Self {
            scope: scope::OUTSIDE,
            ..self
        }
    }

    /// The ports of a cluster's address that no service has: they are refused.
    pub const fn other_ports(addr: Addr) -> Self {
        Self::new(addr, 0, 0)
    }

    pub const fn is_other_ports(&self) -> bool {
        self.protocol == 0
    }

    /// `0.0.0.0` (mapped) or `::`: the families have backends of their own.
    pub const fn node_port(is_v4: bool, port: u16, protocol: u8) -> Self {
        let any = if is_v4 {
            Addr::v4([0; 4])
        } else {
            Addr::UNSPECIFIED
        };
        Self::new(any, port, protocol)
    }
}

/// The head of a service: how many slots it has and how one is chosen.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceValue {
    /// Stable over changes of the endpoints and over restarts of the agent.
    pub id: u32,
    /// Number of slots; 0 means that a client is refused at once.
    pub count: u32,
    /// Session affinity by client address for so long after its last connection; 0 is off.
    pub affinity_seconds: u32,
    /// Bits of [`service_flags`].
    pub flags: u32,
    /// Where its table in `MAGLEV` begins, plus one; 0: it has none.
    pub maglev: u32,
}

/// Bits of [`ServiceValue::flags`].
pub mod service_flags {
    /// Clients outside the cluster are served by the entry of scope `OUTSIDE`.
    pub const OUTSIDE_APART: u32 = 1 << 0;
    /// Only clients in `SOURCE_RANGES` are served; others are dropped.
    pub const SOURCE_RANGES: u32 = 1 << 1;
    /// Without slots, drop rather than refuse: there are endpoints, but on other nodes,
    /// and a balancer in front should not take this node for one that answers.
    pub const DROP_EMPTY: u32 = 1 << 2;
    /// Whoever has no table to choose by takes the slots in turn.
    pub const ROUND_ROBIN: u32 = 1 << 3;
    /// ... takes of two slots the one whose backend has fewer connections.
    pub const LEAST_CONNECTIONS: u32 = 1 << 4;
    /// Clients inside the cluster choose by the table too: each always the same backend.
    pub const BY_CLIENT: u32 = 1 << 5;
}

/// What went through a service: values of the per-CPU map `TRAFFIC`, by its id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Connections, or conversations, that were given a backend.
    pub connections: u64,
    /// Of packets that were translated; of TCP sockets that a hook has connected, what they carried, when they end.
    pub request_bytes: u64,
    pub reply_bytes: u64,
}

/// Key of `SOURCE_RANGES`, longest prefix: who may dial a service. The id counts for 32
/// bits of the prefix; an IPv4 range lies under ::ffff:0:0/96.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RangeKey {
    pub service: u32,
    pub addr: Addr,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SlotKey {
    pub service: u32,
    pub slot: u32,
}

/// Where a backend lives. Its id is never reused while a connection could name it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BackendValue {
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    pub protocol: u8,
    /// Bits of [`backend_flags`].
    pub flags: u8,
}

/// Bits of [`BackendValue::flags`]; the programs do not ask for them.
pub mod backend_flags {
    /// No service lists it, and yet the connections that it has go on.
    pub const UNLISTED: u8 = 1 << 0;
}

impl BackendValue {
    pub const fn new(addr: Addr, port: u16, protocol: u8) -> Self {
        Self {
            addr,
            port: port.to_be(),
            protocol,
            flags: 0,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MemberKey {
    pub service: u32,
    pub backend: u32,
}

impl MemberKey {
    /// In `BALANCE`: where a service that takes its slots in turn has got to. No backend has this id.
    pub const fn turn_of(service: u32) -> Self {
        Self {
            service,
            backend: 0,
        }
    }
}

/// States of a member in `MEMBERS`.
pub mod member {
    /// In a slot: gets new connections.
    pub const ACTIVE: u32 = 1;
    /// Keeps what it has and gets nothing new (terminating, still serving).
    pub const DRAINING: u32 = 2;
}

/// Session affinity of one client to one service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AffinityKey {
    /// The client's address; for the socket hooks, that of the client's namespace.
    pub client: Addr,
    pub service: u32,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffinityValue {
    pub backend: u32,
    /// Seconds of CLOCK_MONOTONIC.
    pub last_used: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<ServiceKey>(), 16 + 2 + 1 + 1);
        assert_eq!(size_of::<ServiceValue>(), 20);
        assert_eq!(size_of::<RangeKey>(), 20);
        assert_eq!(size_of::<SlotKey>(), 8);
        assert_eq!(size_of::<BackendValue>(), 20);
        assert_eq!(size_of::<MemberKey>(), 8);
        assert_eq!(size_of::<AffinityKey>(), 20);
        assert_eq!(size_of::<AffinityValue>(), 8);
        assert_eq!(size_of::<Traffic>(), 24);
    }
}
