//! What the socket hooks remember about a socket, by its cookie. All of it may be lost
//! (LRU): a lost entry costs a fresh choice of backend or a peer address that shows the
//! backend in place of the virtual address.

use crate::Addr;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketKey {
    pub cookie: u64,
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    pub protocol: u8,
    pub pad: [u8; 5],
}

/// `SOCKET_REVERSE`, and `SOCKET_DATAGRAMS` of unconnected UDP sockets: (socket, backend) -> what the application dialled.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketVip {
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    /// The tag of the network namespace that the socket is in ([`crate::NetNamespace::tag`]); 0: any.
    pub namespace: u16,
    pub backend: u32,
    pub service: u32,
}

/// `SOCKET_FORWARD`: (unconnected UDP socket, virtual address) -> the backend that this
/// socket's datagrams go to, so that a conversation stays with one backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketBackend {
    pub service: u32,
    pub backend: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<SocketKey>(), 32);
        assert_eq!(size_of::<SocketVip>(), 28);
        assert_eq!(size_of::<SocketBackend>(), 8);
    }
}
