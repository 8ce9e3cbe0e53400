//! The tunnel device: VXLAN in external mode, which is told of each packet's other end by the datapath.
//!
//! One device for all nodes; it learns nothing, floods nothing and asks nobody for Ethernet addresses.

use futures::TryStreamExt;
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{LinkUnspec, LinkVxlan};

use crate::interface::{LinkError, Namespace};
use crate::uplink;

/// The device's name.
pub const DEVICE: &str = "wlvxlan0";

/// The virtual network's number, the same on every node.
pub const VNI: u32 = 1;

/// What an outer packet adds: Ethernet (the inner one), VXLAN, UDP, and IP of either family.
const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;

#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// UDP port of the outer packets, the same on every node.
    pub port: u16,
    /// The interfaces that outer packets may leave by: the smallest MTU of them counts.
    pub uplinks: Vec<String>,
    /// Whether outer packets are IPv4.
    pub is_v4: bool,
}

/// Makes the device, or adopts the one that is there, so that a restart interrupts nothing. Returns its index.
pub async fn prepare(host: &Namespace, config: &TunnelConfig) -> Result<u32, LinkError> {
    let mtu = mtu(host, config).await?;
    let found = find(host).await?;
    if let Some(message) = &found
        && !is_ours(message, config.port)
    {
        host.remove(message.header.index).await?;
    }
    let index = match found.filter(|message| is_ours(message, config.port)) {
        Some(message) => message.header.index,
        None => create(host, config, mtu).await?,
    };
    let change = LinkUnspec::new_with_index(index).mtu(mtu).arp(false).up();
    host.handle()
        .link()
        .change(change.build())
        .execute()
        .await
        .map_err(|error| LinkError::netlink(format!("setting {DEVICE} up"), error))?;
    host.set_sysctls(uplink::forwarding(DEVICE)).await?;
    // The device has no address, so that the host would take whoever is not routed into it for forged: the
    // other nodes themselves, and clients outside that they send on. The datapath compares the sources itself.
    let accept = (format!("ipv4/conf/{DEVICE}/rp_filter"), "0");
    host.set_sysctls(vec![accept]).await?;
    Ok(index)
}

/// Removes the device; one that is not there is removed.
pub async fn remove(host: &Namespace) -> Result<(), LinkError> {
    match find(host).await? {
        Some(message) => host.remove(message.header.index).await,
        None => Ok(()),
    }
}

async fn create(host: &Namespace, config: &TunnelConfig, mtu: u32) -> Result<u32, LinkError> {
    let device = rtnetlink::LinkMessageBuilder::<LinkVxlan>::new(DEVICE)
        .collect_metadata(true)
        .learning(false)
        .port(config.port)
        .udp_zero_csum6_rx(true)
        .mtu(mtu);
    host.handle()
        .link()
        .add(device.build())
        .execute()
        .await
        .map_err(|error| LinkError::netlink(format!("making {DEVICE}"), error))?;
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        // No link-local address: nobody is to be met on this device.
        let setting = (format!("ipv6/conf/{DEVICE}/addr_gen_mode"), "1");
        host.set_sysctls(vec![setting]).await?;
    }
    let made = find(host).await?.map(|message| message.header.index);
    made.ok_or_else(|| LinkError::route(format!("finding {DEVICE} again"), &"it has gone"))
}

async fn mtu(host: &Namespace, config: &TunnelConfig) -> Result<u32, LinkError> {
    let mut smallest = 1_500;
    let mut known = false;
    for uplink in &config.uplinks {
        if let Some(link) = host.link(uplink).await? {
            smallest = if known {
                smallest.min(link.mtu)
            } else {
                link.mtu
            };
            known = true;
        }
    }
    let overhead = if config.is_v4 {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    Ok(smallest.saturating_sub(overhead))
}

async fn find(host: &Namespace) -> Result<Option<LinkMessage>, LinkError> {
    if host.link(DEVICE).await?.is_none() {
        return Ok(None);
    }
    let request = host.handle().link().get().match_name(DEVICE);
    request
        .execute()
        .try_next()
        .await
        .map_err(|error| LinkError::netlink(format!("looking for {DEVICE}"), error))
}

/// Whether a device of that name is what [`create`] makes.
fn is_ours(message: &LinkMessage, port: u16) -> bool {
    let infos = message.attributes.iter().filter_map(|it| match it {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().any(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(settings)) => {
            settings.contains(&InfoVxlan::Port(port))
                && settings.contains(&InfoVxlan::CollectMetadata(true))
        }
        _ => false,
    })
}
