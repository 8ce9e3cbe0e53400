//! What the programs know of the node: its settings, addresses, uplinks, pods.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use aya::{
    Ebpf,
    maps::{
        Array, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use windlass_ebpf_types::{Addr, Endpoint, NodeConfig, Uplink, netns, node_address};

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
    namespaces: Table<u64, u32>,
    native: LpmTrie<MapData, Raw<Addr>, u32>,
    /// Namespaces by the index of the host interface, to be withdrawn with it.
    namespace_of: HashMap<u32, u64>,
}

impl NodeMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            config: take(ebpf, "NODE_CONFIG")?,
            addresses: Table::take(ebpf, "NODE_ADDRESSES")?,
            endpoints: Table::take(ebpf, "ENDPOINTS")?,
            uplinks: Table::take(ebpf, "UPLINKS")?,
            namespaces: Table::take(ebpf, "NETNS")?,
            native: take(ebpf, "NATIVE")?,
            namespace_of: HashMap::new(),
        })
    }

    pub(crate) fn set_config(&mut self, config: &DatapathConfig) -> Result<()> {
        let value = NodeConfig {
            node_port_min: config.node_ports.0,
            node_port_max: config.node_ports.1,
            snat_port_min: config.snat_ports.0,
            snat_port_max: config.snat_ports.1,
        };
        self.config
            .set(0, Raw(value), 0)
            .map_err(|error| Error::map("write to", "NODE_CONFIG", error))
    }

    pub(crate) fn set_namespace(&mut self, cookie: u64, kind: u32) -> Result<()> {
        self.namespaces.put(cookie, kind)
    }

    pub(crate) fn set_uplink(&mut self, device: &Device, masquerade: bool) -> Result<()> {
        let source = |v4| match device.source_address(v4) {
            Some(address) if masquerade => Addr::from(address),
            _ => Addr::UNSPECIFIED,
        };
        self.uplinks.put(
            device.ifindex,
            Raw(Uplink {
                v4: source(true),
                v6: source(false),
            }),
        )
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
            self.uplinks.remove(ifindex)?;
        }
        Ok(gone)
    }

    pub(crate) fn set_endpoint(&mut self, pod: &PodInterface, device: &Device) -> Result<()> {
        let endpoint = Endpoint {
            ifindex: device.ifindex,
            flags: 0,
            pod_mac: pod.mac,
            host_mac: device.mac,
        };
        for address in &pod.addresses {
            self.endpoints.put(Raw((*address).into()), Raw(endpoint))?;
        }
        Ok(())
    }

    pub(crate) fn remember_namespace(&mut self, ifindex: u32, cookie: u64) {
        self.namespace_of.insert(ifindex, cookie);
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
        if let Some(cookie) = self.namespace_of.remove(&ifindex) {
            self.namespaces.remove(&cookie)?;
        }
        Ok(())
    }

    /// Drops addresses that are not in `live`, and the namespaces of pods that this run has
    /// not attached: those went while no agent was there to see it.
    pub(crate) fn retain_endpoints(&mut self, live: &[IpAddr]) -> Result<()> {
        for (cookie, kind) in self.namespaces.entries()? {
            if kind == netns::POD && !self.namespace_of.values().any(|known| *known == cookie) {
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

    pub(crate) fn set_node_addresses(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let wanted: HashSet<Addr> = addresses.iter().copied().map(Addr::from).collect();
        for (held, _) in self.addresses.entries()? {
            if !wanted.contains(&held.0) {
                self.addresses.remove(&held)?;
            }
        }
        for address in wanted {
            self.addresses.put(Raw(address), node_address::NODE_PORTS)?;
        }
        Ok(())
    }

    pub(crate) fn set_native_networks(&mut self, networks: &[(IpAddr, u8)]) -> Result<()> {
        let failed = |error| Error::map("write to", "NATIVE", error);
        let wanted: HashSet<(Addr, u32)> = networks
            .iter()
            .map(|(address, length)| {
                // IPv4 networks live under ::ffff:0:0/96.
                let length = u32::from(*length) + if address.is_ipv4() { 96 } else { 0 };
                (Addr::from(*address), length)
            })
            .collect();
        let held: Vec<_> = self
            .native
            .keys()
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        for key in held {
            if !wanted.contains(&(key.data().0, key.prefix_len())) {
                self.native.remove(&key).map_err(failed)?;
            }
        }
        for (address, length) in wanted {
            self.native
                .insert(&Key::new(length, Raw(address)), 1, 0)
                .map_err(failed)?;
        }
        Ok(())
    }
}
