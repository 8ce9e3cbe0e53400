//! StatefulSet: pods with names, hosts and claims of their own, in order.

mod identity;
mod plan;

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus},
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{ResourceExt, api::PostParams, core::Selector};
use tracing::info;
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
};

use self::plan::{Act, Update, Wanted, ordinal, plan, revision};
use crate::{
    history::{self, Historied, History},
    int_or_percent::{Round, resolve},
    pods,
    runtime::{
        Context, Controller, Error, Freshness, Outcome, Owner, Queue, Result, ResultExt,
        claim_pods, controller_ref, delete, follow_owned, patch, patch_status, run_workers, usable,
    },
};

struct StatefulSets {
    context: Context,
    sets: Arc<Informer<StatefulSet>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    revisions: Arc<Informer<ControllerRevision>>,
    freshness: Freshness<Pod>,
    recorder: Recorder,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (sets, pods, claims, revisions) = context
        .synced::<(StatefulSet, Pod, PersistentVolumeClaim, ControllerRevision)>()
        .await;

    let _own = queue.follow(&sets);
    let _of_pods = follow_owned(&queue, &sets, &pods, |_| true);
    let _of_revisions = follow_owned(&queue, &sets, &revisions, |_| true);

    let controller = Arc::new(StatefulSets {
        freshness: Freshness::new(Arc::clone(&pods)),
        recorder: context.recorder.named("statefulset-controller"),
        context: context.clone(),
        sets,
        pods,
        claims,
        revisions,
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

impl Owner for StatefulSet {
    fn selector(&self) -> Option<Selector> {
        usable(Some(&self.spec.as_ref()?.selector))
    }
}

fn wanted(set: &StatefulSet, history: &History) -> Wanted {
    let spec = set.spec.clone().unwrap_or_default();
    let strategy = spec.update_strategy.unwrap_or_default();
    let replicas = spec.replicas.unwrap_or(1);
    let update_revision = history.current.name_any();
    let noted = set
        .status
        .as_ref()
        .and_then(|status| status.current_revision.clone());
    let current_revision = noted
        .filter(|name| {
            history
                .all
                .iter()
                .any(|revision| revision.name_any() == *name)
        })
        .unwrap_or_else(|| update_revision.clone());
    let rolling = strategy.rolling_update.unwrap_or_default();
    let max_unavailable = rolling
        .max_unavailable
        .as_ref()
        .and_then(|value| resolve(value, replicas, Round::Up))
        .unwrap_or(1)
        .max(1);
    Wanted {
        name: set.name_any(),
        start: spec
            .ordinals
            .and_then(|ordinals| ordinals.start)
            .unwrap_or(0),
        replicas,
        ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
        update: (strategy.type_.as_deref() != Some("OnDelete")).then_some(Update {
            partition: rolling.partition.unwrap_or(0),
            max_unavailable,
        }),
        min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
        current_revision,
        update_revision,
    }
}

impl Controller for StatefulSets {
    type Key = Key;
    const NAME: &'static str = "statefulset";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(set) = self.sets.by_key(key) else {
            self.freshness.forget(key);
            return Ok(Outcome::Done);
        };
        let Some(selector) = set.selector() else {
            return Ok(Outcome::Done);
        };
        if !self.freshness.is_fresh(key) {
            return Ok(Outcome::Done);
        }
        let history =
            history::sync(&self.context, &self.revisions, set.as_ref(), &selector).await?;
        let owned = claim_pods(
            &self.context,
            key,
            set.as_ref(),
            &self.pods,
            &self.freshness,
            |_| true,
        )
        .await?;
        // A pod whose deletion was asked for still has its name: it is seen until it is gone.
        let pods: Vec<_> = owned
            .into_iter()
            .filter(|pod| ordinal(&key.name, &pod.name_any()).is_some())
            .collect();
        let mut wanted = wanted(&set, &history);
        let now = Timestamp::now();
        let worked = if set.metadata.deletion_timestamp.is_none() {
            let acts = plan(&wanted, &pods, now);
            let deeds = acts
                .into_iter()
                .map(|act| self.act(key, &set, &history, act));
            join_all(deeds).await.into_iter().collect::<Result<()>>()
        } else {
            Ok(())
        };
        let status = status(&set, &mut wanted, &pods, history.collisions, now);
        let updated = StatefulSet {
            status: Some(status),
            ..set.as_ref().clone()
        };
        patch_status(&self.context.api(&key.namespace), set.as_ref(), &updated).await?;
        worked?;
        self.retain_claims(key, &set, &wanted).await?;
        history::truncate(&self.context, set.as_ref(), &history, |known| {
            let name = known.name_any();
            name == wanted.current_revision || pods.iter().any(|pod| revision(pod) == name)
        })
        .await?;
        let next = pods
            .iter()
            .filter_map(|pod| pods::available_in(pod, wanted.min_ready_seconds, now))
            .filter(|left| !left.is_zero())
            .min();
        Ok(next.map_or(Outcome::Done, Outcome::Again))
    }
}

fn count(pods: &[Arc<Pod>], test: impl Fn(&Pod) -> bool) -> i32 {
    i32::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
}

fn status(
    set: &StatefulSet,
    wanted: &mut Wanted,
    pods: &[Arc<Pod>],
    collisions: i32,
    now: Timestamp,
) -> StatefulSetStatus {
    let of = |name: &str| {
        count(pods, |pod| {
            revision(pod) == name && !pods::is_terminating(pod)
        })
    };
    let ready = count(pods, |pod| {
        pods::phase(pod) == "Running" && pods::is_ready(pod)
    });
    let replicas = count(pods, |_| true);
    let updated = of(&wanted.update_revision);
    let rolled = wanted.update.is_some()
        && updated == wanted.replicas
        && replicas == wanted.replicas
        && ready == wanted.replicas;
    if rolled {
        wanted.current_revision = wanted.update_revision.clone();
    }
    let previous = set.status.clone().unwrap_or_default();
    let some = |count: i32| (count != 0).then_some(count);
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: some(ready),
        available_replicas: Some(count(pods, |pod| {
            pods::phase(pod) == "Running" && pods::is_available(pod, wanted.min_ready_seconds, now)
        })),
        current_replicas: some(of(&wanted.current_revision)),
        updated_replicas: some(updated),
        current_revision: Some(wanted.current_revision.clone()),
        update_revision: Some(wanted.update_revision.clone()),
        collision_count: Some(set.collision_count() + collisions),
        conditions: previous.conditions,
    }
}

impl StatefulSets {
    async fn act(
        &self,
        key: &Key,
        set: &Arc<StatefulSet>,
        history: &History,
        act: Act,
    ) -> Result<()> {
        match act {
            Act::Create { ordinal, revision } => {
                self.create(key, set, history, ordinal, &revision).await
            }
            Act::Delete { pod, why } => {
                let name = pod.name_any();
                info!(statefulset = %key, pod = name, why, "deleting pod");
                delete(&self.context.api::<Pod>(&key.namespace), pod.as_ref()).await?;
                let message = format!("delete Pod {name} in StatefulSet {} successful", key.name);
                self.recorder
                    .record(set.as_ref(), EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
        }
    }

    async fn create(
        &self,
        key: &Key,
        set: &Arc<StatefulSet>,
        history: &History,
        ordinal: i32,
        revision: &str,
    ) -> Result<()> {
        self.create_claims(key, set, ordinal).await?;
        let held = history
            .all
            .iter()
            .find(|known| known.name_any() == revision);
        let template = held
            .and_then(|known| history::template(known))
            .ok_or_else(|| Error::Invalid(format!("revision {revision} has no template")))?;
        let pod = identity::pod(set, &template, ordinal, revision);
        let name = pod.name_any();
        let observer = self.freshness.observer(key);
        let created = self
            .context
            .api::<Pod>(&key.namespace)
            .create(&PostParams::default(), &pod)
            .await
            .doing(|| format!("create pod {name} of stateful set {key}"));
        match created {
            Ok(created) => {
                observer.wrote(&created);
                let message = format!("create Pod {name} in StatefulSet {} successful", key.name);
                self.recorder
                    .record(set.as_ref(), EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                if !error.is_already_exists() {
                    let message = format!(
                        "create Pod {name} in StatefulSet {} failed error: {error}",
                        key.name
                    );
                    self.recorder
                        .record(set.as_ref(), EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    async fn create_claims(&self, key: &Key, set: &Arc<StatefulSet>, ordinal: i32) -> Result<()> {
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        for claim in identity::claims(set, ordinal) {
            let name = claim.name_any();
            if self.claims.get(&key.namespace, &name).is_some() {
                continue;
            }
            let created = api
                .create(&PostParams::default(), &claim)
                .await
                .doing(|| format!("create claim {name}"));
            match created {
                Ok(_) => {
                    let message =
                        format!("create Claim {name} in StatefulSet {} success", key.name);
                    self.recorder.record(
                        set.as_ref(),
                        EventType::Normal,
                        "SuccessfulCreate",
                        message,
                    );
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes claims go with the set or with their pod where the retention policy says so (KEP-1847).
    async fn retain_claims(
        &self,
        key: &Key,
        set: &Arc<StatefulSet>,
        wanted: &Wanted,
    ) -> Result<()> {
        let policy = set
            .spec
            .as_ref()
            .and_then(|spec| spec.persistent_volume_claim_retention_policy.clone())
            .unwrap_or_default();
        let with_set = policy.when_deleted.as_deref() == Some("Delete");
        let with_scale = policy.when_scaled.as_deref() == Some("Delete");
        let has_claims = set.spec.as_ref().is_some_and(|spec| {
            spec.volume_claim_templates
                .as_ref()
                .is_some_and(|t| !t.is_empty())
        });
        if !has_claims {
            return Ok(());
        }
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        let ordinals: Vec<i32> = self
            .pods
            .controlled_by(set.metadata.uid.as_deref().unwrap_or_default())
            .iter()
            .filter_map(|pod| ordinal(&key.name, &pod.name_any()))
            .collect();
        for number in ordinals {
            let condemned = !(wanted.start..wanted.start + wanted.replicas).contains(&number);
            let pod = self
                .pods
                .get(&key.namespace, &format!("{}-{number}", key.name));
            let owner = match (condemned && with_scale, with_set) {
                (true, _) => pod.as_deref().map(pod_owner),
                (false, true) => Some(plain(controller_ref(set.as_ref()))),
                (false, false) => None,
            };
            for claim in identity::claims(set, number) {
                let Some(existing) = self.claims.get(&key.namespace, &claim.name_any()) else {
                    continue;
                };
                let mut updated = existing.as_ref().clone();
                let owners = updated.metadata.owner_references.get_or_insert_default();
                let ours = |reference: &OwnerReference| {
                    Some(&reference.uid) == set.metadata.uid.as_ref()
                        || (reference.kind == "Pod"
                            && reference.name == format!("{}-{number}", key.name))
                };
                owners.retain(|reference| !ours(reference));
                owners.extend(owner.clone());
                if owners.is_empty() {
                    updated.metadata.owner_references = None;
                }
                patch(&api, existing.as_ref(), &updated).await?;
            }
        }
        Ok(())
    }
}

fn pod_owner(pod: &Pod) -> OwnerReference {
    plain(controller_ref(pod))
}

/// A claim is owned, not controlled.
fn plain(reference: OwnerReference) -> OwnerReference {
    OwnerReference {
        controller: None,
        block_owner_deletion: None,
        ..reference
    }
}
