//! What is looked for behind the changes rather than with them: sockets and connections of backends that went,
//! and connections whose time is over. It walks whole maps, and the next change must not wait for it.
//!
//! Connections whose Service has gone go on for as long as the pod at their other end is there, and so does the
//! backend that they name; here it is asked whether that is so.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{self, Instant, MissedTickBehavior},
};
use windlass_datapath::{CollectReport, Datapath, GoneBackends, ServiceWrite, types::Reason};

use super::{
    controller::{run_blocking, sleep_until},
    references::Shared,
};
use crate::policy::PolicyController;

/// How often connections whose time is over are looked for.
const COLLECT_EVERY: Duration = Duration::from_secs(10);
/// How long backends that went are gathered before their connections are looked for: a rollout takes many.
const GATHER: Duration = Duration::from_millis(200);

/// The two watches that tell of a pod's end and of its endpoint's are in no order.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Of a hundred: from so many on the table of connections counts as full, and down to the other it stays so.
const FULL_FROM: usize = 95;
const FULL_UNTIL: usize = 85;

/// How full the table of connections is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnectionTable {
    pub(super) used: usize,
    pub(super) capacity: usize,
    /// New connections are dropped for want of room, or will be soon.
    pub(super) full: bool,
    /// New connections found no source port.
    pub(super) ports_exhausted: bool,
    dropped: Dropped,
}

/// Packets that were dropped since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Dropped {
    for_room: u64,
    for_port: u64,
}

impl ConnectionTable {
    fn next(self, used: usize, capacity: usize, dropped: Dropped) -> Self {
        let bound = if self.full { FULL_UNTIL } else { FULL_FROM };
        // What was dropped before the first look is history.
        let looked = self.capacity != 0;
        let drops = looked && dropped.for_room > self.dropped.for_room;
        Self {
            used,
            capacity,
            full: drops || used * 100 >= capacity * bound,
            ports_exhausted: looked && dropped.for_port > self.dropped.for_port,
            dropped,
        }
    }
}

pub(super) struct Cleaner {
    datapath: Arc<Datapath>,
    shared: Arc<Shared>,
    /// Knows which pods there are.
    pods: Option<PolicyController>,
    table: Arc<watch::Sender<ConnectionTable>>,
    gone: Mutex<GoneBackends>,
    some: Notify,
}

impl Cleaner {
    pub(super) fn new(
        datapath: Arc<Datapath>,
        shared: Arc<Shared>,
        pods: Option<PolicyController>,
        table: Arc<watch::Sender<ConnectionTable>>,
    ) -> Self {
        Self {
            datapath,
            shared,
            pods,
            table,
            gone: Mutex::default(),
            some: Notify::new(),
        }
    }

    /// The kernel's tables no longer have these.
    pub(super) fn went(&self, gone: GoneBackends) {
        if !gone.is_empty() {
            self.note(gone);
            self.some.notify_one();
        }
    }

    fn note(&self, gone: GoneBackends) {
        let mut held = self.gone.lock();
        held.members.extend(gone.members);
        held.backends.extend(gone.backends);
    }

    /// Cleans up for as long as it is polled.
    pub(super) async fn run(&self) {
        let mut collect = time::interval(COLLECT_EVERY);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut again: Option<Instant> = None;
        loop {
            tokio::select! {
                () = self.some.notified() => {
                    self.ask_for_pods().await;
                    self.close_sockets().await;
                    time::sleep(GATHER).await;
                    again = Some(Instant::now() + ASK_AGAIN);
                }
                () = sleep_until(again) => again = None,
                _ = collect.tick() => {}
            }
            // What came meanwhile is collected with the rest.
            self.ask_for_pods().await;
            self.close_sockets().await;
            self.collect_garbage().await;
            self.forget_unused().await;
        }
    }

    /// Backends that no Service lists have gone when their pods have.
    async fn ask_for_pods(&self) {
        let unlisted = self.shared.tidy(|tables| tables.unlisted());
        let Some(pods) = self.pods.as_ref().filter(|_| !unlisted.is_empty()) else {
            return;
        };
        let addresses: HashSet<IpAddr> = unlisted.into_iter().map(|(_, address)| address).collect();
        // Who does not know yet says nothing.
        if let Some(living) = pods.living(addresses.clone()).await {
            let _writing = self.shared.writing().await;
            // Of what came meanwhile nothing was asked.
            let lives = |it: IpAddr| addresses.contains(&it).then(|| living.contains(&it));
            let writes = self.shared.tidy(|tables| tables.forget_departed(lives));
            self.write(writes).await;
        }
    }

    /// Backends that no Service lists are kept only for the connections that they have.
    async fn forget_unused(&self) {
        let unlisted = self.shared.tidy(|tables| tables.unlisted());
        let unlisted: HashSet<u32> = unlisted.into_iter().map(|(id, _)| id).collect();
        if unlisted.is_empty() {
            return;
        }
        let datapath = self.datapath.clone();
        let unused = run_blocking(move || {
            let used = datapath.backends_in_use(&unlisted)?;
            Ok::<_, windlass_datapath::Error>(unlisted.difference(&used).copied().collect())
        });
        match unused.await {
            Ok::<Vec<u32>, _>(unused) => {
                let _writing = self.shared.writing().await;
                let writes = self.shared.tidy(|tables| tables.forget_unlisted(unused));
                self.write(writes).await;
            }
            Err(error) => tracing::warn!(%error, "cannot look for unused backends"),
        }
    }

    async fn write(&self, writes: Vec<ServiceWrite>) {
        if writes.is_empty() {
            return;
        }
        let mut gone = GoneBackends::default();
        gone.note(&writes);
        self.note(gone);
        let datapath = self.datapath.clone();
        let written = run_blocking(move || datapath.services().apply(&writes)).await;
        if let Err(error) = written {
            // The next run finds them.
            tracing::warn!(%error, "backends that went are left in the tables");
        }
    }

    async fn close_sockets(&self) {
        let gone = std::mem::take(&mut *self.gone.lock());
        if gone.is_empty() {
            return;
        }
        let datapath = self.datapath.clone();
        match run_blocking(move || datapath.close_sockets(&gone)).await {
            Ok(0) => {}
            Ok(closed) => tracing::debug!(closed, "sockets of departed backends closed"),
            Err(error) => tracing::warn!(%error, "cannot close sockets of departed backends"),
        }
    }

    async fn collect_garbage(&self) {
        let datapath = self.datapath.clone();
        let collect = move || {
            let report = datapath.collect_garbage()?;
            let samples = datapath.metrics()?;
            let dropped = |reason| {
                let of_reason = samples.iter().filter(|it| it.reason == reason);
                of_reason.map(|it| it.packets).sum()
            };
            let dropped = Dropped {
                for_room: dropped(Reason::DroppedConntrackFull),
                for_port: dropped(Reason::DroppedPortsExhausted),
            };
            Ok::<_, windlass_datapath::Error>((report, dropped))
        };
        match run_blocking(collect).await {
            Ok((report, dropped)) => {
                let CollectReport {
                    live,
                    expired,
                    backend_gone,
                    used,
                    capacity,
                } = report;
                tracing::trace!(live, expired, backend_gone, "connections collected");
                self.table
                    .send_modify(|table| *table = table.next(used, capacity, dropped));
            }
            Err(error) => tracing::warn!(%error, "cannot collect connections"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_full_when_there_is_hardly_room_or_when_something_was_dropped() {
        let dropped = |for_room, for_port| Dropped { for_room, for_port };
        let table = ConnectionTable::default().next(10, 100, dropped(7, 7));
        let next = |used, for_room| table.next(used, 100, dropped(for_room, 7));
        assert!(!table.full, "what was dropped before is history");
        assert!(next(95, 7).full);
        let full = next(95, 7);
        assert!(full.next(90, 100, dropped(7, 7)).full, "not yet over");
        assert!(!full.next(80, 100, dropped(7, 7)).full);
        let filled = next(10, 8);
        assert!(filled.full, "filled and emptied in between");
        assert!(!filled.next(10, 100, dropped(8, 7)).full);
        assert!(!table.ports_exhausted && !filled.ports_exhausted);
        assert!(table.next(10, 100, dropped(7, 8)).ports_exhausted);
    }
}
