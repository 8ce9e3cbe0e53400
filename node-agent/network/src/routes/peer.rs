//! A node as routing sees it.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

/// A node and the addresses of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// Its InternalIPs.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
}

impl Peer {
    /// `None` for a Node without a name. What cannot be read of it is left out.
    pub fn of(node: &Node) -> Option<Self> {
        let status = node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_deref());
        let internal = addresses
            .unwrap_or_default()
            .iter()
            .filter(|address| address.type_ == "InternalIP");
        let spec = node.spec.as_ref();
        let cidrs = spec.map(|spec| match &spec.pod_cidrs {
            Some(cidrs) if !cidrs.is_empty() => cidrs.clone(),
            _ => spec.pod_cidr.iter().cloned().collect(),
        });
        let cidrs = cidrs.unwrap_or_default();
        Some(Self {
            name: node.metadata.name.clone()?,
            addresses: internal
                .filter_map(|address| address.address.parse().ok())
                .collect(),
            pod_cidrs: cidrs
                .iter()
                .filter_map(|cidr| cidr.parse::<IpNet>().ok())
                .map(|cidr| cidr.trunc())
                .collect(),
        })
    }

    /// Everything that is behind this node, as (network, prefix length, the node's address): its pods, and its own
    /// addresses. `is_v4`: the family of the packets between nodes, if it has an address of it.
    pub fn tunnels(&self, is_v4: bool) -> Vec<(IpAddr, u8, IpAddr)> {
        let Some(node) = self.address_for(is_v4) else {
            return Vec::new();
        };
        let pods = self
            .pod_cidrs
            .iter()
            .map(|cidr| (cidr.addr(), cidr.prefix_len()));
        let own = self
            .addresses
            .iter()
            .map(|ip| (*ip, if ip.is_ipv4() { 32 } else { 128 }));
        pods.chain(own)
            .map(|(network, length)| (network, length, node))
            .collect()
    }

    /// The address by which something of the given family is reached: of the same family if it has one.
    pub(crate) fn address_for(&self, is_v4: bool) -> Option<IpAddr> {
        let same = self.addresses.iter().find(|ip| ip.is_ipv4() == is_v4);
        same.or(self.addresses.first()).copied()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_tells_its_addresses_and_pod_cidrs() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "b"},
            "spec": {"podCIDR": "10.1.1.0/24", "podCIDRs": ["10.1.1.0/24", "fd00:1::/64", "x"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "b"},
                {"type": "InternalIP", "address": "192.0.2.2"},
                {"type": "InternalIP", "address": "2001:db8::2"},
                {"type": "ExternalIP", "address": "203.0.113.9"},
            ]},
        }))
        .expect("a Node");
        let peer = Peer::of(&node).expect("has a name");
        assert_eq!(peer.pod_cidrs.len(), 2);
        assert_eq!(peer.addresses.len(), 2);
        assert!(peer.address_for(false).expect("has one").is_ipv6());
        let tunnels = peer.tunnels(true);
        let node: IpAddr = [192, 0, 2, 2].into();
        assert!(tunnels.iter().all(|(.., to)| *to == node));
        assert_eq!(tunnels[1].1, 64);
        assert_eq!(tunnels[3].1, 128);
        assert_eq!(tunnels.len(), 4);
    }
}
