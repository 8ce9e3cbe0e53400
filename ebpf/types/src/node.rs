//! What the programs must know about the node itself.

use crate::Addr;

/// Settings, element 0 of the array `NODE_CONFIG`. Ports in host byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    pub node_port_min: u16,
    pub node_port_max: u16,
    /// Source ports for translated sources. Outside the host's ephemeral range, so that
    /// no socket of the host can own one of them by accident.
    pub snat_port_min: u16,
    pub snat_port_max: u16,
    /// Bits of [`node_config`].
    pub flags: u32,
    /// Entries of one service's table in `MAGLEV`, a prime.
    pub maglev_size: u32,
    /// Unanswered connections that one pod, and all clients outside together, may have.
    pub half_open_pod: u32,
    pub half_open_outside: u32,
}

/// Bits of [`NodeConfig::flags`].
pub mod node_config {
    /// NodePorts answer on the node's loopback too.
    pub const LOOPBACK_NODE_PORTS: u32 = 1 << 0;
    /// Some pod has a host port, which may lie outside the range of NodePorts.
    pub const HOST_PORTS: u32 = 1 << 1;
    /// Programs of another layout still run on this node.
    pub const MIGRATING: u32 = 1 << 2;
    /// `DENIED` is not empty.
    pub const DENY_LIST: u32 = 1 << 3;
    /// Clients outside are answered by the backend's node itself.
    pub const DIRECT_ANSWERS: u32 = 1 << 4;
    /// XDP on uplinks sends on what only passes through this node.
    pub const XDP_FORWARDS: u32 = 1 << 5;
}

/// An interface towards the outside, by its ifindex.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uplink {
    /// Source address of masqueraded IPv4 traffic; unspecified: do not masquerade.
    pub v4: Addr,
    /// Source address of masqueraded IPv6 traffic; unspecified: do not masquerade.
    pub v6: Addr,
}

/// Values of the map `NETNS`: whose sockets are translated. A process in a namespace
/// that is not listed (another node on the same machine, a plain container, a test's
/// outside) is not one of this node's clients, although it may share its cgroups.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetNamespace {
    /// One of [`netns`].
    pub kind: u32,
    /// By which its sockets are found again: 16 bits of its cookie. 0: they are not; several may share one.
    pub tag: u32,
    /// What its sockets' packets carry as their source: a socket that connects has none
    /// yet, and session affinity and source ranges go by it. Unspecified: not known.
    pub v4: Addr,
    pub v6: Addr,
}

/// Values of [`NetNamespace::kind`].
pub mod netns {
    pub const HOST: u32 = 1;
    pub const POD: u32 = 2;

    /// [`super::NetNamespace::tag`] of the namespace with a cookie.
    pub const fn tag(cookie: u64) -> u16 {
        cookie as u16
    }

    /// A key, which is no namespace's cookie: what it holds goes for every namespace that is not listed.
    pub const ANY: u64 = 0;
}

/// Values of the map `XDP_UPLINKS`: how XDP sends out of an interface.
pub mod xdp_uplink {
    /// By a redirect, from whatever interface.
    pub const REDIRECT: u32 = 1;
    /// What came in by it goes back at once (XDP_TX); the rest by a redirect.
    pub const SEND_BACK: u32 = 2;
}

/// Values of the map `NATIVE`.
pub mod network {
    /// Whoever is there sees a pod's own address.
    pub const NATIVE: u32 = 1;
    /// Services' addresses: nobody is there.
    pub const SERVICES: u32 = 2;
}

/// Values of the map `NODE_ADDRESSES`.
pub mod node_address {
    /// NodePorts answer on this address.
    pub const NODE_PORTS: u32 = 1 << 0;
    /// A pod of this node whose interface is another CNI plugin's: packets to it go on as the host routes.
    pub const FOREIGN_POD: u32 = 1 << 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<NodeConfig>(), 24);
        assert_eq!(size_of::<Uplink>(), 32);
        assert_eq!(size_of::<NetNamespace>(), 40);
    }
}
