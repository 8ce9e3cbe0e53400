//! This node's own object, by which pods are admitted.

use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;
use tokio::sync::watch;
use windlass_patience::Patience;

use super::{Manager, NODE_PATIENCE};
use crate::admission::{self, Rules};
use crate::model::{PodId, is_terminal};
use crate::node::Node;

/// Where the newest state of the object goes.
pub(super) type Seen = Arc<watch::Sender<Option<Arc<NodeObject>>>>;

/// Keeps the newest state of this Node.
pub(super) async fn follow(node: Arc<Node>, seen: Seen) {
    let api: Api<NodeObject> = Api::all(node.client.clone());
    let stream = watch_object(api, &node.config.node.name).backoff(Patience::default());
    let mut stream = stream.boxed();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Some(object)) => {
                seen.send_replace(Some(Arc::new(object)));
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "watch of the node interrupted"),
        }
    }
}

impl Node {
    /// What a pod is held against, with the node in this state.
    pub(super) fn rules<'a>(&'a self, object: Option<&'a NodeObject>) -> Rules<'a> {
        Rules {
            node: object,
            allowed_sysctls: &self.config.allowed_unsafe_sysctls,
        }
    }
}

impl Manager {
    /// Whoever gave a new pod to this node may have gone by labels and taints that are still on their way here: before
    /// the pod is refused for them, they are asked for.
    pub(super) async fn look_again_for(&self, pod: &Pod) {
        let node = &self.node;
        let uid = PodId::of(pod).uid;
        let leaves = is_terminal(pod) || pod.metadata.deletion_timestamp.is_some();
        if leaves || self.handles.contains_key(&uid) || node.config.pod_folder(&uid).exists() {
            return;
        }
        let seen = node.object.borrow().clone();
        if admission::check(pod, &node.rules(seen.as_deref())).is_ok() {
            return;
        }
        let api: Api<NodeObject> = Api::all(node.client.clone());
        let asked = api.get_opt(&node.config.node.name);
        match tokio::time::timeout(NODE_PATIENCE, asked).await {
            Ok(Ok(Some(object))) => {
                self.node_seen.send_replace(Some(Arc::new(object)));
            }
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the node was not read again"),
        }
    }
}
