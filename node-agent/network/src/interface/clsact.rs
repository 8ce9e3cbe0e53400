//! The qdisc `clsact`, at which filters of other people's interfaces hang: it stays when they have gone.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use netlink_packet_route::tc::{TcAttribute, TcHandle};

use super::{LinkError, Namespace, namespace::is_no_device};

impl Namespace {
    /// The interfaces that have a filter there, by their indices.
    pub async fn filtered(&self) -> Result<BTreeSet<u32>, LinkError> {
        let mut filtered = BTreeSet::new();
        for index in self.with_clsact().await? {
            let filters = || self.handle().traffic_filter(index as i32).get();
            let ingress = filters().ingress().execute().try_next().await;
            let egress = filters().egress().execute().try_next().await;
            for found in [ingress, egress] {
                match found {
                    Ok(Some(_)) => drop(filtered.insert(index)),
                    Ok(None) => {}
                    // It went since it was listed.
                    Err(error) if is_no_device(&error) => {}
                    Err(error) => return Err(LinkError::netlink("listing filters", error)),
                }
            }
        }
        Ok(filtered)
    }

    /// Removes the qdisc, and whatever filters it has.
    pub async fn remove_clsact(&self, index: u32) -> Result<(), LinkError> {
        let mut request = self.handle().qdisc().del(index as i32);
        request.message_mut().header.parent = TcHandle::CLSACT;
        match request.execute().await {
            // What went meanwhile has taken it along.
            Err(error) if is_no_device(&error) => Ok(()),
            removed => {
                removed.map_err(|error| LinkError::netlink("removing a clsact qdisc", error))
            }
        }
    }

    async fn with_clsact(&self) -> Result<BTreeSet<u32>, LinkError> {
        let qdiscs = self.handle().qdisc().get().execute();
        let qdiscs: Vec<_> = qdiscs
            .try_collect()
            .await
            .map_err(|error| LinkError::netlink("listing qdiscs", error))?;
        let clsact = qdiscs.iter().filter(|qdisc| {
            let mut kinds = qdisc.attributes.iter();
            kinds.any(|it| matches!(it, TcAttribute::Kind(kind) if kind == "clsact"))
        });
        Ok(clsact.map(|qdisc| qdisc.header.index as u32).collect())
    }
}
