//! Node lifecycle: a node whose Lease and status have not changed for the grace period is Unknown; what a
//! node's conditions say becomes taints; pods of a node that is not ready are not ready.

mod judge;
mod zones;

use std::sync::Arc;

use ahash::AHashMap;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeCondition, NodeStatus, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::Notify, time::Instant};
use tracing::{info, warn};
use windlass_informers::{
    Informer,
    recorder::{EventType, Recorder},
};

use self::{
    judge::{Eviction, Grace, readiness, silenced, wanted_taints},
    zones::Zones,
};
use crate::{
    pods,
    runtime::{Context, Result, ResultExt, patch, patch_status},
};

pub(crate) use judge::taints;

const LEASES: &str = "kube-node-lease";

/// What was last heard of a node, and when by our own clock: clocks of nodes are not to be trusted.
struct Heard {
    renewed: Option<MicroTime>,
    /// Heartbeat times and statuses of its conditions.
    status: Vec<(String, String, Option<Time>)>,
    at: Instant,
}

struct NodeLifecycle {
    context: Context,
    nodes: Arc<Informer<Node>>,
    leases: Arc<Informer<Lease>>,
    pods: Arc<Informer<Pod>>,
    recorder: Recorder,
    heard: AHashMap<String, Heard>,
    zones: Zones,
}

pub(crate) async fn start(context: Context) {
    let (nodes, leases, pods) = context.synced::<(Node, Lease, Pod)>().await;
    let changed = Arc::new(Notify::new());
    let wake = Arc::clone(&changed);
    // A node that says it is ready, or that was cordoned, must not wait for the next round.
    let _of_nodes = nodes.on_change(move |change| {
        let facts = |node: &Node| {
            let conditions: Vec<_> = statuses(node).into_iter().map(|(k, s, _)| (k, s)).collect();
            (
                conditions,
                node.spec.as_ref().and_then(|spec| spec.unschedulable),
            )
        };
        if change
            .previous()
            .is_none_or(|old| facts(old) != facts(change.object()))
        {
            wake.notify_one();
        }
    });
    let mut lifecycle = NodeLifecycle {
        recorder: context.recorder.named("node-controller"),
        context: context.clone(),
        nodes,
        leases,
        pods,
        heard: AHashMap::new(),
        zones: Zones::default(),
    };
    let mut ticks = tokio::time::interval(context.config.node_monitor_period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = context.cancel.cancelled() => return,
            _ = ticks.tick() => {}
            () = changed.notified() => {}
        }
        lifecycle.round().await;
    }
}

fn statuses(node: &Node) -> Vec<(String, String, Option<Time>)> {
    let conditions: Option<&Vec<NodeCondition>> = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .map(|c| {
            (
                c.type_.clone(),
                c.status.clone(),
                c.last_heartbeat_time.clone(),
            )
        })
        .collect()
}

fn zone(node: &Node) -> String {
    let label = |name: &str| node.labels().get(name).cloned().unwrap_or_default();
    format!(
        "{}/{}",
        label("topology.kubernetes.io/region"),
        label("topology.kubernetes.io/zone")
    )
}

impl NodeLifecycle {
    async fn round(&mut self) {
        let nodes = self.nodes.list();
        self.heard.retain(|name, _| {
            nodes
                .iter()
                .any(|node| node.metadata.name.as_ref() == Some(name))
        });
        self.zones.count(
            nodes
                .iter()
                .map(|node| (zone(node), readiness(node) == Some("True"))),
        );
        for node in nodes {
            if let Err(error) = self.look_at(&node).await {
                if error.is_conflict() || error.is_not_found() {
                    continue;
                }
                warn!(node = node.name_any(), %error, "node not judged, trying again");
            }
        }
    }

    async fn look_at(&mut self, node: &Arc<Node>) -> Result<()> {
        let mut node = node.as_ref().clone();
        let silent = self.listen(&node).elapsed();
        let grace = Grace {
            running: self.context.config.node_monitor_grace_period,
            starting: self.context.config.node_startup_grace_period,
        };
        if let Some(conditions) = silenced(&node, silent, grace, Timestamp::now()) {
            node = self.declare_unknown(node, conditions).await?;
        }
        let ready = readiness(&node) == Some("True");
        let needs_eviction = !ready && readiness(&node).is_some();
        let eviction = if needs_eviction && !is_driven(&node) {
            self.zones.ask(&zone(&node), Instant::now())
        } else {
            Eviction::Held
        };
        if let Some(taints) = wanted_taints(&node, eviction, Timestamp::now()) {
            let mut updated = node.clone();
            updated.spec.get_or_insert_default().taints = Some(taints);
            if let Some(written) = patch(&self.context.cluster_api(), &node, &updated).await? {
                node = written;
            }
        }
        if needs_eviction {
            self.mark_pods_not_ready(&node.name_any()).await?;
        }
        Ok(())
    }

    /// When the node was last heard of.
    fn listen(&mut self, node: &Node) -> Instant {
        let name = node.name_any();
        let lease = self.leases.get(LEASES, &name);
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
        // What we wrote ourselves into a silent node's conditions is not a sign of life; heartbeat times
        // are the node's own.
        let status: Vec<_> = statuses(node)
            .into_iter()
            .filter(|(_, status, _)| status != "Unknown")
            .collect();
        match self.heard.get_mut(&name) {
            Some(heard) => {
                let news = heard.renewed != renewed
                    || status.iter().any(|entry| !heard.status.contains(entry));
                if news {
                    *heard = Heard {
                        renewed,
                        status,
                        at: Instant::now(),
                    };
                }
                heard.at
            }
            None => {
                let at = Instant::now();
                self.heard.insert(
                    name,
                    Heard {
                        renewed,
                        status,
                        at,
                    },
                );
                at
            }
        }
    }

    async fn declare_unknown(&self, node: Node, conditions: Vec<NodeCondition>) -> Result<Node> {
        let name = node.name_any();
        info!(node = name, "node has fallen silent");
        let was_ready = readiness(&node) == Some("True");
        let updated = Node {
            status: Some(NodeStatus {
                conditions: Some(conditions),
                ..node.status.clone().unwrap_or_default()
            }),
            ..node.clone()
        };
        let written = patch_status(&self.context.cluster_api(), &node, &updated).await?;
        if was_ready {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.recorder
                .record(&node, EventType::Normal, "NodeNotReady", message);
        }
        Ok(written.unwrap_or(node))
    }

    /// Endpoints must stop pointing at a node that nobody hears.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<()> {
        for pod in self.pods.indexed(node) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let mut conditions = pod
                .status
                .as_ref()
                .and_then(|status| status.conditions.clone())
                .unwrap_or_default();
            for condition in conditions
                .iter_mut()
                .filter(|condition| condition.type_ == "Ready")
            {
                condition.status = "False".to_owned();
                condition.last_transition_time = Some(Time(Timestamp::now()));
            }
            let namespace = pod.namespace().unwrap_or_default();
            let name = pod.name_any();
            let body = json!({
                "metadata": {
                    "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version,
                },
                "status": { "conditions": conditions },
            });
            let api = self.context.api::<Pod>(&namespace);
            let written = api
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(&body))
                .await;
            match written {
                Ok(_) => {
                    let message = "Node is not ready".to_owned();
                    self.recorder
                        .record(pod.as_ref(), EventType::Warning, "NodeNotReady", message);
                }
                // The next round sees the newer version.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    return Err(error).doing(|| format!("mark pod {namespace}/{name} not ready"));
                }
            }
        }
        Ok(())
    }
}

fn is_driven(node: &Node) -> bool {
    taints(node).iter().any(|taint| {
        taint.effect == "NoExecute"
            && [judge::NOT_READY, judge::UNREACHABLE].contains(&taint.key.as_str())
    })
}
