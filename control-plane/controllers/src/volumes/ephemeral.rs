//! Generic ephemeral volumes (KEP-1698): makes the claim that a pod's own volume describes, owned by the
//! pod, so that it goes with it.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::PostParams};
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
    volumes,
};

use crate::{
    pods,
    runtime::{
        Context, Controller, Outcome, Queue, Result, ResultExt, controller_ref, run_workers,
    },
};

struct Ephemeral {
    context: Context,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    recorder: Recorder,
}

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes
        .into_iter()
        .flatten()
        .filter(|volume| volume.ephemeral.is_some())
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (pods, claims) = context.synced::<(Pod, PersistentVolumeClaim)>().await;
    let own = Arc::clone(&queue);
    let _own = pods.on_change(move |change| {
        let pod = change.object();
        if ephemeral(pod).next().is_some() {
            own.add(Key::of(pod.as_ref()));
        }
    });
    let (of_claims, view) = (Arc::clone(&queue), Arc::clone(&pods));
    let _of_claims = claims.on_change(move |change| {
        let claim = change.object();
        let namespace = claim.namespace().unwrap_or_default();
        for owner in claim
            .owner_references()
            .iter()
            .filter(|owner| owner.kind == "Pod")
        {
            if view.get(&namespace, &owner.name).is_some() {
                of_claims.add(Key::new(namespace.clone(), &owner.name));
            }
        }
    });
    let controller = Arc::new(Ephemeral {
        recorder: context.recorder.named("ephemeral_volume"),
        context: context.clone(),
        pods,
        claims,
    });
    run_workers(controller, queue, 2, &context.cancel).await;
}

impl Controller for Ephemeral {
    type Key = Key;
    const NAME: &'static str = "ephemeral-volume";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(pod) = self.pods.by_key(key).filter(|pod| pods::is_active(pod)) else {
            return Ok(Outcome::Done);
        };
        for volume in ephemeral(&pod) {
            self.provide(&pod, volume).await?;
        }
        Ok(Outcome::Done)
    }
}

impl Ephemeral {
    async fn provide(&self, pod: &Arc<Pod>, volume: &Volume) -> Result<()> {
        let namespace = pod.namespace().unwrap_or_default();
        let Some(name) = volumes::claim_name(pod, volume) else {
            return Ok(());
        };
        if let Some(claim) = self.claims.get(&namespace, &name) {
            if claim
                .owner_references()
                .iter()
                .any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
            {
                return Ok(());
            }
            // Somebody's claim has the name: the pod must not get that data.
            let message = format!(
                "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
                pod.name_any()
            );
            self.recorder
                .record(pod.as_ref(), EventType::Warning, "ClaimMisbound", message);
            return Ok(());
        }
        let Some(template) = volume
            .ephemeral
            .as_ref()
            .and_then(|source| source.volume_claim_template.clone())
        else {
            return Ok(());
        };
        let metadata = template.metadata.unwrap_or_default();
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                labels: metadata.labels,
                annotations: metadata.annotations,
                owner_references: Some(vec![controller_ref(pod.as_ref())]),
                ..Default::default()
            },
            spec: Some(template.spec),
            status: None,
        };
        let created = self
            .context
            .api::<PersistentVolumeClaim>(&namespace)
            .create(&PostParams::default(), &claim)
            .await
            .doing(|| format!("create ephemeral claim {namespace}/{name}"));
        match created {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("ephemeral volume {name} not provided: {error}");
                self.recorder
                    .record(pod.as_ref(), EventType::Warning, "FailedCreate", message);
                Err(error)
            }
            Ok(_) => Ok(()),
        }
    }
}
