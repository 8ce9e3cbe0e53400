//! The overlay: which addresses are behind which node, and the device that packets between nodes go through.

use crate::Addr;

/// Element 0 of the array `OVERLAY`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overlay {
    /// The tunnel device; 0 where nodes reach each other's pods without one.
    pub ifindex: u32,
    /// The virtual network's number, the same on all nodes.
    pub vni: u32,
}

/// Value of the prefix trie `TUNNELS`: the node behind which an address is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// The other end: where the outer packet goes.
    pub node: Addr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<Overlay>(), 8);
        assert_eq!(size_of::<Tunnel>(), 16);
    }
}
