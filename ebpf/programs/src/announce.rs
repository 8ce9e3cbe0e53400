//! Answers for addresses that no interface has: those of balancers which this node was
//! elected to stand for. A neighbour that asks by ARP or neighbour discovery gets the
//! uplink's Ethernet address, while the agent is away too.

use aya_ebpf::{helpers::bpf_redirect, programs::TcContext};
use windlass_ebpf_types::{Addr, Announced, AnnouncedKey, Direction, Reason, protocol};

use crate::{
    arp,
    deliver::{DROP, NEXT},
    events::count,
    frame::{blank, checksum, put16, put32, replace},
    maps::{ANNOUNCED, ENDPOINTS},
    parse::{ETH_LEN, ETH_P_IPV6, ifindex, load_into},
};

const ETH: usize = ETH_LEN as usize;
/// Type, code, checksum, flags and target of a solicitation or an advertisement.
const MESSAGE: usize = 24;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Flags of an advertisement: it was asked for; it replaces what the asker has.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Option "target link-layer address", in units of eight octets.
const TARGET_ADDRESS: [u8; 2] = [2, 1];

#[inline(always)]
fn announced(ctx: &TcContext, addr: &Addr) -> Option<&'static Announced> {
    let key = AnnouncedKey {
        addr: *addr,
        ifindex: ifindex(ctx),
    };
    // SAFETY: an element is readable memory for as long as the program runs.
    unsafe { ANNOUNCED.get(&key) }
}

/// Whether this node stands for an address on the interface that the packet came in by.
#[inline(never)]
pub fn is_announced(ctx: &TcContext, addr: &Addr) -> bool {
    announced(ctx, addr).is_some()
}

/// Answers a request for one of the addresses; everything else goes on.
#[inline(never)]
pub fn answer_arp(ctx: &TcContext) -> i32 {
    let mut frame = [0u8; arp::FRAME];
    if !load_into(ctx, 0, &mut frame) {
        return NEXT;
    }
    let is_request = frame[20] == 0 && frame[21] == 1;
    let target = Addr::v4([frame[38], frame[39], frame[40], frame[41]]);
    let sender = Addr::v4([frame[28], frame[29], frame[30], frame[31]]);
    // One that asks for its own address tells rather than asks.
    if !is_request || sender == target {
        return NEXT;
    }
    let Some(held) = announced(ctx, &target) else {
        return NEXT;
    };
    arp::answer(ctx, &mut frame, &held.mac, Direction::FromUplink)
}

/// The same for IPv6 (RFC 4861, 7.2.4); `of_pod`: what a pod asks for is another one (see `arp`).
#[inline(never)]
pub fn answer_solicitation(ctx: &TcContext, of_pod: bool) -> i32 {
    let mut asked = [0u8; ETH + 40 + MESSAGE];
    if !load_into(ctx, 0, &mut asked) {
        return NEXT;
    }
    // The hop limit proves that it comes from a neighbour.
    if asked[ETH + 40] != SOLICITATION || asked[ETH + 7] != 255 {
        return NEXT;
    }
    let target = address(&asked, ETH + 48);
    let sender = address(&asked, ETH + 8);
    let mac = if of_pod {
        // SAFETY: an element is readable memory for as long as the program runs.
        match unsafe { ENDPOINTS.get(&sender) } {
            Some(endpoint) if arp::is_pod(&target) => *endpoint.host_mac(),
            _ => return NEXT,
        }
    } else {
        match announced(ctx, &target) {
            Some(held) => held.mac,
            None => return NEXT,
        }
    };
    let Some(out) = blank() else { return NEXT };
    // Duplicate address detection has no address to be answered at: all nodes are told.
    let (to, flags) = if sender == Addr::UNSPECIFIED {
        let all_nodes = [0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()];
        put16(out, 0, 0x3333_u16.to_be());
        put32(out, 2, 1_u32.to_be());
        (Addr { words: all_nodes }, OVERRIDE)
    } else {
        let mut i = 0;
        while i < 6 {
            out[i] = asked[6 + i];
            i += 1;
        }
        (sender, SOLICITED | OVERRIDE)
    };
    let mut i = 0;
    while i < 6 {
        out[6 + i] = mac[i];
        out[ETH + 66 + i] = mac[i];
        i += 1;
    }
    put16(out, 12, ETH_P_IPV6.to_be());
    out[ETH] = 0x60;
    out[ETH + 5] = MESSAGE as u8 + 8;
    // For the checksum: what the pseudo header says in place of hop limit and next header.
    out[ETH + 7] = protocol::ICMPV6;
    let mut i = 0;
    while i < 4 {
        put32(out, ETH + 8 + i * 4, target.words[i]);
        put32(out, ETH + 24 + i * 4, to.words[i]);
        put32(out, ETH + 48 + i * 4, target.words[i]);
        i += 1;
    }
    out[ETH + 40] = ADVERTISEMENT;
    out[ETH + 44] = flags;
    out[ETH + 64] = TARGET_ADDRESS[0];
    out[ETH + 65] = TARGET_ADDRESS[1];
    let sum = checksum(out, ETH + 4, 36 + MESSAGE as u32 + 8, 0);
    put16(out, ETH + 42, sum);
    out[ETH + 6] = protocol::ICMPV6;
    out[ETH + 7] = 255;
    if replace(ctx, out, ETH + 40 + MESSAGE + 8) == 0 {
        count(Reason::DroppedError, Direction::FromUplink, ctx.len());
        return DROP;
    }
    // SAFETY: no precondition.
    unsafe { bpf_redirect(ifindex(ctx), 0) as i32 }
}

#[inline(always)]
fn address<const N: usize>(frame: &[u8; N], at: usize) -> Addr {
    let mut words = [0; 4];
    let mut i = 0;
    while i < 4 {
        let from = at + i * 4;
        words[i] = u32::from_ne_bytes([
            frame[from],
            frame[from + 1],
            frame[from + 2],
            frame[from + 3],
        ]);
        i += 1;
    }
    Addr { words }
}
