//! Where the server listens.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 1024;
/// Bytes of questions that may wait while the server is not on a processor: some 5,000, as the kernel counts them.
const RECEIVE_BUFFER: usize = 4 << 20;

/// One address, for UDP and TCP.
///
/// Bound apart from serving, because a socket belongs to the network namespace that it was made in: cluster DNS
/// listens in one of its own, and asks its upstreams from the node's.
#[derive(Debug)]
pub struct Sockets {
    pub(crate) udp: UdpSocket,
    pub(crate) tcp: TcpListener,
}

impl Sockets {
    /// `SO_REUSEPORT`, so that a new server can stand beside the one that it takes over from.
    ///
    /// # Errors
    /// When the address is not this namespace's, or somebody else's port.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let udp = open(address, Type::DGRAM, Protocol::UDP)?;
        // Past `net.core.rmem_max` for who may, and up to it for everybody else.
        if setsockopt(&udp, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            udp.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        Ok(Self {
            udp: udp.into(),
            tcp: Self::listen(address)?,
        })
    }

    /// The TCP half alone, for what else a server may want to say.
    ///
    /// # Errors
    /// As of [`Sockets::bind`].
    pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
        let socket = open(address, Type::STREAM, Protocol::TCP)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Sockets {
        /// One address of the loopback interface that is nobody's, and its port.
        pub(crate) fn free() -> (Self, SocketAddr) {
            // UDP and TCP get different free ports; the UDP one may be somebody's for TCP.
            let of_both = || {
                let of_udp = Self::bind(SocketAddr::from(([127, 0, 0, 1], 0))).ok()?;
                let address = of_udp.udp.local_addr().ok()?;
                Some((Self::bind(address).ok()?, address))
            };
            (0..100).find_map(|_| of_both()).expect("a free port")
        }
    }

    #[test]
    fn a_successor_can_bind_beside_its_predecessor() {
        let (old, address) = Sockets::free();
        let new = Sockets::bind(address).unwrap();
        assert_eq!(old.tcp.local_addr().unwrap(), address);
        assert_eq!(new.udp.local_addr().unwrap(), address);
    }
}
