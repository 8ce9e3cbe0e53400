//! The one reader of the kernel's ring, and everybody who listens to it.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kube::Client;
use parking_lot::RwLock;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};
use windlass_datapath::types::FlowConfig;
use windlass_datapath::{Datapath, FlowRing};
use windlass_proto::agent::v1::Flow;

use crate::describe::describe;
use crate::names::Names;

/// Flows that a slow listener may be behind.
const BACKLOG: usize = 4_096;
/// Names that take longer to come are missing from the first flows.
const NAMES_WITHIN: Duration = Duration::from_secs(3);
/// Between two attempts to read the ring.
const AGAIN: Duration = Duration::from_secs(1);

/// Says which policy is behind the number of a drop.
pub type PolicyName = Arc<dyn Fn(u32) -> Option<String> + Send + Sync>;

pub struct FlowLogConfig {
    pub node_name: String,
    /// Events a second that each CPU may tell.
    pub per_second: u32,
    pub policy_name: PolicyName,
}

/// A handle; clones share one log. [`Self::run`] is the task.
#[derive(Clone)]
pub struct FlowLog(Arc<Shared>);

struct Shared {
    config: FlowLogConfig,
    datapath: Arc<Datapath>,
    flows: broadcast::Sender<Arc<Flow>>,
    /// What each listener wants of the connections: one of so many.
    listeners: watch::Sender<Vec<u32>>,
    /// The names are there, and the kernel tells.
    ready: watch::Sender<bool>,
}

/// Somebody who listens; the log ends with the last one.
pub(crate) struct Listener {
    pub(crate) flows: broadcast::Receiver<Arc<Flow>>,
    sample: u32,
    shared: Arc<Shared>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.listeners.send_modify(|listeners| {
            if let Some(at) = listeners.iter().position(|it| *it == self.sample) {
                listeners.swap_remove(at);
            }
        });
    }
}

impl FlowLog {
    pub fn new(datapath: Arc<Datapath>, config: FlowLogConfig) -> Self {
        Self(Arc::new(Shared {
            config,
            datapath,
            flows: broadcast::Sender::new(BACKLOG),
            listeners: watch::Sender::default(),
            ready: watch::Sender::default(),
        }))
    }

    /// Returns once the kernel tells.
    pub(crate) async fn listen(&self, sample: u32) -> Listener {
        let listener = Listener {
            flows: self.0.flows.subscribe(),
            sample,
            shared: self.0.clone(),
        };
        self.0
            .listeners
            .send_modify(|listeners| listeners.push(sample));
        let mut ready = self.0.ready.subscribe();
        // Fails only when nobody reads the ring, and then there is nothing to hear.
        let _ = ready.wait_for(|ready| *ready).await;
        listener
    }

    /// Reads the ring whenever somebody listens, for as long as it is polled.
    pub async fn run(&self, client: Client) {
        let mut listeners = self.0.listeners.subscribe();
        while listeners.wait_for(|all| !all.is_empty()).await.is_ok() {
            let mut ring = match self.open() {
                Ok(ring) => ring,
                Err(error) => {
                    // Whoever listens waits meanwhile; the agent does more than this.
                    tracing::error!(error = &*error, "the flow log cannot be read, trying again");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let names = Arc::new(RwLock::new(Names::default()));
            let (synced, mut complete) = watch::channel(0);
            let naming = Names::follow(client.clone(), names.clone(), synced);
            let hearing = async {
                let known = complete.wait_for(|kinds| Names::is_complete(*kinds));
                if tokio::time::timeout(NAMES_WITHIN, known).await.is_err() {
                    tracing::warn!("names of pods and services are not complete yet");
                }
                self.hear(&mut ring, &names).await;
            };
            tokio::select! {
                () = naming => {}
                () = hearing => {}
            }
        }
    }

    fn open(&self) -> Result<AsyncFd<FlowRing>, Box<dyn Error + Send + Sync>> {
        let ring = self.0.datapath.flow_ring()?;
        #[expect(
            deprecated,
            reason = "what took its place is unsafe, for types that may lose their descriptor; the ring keeps its own"
        )]
        let registered = AsyncFd::try_new(ring);
        Ok(registered?)
    }

    /// Until the last listener has gone.
    async fn hear(&self, ring: &mut AsyncFd<FlowRing>, names: &RwLock<Names>) {
        let mut listeners = self.0.listeners.subscribe();
        // What was told before somebody listened is nobody's.
        while ring.get_mut().take().is_some() {}
        loop {
            let wanted = listeners.borrow_and_update().clone();
            // The one who wants to see most decides for all.
            let sample = wanted.iter().copied().min();
            self.tell(sample);
            if sample.is_none() {
                return;
            }
            self.0.ready.send_replace(true);
            tokio::select! {
                changed = listeners.changed() => if changed.is_err() { return },
                never = self.pass_on(ring, names) => match never {},
            }
        }
    }

    fn tell(&self, sample: Option<u32>) {
        let config = FlowConfig {
            enabled: u32::from(sample.is_some()),
            sample: sample.unwrap_or_default(),
            per_second: self.0.config.per_second,
        };
        if sample.is_none() {
            self.0.ready.send_replace(false);
        }
        if let Err(error) = self.0.datapath.set_flow_log(config) {
            tracing::error!(%error, "the flow log cannot be switched");
        }
    }

    async fn pass_on(
        &self,
        ring: &mut AsyncFd<FlowRing>,
        names: &RwLock<Names>,
    ) -> std::convert::Infallible {
        loop {
            let Ok(mut readable) = ring.readable_mut().await else {
                // The runtime is going away, and this task with it.
                std::future::pending::<()>().await;
                continue;
            };
            let offset = since_boot_to_1970();
            // In handfuls, so that others get their turn.
            let mut left = 1_024;
            while left > 0 {
                let Some(event) = readable.get_inner_mut().take() else {
                    readable.clear_ready();
                    break;
                };
                let policy = |rule| (self.0.config.policy_name)(rule);
                let flow = describe(
                    &event,
                    &names.read(),
                    policy,
                    &self.0.config.node_name,
                    offset,
                );
                // Nobody listens in this instant: it is for nobody.
                let _ = self.0.flows.send(Arc::new(flow));
                left -= 1;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// What to add to the kernel's time for the time of day.
fn since_boot_to_1970() -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_1970.as_nanos()).unwrap_or_default() - FlowRing::now()
}
