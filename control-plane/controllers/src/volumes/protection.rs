//! Keeps claims that pods use, and volumes that claims have, from vanishing under them: a finalizer on
//! each, taken off when a deleted one is in nobody's use any more.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Api, Resource, ResourceExt};
use serde::{Serialize, de::DeserializeOwned};
use windlass_informers::{Informer, Key, volumes};

use crate::{
    pods,
    runtime::{Context, Controller, Outcome, Queue, Result, ResultExt, patch, run_workers},
};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

struct Claims {
    context: Context,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    pods: Arc<Informer<Pod>>,
}

struct Volumes {
    context: Context,
    volumes: Arc<Informer<PersistentVolume>>,
}

pub(crate) async fn start_claims(context: Context) {
    let queue = Queue::new();
    let (claims, pods) = context.synced::<(PersistentVolumeClaim, Pod)>().await;
    let _own = queue.follow(&claims);
    let of_pods = Arc::clone(&queue);
    let _of_pods = pods.on_change(move |change| {
        let pod = change.object();
        let namespace = pod.namespace().unwrap_or_default();
        for name in volumes::claims_of(pod) {
            of_pods.add(Key::new(namespace.clone(), name));
        }
    });
    let controller = Arc::new(Claims {
        context: context.clone(),
        claims,
        pods,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

pub(crate) async fn start_volumes(context: Context) {
    let queue = Queue::new();
    let (volumes,) = context.synced::<(PersistentVolume,)>().await;
    let _own = queue.follow(&volumes);
    let controller = Arc::new(Volumes {
        context: context.clone(),
        volumes,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

/// Whether the object is to carry the finalizer: while it lives, and beyond that while it is in use.
async fn protect<K>(api: &Api<K>, object: &K, finalizer: &str, wanted: bool) -> Result<()>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug,
{
    let has = object.finalizers().iter().any(|name| name == finalizer);
    if has == wanted {
        return Ok(());
    }
    let mut updated = object.clone();
    if wanted {
        updated.finalizers_mut().push(finalizer.to_owned());
    } else {
        updated.finalizers_mut().retain(|name| name != finalizer);
    }
    match patch(api, object, &updated).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

fn is_used(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    // A pod that is not on a node yet will not start with a claim that is being deleted.
    pods::node_name(pod).is_some() && volumes::claims_of(pod).contains(&claim.name_any())
}

impl Controller for Claims {
    type Key = Key;
    const NAME: &'static str = "persistentvolumeclaim-protection";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(claim) = self.claims.by_key(key) else {
            return Ok(Outcome::Done);
        };
        let wanted = claim.metadata.deletion_timestamp.is_none() || self.in_use(&claim).await?;
        protect(
            &self.context.api(&key.namespace),
            claim.as_ref(),
            CLAIM,
            wanted,
        )
        .await?;
        Ok(Outcome::Done)
    }
}

impl Claims {
    /// The view may lag behind a pod that was just bound, so the server is asked before a claim goes.
    async fn in_use(&self, claim: &PersistentVolumeClaim) -> Result<bool> {
        let namespace = claim.namespace().unwrap_or_default();
        let mut known = self.pods.in_namespace(&namespace).into_iter();
        if known.any(|pod| is_used(claim, &pod)) {
            return Ok(true);
        }
        let api = self.context.api::<Pod>(&namespace);
        let pods = api
            .list(&Default::default())
            .await
            .doing(|| format!("list pods of {namespace}"))?;
        Ok(pods.items.iter().any(|pod| is_used(claim, pod)))
    }
}

impl Controller for Volumes {
    type Key = Key;
    const NAME: &'static str = "persistentvolume-protection";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(volume) = self.volumes.by_key(key) else {
            return Ok(Outcome::Done);
        };
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let wanted = volume.metadata.deletion_timestamp.is_none() || phase == Some("Bound");
        protect(&self.context.cluster_api(), volume.as_ref(), VOLUME, wanted).await?;
        Ok(Outcome::Done)
    }
}
