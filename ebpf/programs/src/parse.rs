//! From a frame to a [`Packet`]: what every hook needs to know, read once.
//!
//! The same for tc and XDP, by what both can do (see `context`).

use core::mem::MaybeUninit;

use aya_ebpf::{EbpfContext as _, programs::TcContext};
use windlass_ebpf_types::{Addr, Tuple, protocol};

use crate::{context::PacketContext, direct, fragment, scratch::scratch, sweep};

pub const ETH_LEN: u32 = 14;
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_ARP: u16 = 0x0806;

const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_OPTIONS: u8 = 60;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// A packet with a flow: TCP, UDP, SCTP, or an ICMP echo.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    pub tuple: Tuple,
    /// Offset of the transport header from the start of the frame.
    pub l4: u32,
    pub is_v4: bool,
    pub tcp_flags: u8,
    /// An ICMP echo's identifier is the source "port" of a request and the destination of
    /// a reply.
    pub is_icmp_reply: bool,
    /// An ICMP message about another packet, which it quotes.
    pub is_icmp_error: bool,
    /// The first of several fragments: the transport header is there, its packet is not.
    pub is_first_fragment: bool,
    /// Not the first: the ports in the tuple are the first one's, the packet has none.
    pub is_later_fragment: bool,
    /// Its connection is `BY_STACK`.
    pub goes_by_stack: bool,
    /// The time to live that it came with.
    pub hops: u8,
}

impl Packet {
    pub const EMPTY: Self = Self {
        tuple: Tuple::EMPTY,
        l4: 0,
        is_v4: false,
        tcp_flags: 0,
        is_icmp_reply: false,
        is_icmp_error: false,
        is_first_fragment: false,
        is_later_fragment: false,
        goes_by_stack: false,
        hops: 0,
    };

    /// One of which nothing is known yet. Word by word: what the compiler makes of [`Self::EMPTY`] is a call that
    /// writes octet by octet.
    #[inline(always)]
    pub fn clear(place: &mut MaybeUninit<Self>) -> &mut Self {
        let words: *mut u32 = place.as_mut_ptr().cast();
        let mut word = 0;
        while word < WORDS {
            // SAFETY: within the packet; volatile, or it would become that call.
            unsafe { core::ptr::write_volatile(words.add(word), 0) };
            word += 1;
        }
        // SAFETY: all of it was written, and zeros are a packet.
        unsafe { place.assume_init_mut() }
    }

    /// Whether there is nothing special about it: no options, no part of a larger packet, and not the first one of a
    /// TCP connection.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        let head = ETH_LEN + if self.is_v4 { 20 } else { 40 };
        self.l4 == head
            && !self.is_first_fragment
            && !self.is_later_fragment
            && (self.tuple.protocol != protocol::TCP || !self.opens_connection())
    }

    /// The first packet of a TCP connection, or any packet of a protocol without one.
    #[inline(always)]
    pub fn opens_connection(&self) -> bool {
        !self.is_later_fragment
            && (self.tuple.protocol != protocol::TCP
                || self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN)
    }
}

const WORDS: usize = size_of::<Packet>() / size_of::<u32>();
const _: () = assert!(size_of::<Packet>() == WORDS * size_of::<u32>());

pub enum Kind {
    Flow,
    Arp,
    /// A later fragment whose first one was not seen: its addresses are in the tuple.
    Fragment,
    /// IP with a protocol that has no ports; addresses are in the tuple.
    Portless,
    /// Not IP, or nothing that this datapath looks into.
    Other,
    Malformed,
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    ctx.interface()
}

#[inline(always)]
pub fn parse<C: PacketContext>(ctx: &C, packet: &mut Packet) -> Kind {
    sweep::settle();
    let kind = match ctx.ethertype() {
        ETH_P_IP => parse_v4(ctx, packet),
        ETH_P_IPV6 => parse_v6(ctx, packet),
        ETH_P_ARP => return Kind::Arp,
        _ => return Kind::Other,
    };
    if C::LONG {
        forget(packet);
    }
    kind
}

/// Makes the verifier forget what it knows about the packet. It would walk all that follows
/// once for every way through the parser (two families, three kinds of fragments, five
/// transports), although none of them makes a difference to what is safe. What comes out of
/// a map it knows nothing about.
#[inline(always)]
fn forget(packet: &mut Packet) {
    let Some(scratch) = scratch() else { return };
    let packet: *mut u32 = (&raw mut *packet).cast();
    let copy: *mut u32 = (&raw mut scratch.packet).cast();
    // Word by word: a copy of the whole would be on the stack in between, which is short.
    let mut word = 0;
    while word < WORDS {
        // SAFETY: within either packet, whose size is a multiple of a word; volatile, or
        // there would be no copy.
        unsafe {
            core::ptr::write_volatile(copy.add(word), *packet.add(word));
            *packet.add(word) = core::ptr::read_volatile(copy.add(word));
        }
        word += 1;
    }
}

#[inline(always)]
fn parse_v4<C: PacketContext>(ctx: &C, packet: &mut Packet) -> Kind {
    // Five words of the fixed header, network byte order.
    let Some(header) = ctx.read::<[u32; 5]>(ETH_LEN as usize) else {
        return Kind::Malformed;
    };
    let first = header[0].to_le() as u8;
    let header_len = u32::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < 20 {
        return Kind::Malformed;
    }
    packet.is_v4 = true;
    packet.hops = header[2].to_le() as u8;
    packet.l4 = ETH_LEN + header_len;
    packet.tuple.src = Addr::from_v4_be(header[3]);
    packet.tuple.dst = Addr::from_v4_be(header[4]);
    let protocol = (u32::from_be(header[2]) >> 16) as u8;
    let fragment = u32::from_be(header[1]);
    let (offset, more) = (fragment & 0x1fff, fragment & 0x2000 != 0);
    if offset == 0 && !more {
        return parse_transport(ctx, packet, protocol);
    }
    parse_fragment(ctx, packet, protocol, offset, fragment >> 16)
}

/// Only the first fragment carries ports.
#[inline(always)]
fn parse_fragment<C: PacketContext>(
    ctx: &C,
    packet: &mut Packet,
    protocol: u8,
    offset: u32,
    id: u32,
) -> Kind {
    if offset == 0 {
        packet.is_first_fragment = true;
        let kind = parse_transport(ctx, packet, protocol);
        if matches!(kind, Kind::Flow) {
            fragment::remember(&packet.tuple, id);
        }
        return kind;
    }
    packet.tuple.protocol = protocol;
    if fragment::recall(&mut packet.tuple, id) == 0 {
        return Kind::Fragment;
    }
    packet.is_later_fragment = true;
    Kind::Flow
}

#[inline(always)]
fn parse_v6<C: PacketContext>(ctx: &C, packet: &mut Packet) -> Kind {
    let Some(header) = ctx.read::<[u32; 10]>(ETH_LEN as usize) else {
        return Kind::Malformed;
    };
    if u32::from_be(header[0]) >> 28 != 6 {
        return Kind::Malformed;
    }
    packet.is_v4 = false;
    packet.hops = u32::from_be(header[1]) as u8;
    packet.l4 = ETH_LEN + 40;
    packet.tuple.src = Addr {
        words: [header[2], header[3], header[4], header[5]],
    };
    packet.tuple.dst = Addr {
        words: [header[6], header[7], header[8], header[9]],
    };
    // Of the extension headers only fragments' and our own option are walked: a packet with another
    // has no ports for us.
    let next = (u32::from_be(header[1]) >> 8) as u8;
    if next == IPPROTO_OPTIONS {
        return parse_options(ctx, packet);
    }
    if next != IPPROTO_FRAGMENT {
        return parse_transport(ctx, packet, next);
    }
    let Some(header) = ctx.read::<[u32; 2]>(packet.l4 as usize) else {
        return Kind::Malformed;
    };
    packet.l4 += 8;
    let first = u32::from_be(header[0]);
    let (next, offset, more) = ((first >> 24) as u8, first & 0xfff8, first & 1 != 0);
    if offset == 0 && !more {
        // An "atomic" fragment is a whole packet.
        return parse_transport(ctx, packet, next);
    }
    parse_fragment(ctx, packet, next, offset, header[1])
}

/// The one option that nodes of this cluster send each other is walked over.
#[inline(always)]
fn parse_options<C: PacketContext>(ctx: &C, packet: &mut Packet) -> Kind {
    let Some(head) = ctx.read::<u32>(packet.l4 as usize) else {
        return Kind::Malformed;
    };
    let head = u32::from_be(head);
    if head & 0x00ff_ffff != direct::OPTION_V6 {
        return parse_transport(ctx, packet, IPPROTO_OPTIONS);
    }
    packet.l4 += direct::ROOM_V6;
    parse_transport(ctx, packet, (head >> 24) as u8)
}

#[inline(always)]
fn parse_transport<C: PacketContext>(ctx: &C, packet: &mut Packet, protocol: u8) -> Kind {
    packet.tuple.protocol = protocol;
    let at = packet.l4 as usize;
    match protocol {
        protocol::TCP => {
            let Some(words) = ctx.read::<[u32; 5]>(at) else {
                return Kind::Malformed;
            };
            set_ports(packet, words[0]);
            packet.tcp_flags = (u32::from_be(words[3]) >> 16) as u8;
            Kind::Flow
        }
        protocol::UDP | protocol::SCTP => {
            let Some(ports) = ctx.read::<u32>(at) else {
                return Kind::Malformed;
            };
            set_ports(packet, ports);
            Kind::Flow
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let Some(words) = ctx.read::<[u32; 2]>(at) else {
                return Kind::Malformed;
            };
            let kind = words[0].to_le() as u8;
            let identifier = words[1].to_le() as u16;
            let (request, reply) = if protocol == protocol::ICMP {
                (8, 0)
            } else {
                (128, 129)
            };
            if kind == request {
                packet.tuple.sport = identifier;
                packet.tuple.dport = 0;
                packet.is_icmp_reply = false;
                Kind::Flow
            } else if kind == reply {
                packet.tuple.sport = 0;
                packet.tuple.dport = identifier;
                packet.is_icmp_reply = true;
                Kind::Flow
            } else {
                // Unreachable, too big, time exceeded, parameter problem.
                packet.is_icmp_error = if protocol == protocol::ICMP {
                    matches!(kind, 3 | 11 | 12)
                } else {
                    matches!(kind, 1..=4)
                };
                Kind::Portless
            }
        }
        _ => Kind::Portless,
    }
}

/// The two ports stand first in TCP, UDP and SCTP alike.
#[inline(always)]
fn set_ports(packet: &mut Packet, word: u32) {
    let word = word.to_le();
    packet.tuple.sport = word as u16;
    packet.tuple.dport = (word >> 16) as u16;
}

/// `bpf_skb_load_bytes` of a fixed-size array into memory that the caller owns.
#[inline(always)]
pub fn load_into<const N: usize>(ctx: &TcContext, offset: u32, to: &mut [u8; N]) -> bool {
    // SAFETY: `to` is valid for N bytes.
    unsafe {
        aya_ebpf::helpers::bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            offset,
            to.as_mut_ptr().cast(),
            N as u32,
        ) == 0
    }
}
