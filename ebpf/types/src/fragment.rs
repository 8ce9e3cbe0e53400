//! IP fragments: only the first carries the ports, the rest find them here.

use crate::Addr;

/// Key of `FRAGMENTS` (LRU): one datagram in pieces.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FragmentKey {
    pub src: Addr,
    pub dst: Addr,
    /// 16 bits in IPv4, 32 in IPv6; as the packet carries them.
    pub id: u32,
    pub protocol: u8,
    pub pad: [u8; 3],
}

/// The ports of the first fragment, in network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPorts {
    pub sport: u16,
    pub dport: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<FragmentKey>(), 40);
        assert_eq!(size_of::<FragmentPorts>(), 4);
    }
}
