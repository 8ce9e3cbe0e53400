//! The Node object: this machine as the cluster sees it.
//!
//! Registered once, kept alive by a Lease every ten seconds, and brought up to date when
//! something changed. It is Ready when the container runtime and the network are.

mod capacity;
mod conditions;
mod facts;
mod lease;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeFeatures, NodeRuntimeHandler, NodeSpec, NodeStatus, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windlass_cri::Runtime;
use windlass_pods::{Shortage, Thresholds};

pub(crate) use capacity::Capacity;
pub(crate) use lease::keep as keep_lease;

use conditions::Observed;

/// While the node is not Ready it is looked at this often, so that it becomes so at once.
const LOOK_WHILE_STARTING: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_secs(5);
/// An unchanged status is sent again after this.
const RESEND: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(250);
/// A runtime that restarts does not make the node unready: only one that stays away does.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(30);
/// What was Ready before the agent's restart stays so for as long as a start may take on a busy machine: as long as a
/// node may be silent (`node-monitor-grace-period`), since its pods serve meanwhile. A start does not get on while
/// there is no API server, and nobody misses the node: so it counts from that one's first answer.
const STARTING: Duration = Duration::from_secs(40);
/// Images told of in the status, the largest first.
const IMAGES: usize = 50;
const IMAGES_PATIENCE: Duration = Duration::from_secs(1);

/// What the Node is made from.
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) labels: Vec<(String, String)>,
    /// Only for a Node that is made anew: later they are the administrator's.
    pub(crate) taints: Vec<Taint>,
    pub(crate) kubelet_port: u16,
    pub(crate) state_dir: PathBuf,
    pub(crate) eviction: Thresholds,
    pub(crate) capacity: Capacity,
    pub(crate) runtime_version: String,
}

/// Tells whoever attaches volumes that this node leaves that to them: without it the controller-manager leaves the node
/// out, and its pods wait for their disks.
const ATTACHED_BY_CONTROLLER: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// Makes the Node, or adopts the one that exists; tries until it is done.
pub(crate) async fn register(client: &kube::Client, settings: &Settings) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = Node {
        metadata: ObjectMeta {
            name: Some(settings.name.clone()),
            labels: Some(labels(settings)),
            annotations: Some([(ATTACHED_BY_CONTROLLER.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: (!settings.taints.is_empty()).then(|| NodeSpec {
            taints: Some(settings.taints.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status(settings)),
    };
    let mut told = false;
    loop {
        let problem = match nodes.create(&PostParams::default(), &node).await {
            Ok(_) => {
                tracing::info!(node = settings.name, "node registered");
                return;
            }
            Err(kube::Error::Api(answer)) if answer.is_already_exists() => {
                let patch = json!({"metadata": {
                    "labels": labels(settings),
                    "annotations": {ATTACHED_BY_CONTROLLER: "true"},
                }});
                let params = PatchParams::default();
                match nodes
                    .patch(&settings.name, &params, &Patch::Merge(patch))
                    .await
                {
                    Ok(_) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if !told {
            told = true;
            tracing::warn!(node = settings.name, error = %problem, "not registered yet");
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn labels(settings: &Settings) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", settings.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", facts::architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", facts::architecture()),
    ];
    let own = own
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.chain(settings.labels.iter().cloned()).collect()
}

/// Everything that does not change while the agent runs.
fn status(settings: &Settings) -> NodeStatus {
    let internal = settings.ips.iter().map(|ip| NodeAddress {
        type_: "InternalIP".to_owned(),
        address: ip.to_string(),
    });
    let hostname = NodeAddress {
        type_: "Hostname".to_owned(),
        address: settings.name.clone(),
    };
    NodeStatus {
        addresses: Some(internal.chain([hostname]).collect()),
        capacity: Some(settings.capacity.capacity()),
        allocatable: Some(settings.capacity.allocatable()),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: settings.kubelet_port.into(),
            }),
        }),
        node_info: Some(facts::node_info(&settings.runtime_version)),
        ..NodeStatus::default()
    }
}

/// Keeps the Node's status true until told to stop. `network` says why the network is not
/// ready, if it is not.
pub(crate) async fn keep_status(
    client: kube::Client,
    settings: Settings,
    runtime: Runtime,
    mut network: watch::Receiver<Result<(), String>>,
    stop: CancellationToken,
) {
    let nodes: Api<Node> = Api::all(client);
    let mut keeper = Keeper {
        settings,
        runtime,
        known: None,
        extended: BTreeMap::new(),
        own: None,
        overwritten: false,
        looked: None,
        runtime_seen: None,
        features: None,
        handlers: None,
        sent: None,
        start: Start::default(),
    };
    loop {
        let seen = network.borrow_and_update().clone();
        let ready = keeper.send(&nodes, seen).await;
        let pause = if ready { LOOK } else { LOOK_WHILE_STARTING };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            changed = network.changed() => if changed.is_err() { return },
        }
    }
}

struct Keeper {
    settings: Settings,
    runtime: Runtime,
    /// The conditions as the API has them.
    known: Option<Vec<NodeCondition>>,
    /// What is to change in the allocatable extended resources, and when that was last looked up.
    extended: BTreeMap<String, Option<Quantity>>,
    /// What this machine alone can say, in the API's words for it when it was last sent; whether somebody has since
    /// written other things there, as every client does that patches a status with a whole object of Go's.
    own: Option<NodeStatus>,
    overwritten: bool,
    looked: Option<Instant>,
    /// When the runtime was last well.
    runtime_seen: Option<Instant>,
    /// What the runtime says that it can do; old ones say nothing.
    features: Option<NodeFeatures>,
    handlers: Option<Vec<NodeRuntimeHandler>>,
    /// When the status was last sent.
    sent: Option<Instant>,
    start: Start,
}

impl Keeper {
    /// Sends the status if it is news; whether the node is Ready and the API knows it.
    async fn send(&mut self, nodes: &Api<Node>, network: Result<(), String>) -> bool {
        let Some(known) = self.known(nodes).await else {
            return false;
        };
        let runtime = self.runtime_problem().await;
        let observed = Observed {
            runtime,
            network: network.err(),
            shortage: self.shortage().await,
        };
        let conditions = conditions::compute(&observed, &known, Timestamp::now());
        let ready = conditions::is_ready(&conditions);
        if !ready && conditions::is_ready(&known) && self.start.goes_on(Instant::now()) {
            // A restarted agent must not make a working node unready while it starts.
            return false;
        }
        let changed =
            !conditions::same(&conditions, &known) || !self.extended.is_empty() || self.overwritten;
        let due = self.sent.is_none_or(|sent| sent.elapsed() > RESEND);
        if !changed && !due {
            return ready;
        }
        let mut status = status(&self.settings);
        status.conditions = Some(conditions.clone());
        status.images = self.images().await;
        status.features = self.features.clone();
        status.runtime_handlers = self.handlers.clone();
        let mut patch = json!({"status": status});
        if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
            // Merged by type, the two addresses of a node of both families would become one.
            addresses.push(json!({"$patch": "replace"}));
        }
        for (name, amount) in std::mem::take(&mut self.extended) {
            patch["status"]["allocatable"][name] = json!(amount);
        }
        let params = PatchParams::default();
        match nodes
            .patch_status(&self.settings.name, &params, &Patch::Strategic(patch))
            .await
        {
            Ok(node) => {
                if changed {
                    tracing::info!(node = self.settings.name, ready, "node status sent");
                }
                self.own = node.status.map(|status| capacity::own(&status));
                self.overwritten = false;
                self.known = Some(conditions);
                self.sent = Some(Instant::now());
                ready
            }
            Err(error) => {
                tracing::warn!(node = self.settings.name, %error, "node status not sent");
                if matches!(&error, kube::Error::Api(answer) if answer.code == 404) {
                    // Somebody deleted the Node: this machine is still here.
                    register(&nodes.clone().into_client(), &self.settings).await;
                    self.known = None;
                }
                tokio::time::sleep(RETRY).await;
                false
            }
        }
    }

    async fn known(&mut self, nodes: &Api<Node>) -> Option<Vec<NodeCondition>> {
        let recent = self.looked.is_some_and(|looked| looked.elapsed() < LOOK);
        if self.known.is_none() || !recent {
            let node = nodes.get(&self.settings.name).await;
            let node = node
                .inspect_err(|error| tracing::warn!(%error, "node not read"))
                .ok()?;
            let status = node.status.unwrap_or_default();
            self.extended = capacity::extended(&status);
            let own = self.own.as_ref();
            self.overwritten = own.is_some_and(|own| *own != capacity::own(&status));
            let now = Instant::now();
            self.start.answered(now);
            self.looked = Some(now);
            self.known = Some(status.conditions.unwrap_or_default());
        }
        self.known.clone()
    }

    async fn shortage(&self) -> Shortage {
        let settings = &self.settings;
        windlass_pods::shortage(&settings.eviction, &settings.state_dir, &self.runtime).await
    }

    /// Why the runtime cannot run pods, unless it could a moment ago.
    async fn runtime_problem(&mut self) -> Option<String> {
        let problem = match self.runtime.status().await {
            Ok(answer) => {
                (self.features, self.handlers) = facts::abilities(&answer);
                let driver = self.runtime.cgroup_driver().await.ok().flatten();
                let failing = conditions::of_runtime(answer.status.unwrap_or_default(), driver);
                if failing.is_empty() {
                    self.runtime_seen = Some(Instant::now());
                    return None;
                }
                failing.join(", ")
            }
            Err(error) => format!("container runtime is down: {error}"),
        };
        let recently = self
            .runtime_seen
            .is_some_and(|seen| seen.elapsed() < RUNTIME_PATIENCE);
        (!recently).then_some(problem)
    }

    /// None while the runtime is away: the status must not wait for its return.
    async fn images(&self) -> Option<Vec<ContainerImage>> {
        let listed = tokio::time::timeout(IMAGES_PATIENCE, self.runtime.list_images()).await;
        let mut images = listed.ok()?.ok()?;
        images.sort_by_key(|image| std::cmp::Reverse(image.size));
        let told = images.into_iter().take(IMAGES).map(|image| ContainerImage {
            names: Some(
                image
                    .repo_digests
                    .into_iter()
                    .chain(image.repo_tags)
                    .collect(),
            ),
            size_bytes: i64::try_from(image.size).ok(),
        });
        Some(told.collect())
    }
}

/// How far an agent is that has just begun.
#[derive(Default)]
struct Start {
    /// When the API server first answered.
    answered: Option<Instant>,
}

impl Start {
    fn answered(&mut self, now: Instant) {
        self.answered.get_or_insert(now);
    }

    fn goes_on(&self, now: Instant) -> bool {
        self.answered
            .is_none_or(|answered| now.duration_since(answered) < STARTING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_takes_its_time_from_when_the_api_server_answers() {
        let begun = Instant::now();
        let mut start = Start::default();
        let answered = begun + 10 * STARTING;
        assert!(start.goes_on(answered));
        start.answered(answered);
        let late = answered + STARTING - Duration::from_secs(1);
        start.answered(late);
        assert!(start.goes_on(late));
        assert!(!start.goes_on(answered + STARTING));
    }
}
