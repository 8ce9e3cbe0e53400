//! A node on which another CNI plugin was before: its pods go on, and Windlass takes them over.
//!
//! Where a kubelet of ours runs, every pod is ours, and nothing of this is done.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::ResourceExt as _;
use kube::api::{Api, ListParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use windlass_network::{Adoption, Attachments, PodName, RunningPod};
use windlass_pods::Patience;

use crate::cli::{Role, RunOptions};
use crate::local_pods::addresses;

/// A pod that the other plugin was at work on, while its configuration was put aside, is reported by then.
const LATER: Duration = Duration::from_secs(60);

/// On a mirror pod: the uid under which its node runs it.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

pub(crate) struct Newcomer {
    node_name: String,
    netns_dir: PathBuf,
    pods: Api<Pod>,
    recorder: Recorder,
    attachments: Arc<Attachments>,
    /// Whether there can be pods that are not ours.
    needed: bool,
}

impl Newcomer {
    pub(crate) fn new(
        options: &RunOptions,
        client: &kube::Client,
        attachments: Arc<Attachments>,
    ) -> Self {
        let reporter = Reporter {
            controller: "windlass-node-agent".into(),
            instance: Some(options.node_name.clone()),
        };
        Self {
            node_name: options.node_name.clone(),
            netns_dir: options.netns_dir.clone(),
            pods: Api::all(client.clone()),
            recorder: Recorder::new(client.clone(), reporter),
            attachments,
            needed: !options.has(Role::Pods),
        }
    }

    /// Takes over the pods that run on this node and are nobody's; returns when they are.
    pub(crate) async fn look(&self) {
        if !self.needed {
            return;
        }
        let pods = self.running().await;
        let known: Vec<RunningPod> = pods.iter().map(running_pod).collect();
        let adopted = self.attachments.adopt_running(&self.netns_dir, &known);
        for (name, adoption) in adopted.await {
            let PodName {
                namespace, name, ..
            } = &name;
            match adoption {
                Adoption::Adopted => {
                    tracing::info!(namespace, name, "took over another CNI plugin's pod");
                }
                Adoption::NotFound => tracing::warn!(
                    namespace,
                    name,
                    folder = %self.netns_dir.display(),
                    "no network namespace in this folder has the pod's address: it is not served until it is started again"
                ),
                Adoption::Impossible(reason) => {
                    tracing::warn!(
                        namespace,
                        name,
                        reason,
                        "a pod is not served until it is started again"
                    );
                    let pod = pods.iter().find(|pod| {
                        pod.namespace().as_deref() == Some(namespace) && pod.name_any() == *name
                    });
                    if let Some(pod) = pod {
                        self.tell(pod, &reason).await;
                    }
                }
            }
        }
    }

    pub(crate) async fn look_again(&self) {
        tokio::time::sleep(LATER).await;
        self.look().await;
    }

    /// Asks until there is an answer.
    async fn running(&self) -> Vec<Pod> {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.node_name));
        let mut pauses = Patience::default();
        loop {
            match self.pods.list(&here).await {
                Ok(list) => {
                    let pods = list.items.into_iter();
                    return pods
                        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
                        .collect();
                }
                Err(error) => {
                    tracing::warn!(%error, "this node's pods are not known, trying again");
                    tokio::time::sleep(pauses.next().unwrap_or_default()).await;
                }
            }
        }
    }

    async fn tell(&self, pod: &Pod, reason: &str) {
        let event = Event {
            type_: EventType::Warning,
            reason: "NotTakenOver".into(),
            note: Some(format!(
                "another CNI plugin has made this pod's network, and {reason}: Services and policies hold for it \
                 once it is started again"
            )),
            action: "Adopt".into(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: Some(pod.name_any()),
            uid: pod.uid(),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            tracing::debug!(%error, "an event was not recorded");
        }
    }
}

fn running_pod(pod: &Pod) -> RunningPod {
    // A mirror pod's own is not the one that its node runs it under.
    let uid = pod
        .annotations()
        .get(CONFIG_HASH)
        .or(pod.metadata.uid.as_ref());
    RunningPod {
        name: PodName {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: uid.cloned().unwrap_or_default(),
        },
        addresses: addresses(pod),
    }
}
