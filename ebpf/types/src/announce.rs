//! Addresses that no interface has, and that a node answers for on one of its uplinks.

use crate::Addr;

/// Key of `ANNOUNCED`: an address, and the uplink on which its neighbours ask for it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AnnouncedKey {
    pub addr: Addr,
    pub ifindex: u32,
}

/// What is answered: the uplink's Ethernet address, in wire order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Announced {
    pub mac: [u8; 6],
    pub pad: [u8; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<AnnouncedKey>(), 20);
        assert_eq!(size_of::<Announced>(), 8);
    }
}
