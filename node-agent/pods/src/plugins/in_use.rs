//! `status.volumesInUse`: what may be mounted on this node, and must not be detached from it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::node::Node;

const RETRY: Duration = Duration::from_secs(1);

/// Keeps the Node's status true. Volumes are mounted only when it tells of them.
pub(super) async fn tell(node: Arc<Node>) {
    let nodes: Api<NodeObject> = Api::all(node.client.clone());
    let mut wanted = node.csi.in_use();
    let mut object = node.object.clone();
    loop {
        let all = wanted.borrow_and_update().clone();
        let seen = object.borrow_and_update().clone();
        if let Some(seen) = seen {
            if told_by(&seen) != all {
                let patch = json!({
                    "metadata": {"uid": seen.metadata.uid}, "status": {"volumesInUse": all},
                });
                let params = PatchParams::default();
                let name = &node.config.node.name;
                let told = nodes
                    .patch_status(name, &params, &Patch::Merge(patch))
                    .await;
                if let Err(error) = told {
                    tracing::warn!(%error, "the node's status does not tell of its volumes");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            node.csi.told(all);
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = object.changed() => if changed.is_err() { return },
        }
    }
}

fn told_by(node: &NodeObject) -> BTreeSet<String> {
    let status = node.status.as_ref();
    let told = status.and_then(|status| status.volumes_in_use.as_ref());
    told.into_iter().flatten().cloned().collect()
}
