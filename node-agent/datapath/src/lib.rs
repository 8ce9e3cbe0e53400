//! The BPF datapath: the only crate that loads, attaches and pins programs and that
//! reads and writes their maps.
//!
//! `windlass-network` decides what the maps must hold; this crate does it. The kernel
//! side lives in `ebpf/programs`, and both sides meet only in `windlass-ebpf-types`,
//! re-exported here as [`types`]. Nothing here knows Kubernetes.
//!
//! The state of the datapath is in the kernel: every map and link is pinned under one
//! versioned directory, [`Datapath::open`] adopts what it finds there, and programs are
//! replaced by link update. An agent that stops or crashes drops no connection.

mod bpffs;
mod cgroup;
mod cleanup;
mod config;
mod error;
mod interface;
#[cfg(test)]
mod kernels;
mod loader;
mod maps;
mod migrate;
mod netfilter;
mod netlink;
mod netns;
mod packet;
mod raw;
mod sockets;
mod sys;
mod tc;
mod xdp;
mod xdp_features;

use std::{collections::HashSet, net::IpAddr, path::Path, time::Duration};

use aya::Ebpf;
use nix::net::if_::if_nametoindex;
use parking_lot::Mutex;

pub use bpffs::{mount_standard_bpffs, standard_bpffs_is_mounted};
pub use cleanup::cleanup;
pub use config::{Capacities, DatapathConfig, TcAttach, XdpMode};
pub use error::{Error, Result};
pub use interface::PodInterface;
pub use loader::ProgramSize;
pub use maps::{
    CollectReport, FlowRing, MetricSample, PolicyDrops, PolicyMaps, PolicyPortPrefix,
    PolicySnapshot, PolicyWrite, ServiceMaps, ServiceSnapshot, ServiceWrite,
};
pub use packet::PacketSocket;
pub use sockets::GoneBackends;
pub use windlass_ebpf_types as types;

use crate::{
    bpffs::PinDirectory,
    maps::{AnnounceMaps, ConntrackMaps, FlowMaps, MetricMaps, NodeMaps, OverlayMaps, TrafficMaps},
    migrate::Migration,
};

/// A loaded datapath. Dropping it leaves everything in the kernel as it is.
pub struct Datapath {
    config: DatapathConfig,
    pins: PinDirectory,
    programs: Mutex<Ebpf>,
    sizes: Vec<ProgramSize>,
    services: Mutex<ServiceMaps>,
    policy: Mutex<PolicyMaps>,
    node: Mutex<NodeMaps>,
    overlay: Mutex<OverlayMaps>,
    announced: Mutex<AnnounceMaps>,
    conntrack: Mutex<ConntrackMaps>,
    flows: Mutex<FlowMaps>,
    traffic: Mutex<TrafficMaps>,
    metrics: MetricMaps,
    /// Until everything that another layout's programs hung on is switched.
    migration: Mutex<Option<Migration>>,
}

impl Datapath {
    /// Loads the programs, adopting maps that an earlier run pinned. Nothing is attached
    /// yet, and links of an earlier run go on with its programs until they are updated.
    pub fn open(config: DatapathConfig) -> Result<Self> {
        config.validate()?;
        let pins = PinDirectory::prepare(&config.bpffs, config.layout)?;
        let mut loaded = loader::load(&config, &pins)?;
        let migration = Migration::begin(&pins)?;
        let services = ServiceMaps::take(&mut loaded.ebpf, config.maglev_size)?;
        let policy = PolicyMaps::take(&mut loaded.ebpf)?;
        let mut node = NodeMaps::take(&mut loaded.ebpf)?;
        let overlay = OverlayMaps::take(&mut loaded.ebpf)?;
        let announced = AnnounceMaps::take(&mut loaded.ebpf)?;
        let conntrack = ConntrackMaps::take(&mut loaded.ebpf)?;
        let flows = FlowMaps::take(&mut loaded.ebpf)?;
        let traffic = TrafficMaps::take(&mut loaded.ebpf)?;
        let metrics = MetricMaps::take(&mut loaded.ebpf)?;
        node.set_config(&config)?;
        node.set_migrating(migration.is_some())?;
        Ok(Self {
            config,
            pins,
            programs: Mutex::new(loaded.ebpf),
            sizes: loaded.sizes,
            services: Mutex::new(services),
            policy: Mutex::new(policy),
            node: Mutex::new(node),
            overlay: Mutex::new(overlay),
            announced: Mutex::new(announced),
            conntrack: Mutex::new(conntrack),
            flows: Mutex::new(flows),
            traffic: Mutex::new(traffic),
            metrics,
            migration: Mutex::new(migration),
        })
    }

    /// While another layout's programs still run, what they add is copied.
    fn catch_up(&self) -> Result<()> {
        match self.migration.lock().as_mut() {
            Some(migration) => migration.catch_up(),
            None => Ok(()),
        }
    }

    /// Attaches the socket hooks to a cgroup2 directory, or updates those attached there,
    /// and makes the calling thread's network namespace (the host's) one of the clients.
    pub fn attach_cgroup(&self, cgroup: &Path) -> Result<()> {
        let cookie = netns::own_cookie()?;
        self.node.lock().set_host_namespace(cookie)?;
        cgroup::attach(&mut self.programs.lock(), &self.pins, cgroup)?;
        self.catch_up()
    }

    /// Whether the socket hooks act for every network namespace, those of pods that another CNI
    /// plugin made among them, or only for the host's and those of pods attached here.
    pub fn serve_all_namespaces(&self, all: bool) -> Result<()> {
        let mut node = self.node.lock();
        if !all {
            // Such pods count as the node itself, whom no policy keeps out. An agent before this one may have told of some.
            node.set_foreign_pods(&[])?;
        }
        node.set_any_namespace(all)
    }

    /// The addresses of this node's pods whose interfaces are another CNI plugin's.
    pub fn set_foreign_pods(&self, addresses: &[IpAddr]) -> Result<()> {
        self.node.lock().set_foreign_pods(addresses)
    }

    /// Attaches an interface towards the outside. Its first global address of each family
    /// becomes the source of masqueraded traffic.
    pub fn attach_uplink(&self, name: &str) -> Result<()> {
        let device = interface::find(name)?;
        self.node
            .lock()
            .set_uplink(&device, self.config.masquerade)?;
        let denies = self.node.lock().denies();
        let mut programs = self.programs.lock();
        let mode = self.config.xdp;
        let attached = match mode {
            XdpMode::Native | XdpMode::Generic => {
                xdp::attach(&mut programs, &self.pins, &device, mode)?
            }
            XdpMode::Drop if denies => xdp::attach(&mut programs, &self.pins, &device, mode)?,
            XdpMode::Drop | XdpMode::Off => {
                xdp::detach(&self.pins, device.ifindex)?;
                false
            }
        };
        let sends = if attached && mode.forwards() {
            xdp::sends(&device, mode)
        } else {
            None
        };
        if mode.forwards() && sends.is_none() && !denies {
            // It would cost something and do nothing.
            xdp::detach(&self.pins, device.ifindex)?;
        }
        self.node.lock().set_xdp_uplink(device.ifindex, sends)?;
        tc::attach(
            &mut programs,
            &self.pins,
            self.config.tc,
            &device,
            &tc::UPLINK,
        )?;
        drop(programs);
        self.catch_up()
    }

    /// Attaches the device that carries packets to other nodes; it is an uplink that stands for the node by
    /// these addresses. `vni` is the same on all nodes, and so is the port that packets between them go to.
    pub fn attach_tunnel(
        &self,
        name: &str,
        addresses: &[IpAddr],
        vni: u32,
        port: u16,
    ) -> Result<()> {
        let device = interface::find(name)?;
        self.node
            .lock()
            .set_tunnel_uplink(device.ifindex, addresses)?;
        tc::attach(
            &mut self.programs.lock(),
            &self.pins,
            self.config.tc,
            &device,
            &tc::UPLINK,
        )?;
        let mut overlay = self.overlay.lock();
        overlay.set_port(port)?;
        overlay.set_overlay(types::Overlay {
            ifindex: device.ifindex,
            vni,
        })
    }

    /// Forgets a tunnel of an earlier run: nothing is sent into one any more.
    pub fn forget_tunnel(&self) -> Result<()> {
        let mut overlay = self.overlay.lock();
        let ifindex = overlay.device()?;
        overlay.set_port(0)?;
        overlay.set_overlay(types::Overlay::default())?;
        overlay.set_tunnels(&[])?;
        if ifindex == 0 {
            return Ok(());
        }
        self.node.lock().remove_uplink(ifindex)?;
        tc::detach(&self.pins, self.config.tc, ifindex, &tc::UPLINK)
    }

    /// What is behind which node: networks (address, prefix length) and the node's address.
    pub fn set_tunnels(&self, tunnels: &[(IpAddr, u8, IpAddr)]) -> Result<()> {
        self.overlay.lock().set_tunnels(tunnels)
    }

    /// Detaches every uplink that is not in `live`: one that an earlier run was told of and
    /// this one was not. For the start of the agent, after `live` has been attached.
    pub fn retain_uplinks(&self, live: &[&str]) -> Result<()> {
        let mut live: Vec<u32> = live
            .iter()
            .filter_map(|name| if_nametoindex(*name).ok())
            .collect();
        // The tunnel is kept or forgotten on its own.
        live.push(self.overlay.lock().device()?);
        for ifindex in self.node.lock().retain_uplinks(&live)? {
            tc::detach(&self.pins, self.config.tc, ifindex, &tc::UPLINK)?;
            xdp::detach(&self.pins, ifindex)?;
            tracing::info!(ifindex, "uplink detached");
        }
        Ok(())
    }

    /// Attaches the host side of a pod's veth pair. The pod's addresses are published
    /// last, so that no packet is sent to an interface without its programs.
    pub fn attach_pod(&self, pod: &PodInterface) -> Result<()> {
        let device = interface::find(&pod.name)?;
        let netns = pod.netns.as_deref().filter(|_| self.config.pod_sockets);
        let cookie = netns.and_then(|path| {
            netns::cookie_of(path)
                // The pod works without: its packets are translated by tc.
                .inspect_err(|error| tracing::warn!(%error, interface = pod.name, "no socket hooks for a pod"))
                .ok()
        });
        tc::attach(
            &mut self.programs.lock(),
            &self.pins,
            self.config.tc,
            &device,
            &tc::POD,
        )?;
        let mut node = self.node.lock();
        if let Some(cookie) = cookie {
            node.set_pod_namespace(cookie, &pod.addresses)?;
            node.remember_namespace(device.ifindex, cookie, pod.netns.clone());
        }
        node.set_endpoint(pod, &device)?;
        drop(node);
        self.catch_up()
    }

    /// Withdraws a pod's addresses and takes the programs off the host side of its veth
    /// pair, which may be gone already. Addresses that another interface has got meanwhile
    /// stay with it.
    pub fn detach_pod(&self, ifindex: u32, addresses: &[IpAddr]) -> Result<()> {
        self.node.lock().remove_endpoint(ifindex, addresses)?;
        tc::detach(&self.pins, self.config.tc, ifindex, &tc::POD)
    }

    /// Drops what an earlier run left behind: pod addresses that are not in `live`, and
    /// links of interfaces that no longer exist; and the state of another layout, which is
    /// taken over by then. For the start of the agent, after every live pod has been attached
    /// again, and everything else before.
    pub fn retain_pods(&self, live: &[IpAddr]) -> Result<()> {
        self.node.lock().retain_endpoints(live)?;
        tc::remove_links_of_missing_interfaces(&self.pins)?;
        self.end_migration()
    }

    fn end_migration(&self) -> Result<()> {
        self.remove_links_of_unknown_hooks()?;
        if let Some(migration) = self.migration.lock().take() {
            migration.finish()?;
        }
        self.node.lock().set_migrating(false)
    }

    /// A newer build may have used hooks of which this one knows nothing: its programs would go on there for good.
    fn remove_links_of_unknown_hooks(&self) -> Result<()> {
        for pin in self.pins.pinned_links()? {
            let name = pin.file_name().and_then(|name| name.to_str());
            let is_known = |name| cgroup::is_pin(name) || tc::is_pin(name) || xdp::is_pin(name);
            if !name.is_some_and(is_known) {
                tracing::info!(pin = %pin.display(), "a newer build's link removed");
                bpffs::remove_link(&pin)?;
            }
        }
        Ok(())
    }

    /// Leaves to the host's stack the connections that netfilter has translated until now. For a node whose pods are
    /// another plugin's: before it has Services, when everything is attached.
    /// Until [`Self::end_handover`], packets of others that are in mid-connection are not refused.
    pub fn begin_handover(&self) -> Result<()> {
        if self.leave_to_netfilter()? > 0 {
            self.node.lock().set_migrating(true)?;
        }
        Ok(())
    }

    /// Every Service is served here: what netfilter has translated until then is all that it will. Another layout's
    /// state is taken over as well.
    pub fn end_handover(&self) -> Result<()> {
        self.leave_to_netfilter()?;
        self.end_migration()
    }

    fn leave_to_netfilter(&self) -> Result<usize> {
        let dialled = netfilter::translated().unwrap_or_else(|error| {
            tracing::warn!(%error, "connections of netfilter are not known: some may end");
            Vec::new()
        });
        let left = self.conntrack.lock().leave(&dialled)?;
        if left > 0 {
            tracing::info!(
                left,
                "connections that netfilter has translated go on by it"
            );
        }
        Ok(left)
    }

    /// The addresses of this node, and whether NodePorts answer on each.
    pub fn set_node_addresses(&self, addresses: &[(IpAddr, bool)]) -> Result<()> {
        self.node.lock().set_node_addresses(addresses)
    }

    /// The addresses of this node, as they were set last.
    pub fn node_addresses(&self) -> Result<Vec<IpAddr>> {
        self.node.lock().node_addresses()
    }

    /// Whether any pod has a host port: ports outside the range of NodePorts are looked up
    /// on node addresses only then.
    pub fn set_host_ports_in_use(&self, in_use: bool) -> Result<()> {
        self.node.lock().set_host_ports(in_use)
    }

    /// The networks (address, prefix length) from which an uplink takes nothing. Uplinks that
    /// are attached after this drop it by XDP where they can.
    pub fn set_denied_networks(&self, networks: &[(IpAddr, u8)]) -> Result<()> {
        self.node.lock().set_denied(networks)
    }

    /// Neighbours on an uplink who ask for the address get this Ethernet address, the uplink's.
    pub fn announce(&self, ifindex: u32, address: IpAddr, mac: [u8; 6]) -> Result<()> {
        self.announced.lock().put(ifindex, address, mac)
    }

    /// They get no answer any more.
    pub fn withdraw(&self, ifindex: u32, address: IpAddr) -> Result<()> {
        self.announced.lock().remove(ifindex, address)
    }

    /// Answers for nothing on other uplinks than these: what an earlier run answered for there.
    pub fn retain_announced(&self, uplinks: &[&str]) -> Result<()> {
        let live = uplinks.iter().copied();
        let live: Vec<u32> = live.filter_map(|name| if_nametoindex(name).ok()).collect();
        let mut announced = self.announced.lock();
        for (ifindex, address) in announced.held()? {
            if !live.contains(&ifindex) {
                announced.remove(ifindex, address)?;
            }
        }
        Ok(())
    }

    /// What this node answers for, an earlier run's included: uplink and address.
    pub fn announced(&self) -> Result<Vec<(u32, IpAddr)>> {
        self.announced.lock().held()
    }

    /// The networks (address, prefix length) that see a pod's own address: pods and nodes
    /// of the cluster. Traffic to everything else is masqueraded on an uplink.
    pub fn set_native_networks(&self, networks: &[(IpAddr, u8)]) -> Result<()> {
        self.node.lock().set_native_networks(networks)
    }

    /// The networks (address, prefix length) of Services' addresses: what leaves for one that no Service has is dropped.
    /// Only to be set when every Service is in the tables; it outlives this process as they do.
    pub fn set_service_networks(&self, networks: &[(IpAddr, u8)]) -> Result<()> {
        self.node.lock().set_service_networks(networks)
    }

    /// Whether an address is in one of those.
    pub fn is_of_services(&self, address: IpAddr) -> bool {
        self.node.lock().is_of_services(address)
    }

    /// The service tables, locked for one reader or writer.
    pub fn services(&self) -> impl std::ops::DerefMut<Target = ServiceMaps> + '_ {
        self.services.lock()
    }

    /// The policy tables, locked for one reader or writer.
    pub fn policy(&self) -> impl std::ops::DerefMut<Target = PolicyMaps> + '_ {
        self.policy.lock()
    }

    /// Every counter that is not zero.
    pub fn metrics(&self) -> Result<Vec<MetricSample>> {
        self.metrics.read()
    }

    /// What went through each service, by its id, since there was traffic for it.
    pub fn traffic(&self) -> Result<Vec<(u32, types::Traffic)>> {
        self.traffic.lock().read()
    }

    /// How many connections each service had open, by its id, when garbage was collected last.
    pub fn open_connections(&self) -> Vec<(u32, u32)> {
        self.conntrack.lock().open()
    }

    /// Drops what is counted of services that are no more.
    pub fn forget_traffic(&self, services: &[u32]) -> Result<()> {
        self.conntrack.lock().forget_turns(services)?;
        self.traffic.lock().forget(services)
    }

    /// Deletes connections whose time is over or whose backend is gone. To be called
    /// every few seconds, and after backends were removed.
    pub fn collect_garbage(&self) -> Result<CollectReport> {
        self.conntrack.lock().collect(&self.services)
    }

    /// Which of these backends have connections, or sockets that the hooks connected to them.
    pub fn backends_in_use(&self, backends: &HashSet<u32>) -> Result<HashSet<u32>> {
        self.conntrack.lock().in_use(backends)
    }

    /// Closes the sockets that the hooks connected to backends which are gone, in the host's
    /// namespace (the caller's) and every pod's. Returns how many there were.
    pub fn close_sockets(&self, gone: &GoneBackends) -> Result<usize> {
        let stale = self.conntrack.lock().sockets_of(gone)?;
        let failed = |target: String| {
            move |source| Error::Namespace {
                doing: "close sockets in",
                target,
                source,
            }
        };
        let node = self.node.lock();
        let (host, pods) = (node.host_tag(), node.namespace_paths());
        drop(node);
        let mut closed = sockets::close_in(None, &stale.of(host))
            .map_err(failed("the host's network namespace".to_owned()))?;
        for (tag, path) in pods {
            let result = sockets::close_in(Some(&path), &stale.of(tag));
            match result.map_err(failed(path.display().to_string())) {
                Ok(count) => closed += count,
                // A pod that is going takes its sockets with it.
                Err(error) => tracing::debug!(%error, "sockets of a pod not closed"),
            }
        }
        Ok(closed)
    }

    /// The connections being tracked, both directions of each.
    pub fn connections(&self) -> Result<Vec<(types::Tuple, types::Connection)>> {
        self.conntrack.lock().entries()
    }

    /// What the programs tell of single flows; by default nothing.
    pub fn set_flow_log(&self, config: types::FlowConfig) -> Result<()> {
        self.flows.lock().set(config)
    }

    /// What each decider dropped for policy's sake, or would have.
    pub fn policy_drops(&self) -> Result<Vec<PolicyDrops>> {
        self.flows.lock().drops()
    }

    /// The reading end of the flow log. Several would take events from each other.
    pub fn flow_ring(&self) -> Result<FlowRing> {
        self.flows.lock().ring()
    }

    /// What the verifier said about each program.
    pub fn program_sizes(&self) -> &[ProgramSize] {
        &self.sizes
    }

    /// Runs a tc program on a packet that is not on any wire (BPF_PROG_TEST_RUN).
    /// Returns its verdict and the packet that it left.
    pub fn test_run(&self, program: &str, packet: &[u8], ifindex: u32) -> Result<(u32, Vec<u8>)> {
        let mut programs = self.programs.lock();
        let (verdict, left, _) = loader::test_run(&mut programs, program, packet, ifindex, 1)?;
        Ok((verdict, left))
    }

    /// Runs a tc program many times on one packet, which is not made anew in between; returns
    /// the time of one run.
    pub fn time_run(
        &self,
        program: &str,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> Result<Duration> {
        let mut programs = self.programs.lock();
        let (_, _, time) = loader::test_run(&mut programs, program, packet, ifindex, repeat)?;
        Ok(time)
    }
}
