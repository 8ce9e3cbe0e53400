//! Connections that netfilter has translated, by the rules of a kube-proxy whose place is taken. It remembers them for as
//! long as they last, whatever becomes of the rules, and has to go on seeing their packets.

use std::{fs, io, net::Ipv6Addr};

use nix::sys::socket::SockProtocol;
use windlass_ebpf_types::{Addr, Connection, Tuple, connection, protocol};

use crate::{
    netlink::{
        NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, Netlink, acknowledged, find_attribute,
    },
    sys,
};

/// NFNL_SUBSYS_CTNETLINK, and IPCTNL_MSG_CT_GET in it.
const GET_CONNECTIONS: u16 = 1 << 8 | 1;
/// `struct nfgenmsg`, in questions and answers.
const HEADER: usize = 4;

const ORIGINAL: u16 = 1;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;

const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;

/// `IPS_DST_NAT`
const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// From TCP_CONNTRACK_ESTABLISHED to TCP_CONNTRACK_CLOSE_WAIT: the next packet may be long in coming.
const OPEN: std::ops::RangeInclusive<u8> = 3..=5;

/// Open TCP connections of the caller's network namespace, as they were dialled. Datagrams are not among them: each may
/// begin a conversation, and nobody would take back what netfilter remembers when the backend goes.
pub(crate) fn translated() -> io::Result<Vec<Tuple>> {
    // To ask would have the kernel load what tracks connections.
    let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    if count.is_ok_and(|count| count.trim() != "0") {
        dump()
    } else {
        Ok(Vec::new())
    }
}

fn dump() -> io::Result<Vec<Tuple>> {
    let netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    netlink.ask(GET_CONNECTIONS, NLM_F_REQUEST | NLM_F_DUMP, &[0; HEADER])?;
    let (mut tuples, mut done) = (Vec::new(), false);
    while !done {
        netlink.read(|kind, body| {
            match kind {
                NLMSG_DONE => done = true,
                NLMSG_ERROR => acknowledged(body)?,
                _ => tuples.extend(dialled(body.get(HEADER..).unwrap_or_default())),
            }
            Ok(())
        })?;
    }
    Ok(tuples)
}

fn dialled(attributes: &[u8]) -> Option<Tuple> {
    let status = find_attribute(attributes, STATUS)?.first_chunk()?;
    let tcp = find_attribute(find_attribute(attributes, PROTOCOL_INFO)?, 1)?;
    let state = find_attribute(tcp, 1)?.first()?;
    if u32::from_be_bytes(*status) & DESTINATION_TRANSLATED == 0 || !OPEN.contains(state) {
        return None;
    }
    let original = find_attribute(attributes, ORIGINAL)?;
    let addresses = find_attribute(original, TUPLE_ADDRESSES)?;
    let ports = find_attribute(original, TUPLE_PROTOCOL)?;
    let port = |kind| {
        Some(u16::from_ne_bytes(
            *find_attribute(ports, kind)?.first_chunk()?,
        ))
    };
    Some(Tuple {
        src: address(addresses, 1)?,
        dst: address(addresses, 2)?,
        sport: port(2)?,
        dport: port(3)?,
        protocol: protocol::TCP,
        ..Tuple::EMPTY
    })
}

/// Those of IPv6 are two kinds further on.
fn address(attributes: &[u8], kind: u16) -> Option<Addr> {
    if let Some(v4) = find_attribute(attributes, kind) {
        return Some(Addr::v4(*v4.first_chunk()?));
    }
    let v6: &[u8; 16] = find_attribute(attributes, kind + 2)?.first_chunk()?;
    Some(Ipv6Addr::from(*v6).into())
}

/// What the table of connections says of both directions: established, and not changed here.
pub(crate) fn entries(dialled: Tuple) -> [(Tuple, Connection); 2] {
    const KNOWN: u32 = connection::UNCHANGED | connection::REPLIED | connection::BY_STACK;
    let now = sys::monotonic_seconds();
    let entry = |to: Tuple, flags| Connection {
        to,
        flags,
        last_seen: now,
        created: now,
        ..Connection::NONE
    };
    let back = dialled.reversed();
    [
        (
            dialled,
            entry(
                dialled,
                KNOWN | connection::ORIGINAL | connection::CONFIRMED,
            ),
        ),
        (back, entry(back, KNOWN)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute;

    fn message(status: u32, state: u8, addresses: &[Vec<u8>]) -> Vec<u8> {
        const NESTED: u16 = 1 << 15;
        let ports = [
            attribute(1, &[protocol::TCP]),
            attribute(2, &40_000_u16.to_be_bytes()),
            attribute(3, &30_080_u16.to_be_bytes()),
        ];
        let original = [
            attribute(TUPLE_ADDRESSES | NESTED, &addresses.concat()),
            attribute(TUPLE_PROTOCOL | NESTED, &ports.concat()),
        ];
        let tcp = attribute(1 | NESTED, &attribute(1, &[state]));
        [
            attribute(ORIGINAL | NESTED, &original.concat()),
            attribute(STATUS, &status.to_be_bytes()),
            attribute(PROTOCOL_INFO | NESTED, &tcp),
        ]
        .concat()
    }

    #[test]
    fn open_connections_with_another_destination_are_read_as_they_were_dialled() {
        let v4 = [attribute(1, &[10, 0, 0, 9]), attribute(2, &[10, 0, 0, 1])];
        let expected = Tuple {
            src: Addr::v4([10, 0, 0, 9]),
            dst: Addr::v4([10, 0, 0, 1]),
            sport: 40_000_u16.to_be(),
            dport: 30_080_u16.to_be(),
            protocol: protocol::TCP,
            ..Tuple::EMPTY
        };
        assert_eq!(dialled(&message(0x2e, 3, &v4)), Some(expected));
        assert_eq!(dialled(&message(0x0e, 3, &v4)), None, "not translated");
        assert_eq!(dialled(&message(0x2e, 7, &v4)), None, "over");
        let v6 = [attribute(3, &[1; 16]), attribute(4, &[2; 16])];
        let read = dialled(&message(0x2e, 3, &v6)).unwrap();
        let v6 = |octet| Addr::from(Ipv6Addr::from([octet; 16]));
        assert_eq!((read.src, read.dst), (v6(1), v6(2)));
    }
}
