//! What a program tells the outside about a packet: a counter by reason and hook, always; and
//! while somebody listens, an event for each connection and each drop.
//!
//! Events are told where a flow begins, ends or is dropped, never for a packet that goes its
//! way, so that nobody pays for what nobody reads. A CPU tells so many a second and no more: a
//! flood of drops must not become a flood of events.

use aya_ebpf::{
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray, RingBuf},
    programs::TcContext,
};
use windlass_ebpf_types::{
    Connection, Counter, Direction, FlowBudget, FlowConfig, FlowEvent, Reason, Tuple, flow_kind,
    metric_index,
};

use crate::{conntrack::now, maps::METRICS, parse::Packet, scratch::scratch};

/// Not pinned: who listens is a matter of the agent that runs.
#[map]
static FLOW_CONFIG: Array<FlowConfig> = Array::with_max_entries(1, 0);
#[map]
static FLOW_BUDGET: PerCpuArray<FlowBudget> = PerCpuArray::with_max_entries(1, 0);
#[map]
static FLOW_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What was dropped for policy's sake, or would have been: by who decided it (high half) and the reason. Not pinned: a
/// counter may begin anew with the agent. Policies come and go: those that dropped something last are kept.
#[map]
static POLICY_DROPS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4_096, 0);

/// The hook is not known where it is told.
const ANYWHERE: u8 = 255;

#[inline(always)]
pub fn count(reason: Reason, direction: Direction, bytes: u32) {
    if let Some(counter) = METRICS.get_ptr_mut(metric_index(reason, direction)) {
        let counter: *mut Counter = counter;
        // SAFETY: the element belongs to this CPU, and the program cannot migrate.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

/// A packet goes no further, or is answered with a refusal.
#[inline(always)]
pub fn dropped(ctx: &TcContext, packet: &Packet, reason: Reason, direction: Direction) {
    count(reason, direction, ctx.len());
    let what = What::new(flow_kind::DROP, direction as u8).because(reason);
    tell_of_one(what.0, &packet.tuple, ctx.len());
}

/// A function of its own, so that what it decides leaves no trace in the states that the
/// verifier has to follow behind it.
#[inline(never)]
fn tell_of_one(what: u32, tuple: &Tuple, bytes: u32) -> u32 {
    let reason = (what >> 8) as u8;
    if is_for_policy(reason) {
        blame(reason);
    }
    if is_heard() {
        tell(what, tuple, tuple, 0, bytes)
    } else {
        0
    }
}

#[inline(always)]
fn is_for_policy(reason: u8) -> bool {
    (Reason::PolicyDeniedIngress as u8..=Reason::PolicyAudited as u8).contains(&reason)
}

/// Counts for who decided.
#[inline(always)]
fn blame(reason: u8) {
    let Some(scratch) = scratch() else { return };
    let key = u64::from(scratch.rule) << 32 | u64::from(reason);
    match POLICY_DROPS.get_ptr_mut(&key) {
        Some(count) => {
            // SAFETY: an element is memory for as long as the program runs. Two CPUs at it in the same instant may
            // count one packet: there is no atomic addition in the instruction set that aya's target names.
            unsafe { *count += 1 };
        }
        None => {
            // Two CPUs at the first one at the same time: one packet is not counted.
            let _ = POLICY_DROPS.insert(&key, &1, 0);
        }
    }
}

/// A packet passes that a policy under audit would have dropped.
#[inline(always)]
pub fn audited(tuple: &Tuple, direction: Direction) {
    count(Reason::PolicyAudited, direction, 0);
    let what = What::new(flow_kind::AUDIT, direction as u8).because(Reason::PolicyAudited);
    tell_of_one(what.0, tuple, 0);
}

/// A connection begins: packets of `key` become `entry.to`.
#[inline(always)]
pub fn opened(key: &Tuple, entry: &Connection) {
    tell_of_pair(What::new(flow_kind::OPEN, ANYWHERE).0, key, entry);
}

/// A connection is over; `key` and `entry` are of the direction of its last packet.
#[inline(always)]
pub fn closed(key: &Tuple, entry: &Connection) {
    tell_of_pair(What::new(flow_kind::CLOSE, ANYWHERE).0, key, entry);
}

#[inline(never)]
fn tell_of_pair(what: u32, key: &Tuple, entry: &Connection) -> u32 {
    if !is_heard() || !is_sampled() {
        return 0;
    }
    let about = u64::from(entry.flags) << 32 | u64::from(entry.service);
    tell(what, key, &entry.to, about, 0)
}

/// A local socket dials a Service, and is given a backend, or refused.
#[inline(always)]
pub fn dialled(dialled: &Tuple, to: &Tuple, service: u32, refusal: Option<Reason>) {
    if !is_heard() {
        return;
    }
    let what = match refusal {
        Some(reason) => What::new(flow_kind::DROP, Direction::Socket as u8).because(reason),
        None if is_sampled() => What::new(flow_kind::CONNECT, Direction::Socket as u8),
        None => return,
    };
    tell(what.0, dialled, to, u64::from(service), 0);
}

#[inline(always)]
pub fn is_heard() -> bool {
    FLOW_CONFIG.get(0).is_some_and(|config| config.enabled != 0)
}

#[inline(always)]
fn is_sampled() -> bool {
    let sample = FLOW_CONFIG.get(0).map_or(1, |config| config.sample);
    // SAFETY: no precondition.
    sample <= 1 || unsafe { bpf_get_prandom_u32() } % sample == 0
}

/// Kind, reason and direction in one number: [`tell`] has five arguments at most.
#[derive(Clone, Copy)]
struct What(u32);

impl What {
    #[inline(always)]
    fn new(kind: u8, direction: u8) -> Self {
        Self(u32::from(kind) | u32::from(direction) << 16)
    }

    #[inline(always)]
    fn because(self, reason: Reason) -> Self {
        Self(self.0 | (reason as u32) << 8)
    }
}

/// Writes the event straight into the ring. A function of its own to the verifier; `about` is
/// the Service, and above it the connection's flags.
#[inline(never)]
fn tell(what: u32, tuple: &Tuple, to: &Tuple, about: u64, bytes: u32) -> u32 {
    let Some(lost) = afford() else { return 0 };
    let Some(mut place) = FLOW_EVENTS.reserve::<FlowEvent>(0) else {
        missed(lost + 1);
        return 0;
    };
    let reason = (what >> 8) as u8;
    let rule = match scratch() {
        Some(scratch) if is_for_policy(reason) => scratch.rule,
        _ => 0,
    };
    place.write(FlowEvent {
        // SAFETY: no precondition.
        time: unsafe { bpf_ktime_get_ns() },
        tuple: *tuple,
        to: *to,
        service: about as u32,
        rule,
        bytes,
        lost,
        flags: (about >> 32) as u32,
        kind: what as u8,
        reason,
        direction: (what >> 16) as u8,
        pad: 0,
    });
    place.submit(0);
    1
}

/// Takes one event out of this CPU's second; returns how many were lost before it.
#[inline(always)]
fn afford() -> Option<u32> {
    let limit = FLOW_CONFIG.get(0)?.per_second;
    let budget = FLOW_BUDGET.get_ptr_mut(0)?;
    let now = now();
    // SAFETY: the element belongs to this CPU, and the program cannot migrate.
    unsafe {
        if (*budget).second != now {
            (*budget).second = now;
            (*budget).used = 0;
        }
        if (*budget).used >= limit {
            (*budget).lost += 1;
            return None;
        }
        (*budget).used += 1;
        let lost = (*budget).lost;
        (*budget).lost = 0;
        Some(lost)
    }
}

#[inline(always)]
fn missed(lost: u32) {
    if let Some(budget) = FLOW_BUDGET.get_ptr_mut(0) {
        // SAFETY: as in `afford`.
        unsafe { (*budget).lost += lost };
    }
}
