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
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::time::{self, MissedTickBehavior};
use windlass_datapath::Datapath;

/// Changes that come together (an interface that comes up with its addresses) are one change.
const GATHER: Duration = Duration::from_millis(20);
/// News that were lost (the kernel drops them for a slow reader) are found out within this.
const COMPARE: Duration = Duration::from_secs(10);

/// Which addresses are the node's.
#[derive(Clone, Debug, Default)]
pub struct NodeAddresses {
    /// Those by which the cluster knows it, whatever interface has them.
    pub own: Vec<IpAddr>,
    /// The interfaces all of whose addresses are the node's.
    pub uplinks: Vec<String>,
    /// Where NodePorts answer; everywhere when there are none.
    pub node_ports_on: Vec<IpNet>,
}

/// An interface's index, and what others can dial on it.
type Uplinks = BTreeMap<String, (u32, BTreeSet<IpAddr>)>;

impl NodeAddresses {
    /// The node's addresses as they are now, and whether NodePorts answer on each.
    pub fn list(&self) -> io::Result<Vec<(IpAddr, bool)>> {
        Ok(self.of(&self.uplinks()?))
    }

    /// Those of [`Self::list`] on which NodePorts answer.
    pub fn with_node_ports(&self) -> io::Result<Vec<IpAddr>> {
        let all = self.list()?.into_iter();
        Ok(all
            .filter(|(_, answers)| *answers)
            .map(|(address, _)| address)
            .collect())
    }

    /// Keeps the datapath at what the interfaces have, for as long as it is polled. Must run in the node's
    /// network namespace.
    pub async fn follow(self, datapath: Arc<Datapath>) -> io::Result<()> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, _handle, mut news) = new_multicast_connection(&groups)?;
        let follow = async {
            let mut held = self.uplinks()?;
            // What changed since the uplinks were attached.
            if let Err(error) = self.tell(&datapath, &held, &held).await {
                tracing::warn!(%error, "the node's addresses are not told");
            }
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
                let found = match self.uplinks() {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::warn!(%error, "the node's addresses are not listed");
                        continue;
                    }
                };
                if found != held {
                    match self.tell(&datapath, &held, &found).await {
                        Ok(()) => held = found,
                        Err(error) => tracing::warn!(%error, "the node's addresses are not told"),
                    }
                }
            }
        };
        tokio::select! {
            result = follow => result,
            () = connection => Err(io::Error::other("the connection for news of interfaces ended")),
        }
    }

    async fn tell(
        &self,
        datapath: &Arc<Datapath>,
        held: &Uplinks,
        found: &Uplinks,
    ) -> Result<(), windlass_datapath::Error> {
        let addresses = self.of(found);
        // An uplink's first address is the source of what leaves by it; one that came back is another interface.
        let changed = found
            .iter()
            .filter(|(name, now)| held.get(*name) != Some(*now));
        let changed: Vec<String> = changed.map(|(name, _)| name.clone()).collect();
        tracing::info!(count = addresses.len(), ?changed, "addresses of the node");
        let datapath = datapath.clone();
        let told = tokio::task::spawn_blocking(move || {
            datapath.set_node_addresses(&addresses)?;
            changed
                .iter()
                .try_for_each(|name| datapath.attach_uplink(name))
        });
        match told.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn of(&self, uplinks: &Uplinks) -> Vec<(IpAddr, bool)> {
        let found = uplinks.values().flat_map(|(_, addresses)| addresses);
        let all: BTreeSet<IpAddr> = self.own.iter().chain(found).copied().collect();
        let chosen = &self.node_ports_on;
        let answers =
            |address: &IpAddr| chosen.is_empty() || chosen.iter().any(|net| net.contains(address));
        all.into_iter()
            .map(|address| (address, answers(&address)))
            .collect()
    }

    /// The uplinks that there are.
    fn uplinks(&self) -> io::Result<Uplinks> {
        let mut found = Uplinks::new();
        for name in &self.uplinks {
            if let Ok(index) = if_nametoindex(name.as_str()) {
                found.insert(name.clone(), (index, BTreeSet::new()));
            }
        }
        for interface in getifaddrs()? {
            let Some((_, addresses)) = found.get_mut(&interface.interface_name) else {
                continue;
            };
            let Some(address) = interface.address else {
                continue;
            };
            if let Some(v4) = address.as_sockaddr_in() {
                addresses.insert(v4.ip().into());
            } else if let Some(v6) = address.as_sockaddr_in6()
                && !v6.ip().is_unicast_link_local()
            {
                addresses.insert(v6.ip().into());
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ports_answer_on_every_address_or_on_the_chosen_networks() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let of_uplink = [address("192.0.2.7"), address("2001:db8::7")];
        let uplinks = Uplinks::from([("eth0".to_owned(), (2, of_uplink.into()))]);
        let mut addresses = NodeAddresses {
            own: vec![address("198.51.100.1")],
            ..NodeAddresses::default()
        };
        let listed = addresses.of(&uplinks);
        assert_eq!(listed.len(), 3);
        assert!(listed.iter().all(|(_, answers)| *answers));
        addresses.node_ports_on = vec!["192.0.2.0/24".parse().unwrap()];
        let answering: Vec<IpAddr> = addresses
            .of(&uplinks)
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
        let found = addresses.uplinks().unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["lo"]);
    }
}
