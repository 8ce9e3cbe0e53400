//! Nodes without anything on them: their pods run, or are done, as soon as somebody has looked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent};
use kube::{Client, Resource as _, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::json;

use crate::clients::Clients;

const NODES: usize = 3;
const LEASES: &str = "kube-node-lease";
const RENEWED_EVERY: Duration = Duration::from_secs(2);
const LOOKED_EVERY: Duration = Duration::from_millis(200);
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// What a watch has told of pods.
#[derive(Default)]
pub(crate) struct Pods(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    there: BTreeMap<String, Pod>,
    node: BTreeMap<String, String>,
    /// The pods of each index of a Job.
    made: BTreeMap<(String, String), BTreeSet<String>>,
    wrong: BTreeSet<String>,
}

pub(crate) fn pods(client: Client) -> Api<Pod> {
    Api::namespaced(client, "default")
}

impl Pods {
    pub(crate) fn note(&self, event: WatchEvent<Pod>) {
        let mut seen = self.0.lock();
        let (pod, is_there) = match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => (pod, true),
            WatchEvent::Deleted(pod) => (pod, false),
            _ => return,
        };
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
            let first = seen.node.entry(uid.clone()).or_insert_with(|| node.clone());
            if *first != node {
                let wrong = format!("{name} was bound to {first}, and to {node}");
                seen.wrong.insert(wrong);
            }
        }
        if let Some(index) = pod.annotations().get(INDEX) {
            let job = pod.owner_references().first();
            let job = job.map(|job| job.name.clone()).unwrap_or_default();
            let made = seen.made.entry((job.clone(), index.clone())).or_default();
            made.insert(uid.clone());
            if made.len() > 1 {
                let wrong = format!("{} pods were made of {job}'s index {index}", made.len());
                seen.wrong.insert(wrong);
            }
        }
        match is_there {
            true => seen.there.insert(uid, pod),
            false => seen.there.remove(&uid),
        };
    }

    /// What should never have been.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.0.lock().wrong.iter().cloned().collect()
    }
}

pub(crate) async fn join(clients: &Clients) {
    for node in 0..NODES {
        let name = format!("hollow-{node}");
        clients
            .tell(async |client| {
                let node: Node = object(json!({"metadata": {"name": name}}));
                Api::all(client).create(&PostParams::default(), &node).await
            })
            .await;
        let room = json!({"cpu": "64", "memory": "64Gi", "pods": "500"});
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let status =
            json!({"status": {"capacity": room, "allocatable": room, "conditions": ready}});
        clients
            .tell(async |client| {
                let (nodes, patch) = (Api::<Node>::all(client), Patch::Merge(&status));
                nodes
                    .patch_status(&name, &PatchParams::default(), &patch)
                    .await
            })
            .await;
    }
}

/// For as long as they are asked to.
pub(crate) async fn renew(clients: &Clients) {
    loop {
        for node in 0..NODES {
            let name = format!("hollow-{node}");
            let now = jiff::Timestamp::now();
            let spec = json!({"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": format!("{now:.6}")});
            let renewed = clients
                .tell(async |client| {
                    let leases = Api::<Lease>::namespaced(client, LEASES);
                    let patch = Patch::Merge(json!({"spec": spec}));
                    leases.patch(&name, &PatchParams::default(), &patch).await
                })
                .await;
            if renewed.is_none() {
                clients
                    .tell(async |client| {
                        let lease: Lease =
                            object(json!({"metadata": {"name": name}, "spec": spec}));
                        let leases = Api::namespaced(client, LEASES);
                        leases.create(&PostParams::default(), &lease).await
                    })
                    .await;
            }
        }
        tokio::time::sleep(RENEWED_EVERY).await;
    }
}

/// The same: runs what is bound, and ends what is deleted.
pub(crate) async fn run(clients: &Clients, seen: &Pods) {
    loop {
        let there: Vec<Pod> = seen.0.lock().there.values().cloned().collect();
        for pod in there {
            let is_bound = pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some());
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            if pod.meta().deletion_timestamp.is_some() {
                end(clients, &pod).await;
            } else if is_bound && phase == Some("Pending") {
                report(clients, &pod).await;
            }
        }
        tokio::time::sleep(LOOKED_EVERY).await;
    }
}

async fn end(clients: &Clients, pod: &Pod) {
    let at_once = DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        });
    let name = pod.name_any();
    clients
        .tell(async |client| pods(client).delete(&name, &at_once).await)
        .await;
}

async fn report(clients: &Clients, pod: &Pod) {
    let is_done = pod.annotations().contains_key(INDEX);
    let (phase, ready) = match is_done {
        true => ("Succeeded", "False"),
        false => ("Running", "True"),
    };
    let status = json!({"metadata": {"uid": pod.uid()},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
    let name = pod.name_any();
    clients
        .tell(async |client| {
            let patch = Patch::Merge(&status);
            pods(client)
                .patch_status(&name, &PatchParams::default(), &patch)
                .await
        })
        .await;
}

pub(crate) fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("it is written as its kind")
}
