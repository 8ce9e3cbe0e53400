//! Every map, all pinned by name, so that a restarted agent finds its state.
//!
//! Capacities here are only the sizes of an object loaded by hand; the loader sets them
//! from its options. The hash maps allocate on demand: an empty table costs its buckets,
//! and a reader keeps a deleted element until its RCU section ends.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, Queue},
};
use windlass_ebpf_types::{
    Addr, AffinityKey, AffinityValue, Announced, AnnouncedKey, BackendValue, Counter, Endpoint,
    FragmentKey, FragmentPorts, METRIC_SLOTS, MemberKey, NetNamespace, NodeConfig, Overlay,
    PolicyDecision, PolicyPeer, PolicyPod, PolicyPortKey, PolicyState, PolicyVerdict, Queued,
    RangeKey, ServiceKey, ServiceValue, SlotKey, SocketBackend, SocketKey, SocketVip, Traffic,
    Tunnel, Tuple, Uplink, VerdictKey, Ways,
};

#[map]
pub static SERVICES: HashMap<ServiceKey, ServiceValue> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static SLOTS: HashMap<SlotKey, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static BACKENDS: HashMap<u32, BackendValue> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static MEMBERS: HashMap<MemberKey, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
/// The next free service and backend id: user space's alone, kept here because the maps
/// are the only thing that outlives the agent.
#[map]
pub static ID_CURSOR: Array<u32> = Array::pinned(2, 0);
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue> = LruHashMap::pinned(65_536, 0);
/// Who may dial the services that ask for it.
#[map]
pub static SOURCE_RANGES: LpmTrie<RangeKey, u32> = LpmTrie::pinned(65_536, 0);
/// Backend ids: the tables of all services that the outside can reach, one after another.
/// User space writes it as memory.
#[map]
pub static MAGLEV: Array<u32> = Array::pinned(1_048_576, BPF_F_MMAPABLE);

/// What services that balance by it have to know: whose turn it is, and how many connections each
/// backend has. Counted here, and counted anew by every collection.
#[map]
pub static BALANCE: HashMap<MemberKey, u32> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static TRAFFIC: PerCpuHashMap<u32, Traffic> = PerCpuHashMap::pinned(65_536, BPF_F_NO_PREALLOC);

/// By `table` alone.
#[map]
pub static CONNTRACK: HashMap<Tuple, Ways> = HashMap::pinned(524_288, BPF_F_NO_PREALLOC);
/// Connections that may be over soon, the longest waiting first (see `sweep`).
#[map]
pub static CONNTRACK_QUEUE: Queue<Queued> = Queue::pinned(131_072, 0);
/// Unanswered connections by the pod that opened them; unspecified: the outside. Counted
/// here, and counted anew by every collection.
#[map]
pub static HALF_OPEN: HashMap<Addr, u32> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::pinned(8_192, 0);

/// Connected sockets; forgotten when they end (see `socket_end`), so that those which are open stay.
#[map]
pub static SOCKET_REVERSE: LruHashMap<SocketKey, SocketVip> = LruHashMap::pinned(131_072, 0);
/// Where the datagrams of unconnected sockets went. Apart from the above, because nothing tells when they end.
#[map]
pub static SOCKET_DATAGRAMS: LruHashMap<SocketKey, SocketVip> = LruHashMap::pinned(65_536, 0);
#[map]
pub static SOCKET_FORWARD: LruHashMap<SocketKey, SocketBackend> = LruHashMap::pinned(65_536, 0);
#[map]
pub static NETNS: HashMap<u64, NetNamespace> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);

#[map]
pub static NODE_CONFIG: Array<NodeConfig> = Array::pinned(1, 0);
#[map]
pub static NODE_ADDRESSES: HashMap<Addr, u32> = HashMap::pinned(1_024, BPF_F_NO_PREALLOC);
#[map]
pub static ENDPOINTS: HashMap<Addr, Endpoint> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
pub static UPLINKS: HashMap<u32, Uplink> = HashMap::pinned(256, BPF_F_NO_PREALLOC);
/// Uplinks out of which XDP may send, and how: their drivers take frames from it.
#[map]
pub static XDP_UPLINKS: HashMap<u32, u32> = HashMap::pinned(256, BPF_F_NO_PREALLOC);
/// Addresses of balancers that this node answers for.
#[map]
pub static ANNOUNCED: HashMap<AnnouncedKey, Announced> = HashMap::pinned(16_384, BPF_F_NO_PREALLOC);
/// Sources from which nothing is taken.
#[map]
pub static DENIED: LpmTrie<Addr, u32> = LpmTrie::pinned(65_536, 0);
/// How packets to what is behind other nodes leave.
#[map]
pub static OVERLAY: Array<Overlay> = Array::pinned(1, 0);
#[map]
pub static TUNNELS: LpmTrie<Addr, Tunnel> = LpmTrie::pinned(16_384, 0);
/// Destinations that see a pod's own address, and those that nothing must leave for.
#[map]
pub static NATIVE: LpmTrie<Addr, u32> = LpmTrie::pinned(1_024, 0);

#[map]
pub static POLICY_STATE: Array<PolicyState> = Array::pinned(1, 0);
#[map]
pub static POLICY_PODS: HashMap<Addr, PolicyPod> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
pub static POLICY_PEERS: HashMap<Addr, PolicyPeer> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub static POLICY_NETWORKS: LpmTrie<Addr, PolicyPeer> = LpmTrie::pinned(65_536, 0);
#[map]
pub static POLICY_VERDICTS: HashMap<VerdictKey, PolicyVerdict> =
    HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static POLICY_PORTS: LpmTrie<PolicyPortKey, PolicyDecision> = LpmTrie::pinned(262_144, 0);

#[map]
pub static METRICS: PerCpuArray<Counter> = PerCpuArray::pinned(METRIC_SLOTS, 0);
