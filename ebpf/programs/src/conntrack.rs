//! Connection tracking of our own, in a plain hash map: an LRU would evict live flows
//! without a word. Entries come in pairs (see `windlass_ebpf_types::Connection`), end by
//! TCP flags and time (see `sweep`), by their backend or by the collector in user space, and a SYN that
//! reuses the ports of an old connection replaces it at once, so that no stale pair can hang it.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use windlass_ebpf_types::{
    Addr, Connection, Reason, Tuple, Ways, connection, protocol, timeout_seconds,
};

use crate::{
    balance,
    events::{closed, opened},
    lb,
    maps::{ENDPOINTS, HALF_OPEN, NODE_CONFIG},
    parse::{Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    scratch::{Scratch, scratch},
    sweep, table,
};

/// How many source ports are tried before a connection is refused.
const PORT_ATTEMPTS: u32 = 16;

/// Seconds of CLOCK_MONOTONIC, which user space reads as well.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no precondition.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

/// The live entry of a packet, refreshed. `None` also when there was one whose time is
/// over for this packet; it is gone then, and the packet may open a new connection. What the last packet of a
/// connection finds is gone as well: a copy is left for it.
#[inline(never)]
pub fn hit(packet: &Packet) -> Option<&'static mut Connection> {
    let ways = table::find(&packet.tuple)?;
    let entry = table::of(ways, table::way());
    let flags = entry.flags;
    if !keep(packet, ways) {
        return None;
    }
    if is_last(packet, entry, flags) {
        return forget(packet, ways);
    }
    Some(entry)
}

/// Whether nothing is to come of a connection behind this packet, which met it with `flags`: a reset when the other side
/// has ended it as well, or what acknowledges the second FIN. That may yet be an acknowledgement of what came before the
/// FIN, with the last one behind it, which passes without an entry where nothing is translated: it is believed there only.
#[inline(always)]
fn is_last(packet: &Packet, entry: &Connection, flags: u32) -> bool {
    const ALL: u8 = TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK;
    if packet.tcp_flags & TCP_RST != 0 {
        return connection::is_finished(entry.flags);
    }
    packet.tcp_flags & ALL == TCP_ACK
        && flags & connection::FINS == connection::FINS
        && flags & connection::UNCHANGED != 0
}

/// Removes a pair whose last packet this is, while both are at hand; they would only wait for the collector, and who opens
/// many connections would find a table full of such.
#[inline(always)]
fn forget(packet: &Packet, ways: &mut Ways) -> Option<&'static mut Connection> {
    let scratch = scratch()?;
    scratch.entry = *table::of(ways, table::way());
    scratch.is_pending = 0;
    table::remove_pair(&packet.tuple, ways);
    Some(&mut scratch.entry)
}

/// Refreshes the entry that was found for a packet, or removes one whose time is over for it.
#[inline(always)]
pub fn keep(packet: &Packet, ways: &mut Ways) -> bool {
    let entry = table::of(ways, table::way());
    let flags = entry.flags;
    if is_outlived(packet, entry, flags) {
        table::remove_pair(&packet.tuple, ways);
        return false;
    }
    refresh(packet, ways, flags);
    true
}

/// Whether this packet cannot belong to the connection that its tuple names.
#[inline(always)]
fn is_outlived(packet: &Packet, entry: *const Connection, flags: u32) -> bool {
    // SAFETY: the caller's entry.
    let (service, backend) = unsafe { ((*entry).service, (*entry).backend) };
    let original = flags & connection::ORIGINAL != 0;
    if packet.tuple.protocol == protocol::TCP {
        if packet.tcp_flags & (TCP_SYN | TCP_ACK) != TCP_SYN {
            return false;
        }
        if connection::is_closed(flags) || flags & connection::CONFIRMED != 0 {
            return true;
        }
    }
    // A first packet again, or a datagram: its backend may have gone meanwhile.
    original && service != 0 && !lb::is_member(service, backend, false)
}

/// A function of its own: its many outcomes are one to those behind it.
#[inline(always)]
fn refresh(packet: &Packet, ways: &mut Ways, flags: u32) -> u32 {
    let way = table::way();
    let entry: *mut Connection = table::of(ways, way);
    let original = flags & connection::ORIGINAL != 0;
    let mut news = 0;
    if !original {
        news |= connection::REPLIED;
    }
    if packet.tcp_flags & TCP_FIN != 0 {
        news |= if original {
            connection::FIN_ORIGINAL
        } else {
            connection::FIN_REPLY
        };
    }
    let reset = if original {
        connection::RESET_ORIGINAL
    } else {
        connection::RESET_REPLY
    };
    if packet.tcp_flags & TCP_RST != 0 {
        news |= reset;
    }
    // SAFETY: the caller's entry; concurrent writers store the same bits, and a bit lost
    // to a race only makes the entry wait for its timeout.
    unsafe {
        let now = now();
        if (*entry).last_seen != now {
            (*entry).last_seen = now;
        }
        if original
            && flags & (connection::REPLIED | connection::CONFIRMED) == connection::REPLIED
            && packet.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_ACK
        {
            (*entry).flags |= connection::CONFIRMED;
            answered(&packet.tuple.src);
        }
        // Who goes on talking has not sent the reset that was seen.
        let wrong = flags & reset & !news;
        if wrong != 0 || news & !flags != 0 {
            (*entry).flags = (*entry).flags & !wrong | news;
            let closes = !connection::is_closed(flags) && connection::is_closed(flags | news);
            if closes {
                closed(&packet.tuple, &*entry);
                if (*entry).backend != 0 {
                    balance::end((*entry).service, (*entry).backend);
                }
            }
            // Of a connection that another node answers, no more of its end will be seen.
            if closes || (flags & connection::FORWARDED != 0 && news & connection::FINS != 0) {
                sweep::remember(&packet.tuple);
            }
            if news & !flags & connection::REPLIED != 0 && packet.tuple.protocol != protocol::TCP {
                answered(&(*entry).to.dst);
            }
            let partner = if flags & connection::SAME_ENDS != 0 {
                Some(table::of(ways, 1 - way))
            } else {
                scratch().and_then(|scratch| {
                    scratch.answer = (*entry).partner(&packet.tuple);
                    table::get(&scratch.answer)
                })
            };
            if let Some(partner) = partner {
                partner.flags = partner.flags & !wrong | news;
                let confirmed = (partner.flags | flags) & connection::CONFIRMED != 0;
                if closes && !confirmed {
                    // Refused: nobody waits for an answer any more.
                    answered(if original {
                        &packet.tuple.src
                    } else {
                        &(*entry).to.dst
                    });
                }
            }
        }
    }
    news
}

/// Notes that packets of this connection come to a pod by way of the host's stack.
#[inline(never)]
pub fn comes_by_stack(came: &Tuple) -> u32 {
    let Some(entry) = table::get(came) else {
        return 0;
    };
    // A bit that is lost to a race is set again by the next such packet.
    if entry.flags & connection::BY_STACK == 0 {
        entry.flags |= connection::BY_STACK;
        if let Some(scratch) = scratch() {
            scratch.answer = entry.partner(came);
            if let Some(partner) = table::get(&scratch.answer) {
                partner.flags |= connection::BY_STACK;
            }
        }
    }
    1
}

/// Makes the pair of `Scratch::entry`: packets of `key` become `entry.to`, and the answers
/// the reverse. When the answers could not be told from those of another live connection
/// (one client, two virtual addresses, one backend), or when the source is replaced, so is its
/// port; but for what is adopted, whose port the backend knows.
///
/// On success `Scratch::entry` is what the packet has to become.
#[inline(never)]
pub fn create(key: &Tuple, reply_ifindex: u32) -> u32 {
    let Some(scratch) = scratch() else {
        return CREATE_FULL;
    };
    if !may_open(&key.src) {
        return CREATE_OVER_QUOTA;
    }
    let code = insert(scratch, key, reply_ifindex);
    if code != CREATE_OK {
        answered(&key.src);
    }
    code
}

#[inline(always)]
fn insert(scratch: &mut Scratch, key: &Tuple, reply_ifindex: u32) -> u32 {
    scratch.holder = *key;
    if insert_whole(reply_ifindex) == 0 {
        match insert_each(scratch, key, reply_ifindex) {
            CREATE_OK => {}
            JOINED => return CREATE_OK,
            code => return code,
        }
    }
    sweep::remember(key);
    opened(key, &scratch.entry);
    CREATE_OK
}

/// Both directions at once, of what is not translated, if nothing is known between its ends: `Scratch::holder` is the key.
/// A global function to the kernel, verified once (see `crc32c`). 0: it could not be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn insert_whole(reply_ifindex: u32) -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    let flags = scratch.entry.flags;
    let key = &raw const scratch.holder;
    // SAFETY: nothing below writes there.
    let key = unsafe { &*key };
    if flags & connection::MASQUERADED != 0 || scratch.entry.to != *key {
        return 0;
    }
    describe(scratch, key, reply_ifindex);
    if table::put_pair(key, &scratch.entry, &scratch.reply) {
        return 1;
    }
    scratch.entry.flags = flags;
    0
}

/// Another CPU opened the same flow in this instant.
const JOINED: u32 = 4;

/// One direction after the other, of what is translated, or has a part of another connection between its ends.
#[inline(always)]
fn insert_each(scratch: &mut Scratch, key: &Tuple, reply_ifindex: u32) -> u32 {
    let own_port = scratch.entry.flags & connection::MASQUERADED == 0 && {
        scratch.entry.to.reverse_into(&mut scratch.answer);
        is_free(scratch, key)
    };
    if !own_port {
        if scratch.entry.flags & connection::ADOPTED != 0 {
            return CREATE_NO_PORT;
        }
        match pick_port(scratch) {
            PORT_FREE => {}
            // The other end may still remember a connection that is over: its port comes last.
            PORT_TAKEN if is_free(scratch, key) => {}
            _ => return CREATE_NO_PORT,
        }
    }
    describe(scratch, key, reply_ifindex);
    let mut code = table::put(&scratch.answer, &scratch.reply, 1);
    if code == table::FULL && sweep::make_room() != 0 {
        code = table::put(&scratch.answer, &scratch.reply, 1);
    }
    if code == table::FULL {
        return CREATE_FULL;
    }
    match table::put(key, &scratch.entry, 0) {
        table::PUT => CREATE_OK,
        table::HELD => {
            // The other's choice stands.
            if let Some(existing) = table::get(key)
                && existing.to != scratch.entry.to
            {
                table::remove(&scratch.answer);
                scratch.entry = *existing;
            }
            JOINED
        }
        _ => {
            table::remove(&scratch.answer);
            CREATE_FULL
        }
    }
}

/// The rest of both directions, when it is known what packets of `key` become.
#[inline(always)]
fn describe(scratch: &mut Scratch, key: &Tuple, reply_ifindex: u32) {
    let now = now();
    let entry = &mut scratch.entry;
    entry.created = now;
    entry.last_seen = now;
    entry.flags |= connection::ORIGINAL;
    if entry.to == *key {
        entry.flags |= connection::UNCHANGED;
    }
    key.reverse_into(&mut scratch.reply.to);
    scratch.reply.flags = entry.flags & !connection::ORIGINAL;
    scratch.reply.last_seen = now;
    scratch.reply.service = entry.service;
    scratch.reply.backend = entry.backend;
    scratch.reply.ifindex = reply_ifindex;
    scratch.reply.created = now;
    scratch.reply.policy = entry.policy;
}

/// Results of [`create`]: a plain number, since it is a function of its own to the verifier.
pub const CREATE_OK: u32 = 0;
pub const CREATE_FULL: u32 = 1;
pub const CREATE_NO_PORT: u32 = 2;
pub const CREATE_OVER_QUOTA: u32 = 3;

/// The reason to count for a failed [`create`].
#[inline(always)]
pub fn failure(code: u32) -> Reason {
    match code {
        CREATE_NO_PORT => Reason::DroppedPortsExhausted,
        CREATE_OVER_QUOTA => Reason::DroppedHalfOpenQuota,
        _ => Reason::DroppedConntrackFull,
    }
}

/// Takes a connection into the count of what its opener waits for answers to. `false`: it
/// has too many such already; those of others must find room.
#[inline(never)]
fn may_open(client: &Addr) -> bool {
    let (opener, is_pod) = opener(client);
    let Some(config) = NODE_CONFIG.get(0) else {
        return true;
    };
    let quota = if is_pod {
        config.half_open_pod
    } else {
        config.half_open_outside
    };
    match HALF_OPEN.get_ptr_mut(&opener) {
        // SAFETY: an element is readable memory for as long as the program runs; CPUs may
        // lose each other's counts, which user space puts right.
        Some(count) => unsafe {
            if *count >= quota {
                return false;
            }
            *count += 1;
        },
        None => {
            let _ = HALF_OPEN.insert(&opener, &1, 0);
        }
    }
    true
}

/// The opener waits for one answer less.
#[inline(never)]
pub fn answered(client: &Addr) {
    let (opener, _) = opener(client);
    if let Some(count) = HALF_OPEN.get_ptr_mut(&opener) {
        // SAFETY: as in `may_open`.
        unsafe {
            if *count > 0 {
                *count -= 1;
            }
        }
    }
}

/// Every pod is counted by itself, and everyone else together.
#[inline(always)]
fn opener(client: &Addr) -> (Addr, bool) {
    // SAFETY: only whether it is there matters.
    if unsafe { ENDPOINTS.get(client) }.is_some() {
        (*client, true)
    } else {
        (Addr::UNSPECIFIED, false)
    }
}

// What `pick_port` returns.
const PORT_FREE: u32 = 0;
/// None of those that were tried is; the last one is in `Scratch::entry`.
const PORT_TAKEN: u32 = 1;
const PORT_NONE: u32 = 2;

/// Picks a source port whose answers are not taken, out of the range that no socket of
/// the host uses. For an ICMP echo the identifier plays the port.
#[inline(never)]
fn pick_port(scratch: &mut Scratch) -> u32 {
    let Some(config) = NODE_CONFIG.get(0) else {
        return PORT_NONE;
    };
    let (min, max) = (
        u32::from(config.snat_port_min),
        u32::from(config.snat_port_max),
    );
    if min == 0 || max < min {
        return PORT_NONE;
    }
    let span = max - min + 1;
    for _ in 0..PORT_ATTEMPTS {
        // SAFETY: no precondition.
        let random = unsafe { bpf_get_prandom_u32() };
        let port = min + ((u64::from(random) * u64::from(span)) >> 32) as u32;
        scratch.entry.to.sport = (port as u16).to_be();
        scratch.entry.to.reverse_into(&mut scratch.answer);
        if table::get(&scratch.answer).is_none() {
            return PORT_FREE;
        }
    }
    PORT_TAKEN
}

/// Whether answers with the tuple `Scratch::answer` belong to nobody, or to a connection
/// that is over (which is removed), or to the one that `owner` opened itself.
#[inline(never)]
pub fn is_free(scratch: &mut Scratch, owner: &Tuple) -> bool {
    let Some(held) = table::get(&scratch.answer) else {
        return true;
    };
    let mut flags = held.flags;
    let (created, mut last_seen) = (held.created, held.last_seen);
    held.partner_reversed(&scratch.answer)
        .reverse_into(&mut scratch.holder);
    if scratch.holder == *owner {
        return true;
    }
    match table::get(&scratch.holder) {
        Some(original) => {
            flags |= original.flags;
            if original.last_seen > last_seen {
                last_seen = original.last_seen;
            }
        }
        None => flags |= connection::FINS,
    }
    let lasted = last_seen.saturating_sub(created);
    let over = connection::is_finished(flags)
        || now().saturating_sub(last_seen) > timeout_seconds(owner.protocol, flags, lasted);
    if over {
        table::remove(&scratch.holder);
        table::remove(&scratch.answer);
    }
    over
}
