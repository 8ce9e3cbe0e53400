//! How packets travel between the nodes of a test's cluster.

use windlass_network::Routing;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Direct,
    Vxlan,
    /// Nodes know each other by their IPv6 addresses first.
    VxlanOverIpv6,
}

impl Way {
    pub const ALL: [Self; 3] = [Self::Direct, Self::Vxlan, Self::VxlanOverIpv6];

    pub fn routing(self) -> Routing {
        match self {
            Self::Direct => Routing::Direct,
            Self::Vxlan | Self::VxlanOverIpv6 => Routing::Vxlan,
        }
    }

    /// Of pods, over uplinks of 1,500.
    pub fn mtu(self) -> usize {
        match self {
            Self::Direct => 1_500,
            Self::Vxlan => 1_450,
            Self::VxlanOverIpv6 => 1_430,
        }
    }
}

impl From<Routing> for Way {
    fn from(routing: Routing) -> Self {
        match routing {
            Routing::Direct => Self::Direct,
            Routing::Vxlan => Self::Vxlan,
        }
    }
}
