//! Keys and values of the BPF maps: the one contract between the programs in the
//! kernel (`ebpf/programs`) and the user space that fills them (`node-agent/datapath`).
//!
//! Every type is `repr(C)` with explicit padding, because the kernel compares and
//! hashes keys byte by byte: a padding byte left to the compiler would make two
//! equal keys different. Ports and addresses are in network byte order, as they
//! stand in packets; the constructors take host order, so nothing else converts.
//!
//! No dependencies and no `std`: this crate is compiled for the host and for
//! `bpfel-unknown-none`. `aya::Pod` is implemented in `windlass-datapath`.
//!
//! A change of any layout here is a new [`LAYOUT_VERSION`]: pinned maps of another
//! version are never read as if they were ours, but their elements are taken over. For
//! that, keys keep their layout, and values only grow at their end, where 0 must mean "as
//! before".
#![cfg_attr(not(test), no_std)]

mod addr;
mod announce;
mod conntrack;
mod endpoint;
mod event;
mod fragment;
mod metrics;
mod node;
mod overlay;
mod policy;
mod service;
mod socket;

pub use addr::Addr;
pub use announce::{Announced, AnnouncedKey};
pub use conntrack::{Connection, Queued, Tuple, Ways, connection, timeout_seconds};
pub use endpoint::{
    Endpoint, GATEWAY_V4, GATEWAY_V6, HAIRPIN_V4, HAIRPIN_V6, JUDGED_MARK, endpoint_flag,
};
pub use event::{FlowBudget, FlowConfig, FlowEvent, flow_kind};
pub use fragment::{FragmentKey, FragmentPorts};
pub use metrics::{Counter, Direction, METRIC_SLOTS, Reason, metric_index};
pub use node::{
    NetNamespace, NodeConfig, Uplink, netns, network, node_address, node_config, xdp_uplink,
};
pub use overlay::{Overlay, Tunnel};
pub use policy::{
    PolicyDecision, PolicyNetwork, PolicyPeer, PolicyPod, PolicyPortKey, PolicyState,
    PolicyVerdict, VerdictKey, decision, policy_peer,
};
pub use service::{
    AffinityKey, AffinityValue, BackendValue, MemberKey, RangeKey, ServiceKey, ServiceValue,
    SlotKey, Traffic, backend_flags, member, scope, service_flags,
};
pub use socket::{SocketBackend, SocketKey, SocketVip};

/// Version of the layouts in this crate; the pin directory carries it.
pub const LAYOUT_VERSION: u32 = 3;

/// IP protocol numbers that have ports (or, for ICMP, an identifier that serves as one).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}
