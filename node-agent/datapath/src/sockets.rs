//! Closing sockets whose backend is gone.
//!
//! The socket hooks translate once, at connect: what is connected then goes on talking to
//! the backend's address, whoever has it. So when a backend goes, the sockets that the hooks
//! sent there are closed by the kernel on our behalf (SOCK_DESTROY of sock_diag, kernel 4.5),
//! and their owners see an error at once. They are known by their cookies and by whom they are
//! connected to; sockets that were connected to the same address directly, that have been
//! connected to another since, and unconnected ones, are left alone.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    path::Path,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockProtocol},
};
use windlass_ebpf_types::{Addr, MemberKey, SocketKey, SocketVip, backend_flags, protocol};

use crate::{
    maps::ServiceWrite,
    netlink::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, Netlink, acknowledged,
    },
};

/// Backends that went, as the service tables name them.
#[derive(Clone, Debug, Default)]
pub struct GoneBackends {
    /// Out of a service: ends UDP conversations, which nothing else would.
    pub members: HashSet<MemberKey>,
    /// Out of every service: ends TCP connections too.
    pub backends: HashSet<u32>,
    /// Some are in no service any more, and may have gone.
    pub unlisted: bool,
}

impl GoneBackends {
    /// Adds those that these writes take away.
    pub fn note(&mut self, writes: &[ServiceWrite]) {
        for write in writes {
            match write {
                ServiceWrite::DeleteMember { key } => drop(self.members.insert(*key)),
                ServiceWrite::DeleteBackend { id } => drop(self.backends.insert(*id)),
                ServiceWrite::PutBackend { backend, .. } => {
                    self.unlisted |= backend.flags & backend_flags::UNLISTED != 0;
                }
                _ => {}
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.backends.is_empty() && !self.unlisted
    }

    pub(crate) fn includes(&self, key: &SocketKey, vip: &SocketVip) -> bool {
        let (service, backend) = (vip.service, vip.backend);
        match key.protocol {
            protocol::TCP => self.backends.contains(&backend),
            _ => self.members.contains(&MemberKey { service, backend }),
        }
    }
}

/// A socket as it was connected. One that has been connected to somebody else since is not meant any more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ConnectedSocket {
    pub(crate) cookie: u64,
    pub(crate) peer: Addr,
    /// Network byte order.
    pub(crate) port: u16,
}

impl From<SocketKey> for ConnectedSocket {
    fn from(key: SocketKey) -> Self {
        Self {
            cookie: key.cookie,
            peer: key.addr,
            port: key.port,
        }
    }
}

/// Sockets by the tag of the namespace that they are in; 0: not known.
#[derive(Default)]
pub(crate) struct StaleSockets(HashMap<u16, HashSet<ConnectedSocket>>);

impl StaleSockets {
    pub(crate) fn insert(&mut self, namespace: u16, socket: ConnectedSocket) {
        self.0.entry(namespace).or_default().insert(socket);
    }

    /// Those that may be in a namespace of this tag.
    pub(crate) fn of(&self, tag: u16) -> HashSet<ConnectedSocket> {
        let tags = [Some(tag), (tag != 0).then_some(0)];
        let sockets = tags.iter().flatten().filter_map(|tag| self.0.get(tag));
        sockets.flatten().copied().collect()
    }
}

/// Closes these sockets in a network namespace, the caller's without a path. Returns how many there were.
pub(crate) fn close_in(
    namespace: Option<&Path>,
    sockets: &HashSet<ConnectedSocket>,
) -> io::Result<usize> {
    if sockets.is_empty() {
        return Ok(0);
    }
    let Some(path) = namespace else {
        return close_here(sockets);
    };
    let file = File::open(path)?;
    // A namespace belongs to a thread: this one is thrown away afterwards.
    let closing = thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                close_here(sockets)
            })
            .join()
    });
    closing.unwrap_or_else(|_| Err(io::Error::other("the thread that closes sockets panicked")))
}

fn close_here(sockets: &HashSet<ConnectedSocket>) -> io::Result<usize> {
    let diag = Diag::open()?;
    let mut closed = 0;
    for (proto, states) in [(protocol::TCP, TCP_STATES), (protocol::UDP, CONNECTED)] {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let family = family as u8;
            for id in diag.dump(family, proto, states)? {
                if sockets.contains(&id.connected(family)) {
                    match diag.destroy(family, proto, &id) {
                        Ok(()) => closed += 1,
                        // It ended by itself meanwhile.
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
    Ok(closed)
}

/// TCP_ESTABLISHED, which for UDP means connected.
const CONNECTED: u32 = 1 << 1;
/// Every state in which there is a peer and somebody who waits for it: not TIME_WAIT (6),
/// CLOSE (7), LISTEN (10) nor NEW_SYN_RECV (12).
const TCP_STATES: u32 = 0b1011_0011_1110;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Offset of `struct inet_diag_sockid` in `struct inet_diag_msg`.
const ID_IN_MESSAGE: usize = 4;

/// Offsets in `struct inet_diag_sockid`.
const PEER_PORT: usize = 2;
const PEER: usize = 20;
const COOKIE: usize = 40;

/// `struct inet_diag_sockid`, only ever passed back to the kernel as it came.
struct SocketId([u8; 48]);

impl SocketId {
    fn connected(&self, family: u8) -> ConnectedSocket {
        let words: [u32; 4] = [0, 4, 8, 12].map(|at| self.word(PEER + at));
        let peer = match family == AddressFamily::Inet as u8 {
            true => Addr::from_v4_be(words[0]),
            false => Addr { words },
        };
        ConnectedSocket {
            // Two words, the lower first.
            cookie: u64::from(self.word(COOKIE)) | u64::from(self.word(COOKIE + 4)) << 32,
            peer,
            port: u16::from_ne_bytes([self.0[PEER_PORT], self.0[PEER_PORT + 1]]),
        }
    }

    /// In the machine's order.
    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes([0, 1, 2, 3].map(|octet| self.0[at + octet]))
    }
}

/// A netlink socket of the sock_diag family.
struct Diag(Netlink);

impl Diag {
    fn open() -> io::Result<Self> {
        Ok(Self(Netlink::open(SockProtocol::NetlinkSockDiag)?))
    }

    fn dump(&self, family: u8, protocol: u8, states: u32) -> io::Result<Vec<SocketId>> {
        let any = SocketId([0; 48]);
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        self.ask(SOCK_DIAG_BY_FAMILY, flags, family, protocol, states, &any)?;
        let mut found = Vec::new();
        loop {
            let mut done = false;
            self.0.read(|kind, body| {
                match kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => return acknowledged(body),
                    _ => {
                        if let Some(id) = body.get(ID_IN_MESSAGE..ID_IN_MESSAGE + 48) {
                            let mut octets = [0; 48];
                            octets.copy_from_slice(id);
                            found.push(SocketId(octets));
                        }
                    }
                }
                Ok(())
            })?;
            if done {
                return Ok(found);
            }
        }
    }

    fn destroy(&self, family: u8, protocol: u8, id: &SocketId) -> io::Result<()> {
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.ask(SOCK_DESTROY, flags, family, protocol, u32::MAX, id)?;
        self.0.read(|kind, body| match kind {
            NLMSG_ERROR => acknowledged(body),
            _ => Ok(()),
        })
    }

    /// `struct inet_diag_req_v2`.
    fn ask(
        &self,
        kind: u16,
        flags: u16,
        family: u8,
        protocol: u8,
        states: u32,
        id: &SocketId,
    ) -> io::Result<()> {
        let mut body = vec![family, protocol, 0, 0];
        body.extend(states.to_ne_bytes());
        body.extend(id.0);
        self.0.ask(kind, flags, &body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_looked_for_where_it_is_or_everywhere() {
        let socket = |cookie| ConnectedSocket {
            cookie,
            peer: Addr::UNSPECIFIED,
            port: 0,
        };
        let mut stale = StaleSockets::default();
        stale.insert(7, socket(70));
        stale.insert(8, socket(80));
        stale.insert(0, socket(1));
        assert_eq!(stale.of(7), [70, 1].map(socket).into());
        assert_eq!(stale.of(9), [socket(1)].into());
        assert_eq!(stale.of(0), [socket(1)].into());
        assert!(StaleSockets::default().of(7).is_empty());
    }
}
