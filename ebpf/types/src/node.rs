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
pub mod netns {
    pub const HOST: u32 = 1;
    pub const POD: u32 = 2;
}

/// Values of the map `NODE_ADDRESSES`.
pub mod node_address {
    /// NodePorts answer on this address.
    pub const NODE_PORTS: u32 = 1 << 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<NodeConfig>(), 8);
        assert_eq!(size_of::<Uplink>(), 32);
    }
}
