//! The time to live. What goes on past the host's stack grows older, as it would there: once on each node, so that
//! nothing goes round for ever, and whoever asks for the way (traceroute) is told of this node. What is translated
//! gets its new one with its addresses (`nat::rewrite`).

use crate::{
    context::PacketContext,
    parse::{ETH_LEN, Packet},
};

/// Offsets in the IPv4 header, and of the hop limit in the IPv6 header.
const TTL: u32 = 8;
const CHECKSUM: u32 = 10;
const HOP_LIMIT: u32 = 7;

/// Takes one from the time to live. `false`: it was the last, and the sender has to be told.
#[inline(always)]
pub fn grow_older<C: PacketContext>(ctx: &C, packet: &Packet) -> bool {
    if packet.hops <= 1 {
        return false;
    }
    if !packet.is_v4 {
        return ctx.write_unsummed((ETH_LEN + HOP_LIMIT) as usize, &(packet.hops - 1));
    }
    let at = (ETH_LEN + TTL) as usize;
    // Time to live, protocol, and the header's checksum.
    let Some([ttl, protocol, high, low]) = ctx.read::<[u8; 4]>(at) else {
        return false;
    };
    // RFC 1624: a word that is 0x0100 less makes its sum as much more, with the carry brought around.
    let sum = u32::from(high) << 8 | u32::from(low);
    let sum = sum + 0x0100;
    let sum = (sum + (sum >> 16)) & 0xffff;
    const { assert!(CHECKSUM == TTL + 2) };
    let older = [ttl.wrapping_sub(1), protocol, (sum >> 8) as u8, sum as u8];
    ctx.write(at, &older)
}
