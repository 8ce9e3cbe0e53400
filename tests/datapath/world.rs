//! A node with pods and an outside, all in namespaces of their own.
//!
//! ```text
//!   pod a   pod b   pod c            outside (192.0.2.2, 2001:db8::2)
//!     |       |       |                 |
//!   wlpod0  wlpod1  wlpod2           wlout0 (192.0.2.1, 2001:db8::1)
//!     +------ node (10.244.0.0/24) -----+
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use serde_json::{Value, json};
use windlass_datapath::{
    Capacities, Datapath, DatapathConfig, PodInterface, ServiceWrite, TcAttach, XdpMode,
    types::{
        Addr, BackendValue, MemberKey, ServiceKey, ServiceValue, SlotKey, member, service_flags,
    },
};

use crate::{cgroup::TestCgroup, ethtool, netns::NetNs, require_privileges};

pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

static COUNTER: AtomicU32 = AtomicU32::new(0);

pub struct Pod {
    pub ns: NetNs,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub interface: PodInterface,
}

pub struct World {
    // Dropped in this order: the datapath lets go before what it is attached to.
    datapath: Option<Arc<Datapath>>,
    config: DatapathConfig,
    pub pods: Vec<Pod>,
    pub outside: NetNs,
    pub node: NetNs,
    cgroup: TestCgroup,
    run: PathBuf,
}

/// Whether the pods' own sockets are translated at connect, or their packets by tc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PodSockets {
    ByHook,
    ByTc,
}

impl World {
    pub fn new(pods: usize, sockets: PodSockets) -> Self {
        Self::with(pods, sockets, small())
    }

    pub fn with_tc(pods: usize, sockets: PodSockets, tc: TcAttach) -> Self {
        Self::make(pods, sockets, |config| {
            config.tc = tc;
            config.capacities = small();
        })
    }

    pub fn with_capacities(pods: usize, capacities: Capacities) -> Self {
        Self::with(pods, PodSockets::ByTc, capacities)
    }

    pub fn with(pods: usize, sockets: PodSockets, capacities: Capacities) -> Self {
        Self::make(pods, sockets, |config| config.capacities = capacities)
    }

    /// The host's sockets are translated at connect, and pods' packets.
    pub fn with_hooks_for_the_host_alone(pods: usize) -> Self {
        Self::make(pods, PodSockets::ByHook, |config| {
            config.pod_sockets = false;
            config.capacities = small();
        })
    }

    /// Connections that leave in the node's name have so many source ports.
    pub fn with_source_ports(pods: usize, ports: (u16, u16)) -> Self {
        Self::make(pods, PodSockets::ByTc, |config| {
            config.snat_ports = ports;
            config.capacities = small();
        })
    }

    /// XDP on the uplink sends on what passes; the outside is as a wire has it.
    pub fn sending_by_xdp(mode: XdpMode, direct_answers: bool) -> Self {
        Self::make(0, PodSockets::ByTc, |config| {
            config.xdp = mode;
            config.direct_answers = direct_answers;
            config.capacities = small();
        })
    }

    fn make(pods: usize, sockets: PodSockets, configure: impl FnOnce(&mut DatapathConfig)) -> Self {
        require_privileges();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let run = PathBuf::from(format!(
            "/run/windlass-test-{}-{number}",
            std::process::id()
        ));
        std::fs::create_dir_all(run.join("bpf")).expect("making the test's run directory");

        let node = NetNs::new("node");
        node.sysctl("ipv4/ip_forward", "1");
        node.sysctl("ipv6/conf/all/forwarding", "1");
        let outside = NetNs::new("outside");
        connect(&node, &outside);
        let pods: Vec<_> = (0..pods)
            .map(|index| make_pod(&node, index, sockets))
            .collect();

        let mut config = DatapathConfig::new(run.join("bpf"));
        configure(&mut config);
        if config.xdp != XdpMode::default() {
            ethtool::like_hardware(&outside, "eth0");
        }
        let mut world = Self {
            datapath: None,
            config,
            pods,
            outside,
            node,
            cgroup: TestCgroup::join(),
            run,
        };
        world.start();
        world
    }

    /// Starts the datapath as the agent does, on what may be left of an earlier run.
    fn start(&mut self) {
        let pods: Vec<_> = self.pods.iter().map(|pod| &pod.interface).collect();
        let datapath = self
            .node
            .run(|| attach(self.config.clone(), &self.cgroup.path, &pods));
        self.datapath = Some(Arc::new(datapath));
    }

    pub fn datapath(&self) -> &Datapath {
        self.datapath.as_ref().expect("the datapath runs")
    }

    pub fn shared_datapath(&self) -> Arc<Datapath> {
        self.datapath.clone().expect("the datapath runs")
    }

    /// A folder that goes with the world.
    pub fn folder(&self) -> &Path {
        &self.run
    }

    /// Gives the node another uplink of the same name, once the first is gone.
    pub fn connect_outside(&self) {
        connect(&self.node, &self.outside);
    }

    /// The agent dies.
    pub fn stop(&mut self) {
        self.datapath = None;
    }

    /// The agent comes back.
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// The agent comes back and asks for other sizes.
    pub fn restart_with(&mut self, capacities: Capacities) {
        self.stop();
        self.config.capacities = capacities;
        self.start();
    }

    /// What [`attach`] needs to do in another process.
    pub fn agent_arguments(&self) -> Value {
        let pods = self.pods.iter().map(|pod| {
            let PodInterface {
                name,
                addresses,
                mac,
                netns,
                ..
            } = &pod.interface;
            json!({"name": name, "addresses": addresses, "mac": mac, "netns": netns})
        });
        json!({
            "bpffs": self.config.bpffs, "layout": self.config.layout, "cgroup": self.cgroup.path,
            "conntrack": self.config.capacities.conntrack, "pods": pods.collect::<Vec<_>>(),
        })
    }

    /// Whoever starts next is a build whose maps are laid out differently.
    pub fn change_layout(&mut self, by: i32) {
        self.config.layout = self.config.layout.saturating_add_signed(by);
    }

    /// Where a map is pinned.
    pub fn pinned(&self, map: &str) -> PathBuf {
        let layout = format!("v{}", self.config.layout);
        self.config.bpffs.join(layout).join(map)
    }

    /// The layouts that are pinned.
    pub fn layouts(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.config.bpffs).expect("listing the pins");
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        };
        let mut names: Vec<String> = entries
            .map(name)
            .filter(|name| name.starts_with('v'))
            .collect();
        names.sort();
        names
    }

    /// Makes a service of some pods, on several frontends, from nothing.
    pub fn serve(&self, id: u32, frontends: &[ServiceKey], port: u16, pods: &[usize], v4: bool) {
        self.serve_with(id, frontends, port, pods, v4, 0);
    }

    /// The same, of the first pod and TCP at a node port of IPv4.
    pub fn serve_node_port(&self, port: u16) {
        self.serve(
            1,
            &[ServiceKey::node_port(true, port, TCP)],
            8080,
            &[0],
            true,
        );
    }

    /// The same with session affinity.
    pub fn serve_with(
        &self,
        id: u32,
        frontends: &[ServiceKey],
        port: u16,
        pods: &[usize],
        v4: bool,
        affinity_seconds: u32,
    ) {
        let backends: Vec<SocketAddr> = pods
            .iter()
            .map(|pod| &self.pods[*pod])
            .map(|pod| {
                if v4 {
                    (pod.v4, port).into()
                } else {
                    (pod.v6, port).into()
                }
            })
            .collect();
        self.write_service(id, frontends, &backends, affinity_seconds, 0);
    }

    /// A service of IPv4 that chooses in its own way: bits of `service_flags`.
    pub fn serve_by(&self, flags: u32, id: u32, frontend: ServiceKey, port: u16, pods: &[usize]) {
        self.write_service(id, &[frontend], &self.backends_v4(port, pods), 0, flags);
    }

    /// The same of clients outside, each of which a table sends to one backend, with session affinity.
    pub fn serve_by_table(
        &self,
        id: u32,
        frontend: ServiceKey,
        port: u16,
        pods: &[usize],
        affinity_seconds: u32,
    ) {
        let backends = self.backends_v4(port, pods);
        self.write_service(
            id,
            &[frontend],
            &backends,
            affinity_seconds,
            service_flags::BY_CLIENT,
        );
    }

    fn backends_v4(&self, port: u16, pods: &[usize]) -> Vec<SocketAddr> {
        let pods = pods.iter().map(|pod| (self.pods[*pod].v4, port).into());
        pods.collect()
    }

    /// A service with one backend that is no pod.
    pub fn serve_at(&self, id: u32, frontends: &[ServiceKey], backend: SocketAddr) {
        self.write_service(id, frontends, &[backend], 0, 0);
    }

    fn write_service(
        &self,
        id: u32,
        frontends: &[ServiceKey],
        backends: &[SocketAddr],
        affinity_seconds: u32,
        flags: u32,
    ) {
        let mut writes = Vec::new();
        for (slot, address) in (0..).zip(backends) {
            let backend = id * 100 + slot;
            let value =
                BackendValue::new(address.ip().into(), address.port(), frontends[0].protocol);
            writes.push(ServiceWrite::PutBackend {
                id: backend,
                backend: value,
            });
            let key = MemberKey {
                service: id,
                backend,
            };
            writes.push(ServiceWrite::PutMember {
                key,
                state: member::ACTIVE,
            });
            writes.push(ServiceWrite::PutSlot {
                key: SlotKey { service: id, slot },
                backend,
            });
        }
        if flags & service_flags::BY_CLIENT != 0 {
            // The array's first table, as it would be of backends that each have an equal share.
            let seats = 0..self.config.maglev_size;
            writes.extend(seats.map(|index| ServiceWrite::PutMaglev {
                index,
                backend: id * 100 + index % backends.len() as u32,
            }));
        }
        for key in frontends {
            let value = ServiceValue {
                id,
                count: backends.len() as u32,
                affinity_seconds,
                flags,
                maglev: u32::from(flags & service_flags::BY_CLIENT != 0),
            };
            writes.push(ServiceWrite::PutService { key: *key, value });
        }
        self.datapath()
            .services()
            .apply(&writes)
            .expect("writing the service");
    }

    /// A packet counter by its labels.
    pub fn count(&self, reason: &str, direction: &str) -> u64 {
        let samples = self.datapath().metrics().expect("reading the counters");
        samples
            .iter()
            .find(|sample| (sample.reason.name(), sample.direction.name()) == (reason, direction))
            .map_or(0, |sample| sample.packets)
    }

    /// Removes the datapath as `windlass-node-agent cleanup` does.
    pub fn clean_up(&mut self) {
        self.datapath = None;
        let bpffs = self.config.bpffs.clone();
        self.node
            .run(|| windlass_datapath::cleanup(&bpffs))
            .expect("cleaning up");
    }

    /// Takes the last backend out, as `serve` numbered them.
    pub fn remove_last_backend(&self, id: u32, frontends: &[ServiceKey], count: u32) {
        let backend = id * 100 + count - 1;
        let mut writes: Vec<_> = frontends
            .iter()
            .map(|key| ServiceWrite::PutService {
                key: *key,
                value: ServiceValue {
                    id,
                    count: count - 1,
                    ..Default::default()
                },
            })
            .collect();
        writes.push(ServiceWrite::DeleteSlot {
            key: SlotKey {
                service: id,
                slot: count - 1,
            },
        });
        writes.push(ServiceWrite::DeleteMember {
            key: MemberKey {
                service: id,
                backend,
            },
        });
        writes.push(ServiceWrite::DeleteBackend { id: backend });
        self.datapath()
            .services()
            .apply(&writes)
            .expect("writing the service");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.datapath = None;
        let bpffs = self.config.bpffs.clone();
        let cleaned = self.node.run(move || windlass_datapath::cleanup(&bpffs));
        let _ = std::fs::remove_dir(&self.run);
        if !std::thread::panicking() {
            cleaned.expect("cleaning up");
            assert!(!self.run.exists(), "{} was left behind", self.run.display());
        }
    }
}

/// The datapath as the agent starts it, on what may be left of an earlier run; in the node's namespace.
pub fn attach(config: DatapathConfig, cgroup: &Path, pods: &[&PodInterface]) -> Datapath {
    let datapath = Datapath::open(config).expect("opening the datapath");
    datapath
        .set_native_networks(&[
            (Ipv4Addr::new(10, 244, 0, 0).into(), 16),
            (Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0).into(), 48),
        ])
        .expect("setting the networks");
    datapath
        .set_node_addresses(&[(NODE_V4.into(), true), (NODE_V6.into(), true)])
        .expect("setting the node's addresses");
    for pod in pods {
        datapath.attach_pod(pod).expect("attaching a pod");
    }
    datapath
        .attach_uplink("wlout0")
        .expect("attaching the uplink");
    datapath
        .attach_cgroup(cgroup)
        .expect("attaching the socket hooks");
    let live = pods.iter().flat_map(|pod| pod.addresses.iter().copied());
    let live: Vec<IpAddr> = live.collect();
    if pods.is_empty() {
        // As on a node whose pods are another plugin's.
        datapath.begin_handover().expect("the handover's beginning");
        datapath.end_handover().expect("the handover's end");
    } else {
        datapath.retain_pods(&live).expect("dropping what is gone");
    }
    datapath
}

/// LRU maps allocate all their elements at once; a test needs few.
pub fn small() -> Capacities {
    Capacities {
        services: 1_024,
        slots: 1_024,
        backends: 1_024,
        conntrack: 16_384,
        affinity: 1_024,
        sockets: 4_096,
        policy_peers: 1_024,
        policy_verdicts: 4_096,
        endpoints: 64,
        source_ranges: 64,
        maglev: 16_384,
        fragments: 1_024,
    }
}

fn make_pod(node: &NetNs, index: usize, sockets: PodSockets) -> Pod {
    let ns = NetNs::new(["a", "b", "c", "d"][index]);
    let host_side = format!("wlpod{index}");
    join(node, &host_side, &ns, "eth0");
    let host_mac = mac_text(node.mac(&host_side));
    let mac = ns.mac("eth0");
    let v4 = Ipv4Addr::new(10, 244, 0, 10 + index as u8);
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 10 + index as u16);
    ns.ip(&format!("addr add {v4}/32 dev eth0"));
    ns.ip("route add 169.254.1.1 dev eth0 scope link");
    ns.ip("route add default via 169.254.1.1 dev eth0");
    ns.ip(&format!("addr add {v6}/128 dev eth0 nodad"));
    ns.ip(&format!(
        "neigh add fe80::1 lladdr {host_mac} nud permanent dev eth0"
    ));
    ns.ip("route add default via fe80::1 dev eth0");
    node.ip(&format!("route add {v4}/32 dev {host_side}"));
    node.ip(&format!("route add {v6}/128 dev {host_side}"));
    node.ip(&format!(
        "neigh add {v6} lladdr {} nud permanent dev {host_side}",
        mac_text(mac)
    ));
    let interface = PodInterface {
        name: host_side,
        addresses: vec![v4.into(), v6.into()],
        mac,
        netns: (sockets == PodSockets::ByHook).then(|| ns.path()),
        limited: false,
    };
    Pod {
        ns,
        v4,
        v6,
        interface,
    }
}

/// Gives the node its uplink.
fn connect(node: &NetNs, outside: &NetNs) {
    join(node, "wlout0", outside, "eth0");
    for (namespace, interface, v4, v6) in [
        (node, "wlout0", NODE_V4, NODE_V6),
        (outside, "eth0", OUTSIDE_V4, OUTSIDE_V6),
    ] {
        namespace.ip(&format!("addr add {v4}/24 dev {interface}"));
        namespace.ip(&format!("addr add {v6}/64 dev {interface} nodad"));
    }
}

fn join(a: &NetNs, a_side: &str, b: &NetNs, b_side: &str) {
    a.ip(&format!(
        "link add {a_side} type veth peer name {b_side} netns {}",
        b.path().display()
    ));
    a.ip(&format!("link set {a_side} up"));
    b.ip(&format!("link set {b_side} up"));
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

pub fn cluster_ip(port: u16, protocol: u8) -> ServiceKey {
    ServiceKey::new(Addr::from(VIP_V4), port, protocol)
}

pub fn cluster_ip_v6(port: u16, protocol: u8) -> ServiceKey {
    ServiceKey::new(Addr::from(VIP_V6), port, protocol)
}

pub fn vip(port: u16) -> SocketAddr {
    (VIP_V4, port).into()
}

pub fn vip_v6(port: u16) -> SocketAddr {
    (VIP_V6, port).into()
}
