//! Network interfaces as the datapath needs them: index, Ethernet address, addresses.

use std::{net::IpAddr, path::PathBuf};

use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};

use crate::error::{Error, Result};

/// The host side of a pod's veth pair, and the pod behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// Name of the host side.
    pub name: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Ethernet address of the pod's side.
    pub mac: [u8; 6],
    /// The pod's network namespace. Without it the pod's sockets are not translated at
    /// connect, and its packets by tc only.
    pub netns: Option<PathBuf>,
    /// The host side has a queue that limits the pod's bandwidth, which packets must not be led past.
    pub limited: bool,
}

/// An interface of the calling thread's network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) addresses: Vec<IpAddr>,
}

pub(crate) fn find(name: &str) -> Result<Device> {
    let missing = || Error::NoInterface {
        name: name.to_owned(),
    };
    let ifindex = if_nametoindex(name).map_err(|_| missing())?;
    let mut device = Device {
        name: name.to_owned(),
        ifindex,
        mac: [0; 6],
        addresses: Vec::new(),
    };
    let all = getifaddrs().map_err(|error| Error::Link {
        doing: "list addresses",
        target: name.to_owned(),
        source: error.into(),
    })?;
    for entry in all.filter(|entry| entry.interface_name == name) {
        let Some(address) = entry.address else {
            continue;
        };
        if let Some(link) = address.as_link_addr() {
            device.mac = link.addr().unwrap_or_default();
        } else if let Some(v4) = address.as_sockaddr_in() {
            device.addresses.push(v4.ip().into());
        } else if let Some(v6) = address.as_sockaddr_in6() {
            device.addresses.push(v6.ip().into());
        }
    }
    Ok(device)
}

impl Device {
    /// The first address that others can answer to, of one family.
    pub(crate) fn source_address(&self, want_v4: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| match address {
                IpAddr::V4(v4) => want_v4 && !v4.is_link_local() && !v4.is_loopback(),
                IpAddr::V6(v6) => !want_v4 && !v6.is_unicast_link_local() && !v6.is_loopback(),
            })
    }
}
