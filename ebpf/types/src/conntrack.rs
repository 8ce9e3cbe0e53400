//! Connection tracking: one entry a direction, by the packet as it arrives; the entries of both ways between two ends
//! are one element of the table.
//!
//! An entry says what the packet becomes (`to`). The partner's key needs no field: it
//! is `to` reversed, in both directions. That one rule covers DNAT, SNAT, hairpin and
//! masquerade alike, and it is what keeps a pair consistent.

use crate::{Addr, protocol};

/// A flow as a packet shows it. Ports in network byte order; an ICMP echo carries its
/// identifier as the port of the side that asked, and 0 on the other.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    pub sport: u16,
    pub dport: u16,
    pub protocol: u8,
    pub pad: [u8; 3],
}

impl Tuple {
    pub const EMPTY: Self = Self {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        sport: 0,
        dport: 0,
        protocol: 0,
        pad: [0; 3],
    };

    /// Which way between its [`ends`](Self::ends) a packet goes: 1, if it comes from the higher one.
    #[inline(always)]
    pub fn way(&self) -> usize {
        usize::from((self.dst.words, self.dport) < (self.src.words, self.sport))
    }

    /// The same for both directions: the lower end comes first.
    pub fn ends(&self) -> Self {
        if self.way() == 0 {
            *self
        } else {
            self.reversed()
        }
    }

    /// `self.reversed()`, without a copy in between.
    #[inline(always)]
    pub const fn reverse_into(&self, to: &mut Self) {
        to.src = self.dst;
        to.dst = self.src;
        to.sport = self.dport;
        to.dport = self.sport;
        to.protocol = self.protocol;
        to.pad = [0; 3];
    }

    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            protocol: self.protocol,
            pad: [0; 3],
        }
    }
}

/// What is known of the packets between two ends, either way: an element of the table of connections, whose key are
/// the [`Tuple::ends`]. Mostly both directions of one connection; where one is translated, the other way may be of
/// another connection, or of none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ways(pub [Connection; 2]);

impl Ways {
    pub fn is_empty(&self) -> bool {
        !self.0.iter().any(Connection::is_there)
    }

    /// What is there, by the packets as they arrive.
    pub fn entries(&self, ends: &Tuple) -> impl Iterator<Item = (Tuple, Connection)> + use<> {
        let [forth, back] = self.0;
        [(*ends, forth), (ends.reversed(), back)]
            .into_iter()
            .filter(|(_, entry)| entry.is_there())
    }
}

/// One direction of a tracked connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// What the packet becomes. Its reverse is the key of the other direction.
    pub to: Tuple,
    /// Bits of [`connection`].
    pub flags: u32,
    /// Seconds of CLOCK_MONOTONIC; each direction keeps its own. 0: there is none.
    pub last_seen: u32,
    /// 0 when no service is involved (masquerade, flows from outside to a pod).
    pub service: u32,
    /// 0 also for answers on behalf of another node, which knows it.
    pub backend: u32,
    /// Interface that packets of this direction must leave by; 0 lets the routes decide.
    /// Replies to an outside client carry an address of the node, which the host's
    /// routing would refuse as martian: they go out where the request came in.
    pub ifindex: u32,
    /// Seconds of CLOCK_MONOTONIC.
    pub created: u32,
    /// Revision of the policies under which this direction was last admitted; another one:
    /// the next packet is judged again.
    pub policy: u32,
}

impl Connection {
    /// That nothing is known.
    pub const NONE: Self = Self {
        to: Tuple::EMPTY,
        flags: 0,
        last_seen: 0,
        service: 0,
        backend: 0,
        ifindex: 0,
        created: 0,
        policy: 0,
    };

    #[inline(always)]
    pub const fn is_there(&self) -> bool {
        self.last_seen != 0
    }

    /// The key of the other direction's entry; `key` is this one's.
    #[inline(always)]
    pub const fn partner(&self, key: &Tuple) -> Tuple {
        self.partner_reversed(key).reversed()
    }

    /// The same the other way round, where it lies: a copy would be on the short stack of a program.
    #[inline(always)]
    pub const fn partner_reversed<'a>(&'a self, key: &'a Tuple) -> &'a Tuple {
        if self.flags & connection::ANSWERS_DIRECTLY != 0 {
            key
        } else {
            &self.to
        }
    }
}

/// What the programs keep in `CONNTRACK_QUEUE`: a connection that is to be looked at again.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queued {
    /// Of either direction.
    pub key: Tuple,
    /// When it was put there, in seconds of CLOCK_MONOTONIC.
    pub since: u32,
}

/// Bits of [`Connection::flags`].
pub mod connection {
    /// The direction that opened the connection.
    pub const ORIGINAL: u32 = 1 << 0;
    /// A packet came back: set on both directions.
    pub const REPLIED: u32 = 1 << 1;
    /// FIN seen in the original direction; set on both entries.
    pub const FIN_ORIGINAL: u32 = 1 << 2;
    /// FIN seen in the reply direction; set on both entries.
    pub const FIN_REPLY: u32 = 1 << 3;
    /// RST seen in the original direction; set on both entries. Taken back when that side goes on
    /// talking: the reset was somebody else's, or an earlier connection's.
    pub const RESET_ORIGINAL: u32 = 1 << 4;
    /// `to` equals the key: tracked, but not translated.
    pub const UNCHANGED: u32 = 1 << 5;
    /// Source replaced by an address of this node.
    pub const MASQUERADED: u32 = 1 << 6;

    /// The opener acknowledged the reply (TCP): from here on another SYN with the same
    /// ports is a new connection, not a retransmission. Set on the original entry.
    pub const CONFIRMED: u32 = 1 << 7;

    /// RST seen in the reply direction, likewise.
    pub const RESET_REPLY: u32 = 1 << 8;
    /// Sent on to a backend of another node with the client's own source: that node answers the
    /// client, and nothing of the answers is seen here. Set on both entries.
    pub const FORWARDED: u32 = 1 << 9;
    /// The reply direction of a connection that another node sent on here: the answers get the
    /// address that the client dialled there. The one entry whose partner is not `to` reversed,
    /// but its own key reversed.
    pub const ANSWERS_DIRECTLY: u32 = 1 << 10;

    /// Sent on from its middle: another node did so until now (a balancer's address that moved). What was
    /// dialled is said again, in case the backend's node has not heard of it.
    pub const ADOPTED: u32 = 1 << 11;

    /// Something of it came to a pod by way of the host's stack, which may have changed it there (rules of netfilter):
    /// what the pod sends has to go back that way. Set on both entries.
    pub const BY_STACK: u32 = 1 << 12;

    /// The other direction is between the same ends.
    pub const SAME_ENDS: u32 = UNCHANGED | ANSWERS_DIRECTLY;

    pub const FINS: u32 = FIN_ORIGINAL | FIN_REPLY;
    pub const RESETS: u32 = RESET_ORIGINAL | RESET_REPLY;

    /// The connection is over: the next SYN of the same ports opens a new one.
    #[inline(always)]
    pub const fn is_closed(flags: u32) -> bool {
        flags & RESETS != 0 || flags & FINS == FINS
    }

    /// It is over without doubt: either side has said so. One reset alone may have been forged.
    #[inline(always)]
    pub const fn is_finished(flags: u32) -> bool {
        flags & (FIN_ORIGINAL | RESET_ORIGINAL) != 0 && flags & (FIN_REPLY | RESET_REPLY) != 0
    }
}

/// Seconds after which answered datagrams are a stream, not a question and its answer (netfilter's rule).
const STREAM_AFTER: u32 = 2;

/// Seconds without a packet in either direction after which a pair is deleted; `flags` of
/// both directions together, `lasted` from its first packet to its last.
///
/// The values follow netfilter's defaults as kube-proxy sets them (established 24 h,
/// close-wait 1 h; UDP 30 s and, when it is a stream, 120 s), except that a closed
/// connection goes after 10 s: its entry only has to outlive the last ACK. One that a reset has
/// closed after it was established stays for a minute, in which the side that is said to have sent
/// the reset can prove by going on that it did not.
///
/// Of a connection that is forwarded only one direction is seen: its end is believed sooner.
pub const fn timeout_seconds(protocol: u8, flags: u32, lasted: u32) -> u32 {
    match protocol {
        protocol::TCP | protocol::SCTP => {
            let forwarded = flags & connection::FORWARDED != 0;
            let confirmed = flags & connection::CONFIRMED != 0;
            if connection::is_finished(flags) {
                10
            } else if connection::is_closed(flags) {
                if confirmed { 60 } else { 10 }
            } else if flags & connection::FINS != 0 {
                if forwarded { 60 } else { 3_600 }
            } else if forwarded && confirmed {
                10_800
            } else if flags & connection::CONFIRMED != 0 {
                86_400
            } else {
                60
            }
        }
        protocol::UDP if flags & connection::REPLIED != 0 && lasted > STREAM_AFTER => 120,
        _ => 30,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<Tuple>(), 40);
        assert_eq!(size_of::<Connection>(), 68);
        assert_eq!(size_of::<Ways>(), 136);
        assert_eq!(size_of::<Queued>(), 44);
    }

    #[test]
    fn reversing_twice_gives_the_same_tuple() {
        let tuple = Tuple {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([10, 96, 0, 1]),
            sport: 40_000_u16.to_be(),
            dport: 80_u16.to_be(),
            protocol: protocol::TCP,
            pad: [0; 3],
        };
        assert_eq!(tuple.reversed().reversed(), tuple);
        assert_eq!(tuple.reversed().src, tuple.dst);
    }

    #[test]
    fn both_ways_between_two_ends_have_one_key() {
        let low = Addr::v4([10, 0, 0, 1]);
        let [high, first] = [[10, 0, 1, 0], [11, 0, 0, 0]].map(Addr::v4);
        // Addresses are compared before ports, and a pod may talk to itself.
        for (one, other) in [
            ((low, 2), (high, 1)),
            ((low, 2), (first, 1)),
            ((high, 2), (first, 1)),
            ((low, 1), (low, 2)),
            (
                (
                    Addr {
                        words: [u32::MAX; 4],
                    },
                    7,
                ),
                (low, 7),
            ),
        ] {
            let there = Tuple {
                src: one.0,
                sport: one.1,
                dst: other.0,
                dport: other.1,
                ..Tuple::EMPTY
            };
            let back = there.reversed();
            assert_eq!(there.ends(), back.ends(), "{there:?}");
            assert_ne!(there.way(), back.way(), "{there:?}");
            let mut ways = Ways([Connection::NONE; 2]);
            assert!(ways.is_empty());
            let entry = Connection {
                last_seen: 1,
                ..Connection::NONE
            };
            for tuple in [there, back] {
                ways.0[tuple.way()] = Connection { to: tuple, ..entry };
            }
            for (tuple, entry) in ways.entries(&there.ends()) {
                assert_eq!(tuple, entry.to);
            }
            assert_eq!(ways.entries(&there.ends()).count(), 2);
        }
    }

    #[test]
    fn partners_find_each_other() {
        let address = |last| Addr::v4([10, 0, 0, last]);
        let (client, dialled, backend) = (address(1), address(2), address(3));
        let tuple = |src, dst| Tuple {
            src,
            dst,
            protocol: protocol::TCP,
            ..Tuple::EMPTY
        };
        let of = |to, flags| Connection {
            to,
            flags,
            last_seen: 0,
            service: 0,
            backend: 0,
            ifindex: 0,
            created: 0,
            policy: 0,
        };
        // Translated; and on the node that answers for another.
        let (asked, answer) = (tuple(client, dialled), tuple(backend, client));
        assert_eq!(of(answer.reversed(), 0).partner(&asked), answer);
        assert_eq!(of(asked.reversed(), 0).partner(&answer), asked);
        let arrived = answer.reversed();
        assert_eq!(of(arrived, 0).partner(&arrived), answer);
        let reply = of(asked.reversed(), connection::ANSWERS_DIRECTLY);
        assert_eq!(reply.partner(&answer), arrived);
    }

    #[test]
    fn a_connection_lives_as_long_as_its_state_allows() {
        use connection::*;
        let cases = [
            (protocol::TCP, ORIGINAL, 9, 60),
            (protocol::TCP, ORIGINAL | REPLIED, 9, 60),
            (protocol::TCP, ORIGINAL | REPLIED | CONFIRMED, 9, 86_400),
            (protocol::TCP, ORIGINAL | REPLIED | FIN_REPLY, 9, 3_600),
            (protocol::TCP, ORIGINAL | REPLIED | FINS, 9, 10),
            (protocol::TCP, ORIGINAL | RESET_ORIGINAL, 9, 10),
            (protocol::TCP, ORIGINAL | CONFIRMED | RESET_REPLY, 9, 60),
            (protocol::TCP, ORIGINAL | CONFIRMED | RESETS, 9, 10),
            (protocol::TCP, CONFIRMED | FIN_REPLY | RESET_ORIGINAL, 9, 10),
            (protocol::TCP, CONFIRMED | FIN_REPLY | RESET_REPLY, 9, 60),
            (protocol::TCP, ORIGINAL | FORWARDED | CONFIRMED, 9, 10_800),
            (
                protocol::TCP,
                ORIGINAL | FORWARDED | CONFIRMED | FIN_ORIGINAL,
                9,
                60,
            ),
            (protocol::UDP, ORIGINAL, 9, 30),
            (protocol::UDP, REPLIED, 1, 30),
            (protocol::UDP, REPLIED, 9, 120),
            (protocol::ICMP, ORIGINAL, 9, 30),
        ];
        for (proto, flags, lasted, expected) in cases {
            let timeout = timeout_seconds(proto, flags, lasted);
            assert_eq!(timeout, expected, "{proto} {flags:b} {lasted}");
        }
    }
}
