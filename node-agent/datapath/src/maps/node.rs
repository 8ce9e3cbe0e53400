//! What the programs know of the node: its settings, addresses, uplinks, pods.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
};

use aya::{
    Ebpf,
    maps::{
        Array, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use windlass_ebpf_types::{
    Addr, Endpoint, NetNamespace, NodeConfig, Uplink, endpoint_flag, netns, network, node_address,
    node_config,
};

use super::{Table, take};
use crate::{
    config::DatapathConfig,
    error::{Error, Result},
    interface::{Device, PodInterface},
    raw::Raw,
};

pub(crate) struct NodeMaps {
    config: Array<MapData, Raw<NodeConfig>>,
    addresses: Table<Raw<Addr>, u32>,
    endpoints: Table<Raw<Addr>, Raw<Endpoint>>,
    uplinks: Table<u32, Raw<Uplink>>,
    xdp_uplinks: Table<u32, u32>,
    namespaces: Table<u64, Raw<NetNamespace>>,
    native: LpmTrie<MapData, Raw<Addr>, u32>,
    denied: LpmTrie<MapData, Raw<Addr>, u32>,
    /// Namespaces by the index of the host interface, to be withdrawn with it.
    namespace_of: HashMap<u32, (u64, Option<PathBuf>)>,
    /// What is in `NODE_CONFIG`.
    settings: NodeConfig,
    /// The host's namespace, and what its packets carry as their source.
    host: Option<u64>,
    host_source: [Addr; 2],
}

impl NodeMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            config: take(ebpf, "NODE_CONFIG")?,
            addresses: Table::take(ebpf, "NODE_ADDRESSES")?,
            endpoints: Table::take(ebpf, "ENDPOINTS")?,
            uplinks: Table::take(ebpf, "UPLINKS")?,
            xdp_uplinks: Table::take(ebpf, "XDP_UPLINKS")?,
            namespaces: Table::take(ebpf, "NETNS")?,
            native: take(ebpf, "NATIVE")?,
            denied: take(ebpf, "DENIED")?,
            namespace_of: HashMap::new(),
            settings: NodeConfig {
                node_port_min: 0,
                node_port_max: 0,
                snat_port_min: 0,
                snat_port_max: 0,
                flags: 0,
                maglev_size: 0,
                half_open_pod: 0,
                half_open_outside: 0,
            },
            host: None,
            host_source: [Addr::UNSPECIFIED; 2],
        })
    }

    pub(crate) fn set_config(&mut self, config: &DatapathConfig) -> Result<()> {
        // What is told later stays until then as it was.
        let held = self.config.get(&0, 0).map_or(0, |held| {
            held.0.flags & (node_config::HOST_PORTS | node_config::DENY_LIST)
        });
        let options = [
            (config.loopback_node_ports, node_config::LOOPBACK_NODE_PORTS),
            (config.direct_answers, node_config::DIRECT_ANSWERS),
            (config.xdp.forwards(), node_config::XDP_FORWARDS),
        ];
        let chosen = options.iter().filter(|(chosen, _)| *chosen);
        let chosen = chosen.fold(0, |flags, (_, flag)| flags | flag);
        self.write_config(NodeConfig {
            node_port_min: config.node_ports.0,
            node_port_max: config.node_ports.1,
            snat_port_min: config.snat_ports.0,
            snat_port_max: config.snat_ports.1,
            flags: chosen | held,
            maglev_size: config.maglev_size,
            half_open_pod: config.half_open_quota().0,
            half_open_outside: config.half_open_quota().1,
        })
    }

    /// Whether host ports, which may lie outside the range of NodePorts, are looked for.
    pub(crate) fn set_host_ports(&mut self, in_use: bool) -> Result<()> {
        let mut settings = self.settings;
        settings.flags &= !node_config::HOST_PORTS;
        if in_use {
            settings.flags |= node_config::HOST_PORTS;
        }
        if settings == self.settings {
            return Ok(());
        }
        self.write_config(settings)
    }

    /// Another layout's programs still run: a packet in mid-connection that nothing is known
    /// of may be one of theirs.
    pub(crate) fn set_migrating(&mut self, migrating: bool) -> Result<()> {
        let mut settings = self.settings;
        settings.flags &= !node_config::MIGRATING;
        if migrating {
            settings.flags |= node_config::MIGRATING;
        }
        if settings == self.settings {
            return Ok(());
        }
        self.write_config(settings)
    }

    fn write_config(&mut self, settings: NodeConfig) -> Result<()> {
        self.config
            .set(0, Raw(settings), 0)
            .map_err(|error| Error::map("write to", "NODE_CONFIG", error))?;
        self.settings = settings;
        Ok(())
    }

    /// The host's namespace is one of the clients.
    pub(crate) fn set_host_namespace(&mut self, cookie: u64) -> Result<()> {
        self.host = Some(cookie);
        self.write_host_namespace()
    }

    fn write_host_namespace(&mut self) -> Result<()> {
        let Some(cookie) = self.host else {
            return Ok(());
        };
        let [v4, v6] = self.host_source;
        let kind = netns::HOST;
        self.namespaces.put(
            cookie,
            Raw(NetNamespace {
                kind,
                tag: netns::tag(cookie).into(),
                v4,
                v6,
            }),
        )
    }

    /// A pod's namespace is one of the clients, under the pod's addresses.
    pub(crate) fn set_pod_namespace(&mut self, cookie: u64, addresses: &[IpAddr]) -> Result<()> {
        let of_family = |v4: bool| {
            let first = addresses.iter().find(|address| address.is_ipv4() == v4);
            first.map_or(Addr::UNSPECIFIED, |address| Addr::from(*address))
        };
        let namespace = NetNamespace {
            kind: netns::POD,
            tag: netns::tag(cookie).into(),
            v4: of_family(true),
            v6: of_family(false),
        };
        self.namespaces.put(cookie, Raw(namespace))
    }

    /// Whether namespaces that nobody told of are clients too.
    pub(crate) fn set_any_namespace(&mut self, all: bool) -> Result<()> {
        if all {
            self.set_pod_namespace(netns::ANY, &[])
        } else {
            self.namespaces.remove(&netns::ANY)
        }
    }

    pub(crate) fn set_uplink(&mut self, device: &Device, masquerade: bool) -> Result<()> {
        let source = |v4| match device.source_address(v4) {
            Some(address) if masquerade => Addr::from(address),
            _ => Addr::UNSPECIFIED,
        };
        for (held, v4) in [(0, true), (1, false)] {
            if self.host_source[held] == Addr::UNSPECIFIED
                && let Some(address) = device.source_address(v4)
            {
                self.host_source[held] = Addr::from(address);
            }
        }
        self.write_host_namespace()?;
        self.uplinks.put(
            device.ifindex,
            Raw(Uplink {
                v4: source(true),
                v6: source(false),
            }),
        )
    }

    /// An uplink that stands for the node by the given addresses, whatever its own are.
    pub(crate) fn set_tunnel_uplink(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Result<()> {
        let source = |v4| {
            let mut same = addresses.iter().filter(|address| address.is_ipv4() == v4);
            same.next()
                .map_or(Addr::UNSPECIFIED, |address| (*address).into())
        };
        self.uplinks.put(
            ifindex,
            Raw(Uplink {
                v4: source(true),
                v6: source(false),
            }),
        )
    }

    pub(crate) fn remove_uplink(&mut self, ifindex: u32) -> Result<()> {
        self.xdp_uplinks.remove(&ifindex)?;
        self.uplinks.remove(&ifindex)
    }

    /// How XDP may send out of an uplink, if at all.
    pub(crate) fn set_xdp_uplink(&mut self, ifindex: u32, sends: Option<u32>) -> Result<()> {
        match sends {
            Some(how) => self.xdp_uplinks.put(ifindex, how),
            None => self.xdp_uplinks.remove(&ifindex),
        }
    }

    /// Returns the interfaces that were uplinks until now.
    pub(crate) fn retain_uplinks(&mut self, live: &[u32]) -> Result<Vec<u32>> {
        let held = self
            .uplinks
            .entries()?
            .into_iter()
            .map(|(ifindex, _)| ifindex);
        let gone: Vec<u32> = held.filter(|ifindex| !live.contains(ifindex)).collect();
        for ifindex in &gone {
            self.remove_uplink(*ifindex)?;
        }
        Ok(gone)
    }

    pub(crate) fn set_endpoint(&mut self, pod: &PodInterface, device: &Device) -> Result<()> {
        let endpoint = Endpoint {
            ifindex: device.ifindex,
            flags: if pod.limited {
                endpoint_flag::LIMITED
            } else {
                0
            },
            macs: [pod.mac, device.mac],
        };
        for address in &pod.addresses {
            self.endpoints.put(Raw((*address).into()), Raw(endpoint))?;
        }
        Ok(())
    }

    pub(crate) fn remember_namespace(&mut self, ifindex: u32, cookie: u64, path: Option<PathBuf>) {
        self.namespace_of.insert(ifindex, (cookie, path));
    }

    /// The host's tag.
    pub(crate) fn host_tag(&self) -> u16 {
        self.host.map_or(0, netns::tag)
    }

    /// Where the pods' namespaces can be entered, with their tags.
    pub(crate) fn namespace_paths(&self) -> Vec<(u16, PathBuf)> {
        let known = self.namespace_of.values();
        known
            .filter_map(|(cookie, path)| Some((netns::tag(*cookie), path.clone()?)))
            .collect()
    }

    pub(crate) fn remove_endpoint(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Result<()> {
        for address in addresses {
            let key = Raw(Addr::from(*address));
            if self
                .endpoints
                .get(&key)?
                .is_some_and(|held| held.0.ifindex == ifindex)
            {
                self.endpoints.remove(&key)?;
            }
        }
        if let Some((cookie, _)) = self.namespace_of.remove(&ifindex) {
            self.namespaces.remove(&cookie)?;
        }
        Ok(())
    }

    /// Drops addresses that are not in `live`, and the namespaces of pods that this run has
    /// not attached: those went while no agent was there to see it.
    pub(crate) fn retain_endpoints(&mut self, live: &[IpAddr]) -> Result<()> {
        for (cookie, namespace) in self.namespaces.entries()? {
            if namespace.0.kind == netns::POD
                && cookie != netns::ANY
                && !self
                    .namespace_of
                    .values()
                    .any(|(known, _)| *known == cookie)
            {
                self.namespaces.remove(&cookie)?;
            }
        }
        for (address, _) in self.endpoints.entries()? {
            if !live.contains(&address.0.to_ip()) {
                self.endpoints.remove(&address)?;
            }
        }
        Ok(())
    }

    /// The node's addresses; `true`: NodePorts answer on it.
    pub(crate) fn set_node_addresses(&mut self, addresses: &[(IpAddr, bool)]) -> Result<()> {
        let wanted: HashMap<Addr, u32> = addresses
            .iter()
            .map(|(address, node_ports)| {
                let flags = if *node_ports {
                    node_address::NODE_PORTS
                } else {
                    0
                };
                (Addr::from(*address), flags)
            })
            .collect();
        for (held, flags) in self.addresses.entries()? {
            if flags != node_address::FOREIGN_POD && !wanted.contains_key(&held.0) {
                self.addresses.remove(&held)?;
            }
        }
        for (address, flags) in wanted {
            self.addresses.put(Raw(address), flags)?;
        }
        Ok(())
    }

    /// Those that are set.
    pub(crate) fn node_addresses(&self) -> Result<Vec<IpAddr>> {
        let held = self.addresses.entries()?.into_iter();
        let own = held.filter(|(_, flags)| *flags != node_address::FOREIGN_POD);
        Ok(own.map(|(address, _)| address.0.to_ip()).collect())
    }

    /// Pods of this node whose interfaces are another CNI plugin's. An address that is also the
    /// node's (a pod on the host's network) stays the node's.
    pub(crate) fn set_foreign_pods(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let mut wanted: HashSet<Addr> = addresses.iter().copied().map(Addr::from).collect();
        for (held, flags) in self.addresses.entries()? {
            let foreign = flags == node_address::FOREIGN_POD;
            if foreign && !wanted.contains(&held.0) {
                self.addresses.remove(&held)?;
            } else if !foreign {
                wanted.remove(&held.0);
            }
        }
        for address in wanted {
            self.addresses
                .put(Raw(address), node_address::FOREIGN_POD)?;
        }
        Ok(())
    }

    pub(crate) fn set_native_networks(&mut self, networks: &[(IpAddr, u8)]) -> Result<()> {
        set_networks(&mut self.native, "NATIVE", network::NATIVE, networks)
    }

    pub(crate) fn set_service_networks(&mut self, networks: &[(IpAddr, u8)]) -> Result<()> {
        set_networks(&mut self.native, "NATIVE", network::SERVICES, networks)
    }

    /// Whether nothing leaves for an address that no Service has.
    pub(crate) fn is_of_services(&self, address: IpAddr) -> bool {
        let key = Key::new(128, Raw(Addr::from(address)));
        self.native
            .get(&key, 0)
            .is_ok_and(|kind| kind == network::SERVICES)
    }

    pub(crate) fn set_denied(&mut self, networks: &[(IpAddr, u8)]) -> Result<()> {
        set_networks(&mut self.denied, "DENIED", 1, networks)?;
        let mut settings = self.settings;
        settings.flags &= !node_config::DENY_LIST;
        if !networks.is_empty() {
            settings.flags |= node_config::DENY_LIST;
        }
        self.write_config(settings)
    }

    pub(crate) fn denies(&self) -> bool {
        self.settings.flags & node_config::DENY_LIST != 0
    }
}

/// Makes a trie of networks hold exactly these of their kind.
fn set_networks(
    trie: &mut LpmTrie<MapData, Raw<Addr>, u32>,
    name: &'static str,
    kind: u32,
    networks: &[(IpAddr, u8)],
) -> Result<()> {
    let failed = |error| Error::map("write to", name, error);
    let wanted: HashSet<(Addr, u32)> = networks
        .iter()
        .map(|(address, length)| (Addr::from(*address), prefix_length(*address, *length)))
        .collect();
    let held: Vec<_> = trie.iter().collect::<Result<_, _>>().map_err(failed)?;
    for (key, is) in held {
        if is == kind && !wanted.contains(&(key.data().0, key.prefix_len())) {
            trie.remove(&key).map_err(failed)?;
        }
    }
    for (address, length) in wanted {
        trie.insert(&Key::new(length, Raw(address)), kind, 0)
            .map_err(failed)?;
    }
    Ok(())
}

/// IPv4 networks live under ::ffff:0:0/96.
pub(crate) fn prefix_length(address: IpAddr, length: u8) -> u32 {
    u32::from(length) + if address.is_ipv4() { 96 } else { 0 }
}
