//! How full the volumes of the node's pods are, for whoever asks.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, Volume};
use windlass_volumes::{Context, Usage, claim_name};

use super::Pods;
use crate::model::{PodId, spec};
use crate::node::Node;
use crate::objects::ObjectCache;

/// A driver that does not answer must not hold up what is known of the others.
const PATIENCE: Duration = Duration::from_secs(5);

/// A volume of a pod, as full as it is now.
#[derive(Debug, Clone)]
pub struct VolumeUsage {
    /// Whose it is.
    pub pod: Arc<Pod>,
    /// Its name in the pod.
    pub name: String,
    /// The claim that it stands for, if it does.
    pub claim: Option<String>,
    /// How full it is.
    pub usage: Usage,
}

impl Pods {
    /// Of all volumes that lie on storage of their own and are mounted.
    pub async fn volumes(&self) -> Vec<VolumeUsage> {
        let mut asked = Vec::new();
        for view in self.list() {
            for volume in spec(&view.pod).volumes.clone().into_iter().flatten() {
                asked.push(ask(self.node.clone(), view.pod.clone(), volume));
            }
        }
        join_all(asked).await.into_iter().flatten().collect()
    }
}

async fn ask(node: Arc<Node>, pod: Arc<Pod>, volume: Volume) -> Option<VolumeUsage> {
    let folder = node.config.pod_folder(&PodId::of(&pod).uid);
    let objects: &ObjectCache = &node.objects;
    let context = Context {
        pod: &pod,
        folder: &folder,
        objects,
        node: &node.config.node,
        csi: &node.csi,
    };
    let told = tokio::time::timeout(PATIENCE, windlass_volumes::usage(&context, &volume)).await;
    let usage = match told {
        Ok(Ok(usage)) => usage?,
        Ok(Err(error)) => {
            tracing::debug!(volume = volume.name, %error, "usage of a volume not known");
            return None;
        }
        Err(_) => {
            tracing::debug!(volume = volume.name, "usage of a volume not told in time");
            return None;
        }
    };
    let claim = claim_name(&pod, &volume);
    Some(VolumeUsage {
        pod,
        name: volume.name,
        claim,
        usage,
    })
}
