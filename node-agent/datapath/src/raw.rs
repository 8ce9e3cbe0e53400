//! `aya::Pod` for the shared types.
//!
//! Both the trait and the types are foreign here, hence the transparent wrapper; it never
//! leaves this crate.
#![allow(unsafe_code, reason = "Pod is an unsafe marker trait")]

use aya::Pod;
use windlass_ebpf_types::{
    Addr, AffinityKey, AffinityValue, Announced, AnnouncedKey, BackendValue, Counter, Endpoint,
    FlowConfig, MemberKey, NetNamespace, NodeConfig, Overlay, PolicyDecision, PolicyPeer,
    PolicyPod, PolicyPortKey, PolicyState, PolicyVerdict, RangeKey, ServiceKey, ServiceValue,
    SlotKey, SocketBackend, SocketKey, SocketVip, Traffic, Tunnel, Tuple, Uplink, VerdictKey, Ways,
};

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Raw<T>(pub(crate) T);

/// The first octets as what they are; `None`: there are too few.
pub(crate) fn read<T>(octets: &[u8]) -> Option<Raw<T>>
where
    Raw<T>: Pod,
{
    let octets = octets.get(..size_of::<T>())?;
    // SAFETY: `Pod` says that any octets will do, and there are enough; they need not be aligned.
    Some(unsafe { std::ptr::read_unaligned(octets.as_ptr().cast()) })
}

macro_rules! pod {
    ($($name:ty),+ $(,)?) => {$(
        // SAFETY: repr(C) integers only, without padding (the types' own tests prove it).
        unsafe impl Pod for Raw<$name> {}
    )+};
}

pod!(
    Addr,
    AffinityKey,
    AffinityValue,
    Announced,
    AnnouncedKey,
    BackendValue,
    Counter,
    Endpoint,
    FlowConfig,
    MemberKey,
    NetNamespace,
    NodeConfig,
    Overlay,
    PolicyDecision,
    PolicyPeer,
    PolicyPod,
    PolicyPortKey,
    PolicyState,
    PolicyVerdict,
    RangeKey,
    ServiceKey,
    ServiceValue,
    SlotKey,
    SocketBackend,
    SocketKey,
    SocketVip,
    Traffic,
    Tunnel,
    Tuple,
    Uplink,
    VerdictKey,
    Ways,
);
