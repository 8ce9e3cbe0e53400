//! Who waits for an address to get no new connections any more.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{MutexGuard, watch},
    time,
};

use super::{parse::ServiceName, tables::Tables};

/// A Service, the name of one of its ports, and the protocol.
pub(super) type TrafficOf = (ServiceName, Arc<str>, u8);

/// The tables as planned, and how much of the plan the kernel holds.
pub(super) struct Shared {
    planned: Mutex<Planned>,
    /// The number of the last plan that the kernel holds; 0 before the first.
    applied: watch::Sender<u64>,
    /// Held from a plan until it is written: the kernel gets them in the order in which they were made.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Planned {
    tables: Tables,
    number: u64,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            planned: Mutex::default(),
            applied: watch::Sender::new(0),
            writing: tokio::sync::Mutex::default(),
        }
    }

    /// To be had before a plan is made, and kept until it is written.
    pub(super) async fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().await
    }

    /// Changes the tables. The returned number is for [`Self::mark_applied`].
    pub(super) fn plan<T>(&self, change: impl FnOnce(&mut Tables) -> T) -> (T, u64) {
        let mut planned = self.planned.lock();
        planned.number += 1;
        (change(&mut planned.tables), planned.number)
    }

    /// A change of what no port lists: nobody waits for that.
    pub(super) fn tidy<T>(&self, change: impl FnOnce(&mut Tables) -> T) -> T {
        change(&mut self.planned.lock().tables)
    }

    /// Elements in the kernel's maps as planned.
    pub(super) fn sizes(&self) -> [(&'static str, usize); 4] {
        self.planned.lock().tables.sizes()
    }

    /// Whose it is, of several sets of endpoints of one port together.
    pub(super) fn named<T: Copy + Default>(
        &self,
        by_id: &[(u32, T)],
        add: impl Fn(&mut T, T),
    ) -> BTreeMap<TrafficOf, T> {
        let planned = self.planned.lock();
        let of: HashMap<u32, T> = by_id.iter().copied().collect();
        let mut named: BTreeMap<TrafficOf, T> = BTreeMap::new();
        for (id, port) in planned.tables.ids() {
            if let Some(one) = of.get(&id) {
                let key = (port.service.clone(), port.port.clone(), port.protocol);
                add(named.entry(key).or_default(), *one);
            }
        }
        named
    }

    /// The kernel holds what the tables said after this plan.
    pub(super) fn mark_applied(&self, number: u64) {
        self.applied.send_replace(number);
    }

    /// Returns once the first complete state has been written.
    pub(super) async fn ready(&self) {
        // The sender lives as long as `self`.
        let _ = self
            .applied
            .subscribe()
            .wait_for(|number| *number > 0)
            .await;
    }

    pub(super) async fn wait_until_unreferenced(&self, address: IpAddr, limit: Duration) -> bool {
        let mut applied = self.applied.subscribe();
        let unreferenced = async {
            loop {
                let (is_target, number) = {
                    let planned = self.planned.lock();
                    (planned.tables.is_ready_target(address), planned.number)
                };
                // What is planned may still be on its way into the kernel.
                if !is_target && *applied.borrow_and_update() >= number {
                    return;
                }
                if applied.changed().await.is_err() {
                    return;
                }
            }
        };
        time::timeout(limit, unreferenced).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::compile::{DesiredPort, EndpointState, Policy, PortKey};
    use windlass_datapath::types::{Addr, BackendValue, protocol::TCP};

    fn port(state: EndpointState) -> DesiredPort {
        DesiredPort {
            key: PortKey {
                service: ServiceName::new("d", "web"),
                port: "".into(),
                protocol: TCP,
                is_v4: true,
                policy: Policy::Cluster,
            },
            frontends: Default::default(),
            endpoints: [(BackendValue::new(Addr::v4([10, 0, 0, 1]), 80, TCP), state)].into(),
            ready_here: (state == EndpointState::Ready)
                .then(|| [10, 0, 0, 1].into())
                .into_iter()
                .collect(),
            affinity_seconds: 0,
            source_ranges: Default::default(),
            hashed: false,
        }
    }

    #[tokio::test]
    async fn the_wait_ends_when_the_kernel_no_longer_has_the_address() {
        let shared = Arc::new(Shared::new());
        let address: IpAddr = [10, 0, 0, 1].into();
        let (_, first) = shared.plan(|tables| tables.plan(&port(EndpointState::Ready)));
        shared.mark_applied(first);
        let waiting = tokio::spawn({
            let shared = shared.clone();
            async move {
                shared
                    .wait_until_unreferenced(address, Duration::from_secs(60))
                    .await
            }
        });
        tokio::task::yield_now().await;
        let (_, second) = shared.plan(|tables| tables.plan(&port(EndpointState::Draining)));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "planned, but not written yet");
        shared.mark_applied(second);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn the_wait_gives_up_at_its_limit_and_does_not_begin_for_strangers() {
        let shared = Shared::new();
        let (_, number) = shared.plan(|tables| tables.plan(&port(EndpointState::Ready)));
        shared.mark_applied(number);
        let limit = Duration::from_millis(50);
        assert!(
            !shared
                .wait_until_unreferenced([10, 0, 0, 1].into(), limit)
                .await
        );
        assert!(
            shared
                .wait_until_unreferenced([10, 0, 0, 2].into(), limit)
                .await
        );
    }
}
