//! What is behind which node, and the device that leads there.

use std::{collections::HashMap, net::IpAddr};

use aya::{
    Ebpf,
    maps::{
        Array, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use windlass_ebpf_types::{Addr, Overlay, Tunnel};

use super::{node::prefix_length, take};
use crate::{
    error::{Error, Result},
    raw::Raw,
};

pub(crate) struct OverlayMaps {
    overlay: Array<MapData, Raw<Overlay>>,
    port: Array<MapData, u32>,
    tunnels: LpmTrie<MapData, Raw<Addr>, Raw<Tunnel>>,
}

impl OverlayMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            overlay: take(ebpf, "OVERLAY")?,
            port: take(ebpf, "TUNNEL_PORT")?,
            tunnels: take(ebpf, "TUNNELS")?,
        })
    }

    /// The tunnel device; index 0 turns the overlay off.
    pub(crate) fn set_overlay(&mut self, overlay: Overlay) -> Result<()> {
        self.overlay
            .set(0, Raw(overlay), 0)
            .map_err(|error| Error::map("write to", "OVERLAY", error))
    }

    /// The port of packets between nodes; 0: there are none.
    pub(crate) fn set_port(&mut self, port: u16) -> Result<()> {
        self.port
            .set(0, u32::from(port), 0)
            .map_err(|error| Error::map("write to", "TUNNEL_PORT", error))
    }

    /// The index of the tunnel device, 0 when there is none.
    pub(crate) fn device(&self) -> Result<u32> {
        let held = self.overlay.get(&0, 0);
        held.map(|overlay| overlay.0.ifindex)
            .map_err(|error| Error::map("read", "OVERLAY", error))
    }

    /// Networks (address, prefix length) and the address of the node that each is behind.
    pub(crate) fn set_tunnels(&mut self, tunnels: &[(IpAddr, u8, IpAddr)]) -> Result<()> {
        let failed = |error| Error::map("write to", "TUNNELS", error);
        let wanted: HashMap<(Addr, u32), Addr> = tunnels
            .iter()
            .map(|(address, length, node)| {
                let key = (Addr::from(*address), prefix_length(*address, *length));
                (key, Addr::from(*node))
            })
            .collect();
        let mut held = HashMap::new();
        for entry in self.tunnels.iter() {
            let (key, value) = entry.map_err(failed)?;
            held.insert((key.data().0, key.prefix_len()), value.0.node);
        }
        for (address, length) in held.keys() {
            if !wanted.contains_key(&(*address, *length)) {
                let key = Key::new(*length, Raw(*address));
                self.tunnels.remove(&key).map_err(failed)?;
            }
        }
        for ((address, length), node) in wanted {
            if held.get(&(address, length)) != Some(&node) {
                let key = Key::new(length, Raw(address));
                self.tunnels
                    .insert(&key, Raw(Tunnel { node }), 0)
                    .map_err(failed)?;
            }
        }
        Ok(())
    }
}
