//! A pod's interface: a veth pair whose one end, `wl…`, is the host's, and whose other is `eth0` in the pod.
//!
//! There is no bridge and no subnet: the pod has one address of its own and a default route by a link-local
//! gateway that no interface holds. Both ends know the other's MAC for good, so nobody ever asks by ARP,
//! and a flushed or forged cache cannot cut a pod off. The host routes the pod's address to its end.

mod clsact;
mod named;
mod namespace;
mod shaping;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::link::InfoKind;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use sha2::{Digest, Sha256};

pub use self::named::{ensure as ensure_namespace, remove as remove_namespace};
pub use self::namespace::{Link, Namespace};
pub use self::shaping::{Bandwidth, Limit};
use crate::ipam::AttachmentKey;

/// What pods use as their gateway; the same for all, on every node.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What the names of our host ends begin with.
pub const PREFIX: &str = "wl";

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was being done to an interface, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} failed: {reason}")]
pub struct LinkError {
    doing: String,
    reason: String,
}

impl LinkError {
    pub(crate) fn netlink(doing: impl Into<String>, error: rtnetlink::Error) -> Self {
        let reason = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
            other => other.to_string(),
        };
        Self {
            doing: doing.into(),
            reason,
        }
    }

    pub(crate) fn route(doing: String, error: &impl fmt::Display) -> Self {
        Self {
            doing,
            reason: error.to_string(),
        }
    }

    pub(crate) fn io(doing: impl Into<String>, error: io::Error) -> Self {
        Self {
            doing: doing.into(),
            reason: error.to_string(),
        }
    }
}

/// A pod's interface as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    pub host_name: String,
    pub pod_name: String,
    pub addresses: Vec<IpAddr>,
    pub host_mac: Mac,
    pub pod_mac: Mac,
    pub mtu: u32,
}

impl PodLink {
    /// Everything follows from the attachment, so that each part can be found again without a record.
    pub fn new(key: &AttachmentKey, addresses: Vec<IpAddr>, mtu: u32) -> Self {
        let digest = Sha256::digest(format!("{}/{}", key.container_id, key.interface));
        // Locally administered unicast; the ends differ in one bit.
        let mac = |end: u8| {
            Mac([
                0x0a ^ end,
                digest[8],
                digest[9],
                digest[10],
                digest[11],
                digest[12],
            ])
        };
        Self {
            host_name: host_interface(key),
            pod_name: key.interface.clone(),
            addresses,
            host_mac: mac(4),
            pod_mac: mac(0),
            mtu,
        }
    }

    /// Makes the pair and the host's side of it: from here on the host can reach the pod as soon as the
    /// pod's end comes up. Returns the host end's index.
    ///
    /// # Errors
    /// Also when the pod already has an interface of that name.
    pub async fn create(
        &self,
        host: &Namespace,
        pod: &Namespace,
        source: &[IpAddr],
    ) -> Result<u32, LinkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(self.pod_name.clone())
            .address(self.pod_mac.0.to_vec())
            .mtu(self.mtu)
            .setns_by_fd(pod.raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(self.host_name.clone())
            .address(self.host_mac.0.to_vec())
            .mtu(self.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        host.handle()
            .link()
            .add(pair)
            .execute()
            .await
            .map_err(|error| {
                LinkError::netlink(
                    format!("making {} and its peer {}", self.host_name, self.pod_name),
                    error,
                )
            })?;
        let index = host
            .link(&self.host_name)
            .await?
            .map(|link| link.index)
            .ok_or_else(|| {
                let doing = format!("finding {} again", self.host_name);
                LinkError {
                    doing,
                    reason: "it has gone".into(),
                }
            })?;
        host.set_sysctls(self.host_sysctls()).await?;
        host.set_up(index).await?;
        for address in &self.addresses {
            host.add_neighbour(index, *address, self.pod_mac).await?;
            let source = source
                .iter()
                .copied()
                .find(|source| source.is_ipv4() == address.is_ipv4());
            host.add_host_route(index, *address, source).await?;
        }
        Ok(index)
    }

    /// Configures the pod's end and brings it up, and the loopback with it.
    pub(crate) async fn bring_up(&self, pod: &Namespace) -> Result<(), LinkError> {
        let missing = |name: &str| LinkError {
            doing: format!("configuring the pod's {name}"),
            reason: "it does not exist".into(),
        };
        let loopback = pod.link("lo").await?.ok_or_else(|| missing("lo"))?;
        if !loopback.up {
            pod.set_up(loopback.index).await?;
        }
        let link = pod
            .link(&self.pod_name)
            .await?
            .ok_or_else(|| missing(&self.pod_name))?;
        for address in &self.addresses {
            pod.add_address(link.index, *address).await?;
        }
        pod.set_up(link.index).await?;
        for address in &self.addresses {
            let gateway = gateway(*address);
            pod.add_neighbour(link.index, gateway, self.host_mac)
                .await?;
            pod.add_host_route(link.index, gateway, None).await?;
            pod.add_default_route(link.index, gateway).await?;
        }
        Ok(())
    }

    /// What differs from how [`create`](Self::create) and [`bring_up`](Self::bring_up) leave things;
    /// `Ok(index of the host end)` when nothing does.
    pub async fn verify(
        &self,
        host: &Namespace,
        pod: &Namespace,
    ) -> Result<Result<u32, String>, LinkError> {
        let Some(host_end) = host.link(&self.host_name).await? else {
            return Ok(Err(format!("the host has no interface {}", self.host_name)));
        };
        let Some(pod_end) = pod.link(&self.pod_name).await? else {
            return Ok(Err(format!("the pod has no interface {}", self.pod_name)));
        };
        if !host_end.up || !pod_end.up {
            return Ok(Err(format!("{} or its peer is down", self.host_name)));
        }
        if pod_end.mac != Some(self.pod_mac) || host_end.mac != Some(self.host_mac) {
            return Ok(Err(format!(
                "{} or its peer has another MAC address",
                self.host_name
            )));
        }
        let held = pod.addresses(pod_end.index).await?;
        let routes = host.host_routes().await?;
        for address in &self.addresses {
            if !held.contains(address) {
                return Ok(Err(format!(
                    "the pod's {} has lost {address}",
                    self.pod_name
                )));
            }
            if !routes.contains(&(host_end.index, *address)) {
                return Ok(Err(format!(
                    "the host has no route to {address} by {}",
                    self.host_name
                )));
            }
        }
        Ok(Ok(host_end.index))
    }

    fn host_sysctls(&self) -> Vec<(String, &'static str)> {
        let name = &self.host_name;
        let mut sysctls = vec![
            // Only these interfaces forward: the node's own setting stays as its owner chose.
            (format!("ipv4/conf/{name}/forwarding"), "1"),
            // The datapath checks sources. The kernel's check would drop replies that the datapath has
            // already given a Service's address.
            (format!("ipv4/conf/{name}/rp_filter"), "0"),
            // A pod that flushed its neighbours, or asks out of habit, is answered.
            (format!("ipv4/conf/{name}/proxy_arp"), "1"),
            (format!("ipv4/neigh/{name}/proxy_delay"), "0"),
        ];
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            sysctls.push(forward_v6(name));
            // Whatever lets packets be forwarded: the kernel tells a program (`bpf_fib_lookup`) only about the ways
            // from a router's interface.
            sysctls.push((format!("ipv6/conf/{name}/forwarding"), "1"));
            sysctls.push((format!("ipv6/conf/{name}/accept_dad"), "0"));
        } else if std::path::Path::new("/proc/sys/net/ipv6").exists() {
            // Nothing speaks IPv6 here: no link-local address, no multicast noise for every pod.
            sysctls.push((format!("ipv6/conf/{name}/disable_ipv6"), "1"));
        }
        sysctls
    }
}

/// Forwards IPv6 that arrives on an interface. For that alone there is a setting since Linux 6.17; before,
/// `forwarding` of a single interface only decides whether it behaves as a router's, and all or none forward.
pub(crate) fn forward_v6(interface: &str) -> (String, &'static str) {
    if std::path::Path::new("/proc/sys/net/ipv6/conf/all/force_forwarding").exists() {
        (format!("ipv6/conf/{interface}/force_forwarding"), "1")
    } else {
        ("ipv6/conf/all/forwarding".into(), "1")
    }
}

/// The name of an attachment's host end: 13 characters of the 15 that the kernel allows.
pub fn host_interface(key: &AttachmentKey) -> String {
    let digest = Sha256::digest(format!("{}/{}", key.container_id, key.interface));
    let hex: String = digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{PREFIX}{}", &hex[..11])
}

pub fn gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv4() {
        GATEWAY_V4.into()
    } else {
        GATEWAY_V6.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_macs_follow_from_the_attachment() {
        let key = AttachmentKey {
            container_id: "c0ffee".into(),
            interface: "eth0".into(),
        };
        let link = PodLink::new(&key, vec![], 1500);
        assert_eq!(link, PodLink::new(&key, vec![], 1500));
        assert_eq!(link.host_name.len(), 13);
        assert!(link.host_name.starts_with("wl"));
        assert_ne!(link.host_mac, link.pod_mac);
        for mac in [link.host_mac, link.pod_mac] {
            assert_eq!(mac.0[0] & 3, 2, "{mac} is locally administered and unicast");
        }
        let other = AttachmentKey {
            container_id: "c0ffee".into(),
            interface: "net1".into(),
        };
        assert_ne!(host_interface(&other), link.host_name);
    }
}
