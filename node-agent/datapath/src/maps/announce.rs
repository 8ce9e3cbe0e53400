//! The addresses that this node answers for on its uplinks.

use std::net::IpAddr;

use aya::Ebpf;
use windlass_ebpf_types::{Addr, Announced, AnnouncedKey};

use super::Table;
use crate::{error::Result, raw::Raw};

pub(crate) struct AnnounceMaps {
    announced: Table<Raw<AnnouncedKey>, Raw<Announced>>,
}

impl AnnounceMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            announced: Table::take(ebpf, "ANNOUNCED")?,
        })
    }

    pub(crate) fn put(&mut self, ifindex: u32, address: IpAddr, mac: [u8; 6]) -> Result<()> {
        let value = Announced { mac, pad: [0; 2] };
        self.announced.put(key(ifindex, address), Raw(value))
    }

    pub(crate) fn remove(&mut self, ifindex: u32, address: IpAddr) -> Result<()> {
        self.announced.remove(&key(ifindex, address))
    }

    /// Interface and address.
    pub(crate) fn held(&self) -> Result<Vec<(u32, IpAddr)>> {
        let entries = self.announced.entries()?;
        let held = entries
            .into_iter()
            .map(|(Raw(key), _)| (key.ifindex, key.addr.to_ip()));
        Ok(held.collect())
    }
}

fn key(ifindex: u32, address: IpAddr) -> Raw<AnnouncedKey> {
    let addr = Addr::from(address);
    Raw(AnnouncedKey { addr, ifindex })
}
