//! The scheduling loop: takes the next pod, finds it a node, assumes it there and binds it on another
//! task, so that the next decision need not wait for the API server.

use std::{sync::Arc, time::Duration};

use ahash::AHashMap;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::Semaphore, time::Instant};
use tracing::{debug, info, warn};
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
};

use crate::{
    cache::{Cache, Snapshot},
    config::DEFAULT_NAME,
    cycle::{self, Diagnosis, Nominated, choose},
    devices::{self, DeviceBinder, Grant},
    pod::{PodInfo, node_name},
    preemption::{self, Candidate, Refusal, Scene},
    profile::{Profile, Profiles},
    queue::{Queue, Waiting},
    status::{self, Promise},
    storage::{Binder, Decision, InformerStorage, Storage, claims, decide},
};

/// Bindings under way at once: enough to fill the store's group commit, few enough to stay polite.
const BINDINGS: usize = 256;

/// How long volumes may take to be bound if no profile says it.
const VOLUME_PATIENCE: Duration = Duration::from_secs(600);

/// What a pod gets on its node besides room.
struct Reserved {
    volumes: Vec<Decision>,
    devices: Result<Vec<Grant>, String>,
}

impl Reserved {
    fn is_nothing(&self) -> bool {
        self.volumes.is_empty() && self.devices.as_ref().is_ok_and(Vec::is_empty)
    }
}

pub(crate) struct Scheduler {
    pub(crate) client: Client,
    pub(crate) cache: Cache,
    pub(crate) queue: Queue,
    pub(crate) profiles: Arc<Profiles>,
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) budgets: Arc<Informer<PodDisruptionBudget>>,
    pub(crate) recorder: Recorder,
    pub(crate) bindings: Arc<Semaphore>,
    pub(crate) storage: Arc<InformerStorage>,
    pub(crate) volumes: Binder,
    pub(crate) devices: DeviceBinder,
    /// Nodes promised to pods for which preemption makes room, by the pod's uid.
    pub(crate) nominated: Mutex<AHashMap<String, (String, Arc<PodInfo>)>>,
}

impl Scheduler {
    pub(crate) fn binding_slots() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(BINDINGS))
    }

    pub(crate) async fn run(self: Arc<Self>) {
        let mut snapshot = Snapshot::default();
        let mut start = 0;
        loop {
            let waiting = self.queue.next().await;
            // A slot before the decision: were the API server stuck, decisions would grow stale.
            let Ok(slot) = Arc::clone(&self.bindings).acquire_owned().await else {
                return;
            };
            if self.is_settled(&waiting) {
                self.queue.remove(&waiting.pod.uid);
                continue;
            }
            let Some(profile) = self.profiles.of(&waiting.pod.pod) else {
                self.queue.remove(&waiting.pod.uid);
                continue;
            };
            self.cache.refresh(&mut snapshot);
            let nominated = cycle::open(self.nominated.lock().values(), &self.cache);
            match choose(profile, &waiting.pod, &snapshot, &nominated, &mut start) {
                Ok(node) => {
                    self.cache.assume(&waiting.pod, &node);
                    self.queue.decided(&waiting.pod.uid);
                    let reserved = self.reserve(&waiting.pod, &node, &snapshot);
                    let scheduler = Arc::clone(&self);
                    tokio::spawn(async move {
                        if reserved.is_nothing() {
                            scheduler.bind(waiting, node).await;
                            drop(slot);
                        } else {
                            // A provisioner may take minutes: others must not wait for it.
                            drop(slot);
                            scheduler.bind_with(reserved, waiting, node).await;
                        }
                    });
                }
                Err(diagnosis) => {
                    self.reject(profile, waiting, &snapshot, &nominated, diagnosis);
                }
            }
        }
    }

    /// Deleted or bound since it was queued.
    fn is_settled(&self, waiting: &Waiting) -> bool {
        let pod = self.pods.by_key(&waiting.pod.key);
        self.cache.is_assumed(&waiting.pod.uid)
            || pod.is_none_or(|pod| {
                pod.metadata.uid.as_deref() != Some(&waiting.pod.uid)
                    || pod.metadata.deletion_timestamp.is_some()
                    || node_name(&pod).is_some()
            })
    }

    /// Events bear the name of the profile that the pod asked for.
    fn recorder(&self, pod: &PodInfo, action: &'static str) -> Recorder {
        let name = self.profiles.of(&pod.pod);
        let name = name.map_or(DEFAULT_NAME, |profile| &profile.name);
        self.recorder.named(name).doing(action)
    }

    fn api(&self, key: &Key) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Reserve: how the pod's claims are served on the chosen node, promised from now on.
    fn reserve(&self, pod: &PodInfo, node: &str, snapshot: &Snapshot) -> Reserved {
        Reserved {
            volumes: self.reserve_volumes(pod, node, snapshot),
            devices: self.reserve_devices(pod, node, snapshot),
        }
    }

    fn reserve_devices(
        &self,
        pod: &PodInfo,
        node: &str,
        snapshot: &Snapshot,
    ) -> Result<Vec<Grant>, String> {
        if pod.spec().resource_claims.is_none() {
            return Ok(Vec::new());
        }
        let storage = self.storage.as_ref();
        let claims = devices::claims_of(storage, pod)?;
        let node = snapshot.get(node).ok_or("the node is gone")?;
        let grants = devices::decide(&storage.devices(), &claims, node)?;
        self.devices.promises.make(&grants);
        Ok(grants)
    }

    fn reserve_volumes(&self, pod: &PodInfo, node: &str, snapshot: &Snapshot) -> Vec<Decision> {
        if pod.spec().volumes.is_none() {
            return Vec::new();
        }
        let storage = self.storage.as_ref();
        let decisions = match (claims(storage, pod), snapshot.get(node)) {
            (Ok(claims), Some(node)) => decide(storage, &claims, node).unwrap_or_default(),
            _ => Vec::new(),
        };
        self.storage.reservations.promise(&decisions);
        decisions
    }

    /// An error comes with the plugin that it is of.
    async fn carry_out(
        &self,
        reserved: Reserved,
        pod: &PodInfo,
        node: &str,
    ) -> Result<(), (&'static str, String)> {
        let of = |plugin| move |error| (plugin, error);
        let profile = self.profiles.of(&pod.pod);
        let patience = profile.map_or(VOLUME_PATIENCE, |profile| profile.volume_patience);
        let volumes = &reserved.volumes;
        let volumes = self.volumes.carry_out(volumes, node, patience);
        let (volumes, devices) = match reserved.devices {
            Ok(grants) => (volumes.await, self.devices.carry_out(&grants, pod).await),
            Err(error) => (volumes.await, Err(error)),
        };
        volumes.map_err(of("VolumeBinding"))?;
        devices.map_err(of("DynamicResources"))
    }

    /// PreBind, then Bind.
    async fn bind_with(&self, reserved: Reserved, waiting: Waiting, node: String) {
        // It takes a while: who adds and removes nodes should know that this one is spoken for (KEP-5278).
        self.expect(&waiting.pod, Some(&node)).await;
        match self.carry_out(reserved, &waiting.pod, &node).await {
            Ok(()) => self.bind(waiting, node).await,
            Err((plugin, error)) => {
                let message = format!("running PreBind plugin {plugin:?}: {error}");
                self.failed(waiting, &node, message).await;
            }
        }
    }

    /// A node was found in vain: says so, and tries again later.
    async fn failed(&self, mut waiting: Waiting, node: &str, message: String) {
        let pod = Arc::clone(&waiting.pod);
        self.cache.forget(&pod.uid);
        let (namespace, name) = (&pod.key.namespace, &pod.key.name);
        warn!(namespace, name, node, message, "not bound, retrying");
        waiting.rejected_by.clear();
        let news = waiting.is_news(&message, Instant::now());
        self.queue.failed(waiting, Instant::now());
        if news {
            self.record_failure(&pod, &message);
        }
        let why = status::SCHEDULER_ERROR;
        self.explain(&pod, why, &message, Promise::Stands).await;
    }

    async fn bind(&self, waiting: Waiting, node: String) {
        let pod = Arc::clone(&waiting.pod);
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            // The uid is the precondition: a pod of the same name made since must not be bound.
            "metadata": { "name": pod.key.name, "namespace": pod.key.namespace, "uid": pod.uid },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let params = PostParams::default();
        let bound: kube::Result<serde_json::Value> = self
            .api(&pod.key)
            .create_subresource("binding", &pod.key.name, &params, &binding)
            .await;
        match bound {
            Ok(_) => {
                self.queue.remove(&pod.uid);
                self.nominated.lock().remove(&pod.uid);
                debug!(
                    namespace = pod.key.namespace,
                    name = pod.key.name,
                    node,
                    "bound"
                );
                let message = format!("Successfully assigned {} to {node}", pod.key);
                let recorder = self.recorder(&pod, "Binding");
                recorder.record(pod.pod.as_ref(), EventType::Normal, "Scheduled", message);
            }
            Err(kube::Error::Api(refusal)) if refusal.code == 404 => {
                self.cache.forget(&pod.uid);
                self.queue.remove(&pod.uid);
            }
            Err(error) => {
                let message = format!("running Bind plugin \"DefaultBinder\": {error}");
                self.failed(waiting, &node, message).await;
            }
        }
    }

    /// No node takes the pod: says so, and lets less important pods make room if that helps.
    fn reject(
        self: &Arc<Self>,
        profile: &Profile,
        mut waiting: Waiting,
        snapshot: &Snapshot,
        nominated: &Nominated,
        diagnosis: Diagnosis,
    ) {
        let pod = Arc::clone(&waiting.pod);
        let found = if let Some(arguments) = profile.preemption {
            let budgets = self.budgets.list();
            let scene = Scene {
                plugins: &profile.plugins,
                snapshot,
                budgets: &budgets,
                nominated,
            };
            preemption::find(&scene, &pod, &diagnosis, arguments.enough(diagnosis.nodes))
        } else {
            Err(Refusal::disabled())
        };
        let mut message = diagnosis.message();
        if diagnosis.nodes > 0
            && let Err(refusal) = &found
        {
            let claims = profile.asks_claims.then(|| about_claims(&pod));
            let victims = profile.preemption.map(|_| refusal.message.as_str());
            let said: Vec<_> = claims.into_iter().chain(victims).collect();
            if !said.is_empty() {
                message = format!("{message} {}", said.join(", "));
            }
        }
        debug!(
            namespace = pod.key.namespace,
            name = pod.key.name,
            reason = message,
            "unschedulable"
        );
        let outpriced = match &found {
            Ok(candidate) => self.promise(candidate, &pod),
            Err(refusal) => {
                if !refusal.keeps_promise {
                    self.nominated.lock().remove(&pod.uid);
                }
                Vec::new()
            }
        };
        waiting.rejected_by = diagnosis.plugins();
        // Without nodes no plugin has spoken, and any node may help.
        if diagnosis.nodes == 0 {
            waiting.rejected_by = vec!["NodeResourcesFit"];
        }
        if waiting.is_news(&message, Instant::now()) {
            self.record_failure(&pod, &message);
        }
        self.queue.failed(waiting, Instant::now());
        let scheduler = Arc::clone(self);
        tokio::spawn(async move {
            scheduler.tell(&pod, message, found).await;
            for other in outpriced {
                scheduler.expect(&other, None).await;
            }
        });
    }

    /// Promises a node to a pod; returns the less important pods that had been promised it.
    fn promise(&self, candidate: &Candidate, pod: &Arc<PodInfo>) -> Vec<Arc<PodInfo>> {
        let mut nominated = self.nominated.lock();
        let outpriced: Vec<_> = nominated
            .values()
            .filter(|(node, other)| *node == candidate.node && other.priority < pod.priority)
            .map(|(_, other)| Arc::clone(other))
            .collect();
        for other in &outpriced {
            nominated.remove(&other.uid);
        }
        nominated.insert(pod.uid.clone(), (candidate.node.clone(), Arc::clone(pod)));
        outpriced
    }

    /// Says where a pod is going to be, or, when its room goes to a more important one, that this is open.
    async fn expect(&self, pod: &PodInfo, node: Option<&str>) {
        if node.is_some() && pod.nominated_node() == node {
            return;
        }
        let body = status::expected(&pod.uid, node);
        let params = PatchParams::default();
        let patch = Patch::Merge(&body);
        let api = self.api(&pod.key);
        let written = api.patch_status(&pod.key.name, &params, &patch).await;
        if let Err(error) = written {
            debug!(namespace = pod.key.namespace, name = pod.key.name, %error, "expectation not written");
        }
    }

    async fn tell(&self, pod: &Arc<PodInfo>, message: String, found: Result<Candidate, Refusal>) {
        if let Ok(candidate) = &found {
            self.evict(pod, candidate).await;
        }
        let promise = match &found {
            Ok(candidate) => Promise::Node(&candidate.node),
            Err(refusal) if refusal.keeps_promise => Promise::Stands,
            Err(_) => Promise::Lapsed,
        };
        let why = status::UNSCHEDULABLE;
        self.explain(pod, why, &message, promise).await;
    }

    fn record_failure(&self, pod: &PodInfo, message: &str) {
        let (kind, reason) = (EventType::Warning, "FailedScheduling");
        let recorder = self.recorder(pod, "Scheduling");
        recorder.record(pod.pod.as_ref(), kind, reason, message.to_owned());
    }

    /// Why a pod has no node yet, in its status.
    async fn explain(&self, pod: &PodInfo, why: &str, message: &str, promise: Promise<'_>) {
        let current = self
            .pods
            .by_key(&pod.key)
            .unwrap_or_else(|| Arc::clone(&pod.pod));
        let Some(body) = status::unscheduled(&current, &pod.uid, why, message, promise) else {
            return;
        };
        let written = self
            .api(&pod.key)
            .patch_status(&pod.key.name, &PatchParams::default(), &Patch::Merge(&body))
            .await;
        if let Err(error) = written {
            // The next attempt says it again.
            debug!(namespace = pod.key.namespace, name = pod.key.name, %error, "status not written");
        }
    }

    async fn evict(&self, pod: &PodInfo, candidate: &Candidate) {
        for victim in &candidate.victims {
            info!(
                namespace = victim.key.namespace,
                name = victim.key.name,
                node = candidate.node,
                by = pod.uid,
                "preempting"
            );
            let api = self.api(&victim.key);
            let current = self
                .pods
                .by_key(&victim.key)
                .unwrap_or_else(|| Arc::clone(&victim.pod));
            let scheduler = self.profiles.of(&pod.pod);
            let scheduler = scheduler.map_or(DEFAULT_NAME, |profile| &profile.name);
            let body = status::preempted(&current, &victim.uid, scheduler);
            let params = PatchParams::default();
            let patch = Patch::Merge(&body);
            if let Err(error) = api.patch_status(&victim.key.name, &params, &patch).await {
                debug!(name = victim.key.name, %error, "victim not marked");
            }
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(victim.uid.clone()),
                    resource_version: None,
                }),
                ..Default::default()
            };
            match api.delete(&victim.key.name, &params).await {
                Ok(_) => {
                    let message =
                        format!("Preempted by pod {} on node {}", pod.uid, candidate.node);
                    self.recorder(pod, "Preempting").record(
                        victim.pod.as_ref(),
                        EventType::Normal,
                        "Preempted",
                        message,
                    );
                }
                Err(kube::Error::Api(gone)) if matches!(gone.code, 404 | 409) => {}
                Err(error) => warn!(name = victim.key.name, %error, "victim not deleted"),
            }
        }
    }
}

/// What upstream's DynamicResources has to say about a pod that fits nowhere. It is said of every pod.
fn about_claims(pod: &PodInfo) -> &'static str {
    match pod.spec().resource_claims.as_deref() {
        None | Some([]) => "no new claims to deallocate",
        Some(_) => "still not schedulable",
    }
}
