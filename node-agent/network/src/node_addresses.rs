//! The addresses on which this node's Services answer, kept at what its interfaces have: one that comes after the
//! agent's start (DHCP, a second network, an uplink that goes and comes back) is served like those before.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockaddrStorage;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::time::{self, MissedTickBehavior};
use windlass_datapath::Datapath;

use crate::uplink::UplinkSettings;

/// Changes that come together (an interface that comes up with its addresses) are one change.
const GATHER: Duration = Duration::from_millis(20);
/// News that were lost (the kernel drops them for a slow reader) are found out within this.
const COMPARE: Duration = Duration::from_secs(10);

/// Which addresses are the node's.
#[derive(Clone, Debug, Default)]
pub struct NodeAddresses {
    /// Those by which the cluster knows it, whatever interface has them.
    pub own: Vec<IpAddr>,
    /// The interfaces by which the outside comes.
    pub uplinks: Vec<String>,
    /// Where NodePorts answer; everywhere when there are none.
    pub node_ports_on: Vec<IpNet>,
}

/// What the interfaces have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    uplinks: Uplinks,
    /// On other interfaces: loopback's that others are led to (an address that moves from node to node, or is told by
    /// BGP), a bridge's, by which the node speaks to pods that another CNI plugin has made.
    elsewhere: BTreeSet<IpAddr>,
}

/// Holds what kube-proxy's IPVS mode serves: addresses of Services, not the node's.
const IPVS_INTERFACE: &str = "kube-ipvs0";

/// An interface's index, and what others can dial on it.
type Uplinks = BTreeMap<String, (u32, BTreeSet<IpAddr>)>;

impl NodeAddresses {
    /// The node's addresses as they are now, and whether NodePorts answer on each.
    pub fn list(&self) -> io::Result<Vec<(IpAddr, bool)>> {
        Ok(self.of(&self.find()?))
    }

    /// Those of [`Self::list`] on which NodePorts answer.
    pub fn with_node_ports(&self) -> io::Result<Vec<IpAddr>> {
        let all = self.list()?.into_iter();
        Ok(all
            .filter(|(_, answers)| *answers)
            .map(|(address, _)| address)
            .collect())
    }

    /// Keeps the datapath at what the interfaces have, and the uplinks as they must be set, for as long as it is polled.
    /// Must run in the node's network namespace.
    pub async fn follow(self, datapath: Arc<Datapath>, settings: UplinkSettings) -> io::Result<()> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, _handle, mut news) = new_multicast_connection(&groups)?;
        let follow = async {
            let mut held = self.find()?;
            // What changed since the uplinks were attached.
            self.tell(&datapath, &settings, &held, &held).await;
            let mut compare = time::interval(COMPARE);
            compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    message = news.next() => {
                        if message.is_none() {
                            return Err(io::Error::other("the kernel's news of interfaces ended"));
                        }
                        time::sleep(GATHER).await;
                        while news.try_recv().is_ok() {}
                    }
                    _ = compare.tick() => {}
                }
                // What fails is tried again with the next news, or comparison.
                let found = match self.find() {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::warn!(%error, "the node's addresses are not listed");
                        continue;
                    }
                };
                if found != held && self.tell(&datapath, &settings, &held, &found).await {
                    held = found;
                }
            }
        };
        tokio::select! {
            result = follow => result,
            () = connection => Err(io::Error::other("the connection for news of interfaces ended")),
        }
    }

    /// Returns whether the datapath knows it all.
    async fn tell(
        &self,
        datapath: &Arc<Datapath>,
        settings: &UplinkSettings,
        held: &Found,
        found: &Found,
    ) -> bool {
        let told = self.try_tell(datapath, settings, held, found).await;
        if let Err(error) = &told {
            let error = format!("{error:#}");
            tracing::warn!(error, "the node's addresses are not told");
        }
        told.is_ok()
    }

    async fn try_tell(
        &self,
        datapath: &Arc<Datapath>,
        settings: &UplinkSettings,
        held: &Found,
        found: &Found,
    ) -> anyhow::Result<()> {
        let addresses = self.of(found);
        // An uplink's first address is the source of what leaves by it; one that came back is another interface.
        let uplinks = found.uplinks.iter();
        let changed = uplinks.filter(|(name, now)| held.uplinks.get(*name) != Some(*now));
        let changed: Vec<String> = changed.map(|(name, _)| name.clone()).collect();
        tracing::info!(count = addresses.len(), ?changed, "addresses of the node");
        for name in &changed {
            settings.apply(name).await?;
        }
        let (datapath, all) = (datapath.clone(), self.uplinks.clone());
        let told = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            datapath.set_node_addresses(&addresses)?;
            for name in &changed {
                datapath.attach_uplink(name)?;
            }
            // What the interface was before it went.
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            Ok(datapath.retain_uplinks(&all)?)
        });
        match told.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn of(&self, found: &Found) -> Vec<(IpAddr, bool)> {
        let of_uplinks = found.uplinks.values().flat_map(|(_, addresses)| addresses);
        let own = self.own.iter().chain(&found.elsewhere);
        let all: BTreeSet<IpAddr> = own.chain(of_uplinks).copied().collect();
        let chosen = &self.node_ports_on;
        let answers =
            |address: &IpAddr| chosen.is_empty() || chosen.iter().any(|net| net.contains(address));
        all.into_iter()
            .map(|address| (address, answers(&address)))
            .collect()
    }

    /// The uplinks that there are, and the node's addresses.
    fn find(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for name in &self.uplinks {
            if let Ok(index) = if_nametoindex(name.as_str()) {
                found.uplinks.insert(name.clone(), (index, BTreeSet::new()));
            }
        }
        for interface in getifaddrs()? {
            let Some(address) = interface.address.as_ref().and_then(dialled) else {
                continue;
            };
            if let Some((_, addresses)) = found.uplinks.get_mut(&interface.interface_name) {
                addresses.insert(address);
            } else if interface.interface_name != IPVS_INTERFACE && !is_for_itself(address) {
                found.elsewhere.insert(address);
            }
        }
        Ok(found)
    }
}

/// Whether the node alone, or who is on the same link, can mean it.
fn is_for_itself(address: IpAddr) -> bool {
    address.is_loopback() || matches!(address, IpAddr::V4(v4) if v4.is_link_local())
}

/// An address that others can dial.
fn dialled(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    let v6 = address.as_sockaddr_in6()?.ip();
    (!v6.is_unicast_link_local()).then_some(v6.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_answer_on_every_address_or_on_the_chosen_networks() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let of_uplink = [address("192.0.2.7"), address("2001:db8::7")];
        let found = Found {
            uplinks: Uplinks::from([("eth0".to_owned(), (2, of_uplink.into()))]),
            elsewhere: BTreeSet::from([address("10.244.0.1")]),
        };
        let mut addresses = NodeAddresses {
            own: vec![address("198.51.100.1")],
            ..NodeAddresses::default()
        };
        let listed = addresses.of(&found);
        assert_eq!(listed.len(), 4);
        assert!(listed.iter().all(|(_, answers)| *answers));
        addresses.node_ports_on = vec!["192.0.2.0/24".parse().unwrap()];
        let answering: Vec<IpAddr> = addresses
            .of(&found)
            .into_iter()
            .filter_map(|(address, answers)| answers.then_some(address))
            .collect();
        assert_eq!(answering, of_uplink[..1]);
    }

    #[test]
    fn an_uplink_that_is_not_there_has_no_addresses() {
        let addresses = NodeAddresses {
            uplinks: vec!["wl-none".into(), "lo".into()],
            ..NodeAddresses::default()
        };
        let found = addresses.find().unwrap();
        assert_eq!(found.uplinks.keys().collect::<Vec<_>>(), ["lo"]);
    }
}
