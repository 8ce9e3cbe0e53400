//! What a build of tomorrow leaves, whose layout is newer than this one's: values that have grown at their end, a map of
//! another kind, and maps and hooks of which nothing is known here.

use std::{fs, path::Path};

use aya::maps::{HashMap, LpmTrie, Map, MapData, PerCpuHashMap, PerCpuValues};
use windlass_datapath::types::{
    Addr, AffinityKey, AffinityValue, BackendValue, Connection, Endpoint, NetNamespace,
    PolicyDecision, PolicyPeer, PolicyPod, PolicyPortKey, PolicyVerdict, ServiceKey, ServiceValue,
    SocketBackend, SocketKey, SocketVip, Tuple, VerdictKey, Ways,
};

use crate::world::World;

const CAPACITY: u32 = 65_536;
const BPF_F_NO_PREALLOC: u32 = 1;
/// By so much everything has grown. The kernel wants multiples of eight nowhere, but the values here are some.
const MORE: usize = 8;

/// Pins as a newer build's what is pinned; the world's agent is to have stopped, and to be the older build again.
pub fn leave(world: &mut World) {
    let older = world.pinned("");
    world.change_layout(1);
    let newer = world.pinned("");
    world.change_layout(-1);
    fs::rename(&older, &newer).expect("one directory becomes the other");

    macro_rules! grow {
        ($how:ident: $($map:literal: $key:ty => $value:ty),+ $(,)?) => {$(
            $how::<{ size_of::<$key>() }, { size_of::<$value>() }, { size_of::<$value>() + MORE }>(
                &newer.join($map), 1,
            );
        )+};
    }
    grow!(grow_hash:
        "SERVICES": ServiceKey => ServiceValue,
        "BACKENDS": u32 => BackendValue,
        "SOCKET_REVERSE": SocketKey => SocketVip,
        "SOCKET_DATAGRAMS": SocketKey => SocketVip,
        "SOCKET_FORWARD": SocketKey => SocketBackend,
        "NETNS": u64 => NetNamespace,
        "ENDPOINTS": Addr => Endpoint,
        "POLICY_PODS": Addr => PolicyPod,
        "POLICY_PEERS": Addr => PolicyPeer,
        "POLICY_VERDICTS": VerdictKey => PolicyVerdict,
    );
    grow!(grow_trie:
        "POLICY_NETWORKS": Addr => PolicyPeer,
        "POLICY_PORTS": PolicyPortKey => PolicyDecision,
    );
    const WAYS: usize = size_of::<Ways>();
    grow_hash::<{ size_of::<Tuple>() }, WAYS, { WAYS + 2 * MORE }>(
        &newer.join("CONNTRACK"),
        WAYS / size_of::<Connection>(),
    );

    // For each processor by itself, from now on.
    let affinity = newer.join("AFFINITY");
    fs::remove_file(&affinity).expect("its pin");
    let of_tomorrow = PerCpuHashMap::<
        _,
        [u8; size_of::<AffinityKey>()],
        [u8; size_of::<AffinityValue>()],
    >::create(CAPACITY, BPF_F_NO_PREALLOC);
    let mut of_tomorrow = of_tomorrow.expect("a map");
    let processors = aya::util::nr_cpus().expect("the number of processors");
    let values = PerCpuValues::try_from(vec![[0xff; size_of::<AffinityValue>()]; processors]);
    of_tomorrow
        .insert([0xff; size_of::<AffinityKey>()], values.expect("values"), 0)
        .expect("an element");
    of_tomorrow.pin(&affinity).expect("a pin");

    let unknown = HashMap::<_, u32, u32>::create(1, 0).expect("a map");
    unknown.pin(newer.join("OF_TOMORROW")).expect("a pin");
    let links = newer.join("links");
    fs::rename(links.join("cgroup-recvmsg6"), links.join("of-tomorrow")).expect("its pin");
}

fn grow_hash<const KEY: usize, const VALUE: usize, const GROWN: usize>(pin: &Path, parts: usize) {
    let map = Map::HashMap(MapData::from_pin(pin).expect("a pinned map"));
    let old: HashMap<_, [u8; KEY], [u8; VALUE]> = map.try_into().expect("a hash map");
    let new = HashMap::<_, [u8; KEY], [u8; GROWN]>::create(CAPACITY, BPF_F_NO_PREALLOC);
    let mut new = new.expect("a map");
    for element in old.iter() {
        let (key, value) = element.expect("an element");
        let put = new.insert(key, grown::<GROWN>(&value, parts), 0);
        put.expect("an element");
    }
    fs::remove_file(pin).expect("its pin");
    new.pin(pin).expect("a pin");
}

fn grow_trie<const KEY: usize, const VALUE: usize, const GROWN: usize>(pin: &Path, parts: usize) {
    let map = Map::LpmTrie(MapData::from_pin(pin).expect("a pinned map"));
    let old: LpmTrie<_, [u8; KEY], [u8; VALUE]> = map.try_into().expect("a trie");
    let new = LpmTrie::<_, [u8; KEY], [u8; GROWN]>::create(CAPACITY, BPF_F_NO_PREALLOC);
    let mut new = new.expect("a map");
    for element in old.iter() {
        let (key, value) = element.expect("an element");
        let put = new.insert(&key, grown::<GROWN>(&value, parts), 0);
        put.expect("an element");
    }
    fs::remove_file(pin).expect("its pin");
    new.pin(pin).expect("a pin");
}

/// Each of the parts that a value consists of has grown by itself.
fn grown<const GROWN: usize>(value: &[u8], parts: usize) -> [u8; GROWN] {
    let mut all = Vec::with_capacity(GROWN);
    for part in value.chunks(value.len() / parts) {
        all.extend_from_slice(part);
        all.extend([0xff; MORE]);
    }
    all.try_into().expect("the sizes are as they were said")
}
