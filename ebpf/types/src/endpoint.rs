//! Local pods: where a packet for one goes, and which interface one may speak from.

use crate::Addr;

/// Next hop of every pod (link-local, never routed), answered by ARP in `from_pod`.
pub const GATEWAY_V4: Addr = Addr::v4([169, 254, 1, 1]);
/// Next hop of every pod for IPv6.
pub const GATEWAY_V6: Addr = Addr {
    words: [0xfe80_0000_u32.to_be(), 0, 0, 1_u32.to_be()],
};

/// Stands in for a pod's own address when it reaches itself through its Service: a pod
/// refuses a packet that carries its own address as source.
pub const HAIRPIN_V4: Addr = Addr::v4([169, 254, 1, 2]);
/// The same for IPv6, from the discard-only block (RFC 6666) that nobody routes.
pub const HAIRPIN_V6: Addr = Addr {
    words: [0x0100_0000_u32.to_be(), 0, 0, 2_u32.to_be()],
};

/// A pod on this node, by its address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The host side of the pod's veth pair.
    pub ifindex: u32,
    /// Bits of [`endpoint_flag`].
    pub flags: u32,
    /// The Ethernet addresses of the pod and of the host's side: how a frame delivered to the pod begins.
    pub macs: [[u8; 6]; 2],
}

impl Endpoint {
    /// Of the host's side.
    #[inline(always)]
    pub const fn host_mac(&self) -> &[u8; 6] {
        &self.macs[1]
    }
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flag {
    /// The host side has a queue that limits the pod's bandwidth: packets go through it, not past it.
    pub const LIMITED: u32 = 1 << 0;
}

/// The mark of a packet that the hook of the interface it leaves by need not judge, a limited pod's or an uplink: that
/// was done where the packet was sent there. Nobody else's packets carry it: a mark does not leave its network namespace.
pub const JUDGED_MARK: u32 = 0x776c_0001;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_has_no_hidden_padding() {
        assert_eq!(size_of::<Endpoint>(), 20);
    }

    #[test]
    fn the_well_known_addresses_are_what_the_docs_say() {
        assert_eq!(GATEWAY_V4.to_ip().to_string(), "169.254.1.1");
        assert_eq!(GATEWAY_V6.to_ip().to_string(), "fe80::1");
        assert_eq!(HAIRPIN_V4.to_ip().to_string(), "169.254.1.2");
        assert_eq!(HAIRPIN_V6.to_ip().to_string(), "100::2");
    }
}
