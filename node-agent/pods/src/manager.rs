//! All pods of the node: who gets which news.
//!
//! The list of pods comes from the API, watched by node name; each pod has one worker.
//! What the runtime holds and no object wants is stopped and removed.

mod housekeeping;
mod orphans;
mod own_node;
mod statics;
mod usage;
mod views;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Event};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use windlass_cri::{Runtime, RuntimeEvent};
use windlass_volumes::Csi;

use crate::admission::{self, Ledger};
use crate::allocation::Allocation;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::devices::Devices;
use crate::drain::EndpointDrain;
use crate::images::ImageKeeper;
use crate::labels;
use crate::launch::pulled::PulledImages;
use crate::model::{PodId, is_static, is_terminal};
use crate::node::Node;
use crate::objects::ObjectCache;
use crate::plugins;
use crate::recorder::{Recorder, Severity};
use crate::snapshot::Container;
use crate::static_pods::{self, Mirror, key, mirrored};
use crate::worker::{Admitted, Desired, Kick, Worker};
use statics::Statics;
use windlass_patience::Patience;

pub use usage::VolumeUsage;
pub use views::PodView;
pub(crate) use views::Views;

/// How often logs are measured and leftovers looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(10);
/// Images pulled at the same time.
const PULLS: usize = 3;
/// How long the first pods wait for the Node object.
const NODE_PATIENCE: Duration = Duration::from_secs(1);

/// What the pods role is made from.
pub struct Parts {
    /// The node's settings.
    pub config: Config,
    /// The container runtime.
    pub runtime: Runtime,
    /// The runtime's name: what container ids begin with.
    pub runtime_name: String,
    /// The API, in the node's name.
    pub client: kube::Client,
    /// Where events are reported.
    pub recorder: Recorder,
    /// All Services of the cluster, for the containers' environments.
    pub services: Store<Service>,
    /// The datapath.
    pub drain: Arc<dyn EndpointDrain>,
}

/// The pods of this node. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Pods {
    node: Arc<Node>,
    views: Arc<Views>,
    node_seen: own_node::Seen,
}

struct Handle {
    desired: watch::Sender<Desired>,
    kicks: mpsc::Sender<Kick>,
    is_static: bool,
}

impl Pods {
    /// Puts the parts together; nothing runs yet.
    pub fn new(parts: Parts) -> std::io::Result<Self> {
        let Parts {
            config,
            runtime,
            runtime_name,
            client,
            recorder,
            services,
            drain,
        } = parts;
        let cgroups = Cgroups::detect(&config.cgroup_mount, &config.cgroup_root)?;
        let (node_seen, object) = watch::channel(None);
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        if let Err(error) = windlass_volumes::share(&config.root_dir) {
            tracing::warn!(%error, "mounts of containers do not reach the node");
        }
        let csi = Csi::new(config.root_dir.clone(), config.node.name.clone());
        let pulled = PulledImages::new(&config.root_dir);
        let node = Node {
            objects: Arc::new(ObjectCache::new(client.clone(), object.clone())),
            csi: Arc::new(csi),
            devices: Devices::default(),
            runtime,
            runtime_name,
            client,
            recorder,
            services,
            cgroups,
            drain,
            ledger: Ledger::new(&config.node.allocatable),
            object,
            config,
            pulled,
            users: Default::default(),
            pulls: Semaphore::new(PULLS),
            starts: Semaphore::new((cores * 2).max(4)),
            probe_results: Arc::default(),
            owners: Mutex::default(),
        };
        Ok(Self {
            node: Arc::new(node),
            views: Arc::default(),
            node_seen: Arc::new(node_seen),
        })
    }

    /// The pod of this name, if it is on this node.
    pub fn find(&self, namespace: &str, name: &str) -> Option<PodView> {
        self.views
            .pods
            .read()
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// All pods of this node.
    pub fn list(&self) -> Vec<PodView> {
        self.views.pods.read().values().cloned().collect()
    }

    /// How probes were answered, in Prometheus' text format.
    pub fn probe_metrics(&self) -> String {
        let views = self.views.pods.read();
        let live = views.values().map(|view| PodId::of(&view.pod).uid);
        self.node.probe_results.text(&live.collect())
    }

    /// Waits until this container does not run; an unknown one does not.
    pub async fn finished(&self, container_id: &str) {
        let mut changes = self.views.changes.subscribe();
        loop {
            let runs = self.views.pods.read().values().any(|view| {
                view.snapshot
                    .by_id(container_id)
                    .is_some_and(Container::is_running)
            });
            if !runs || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Runs the pods until told to stop, which leaves them running.
    pub async fn run(self, stop: CancellationToken) {
        let (runtime_news, mut runtime_events) = mpsc::channel(256);
        let watcher = windlass_cri::watch_events(self.node.runtime.clone(), runtime_news);
        let watcher = tokio::spawn(watcher);
        let node_watch = own_node::follow(self.node.clone(), self.node_seen.clone());
        let node_watch = tokio::spawn(node_watch);
        let plugins = tokio::spawn(plugins::run(self.node.clone(), stop.clone()));
        // Pods that are there before the Node is known are judged without its labels; wait a little.
        let mut object = self.node.object.clone();
        let known = object.wait_for(Option::is_some);
        let _ = tokio::time::timeout(NODE_PATIENCE, known).await;
        let mut manager = Manager {
            node: self.node,
            node_seen: self.node_seen,
            views: self.views,
            handles: HashMap::new(),
            workers: JoinSet::new(),
            listed: HashSet::new(),
            synced: false,
            removing: HashSet::new(),
            removals: JoinSet::new(),
            unremoved: HashMap::new(),
            images: ImageKeeper::default(),
            statics: Statics::default(),
            mirroring: JoinSet::new(),
        };
        let mut manifests = static_pods::watch(
            manager.node.config.manifests.clone(),
            &manager.node.config.node.name,
        );
        if manager.node.config.manifests.is_some() {
            // Before anything counts as unwanted, the node's own pods must be known.
            let first = tokio::time::timeout(NODE_PATIENCE, manifests.recv()).await;
            manager.take_manifests(first.ok().flatten().unwrap_or_default());
        }
        let mut source = manager.source();
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(event) = source.next() => match event {
                    Ok(event) => manager.take(event).await,
                    Err(error) => tracing::warn!(%error, "watch of pods interrupted"),
                },
                Some(pods) = manifests.recv() => manager.take_manifests(pods),
                Some(_) = manager.mirroring.join_next() => {}
                Some(event) = runtime_events.recv() => manager.route(event).await,
                Some(ended) = manager.workers.join_next() => manager.worker_ended(ended),
                Some(ended) = manager.removals.join_next() => {
                    if let Ok(removal) = ended {
                        manager.removal_ended(removal);
                    }
                }
                _ = housekeeping.tick() => manager.keep_house().await,
            }
        }
        watcher.abort();
        node_watch.abort();
        plugins.abort();
    }
}

struct Manager {
    node: Arc<Node>,
    node_seen: own_node::Seen,
    views: Arc<Views>,
    handles: HashMap<String, Handle>,
    workers: JoinSet<String>,
    /// The uids seen in the list that is being received.
    listed: HashSet<String>,
    /// Whether a whole list was received: before that, nothing counts as unwanted.
    synced: bool,
    /// Unknown pods that are being removed, and what kept others from it.
    removing: HashSet<String>,
    removals: JoinSet<orphans::Removal>,
    unremoved: HashMap<String, String>,
    images: ImageKeeper,
    statics: Statics,
    mirroring: JoinSet<()>,
}

impl Manager {
    fn source(&self) -> futures::stream::BoxStream<'static, Result<Event<Pod>, watcher::Error>> {
        let pods: Api<Pod> = Api::all(self.node.client.clone());
        let own = format!("spec.nodeName={}", self.node.config.node.name);
        let config = watcher::Config::default().fields(&own);
        watcher::watcher(pods, config)
            .backoff(Patience::default())
            .boxed()
    }

    async fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.insert(PodId::of(&pod).uid);
                self.wanted_by_api(pod).await;
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                for (uid, handle) in &self.handles {
                    if !listed.contains(uid) && !handle.is_static {
                        gone(handle, None);
                    }
                }
                let mirrors = &mut self.statics.mirrors;
                mirrors.retain(|_, mirror| listed.contains(&mirror.uid));
                self.synced = true;
                self.tend_mirrors();
                self.remove_unwanted().await;
            }
            Event::Apply(pod) => self.wanted_by_api(pod).await,
            Event::Delete(pod) if mirrored(&pod).is_some() => {
                self.statics.mirrors.remove(&key(&pod));
                self.tend_mirrors();
            }
            Event::Delete(pod) => {
                if let Some(handle) = self.handles.get(&PodId::of(&pod).uid) {
                    gone(handle, Some(pod));
                }
            }
        }
    }

    /// Whether the node takes a pod that it has not seen before.
    fn admit(&mut self, id: &PodId, pod: &Pod) -> Admitted {
        let node = self.node.clone();
        let folder = node.config.pod_folder(&id.uid);
        let known = Allocation::load(&folder);
        let mirror = self.mirror_of(id, pod);
        let accepted = |allocation| Admitted {
            allocation,
            verdict: None,
            mirror,
        };
        let leaves = is_terminal(pod) || pod.metadata.deletion_timestamp.is_some();
        let ran_before = known.is_some() || folder.exists();
        let allocation = known.unwrap_or_else(|| Allocation::of(pod));
        if leaves || ran_before {
            if !is_terminal(pod) {
                node.ledger.adopt(&id.uid, &allocation.apply(pod));
            }
            return accepted(allocation);
        }
        let object = node.object.borrow().clone();
        let admitted = admission::check(pod, &node.rules(object.as_deref()));
        match admitted.and_then(|()| node.ledger.admit(&id.uid, pod)) {
            Ok(()) => {
                if let Err(error) = allocation.save(&folder) {
                    tracing::warn!(pod = %id, %error, "what the pod was given is not written down");
                }
                accepted(allocation)
            }
            Err(verdict) => {
                tracing::info!(pod = %id, verdict.reason, verdict.message, "pod rejected");
                let reason = verdict.reason.clone();
                let warning = Severity::Warning;
                node.recorder
                    .pod(pod, None, warning, reason, &verdict.message);
                Admitted {
                    verdict: Some(verdict),
                    ..accepted(allocation)
                }
            }
        }
    }

    async fn wanted_by_api(&mut self, mut pod: Pod) {
        if let Some(mirror) = Mirror::of(&pod) {
            self.statics.mirrors.insert(key(&pod), mirror);
            return self.tend_mirrors();
        }
        // Whoever writes this into the API does not make a static pod with it.
        if let Some(annotations) = &mut pod.metadata.annotations {
            annotations.remove(labels::CONFIG_SOURCE);
        }
        self.look_again_for(&pod).await;
        self.wanted(pod);
    }

    pub(super) fn wanted(&mut self, pod: Pod) {
        let id = PodId::of(&pod);
        let is_static = is_static(&pod);
        let pod = Arc::new(pod);
        let desired = Desired {
            pod: pod.clone(),
            gone: false,
        };
        if let Some(handle) = self.handles.get(&id.uid) {
            handle.desired.send_replace(desired);
            return;
        }
        tracing::info!(pod = %id, "pod assigned");
        let (desired, desires) = watch::channel(desired);
        let (kicks, kicked) = mpsc::channel(64);
        self.handles.insert(
            id.uid.clone(),
            Handle {
                desired,
                kicks,
                is_static,
            },
        );
        let admitted = self.admit(&id, &pod);
        let worker = Worker::new(
            self.node.clone(),
            self.views.clone(),
            desires,
            kicked,
            admitted,
        );
        self.workers.spawn(async move {
            worker.run().await;
            id.uid
        });
    }

    async fn route(&mut self, event: RuntimeEvent) {
        let (id, pod_uid, exited) = match event {
            RuntimeEvent::Exited { id } => (id.clone(), None, Some(id)),
            RuntimeEvent::Changed { id, pod_uid } => (id, pod_uid, None),
            RuntimeEvent::Reconnected => {
                tracing::info!("container runtime is back");
                for handle in self.handles.values() {
                    kick(handle, Kick::default());
                }
                return;
            }
        };
        let owner = pod_uid.or_else(|| self.node.owners.lock().get(&id).cloned());
        match owner.and_then(|uid| self.handles.get(&uid)) {
            Some(handle) => kick(
                handle,
                Kick {
                    exited,
                    verdict: None,
                },
            ),
            // Nobody noted whose it is: it ended before its worker looked. All look.
            None if exited.is_some() => {
                for handle in self.handles.values() {
                    kick(
                        handle,
                        Kick {
                            exited: exited.clone(),
                            verdict: None,
                        },
                    );
                }
            }
            None => {}
        }
    }

    fn worker_ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.handles.remove(&uid);
                self.start_statics();
            }
            Err(error) => {
                // Its pod is found again in the next list; until then nobody acts on it.
                tracing::error!(%error, "a pod's worker panicked");
                let alive: HashSet<String> = self
                    .handles
                    .iter()
                    .filter(|(_, handle)| !handle.kicks.is_closed())
                    .map(|(uid, _)| uid.clone())
                    .collect();
                let lost: Vec<Arc<Pod>> = self
                    .handles
                    .iter()
                    .filter(|(uid, _)| !alive.contains(*uid))
                    .map(|(_, handle)| handle.desired.borrow().pod.clone())
                    .collect();
                self.handles.retain(|uid, _| alive.contains(uid));
                for pod in lost {
                    self.wanted((*pod).clone());
                }
            }
        }
    }
}

/// The object is not in the API any more. Its last state, if it is known, says how long
/// its containers may take.
fn gone(handle: &Handle, last: Option<Pod>) {
    handle.desired.send_modify(|desired| {
        desired.gone = true;
        if let Some(last) = last {
            desired.pod = Arc::new(last);
        }
    });
}

fn kick(handle: &Handle, kick: Kick) {
    // A full queue means that the worker is about to look anyway.
    let _ = handle.kicks.try_send(kick);
}
