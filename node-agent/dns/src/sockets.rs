//! Where the server listens.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

const BACKLOG: i32 = 1024;

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
        Ok(Self {
            udp: open(address, Type::DGRAM, Protocol::UDP)?.into(),
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

    #[test]
    fn a_successor_can_bind_beside_its_predecessor() {
        let first = Sockets::bind("127.0.0.1:0".parse().unwrap());
        // UDP and TCP got different free ports here; the second pair takes the UDP one for both.
        let address = first.unwrap().udp.local_addr().unwrap();
        let old = Sockets::bind(address).unwrap();
        let new = Sockets::bind(address).unwrap();
        assert_eq!(old.tcp.local_addr().unwrap(), address);
        assert_eq!(new.udp.local_addr().unwrap(), address);
    }
}
