//! Several nodes with pods and an outside, all in namespaces of their own.
//!
//! ```text
//!   pods of node 0        pods of node 1               outside (192.0.2.2)
//!   10.244.0.0/24         10.244.1.0/24                   |
//!     |                     |                             |
//!   node 0 (192.0.2.10)   node 1 (192.0.2.11)  …       bridge
//!     +---------------------+-----------------------------+
//! ```
//!
//! Each node runs what the agent runs: the datapath, the maker of pods' interfaces with its leases, the
//! router. Its threads are in the node's namespace, as the agent's are.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sched::{CloneFlags, setns};
use tokio::{runtime::Runtime, sync::watch};
use windlass_datapath::{Capacities, Datapath, DatapathConfig, ServiceWrite, XdpMode, types};
use windlass_network::{
    Announcer, AttachmentKey, Attachments, AttachmentsConfig, DatapathInterfaces, Peer,
    PodInterface, PodName, Router, RouterConfig, Routing,
    interface::{Bandwidth, Namespace},
    routes::tunnel::{self, TunnelConfig},
    uplink,
};

use crate::{cgroup::TestCgroup, ethtool, netns::NetNs, require_privileges, way::Way, world};

pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const UPLINK: &str = "eth0";
const TUNNEL_PORT: u16 = 8472;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A pod and the interface that it was given.
pub struct Pod {
    pub ns: NetNs,
    pub interface: PodInterface,
}

impl Pod {
    pub fn address(&self, v4: bool) -> IpAddr {
        let mut addresses = self.interface.link.addresses.iter();
        *addresses
            .find(|address| address.is_ipv4() == v4)
            .expect("an address of each family")
    }
}

/// What the agent is on a node.
struct Agent {
    datapath: Arc<Datapath>,
    attachments: Attachments,
    router: Router,
}

pub struct Node {
    pub ns: NetNs,
    pub pods: Vec<Pod>,
    pub peer: Peer,
    pub routing: Routing,
    config: DatapathConfig,
    state: PathBuf,
    runtime: Option<Runtime>,
    agent: Option<Arc<Agent>>,
}

pub struct Cluster {
    pub nodes: Vec<Node>,
    pub outside: NetNs,
    cgroup: TestCgroup,
    run: PathBuf,
}

impl Cluster {
    pub fn new(nodes: usize, pods: usize, way: impl Into<Way>) -> Self {
        Self::with_capacities(nodes, pods, way, world::small())
    }

    pub fn with_capacities(
        nodes: usize,
        pods: usize,
        way: impl Into<Way>,
        capacities: Capacities,
    ) -> Self {
        let configure = |config: &mut DatapathConfig| config.capacities = capacities.clone();
        Self::make(nodes, pods, way.into(), configure)
    }

    /// Clients outside are answered by the backend's node itself.
    pub fn answering_directly(nodes: usize, pods: usize, routing: Routing) -> Self {
        Self::make(nodes, pods, routing.into(), |config| {
            config.direct_answers = true;
        })
    }

    /// XDP on the nodes' uplinks sends on what passes, and the network is as wires are.
    pub fn sending_by_xdp(mode: XdpMode, routing: Routing, direct_answers: bool) -> Self {
        let cluster = Self::make(2, 1, routing.into(), |config| {
            config.xdp = mode;
            config.direct_answers = direct_answers;
        });
        ethtool::like_hardware(&cluster.outside, "br0");
        for node in &cluster.nodes {
            ethtool::like_hardware(&node.ns, UPLINK);
            ethtool::like_hardware(&node.pods[0].ns, "eth0");
        }
        cluster
    }

    fn make(nodes: usize, pods: usize, way: Way, configure: impl Fn(&mut DatapathConfig)) -> Self {
        require_privileges();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let run = PathBuf::from(format!(
            "/run/windlass-test-{}-cluster-{number}",
            std::process::id()
        ));
        let outside = NetNs::new("outside");
        outside.ip("link add br0 type bridge");
        outside.ip("link set br0 up");
        outside.ip(&format!("addr add {OUTSIDE_V4}/24 dev br0"));
        outside.ip(&format!("addr add {OUTSIDE_V6}/64 dev br0 nodad"));
        let nodes = (0..nodes)
            .map(|index| Node::new(index, &outside, &run, way, &configure))
            .collect();
        let mut cluster = Self {
            nodes,
            outside,
            cgroup: TestCgroup::join(),
            run,
        };
        let known = cluster.peers();
        for node in &mut cluster.nodes {
            node.start(&cluster.cgroup.path, &known);
            node.follow(&known);
            for number in 0..pods {
                node.add_pod(number);
            }
        }
        cluster
    }

    /// All nodes, as the API would tell of them.
    pub fn peers(&self) -> Vec<Peer> {
        self.nodes.iter().map(|node| node.peer.clone()).collect()
    }

    /// Ends a node's agent and starts another, which finds what the first left in the kernel.
    pub fn restart(&mut self, node: usize) {
        let known = self.peers();
        let node = &mut self.nodes[node];
        node.stop();
        node.start(&self.cgroup.path, &known);
        node.follow(&known);
    }
}

impl Cluster {
    /// Takes the datapath off every node; interfaces and routes stay, so that the kernel alone forwards.
    pub fn without_datapath(mut self) -> Self {
        for node in &mut self.nodes {
            node.stop();
            let bpffs = node.config.bpffs.clone();
            let cleaned = node.ns.run(move || windlass_datapath::cleanup(&bpffs));
            cleaned.expect("cleaning up");
        }
        self
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.stop();
            let bpffs = node.config.bpffs.clone();
            let cleaned = node.ns.run(move || windlass_datapath::cleanup(&bpffs));
            if !std::thread::panicking() {
                cleaned.expect("cleaning up");
            }
        }
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

impl Node {
    fn new(
        index: usize,
        switch: &NetNs,
        run: &Path,
        way: Way,
        configure: impl Fn(&mut DatapathConfig),
    ) -> Self {
        let ns = NetNs::new(&format!("node{index}"));
        ns.ip(&format!(
            "link add {UPLINK} type veth peer name port{index} netns {}",
            switch.path().display()
        ));
        ns.ip(&format!("link set {UPLINK} up"));
        switch.ip(&format!("link set port{index} master br0 up"));
        let v4 = Ipv4Addr::new(192, 0, 2, 10 + index as u8);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + index as u16);
        ns.ip(&format!("addr add {v4}/24 dev {UPLINK}"));
        ns.ip(&format!("addr add {v6}/64 dev {UPLINK} nodad"));
        // Whoever has no route does not forward to where it came from either.
        ns.ip(&format!("route add default via {OUTSIDE_V4}"));
        let state = run.join(&ns.name);
        let bpffs = state.join("bpf");
        std::fs::create_dir_all(&bpffs).expect("making the node's folders");
        let mut config = DatapathConfig::new(bpffs);
        config.capacities = world::small();
        configure(&mut config);
        if config.xdp != XdpMode::default() {
            ethtool::like_hardware(switch, &format!("port{index}"));
        }
        let mut addresses: Vec<IpAddr> = vec![v4.into(), v6.into()];
        if way == Way::VxlanOverIpv6 {
            addresses.reverse();
        }
        let peer = Peer {
            name: ns.name.clone(),
            addresses,
            pod_cidrs: [
                format!("10.244.{index}.0/24"),
                format!("fd00:244:0:{index}::/64"),
            ]
            .iter()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect(),
        };
        Self {
            ns,
            pods: Vec::new(),
            peer,
            routing: way.routing(),
            config,
            state,
            runtime: None,
            agent: None,
        }
    }

    pub fn address(&self, v4: bool) -> IpAddr {
        let mut addresses = self.peer.addresses.iter();
        *addresses
            .find(|address| address.is_ipv4() == v4)
            .expect("an address of each family")
    }

    fn start(&mut self, cgroup: &Path, known: &[Peer]) {
        let namespace = File::open(self.ns.path()).expect("the node's namespace");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).expect("entering the node's namespace");
            })
            .build()
            .expect("a runtime");
        let start = Agent::start(
            self.peer.clone(),
            self.routing,
            self.config.clone(),
            self.state.clone(),
            cgroup.to_owned(),
            known
                .iter()
                .flat_map(|peer| peer.addresses.clone())
                .collect(),
        );
        let agent = runtime.block_on(runtime.spawn(start));
        self.agent = Some(Arc::new(agent.expect("the node's agent")));
        self.runtime = Some(runtime);
    }

    fn stop(&mut self) {
        self.agent = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        }
    }

    /// Runs with the node's agent, on a thread in the node's namespace.
    fn with<T, F>(&self, work: impl FnOnce(Arc<Agent>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let agent = self.agent.clone().expect("the agent runs");
        let runtime = self.runtime.as_ref().expect("the agent runs");
        runtime
            .block_on(runtime.spawn(work(agent)))
            .expect("the agent's task")
    }

    /// Tells the node which nodes there are.
    pub fn follow(&self, peers: &[Peer]) {
        let (peers, own) = (peers.to_vec(), self.peer.name.clone());
        let (routing, is_v4) = (self.routing, outer_is_v4(&self.peer));
        self.with(move |agent| async move {
            if routing == Routing::Vxlan {
                let others = peers.iter().filter(|peer| peer.name != own);
                let tunnels: Vec<_> = others.flat_map(|peer| peer.tunnels(is_v4)).collect();
                agent.datapath.set_tunnels(&tunnels).expect("tunnels");
            }
            agent.router.apply(&peers).await.expect("routes");
        });
    }

    pub fn add_pod(&mut self, number: usize) -> &Pod {
        self.add_limited_pod(number, Bandwidth::default())
    }

    /// A pod that receives and sends only so much.
    pub fn add_limited_pod(&mut self, number: usize, bandwidth: Bandwidth) -> &Pod {
        let ns = NetNs::new(&format!("{}pod{number}", self.ns.name));
        let (path, name) = (ns.path(), ns.name.clone());
        let interface = self.with(move |agent| async move {
            let key = AttachmentKey {
                container_id: name.clone(),
                interface: "eth0".to_owned(),
            };
            let pod = PodName {
                namespace: "test".to_owned(),
                name,
                uid: String::new(),
            };
            let add = agent
                .attachments
                .add_limited(key, &path, pod, bandwidth, Vec::new());
            add.await.expect("ADD")
        });
        self.pods.push(Pod { ns, interface });
        self.pods.last().expect("just pushed")
    }

    /// A NodePort of this node, with one backend that is on any node.
    pub fn node_port(&self, port: u16, protocol: u8, backend: (IpAddr, u16)) {
        let key = types::ServiceKey::node_port(backend.0.is_ipv4(), port, protocol);
        self.serve(key, backend);
    }

    /// A Service with one backend that is on any node.
    pub fn serve(&self, key: types::ServiceKey, backend: (IpAddr, u16)) {
        let id = if backend.0.is_ipv4() { 1 } else { 2 };
        self.write_service(id, key, backend, false);
    }

    /// One of several, for which clients outside choose by a table, as every node does.
    pub fn serve_by_table(&self, id: u32, key: types::ServiceKey, backend: (IpAddr, u16)) {
        self.write_service(id, key, backend, true);
    }

    fn write_service(
        &self,
        id: u32,
        key: types::ServiceKey,
        backend: (IpAddr, u16),
        by_table: bool,
    ) {
        let protocol = key.protocol;
        let seats = if by_table { self.config.maglev_size } else { 0 };
        let first = (id - 1) * seats;
        let table =
            (first..first + seats).map(|index| ServiceWrite::PutMaglev { index, backend: id });
        let mut writes: Vec<_> = table.collect();
        writes.extend([
            ServiceWrite::PutBackend {
                id,
                backend: types::BackendValue::new(backend.0.into(), backend.1, protocol),
            },
            ServiceWrite::PutMember {
                key: types::MemberKey {
                    service: id,
                    backend: id,
                },
                state: types::member::ACTIVE,
            },
            ServiceWrite::PutSlot {
                key: types::SlotKey {
                    service: id,
                    slot: 0,
                },
                backend: id,
            },
            ServiceWrite::PutService {
                key,
                value: types::ServiceValue {
                    id,
                    count: 1,
                    maglev: if by_table { first + 1 } else { 0 },
                    ..Default::default()
                },
            },
        ]);
        self.with(|agent| async move {
            agent
                .datapath
                .services()
                .apply(&writes)
                .expect("writing the service");
        });
    }

    /// The node answers for these addresses where it is elected, until what is returned is dropped.
    pub fn announce(&self, wanted: &[IpAddr]) -> Announcer {
        let wanted = watch::Sender::new(wanted.iter().copied().collect::<BTreeSet<_>>());
        self.with(move |agent| async move {
            let uplinks = [UPLINK.to_owned()];
            Announcer::start(&agent.datapath, &uplinks, &wanted.subscribe()).expect("announcing")
        })
    }

    /// An earlier run of the agent answered for these on an interface.
    pub fn left_announced(&self, interface: &'static str, addresses: &[IpAddr]) {
        let addresses = addresses.to_vec();
        self.with(|agent| async move {
            let ifindex = nix::net::if_::if_nametoindex(interface).expect("the interface");
            for address in addresses {
                let announced = agent.datapath.announce(ifindex, address, [2; 6]);
                announced.expect("announcing");
            }
        });
    }

    /// What it answers for at this moment.
    pub fn announced(&self) -> Vec<IpAddr> {
        let held = self.with(|agent| async move { agent.datapath.announced() });
        let held = held.expect("reading what is announced");
        held.into_iter().map(|(_, address)| address).collect()
    }

    /// Its uplink's cable is pulled, or put back.
    pub fn set_cable(&self, cluster_switch: &NetNs, index: usize, there: bool) {
        let state = if there { "up" } else { "down" };
        cluster_switch.ip(&format!("link set port{index} {state}"));
    }

    /// Brings the node's policy tables to their next state.
    pub fn enforce(&self, writes: Vec<windlass_datapath::PolicyWrite>) {
        self.with(|agent| async move {
            let mut policy = agent.datapath.policy();
            policy.apply(&writes).expect("writing the policies");
        });
    }

    /// What netfilter has translated is left to it.
    pub fn begin_handover(&self) {
        let begun = self.with(|agent| async move { agent.datapath.begin_handover() });
        begun.expect("the handover's beginning");
    }

    pub fn end_handover(&self) {
        let ended = self.with(|agent| async move { agent.datapath.end_handover() });
        ended.expect("the handover's end");
    }

    /// Octets that a service answered with by way of this node.
    pub fn answered(&self, id: u32) -> u64 {
        let traffic = self.with(|agent| async move { agent.datapath.traffic() });
        let traffic = traffic.expect("reading what was counted").into_iter();
        let of = traffic.filter(|(service, _)| *service == id);
        of.map(|(_, traffic)| traffic.reply_bytes).sum()
    }

    /// A packet counter by its labels.
    pub fn count(&self, reason: &'static str, direction: &'static str) -> u64 {
        self.with(move |agent| async move {
            let samples = agent.datapath.metrics().expect("reading the counters");
            let named = |sample: &&windlass_datapath::MetricSample| {
                (sample.reason.name(), sample.direction.name()) == (reason, direction)
            };
            samples
                .iter()
                .find(named)
                .map_or(0, |sample| sample.packets)
        })
    }
}

/// As the agent has it: of its node's first address.
fn outer_is_v4(own: &Peer) -> bool {
    own.addresses[0].is_ipv4()
}

impl Agent {
    /// As the agent's network role starts. On a thread of the node's namespace.
    async fn start(
        own: Peer,
        routing: Routing,
        config: DatapathConfig,
        state: PathBuf,
        cgroup: PathBuf,
        nodes: Vec<IpAddr>,
    ) -> Self {
        let sends_by_xdp = config.xdp != XdpMode::default();
        let datapath = Arc::new(Datapath::open(config).expect("opening the datapath"));
        let mut native: Vec<(IpAddr, u8)> = vec![
            (Ipv4Addr::new(10, 244, 0, 0).into(), 16),
            (Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 0).into(), 48),
        ];
        native.extend(
            nodes
                .iter()
                .map(|ip| (*ip, if ip.is_ipv4() { 32 } else { 128 })),
        );
        datapath.set_native_networks(&native).expect("networks");
        datapath
            .set_node_addresses(
                &own.addresses
                    .iter()
                    .map(|ip| (*ip, true))
                    .collect::<Vec<_>>(),
            )
            .expect("addresses");
        datapath.attach_uplink(UPLINK).expect("the uplink");
        datapath.retain_uplinks(&[UPLINK]).expect("the uplinks");
        datapath.attach_cgroup(&cgroup).expect("the socket hooks");
        let host = Namespace::current().await.expect("the namespace");
        let mut settings = uplink::forwarding(UPLINK);
        if sends_by_xdp {
            settings.extend(uplink::router(UPLINK));
        }
        host.set_sysctls(settings).await.expect("forwarding");
        let mut uplinks = vec![UPLINK.to_owned()];
        let mut tunnel = None;
        if routing == Routing::Vxlan {
            let config = TunnelConfig {
                port: TUNNEL_PORT,
                uplinks: uplinks.clone(),
                is_v4: outer_is_v4(&own),
            };
            tunnel = Some(tunnel::prepare(&host, &config).await.expect("the tunnel"));
            datapath
                .attach_tunnel(tunnel::DEVICE, &own.addresses, tunnel::VNI, TUNNEL_PORT)
                .expect("the tunnel's programs");
            uplinks.push(tunnel::DEVICE.to_owned());
        } else {
            datapath.forget_tunnel().expect("forgetting the tunnel");
            tunnel::remove(&host).await.expect("removing the tunnel");
        }
        let config = AttachmentsConfig {
            state_dir: state,
            node_addresses: own.addresses.clone(),
            uplinks,
        };
        let interfaces = Arc::new(DatapathInterfaces(datapath.clone()));
        let attachments = Attachments::open(config, host, interfaces)
            .await
            .expect("the attachments");
        attachments
            .set_pod_cidrs(&own.pod_cidrs)
            .expect("pod CIDRs");
        let config = RouterConfig {
            node_name: own.name,
            node_addresses: own.addresses,
            tunnel,
        };
        let router = Router::new(config, Namespace::current().await.expect("the namespace"));
        Self {
            datapath,
            attachments,
            router,
        }
    }
}
