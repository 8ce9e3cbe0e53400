//! Deployment: rolls a template out over ReplicaSets, keeps old ones for going back, and says how far
//! it has come.

mod arithmetic;
mod replicasets;
mod rollout;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{ResourceExt, core::Selector};
use windlass_informers::{
    Change, Informer, Key,
    recorder::{EventType, Recorder},
};

use self::{arithmetic::Wanted, replicasets::Sets, rollout::Rollout};
use crate::runtime::{
    Context, Controller, Freshness, Outcome, Owner, Queue, Result, claim, controlled_by,
    follow_owned, run_workers, usable,
};

struct Deployments {
    context: Context,
    deployments: Arc<Informer<Deployment>>,
    sets: Arc<Informer<ReplicaSet>>,
    pods: Arc<Informer<Pod>>,
    freshness: Freshness<ReplicaSet>,
    recorder: Recorder,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (deployments, sets, pods) = context.synced::<(Deployment, ReplicaSet, Pod)>().await;

    let _own = queue.follow(&deployments);
    let _of_sets = follow_owned(&queue, &deployments, &sets, |_| true);
    let (of_pods, view, owners) = (
        Arc::clone(&queue),
        Arc::clone(&deployments),
        Arc::clone(&sets),
    );
    let _of_pods = pods.on_change(move |change| {
        if let Some(key) = recreated_by(change, &view, &owners) {
            of_pods.add(key);
        }
    });

    let controller = Arc::new(Deployments {
        freshness: Freshness::new(Arc::clone(&sets)),
        recorder: context.recorder.named("deployment-controller"),
        context: context.clone(),
        deployments,
        sets,
        pods,
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

/// With strategy Recreate the next step waits for the last old pod to be gone, of which no ReplicaSet's
/// status tells.
fn recreated_by(
    change: &Change<'_, Pod>,
    deployments: &Informer<Deployment>,
    sets: &Informer<ReplicaSet>,
) -> Option<Key> {
    let pod = change.object();
    let ended = matches!(change, Change::Deleted(_)) || crate::pods::is_finished(pod);
    if !ended {
        return None;
    }
    let namespace = pod.namespace().unwrap_or_default();
    let set = sets.get(&namespace, &controlled_by::<ReplicaSet>(pod.as_ref())?.name)?;
    let owner = controlled_by::<Deployment>(set.as_ref())?;
    let deployment = deployments.get(&namespace, &owner.name)?;
    (!Wanted::of(&deployment).rolling).then(|| Key::of(deployment.as_ref()))
}

impl Owner for Deployment {
    fn selector(&self) -> Option<Selector> {
        usable(Some(&self.spec.as_ref()?.selector))
    }
}

impl Controller for Deployments {
    type Key = Key;
    const NAME: &'static str = "deployment";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(deployment) = self.deployments.by_key(key) else {
            self.freshness.forget(key);
            return Ok(Outcome::Done);
        };
        if !self.freshness.is_fresh(key) {
            return Ok(Outcome::Done);
        }
        let Some(selector) = deployment.selector() else {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.record(
                deployment.as_ref(),
                EventType::Warning,
                "SelectingAll",
                message.to_owned(),
            );
            return Ok(Outcome::Done);
        };
        let observer = self.freshness.observer(key);
        let claim = claim(
            deployment.as_ref(),
            &self.context.api(&key.namespace),
            &selector,
            &self.sets,
            &self.context.api(&key.namespace),
            |_| true,
        )
        .await?;
        for adopted in &claim.adopted {
            observer.wrote(adopted);
        }
        let mut rollout = Rollout {
            controller: self,
            key,
            sets: Sets::sort(&deployment, claim.owned),
            deployment: deployment.as_ref().clone(),
            news: None,
        };
        rollout.step().await?;
        let again = status::look_again(&rollout.deployment, Timestamp::now());
        Ok(again.map_or(Outcome::Done, Outcome::Again))
    }
}

impl Rollout<'_> {
    async fn step(&mut self) -> Result<()> {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            let status = status::at_rest(&self.deployment, &self.sets, Timestamp::now());
            return self.write_status(status).await;
        }
        if let Some(status) = status::pause_noted(&self.deployment, Timestamp::now()) {
            self.write_status(status).await?;
        }
        let paused = self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.paused)
            .unwrap_or(false);
        if paused || self.is_scaling_event() {
            self.scale().await
        } else if Wanted::of(&self.deployment).rolling {
            self.roll().await
        } else {
            self.recreate().await
        }
    }
}
