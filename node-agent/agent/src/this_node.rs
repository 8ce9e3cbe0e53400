//! Who this node is where no flag says so: on a cluster whose kubelet is another's, the Node
//! object knows the addresses and the routes know the uplinks.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use windlass_pods::Patience;

use crate::cli::{Role, RunOptions};
use crate::kubeadm;

/// In the state folder: the addresses that the Node had last time.
pub(crate) const MEMORY: &str = "node-addresses.json";

/// Fills in what the flags leave open; waits for the Node to have an address.
pub(crate) async fn complete(
    options: &mut RunOptions,
    client: &kube::Client,
) -> anyhow::Result<()> {
    // An empty environment variable is one empty name.
    options.devices.retain(|device| !device.is_empty());
    if options.node_ip.is_empty() {
        if options.has(Role::Pods) {
            bail!("the pods role registers the Node: say its addresses by --node-ip");
        }
        options.node_ip = addresses(options, client).await?;
    }
    if options.serves_services() && options.cluster_cidr.0.is_empty() {
        options.cluster_cidr = kubeadm::pod_networks(client).await;
    }
    if options.serves_services() && options.devices.is_empty() {
        options.devices = uplinks(&options.node_ip)?;
    }
    tracing::info!(
        node = options.node_name,
        addresses = ?options.node_ip,
        uplinks = ?options.devices,
        pods = ?options.cluster_cidr.0,
        "this node"
    );
    Ok(())
}

/// The Node's addresses. They are remembered, so that an agent that starts while the API
/// server is away can serve what is in the kernel.
async fn addresses(options: &RunOptions, client: &kube::Client) -> anyhow::Result<Vec<IpAddr>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let memory = options.state_dir.join(MEMORY);
    let mut pauses = Patience::default();
    loop {
        match nodes.get_opt(&options.node_name).await {
            Ok(node) => {
                let found = node.as_ref().map(internal).unwrap_or_default();
                if !found.is_empty() {
                    if let Err(error) = remember(&memory, &found) {
                        tracing::warn!(%error, "an agent that starts while the API server is away would not know the node's addresses");
                    }
                    return Ok(found);
                }
                let node = &options.node_name;
                tracing::warn!(node, "waiting for the Node to have an InternalIP");
            }
            Err(error) => {
                if let Some(remembered) = recall(&memory) {
                    tracing::warn!(%error, ?remembered, "the API server is away: the node's addresses are those of last time");
                    return Ok(remembered);
                }
                tracing::warn!(error = chain(&error), "waiting for the API server");
            }
        }
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}

/// An error of the API client with its causes: alone it says only "ServiceError".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// The first internal address of each family.
fn internal(node: &Node) -> Vec<IpAddr> {
    let all = node
        .status
        .iter()
        .flat_map(|it| it.addresses.iter().flatten());
    let internal = all.filter(|address| address.type_ == "InternalIP");
    let mut found: Vec<IpAddr> = Vec::new();
    for address in internal.filter_map(|it| it.address.parse::<IpAddr>().ok()) {
        if found
            .iter()
            .all(|other| other.is_ipv4() != address.is_ipv4())
        {
            found.push(address);
        }
    }
    found
}

fn remember(file: &Path, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_vec(addresses)?)
        .and_then(|()| fs::rename(&new, file))
        .with_context(|| format!("write {}", file.display()))
}

fn recall(file: &Path) -> Option<Vec<IpAddr>> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Interfaces that have a default route or one of the node's addresses.
fn uplinks(node_ips: &[IpAddr]) -> anyhow::Result<Vec<String>> {
    let v4 = fs::read_to_string("/proc/net/route").context("read the routes")?;
    // Absent where the kernel has no IPv6.
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let mut found: BTreeSet<String> = default_v4(&v4).chain(default_v6(&v6)).collect();
    for interface in nix::ifaddrs::getifaddrs().context("list the node's addresses")? {
        let Some(address) = interface.address else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
        let v6 = address.as_sockaddr_in6().map(|it| IpAddr::from(it.ip()));
        if v4.or(v6).is_some_and(|ip| node_ips.contains(&ip)) {
            found.insert(interface.interface_name);
        }
    }
    found.remove("lo");
    if found.is_empty() {
        bail!(
            "no interface has a default route or an address of the node: name the uplinks by --devices"
        );
    }
    Ok(found.into_iter().collect())
}

/// `/proc/net/route`: interface, destination, gateway, flags, …, mask in column 8.
fn default_v4(table: &str) -> impl Iterator<Item = String> {
    table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_default = columns.get(1)? == &"00000000" && columns.get(7)? == &"00000000";
        (is_default && is_usable(columns.get(3)?)).then(|| columns[0].to_owned())
    })
}

/// `/proc/net/ipv6_route`: destination, its prefix length, …, flags, interface.
fn default_v6(table: &str) -> impl Iterator<Item = String> {
    table.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let anywhere = columns.first()?.bytes().all(|digit| digit == b'0');
        let is_default = anywhere && columns.get(1)? == &"00";
        (is_default && is_usable(columns.get(8)?))
            .then(|| columns.get(9).map(|it| (*it).to_owned()))?
    })
}

/// Up, and no route that refuses (RTF_UP, RTF_REJECT).
fn is_usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x1 != 0 && flags & 0x200 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_name_the_uplinks() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
            vpn0\t00000000\t00000000\t0001\t0\t0\t50\t00000080\t0\t0\t0\n\
            eth9\t00000000\t00000000\t0201\t0\t0\t50\t00000000\t0\t0\t0\n";
        assert_eq!(default_v4(v4).collect::<Vec<_>>(), ["eth0"]);
        let zeros = "00000000000000000000000000000000";
        let v6 = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth1\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(default_v6(&v6).collect::<Vec<_>>(), ["eth1"]);
    }

    #[test]
    fn a_node_is_known_by_its_first_internal_address_of_each_family() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n"},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n"},
                {"type": "ExternalIP", "address": "203.0.113.9"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "192.0.2.2"},
                {"type": "InternalIP", "address": "2001:db8::1"},
            ]},
        }))
        .unwrap();
        let expected: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|it| it.parse().unwrap());
        assert_eq!(internal(&node), expected);
        assert!(internal(&Node::default()).is_empty());
    }

    #[test]
    fn addresses_are_remembered() {
        let folder =
            std::env::temp_dir().join(format!("windlass-this-node-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("node-addresses.json");
        assert_eq!(recall(&file), None);
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        remember(&file, &addresses).unwrap();
        assert_eq!(recall(&file), Some(addresses));
        fs::remove_dir_all(folder).unwrap();
    }
}
