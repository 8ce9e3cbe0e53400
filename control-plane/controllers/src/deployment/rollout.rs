//! The steps of a Deployment: make the new ReplicaSet, resize, clean up.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentStatus, ReplicaSet},
    core::v1::Pod,
};
use kube::{ResourceExt, api::PostParams};
use tracing::info;
use windlass_informers::{Key, recorder::EventType};

use super::{
    Deployments,
    arithmetic::{Resize, Wanted, scale_proportionally, shrink_old},
    replicasets::{
        self, REVISION, Sets, annotate_new, annotate_size, available, desired_replicas, is_active,
        numbers, replicas, same_template, status_replicas,
    },
    status::{self, Progress},
};
use crate::{
    pods,
    runtime::{Error, Result, ResultExt, controlled_by, delete, patch, patch_status},
};

/// One reconciliation's working state.
pub(super) struct Rollout<'a> {
    pub(super) controller: &'a Deployments,
    pub(super) key: &'a Key,
    /// The newest version that we know, our own writes included.
    pub(super) deployment: Deployment,
    pub(super) sets: Sets,
    pub(super) news: Option<Progress>,
}

impl Rollout<'_> {
    fn wanted(&self) -> Wanted {
        Wanted::of(&self.deployment)
    }

    pub(super) fn is_scaling_event(&self) -> bool {
        let wanted = self.wanted().replicas;
        self.sets
            .active()
            .iter()
            .filter_map(|set| desired_replicas(set))
            .any(|desired| desired != wanted)
    }

    pub(super) async fn write_status(&mut self, status: DeploymentStatus) -> Result<()> {
        let updated = Deployment {
            status: Some(status),
            ..self.deployment.clone()
        };
        let api = self.controller.context.api(&self.key.namespace);
        if let Some(written) = patch_status(&api, &self.deployment, &updated).await? {
            self.deployment = written;
        }
        Ok(())
    }

    /// Paused or scaled: sizes follow `spec.replicas`, the template does not.
    pub(super) async fn scale(&mut self) -> Result<()> {
        self.note_existing().await?;
        self.resize_to_replicas().await?;
        let paused = self.deployment.spec.as_ref().and_then(|spec| spec.paused);
        if paused == Some(true) {
            self.clean_up().await?;
        }
        let status = status::at_rest(&self.deployment, &self.sets, Timestamp::now());
        self.write_status(status).await
    }

    pub(super) async fn roll(&mut self) -> Result<()> {
        let step = self.roll_one_step().await;
        self.tell(step).await
    }

    /// Writes what came of a step. The condition tells a person why one failed, so it is written before the retry.
    async fn tell(&mut self, step: Result<()>) -> Result<()> {
        let status = status::rolling(
            &self.deployment,
            &self.sets,
            self.news.as_ref(),
            Timestamp::now(),
        );
        let written = self.write_status(status).await;
        step.and(written)
    }

    async fn roll_one_step(&mut self) -> Result<()> {
        self.ensure_new().await?;
        let Some(new) = self.sets.new.clone() else {
            return Ok(());
        };
        let wanted = self.wanted();
        let next = wanted.new_size(replicas(&new), self.sets.total());
        if next != replicas(&new) {
            return self.resize(&new, next).await;
        }
        let old: Vec<_> = self.sets.old.iter().map(|set| numbers(set)).collect();
        let resizes = shrink_old(wanted, &numbers(&new), &old);
        if !resizes.is_empty() {
            return self.resize_all(resizes).await;
        }
        self.finish().await
    }

    pub(super) async fn recreate(&mut self) -> Result<()> {
        let step = self.recreate_one_step().await;
        self.tell(step).await
    }

    async fn recreate_one_step(&mut self) -> Result<()> {
        self.note_existing().await?;
        let old: Vec<_> = self
            .sets
            .old
            .iter()
            .filter(|set| is_active(set))
            .cloned()
            .collect();
        if !old.is_empty() {
            for set in old {
                self.resize(&set, 0).await?;
            }
            return Ok(());
        }
        if self.old_pods_run() {
            return Ok(());
        }
        self.ensure_new().await?;
        let Some(new) = self.sets.new.clone() else {
            return Ok(());
        };
        let wanted = self.wanted().replicas;
        if replicas(&new) != wanted {
            return self.resize(&new, wanted).await;
        }
        self.finish().await
    }

    /// Pods of an old template that still run, terminating ones included: Recreate promises that two
    /// versions never run together.
    fn old_pods_run(&self) -> bool {
        self.sets.old.iter().any(|set| {
            let uid = set.uid().unwrap_or_default();
            status_replicas(set) > 0
                || self
                    .controller
                    .pods
                    .controlled_by(&uid)
                    .iter()
                    .any(|pod: &Arc<Pod>| !pods::is_finished(pod))
        })
    }

    async fn finish(&mut self) -> Result<()> {
        if status::rolled_out(&self.deployment, &self.sets, Timestamp::now()) {
            self.clean_up().await?;
        }
        Ok(())
    }

    /// Brings annotations and minReadySeconds of the new ReplicaSet up to date, if there is one.
    async fn note_existing(&mut self) -> Result<()> {
        let Some(existing) = self.sets.new.clone() else {
            return Ok(());
        };
        let mut updated = existing.as_ref().clone();
        annotate_new(&self.deployment, &mut updated, self.sets.next_revision());
        if let (Some(set), Some(spec)) = (updated.spec.as_mut(), self.deployment.spec.as_ref()) {
            set.min_ready_seconds = spec.min_ready_seconds;
        }
        let new = self.write_set(&existing, updated).await?;
        self.news = Some(Progress::Found(new.name_any()));
        self.note_revision(&new).await
    }

    /// `kubectl rollout history` and `undo` read the revision from the Deployment.
    async fn note_revision(&mut self, new: &ReplicaSet) -> Result<()> {
        let mut updated = self.deployment.clone();
        let revision = replicasets::revision(new).to_string();
        updated
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(REVISION.to_owned(), revision);
        let api = self.controller.context.api(&self.key.namespace);
        if let Some(written) = patch_status(&api, &self.deployment, &updated).await? {
            self.deployment = written;
        }
        Ok(())
    }

    /// The ReplicaSet of the current template, made if there is none.
    async fn ensure_new(&mut self) -> Result<()> {
        if self.sets.new.is_some() {
            return self.note_existing().await;
        }
        let Some(mut made) = replicasets::make(&self.deployment, self.sets.next_revision()) else {
            return Ok(());
        };
        let size = self.wanted().new_size(0, self.sets.total());
        if let Some(spec) = made.spec.as_mut() {
            spec.replicas = Some(size);
        }
        let name = made.name_any();
        let api = self
            .controller
            .context
            .api::<ReplicaSet>(&self.key.namespace);
        let observer = self.controller.freshness.observer(self.key);
        let created = api
            .create(&PostParams::default(), &made)
            .await
            .doing(|| format!("create replica set {name}"));
        let created = match created {
            Ok(created) => {
                observer.wrote(&created);
                self.news = Some(Progress::Created(name.clone()));
                if size > 0 {
                    self.tell_scaled(&name, 0, size);
                }
                created
            }
            Err(error) if error.is_already_exists() => self.take_or_collide(&name).await?,
            Err(error) if error.is_namespace_terminating() => return Ok(()),
            Err(error) => {
                self.news = Some(Progress::CreateFailed(name, error.words()));
                return Err(error);
            }
        };
        self.note_revision(&created).await?;
        self.sets.new = Some(Arc::new(created));
        Ok(())
    }

    /// The name is taken: by our own ReplicaSet that the view does not show yet, or by a different
    /// template with the same hash, in which case the next attempt hashes with a higher count.
    async fn take_or_collide(&mut self, name: &str) -> Result<ReplicaSet> {
        let api = self
            .controller
            .context
            .api::<ReplicaSet>(&self.key.namespace);
        let existing = api
            .get(name)
            .await
            .doing(|| format!("get replica set {name}"))?;
        let ours = controlled_by::<Deployment>(&existing)
            .is_some_and(|owner| Some(&owner.uid) == self.deployment.metadata.uid.as_ref());
        if ours && same_template(&self.deployment, &existing) {
            self.news = Some(Progress::Found(name.to_owned()));
            return Ok(existing);
        }
        let mut status = self.deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(status).await?;
        Err(Error::Invalid(format!(
            "hash collision: replica set {name} has another template"
        )))
    }

    async fn resize_all(&mut self, resizes: Vec<Resize>) -> Result<()> {
        for resize in resizes {
            let found = self
                .sets
                .all()
                .find(|set| set.name_any() == resize.name)
                .cloned();
            if let Some(set) = found {
                self.resize(&set, resize.replicas).await?;
            }
        }
        Ok(())
    }

    async fn resize(&mut self, set: &Arc<ReplicaSet>, size: i32) -> Result<()> {
        let before = replicas(set);
        let mut updated = set.as_ref().clone();
        if let Some(spec) = updated.spec.as_mut() {
            spec.replicas = Some(size);
        }
        annotate_size(&mut updated, self.wanted());
        self.write_set(set, updated).await?;
        if before != size {
            self.tell_scaled(&set.name_any(), before, size);
        }
        Ok(())
    }

    /// Writes a ReplicaSet and keeps the result in `sets`.
    async fn write_set(
        &mut self,
        old: &Arc<ReplicaSet>,
        updated: ReplicaSet,
    ) -> Result<Arc<ReplicaSet>> {
        let api = self
            .controller
            .context
            .api::<ReplicaSet>(&self.key.namespace);
        let observer = self.controller.freshness.observer(self.key);
        let Some(written) = patch(&api, old.as_ref(), &updated).await? else {
            return Ok(Arc::clone(old));
        };
        observer.wrote(&written);
        let written = Arc::new(written);
        for set in self.sets.old.iter_mut().chain(&mut self.sets.new) {
            if set.metadata.uid == written.metadata.uid {
                *set = Arc::clone(&written);
            }
        }
        Ok(written)
    }

    fn tell_scaled(&self, name: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        info!(deployment = %self.key, replicaset = name, from, to, "scaled replica set");
        self.controller.recorder.record(
            &self.deployment,
            EventType::Normal,
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {name} from {from} to {to}"),
        );
    }

    async fn resize_to_replicas(&mut self) -> Result<()> {
        let wanted = self.wanted();
        let active: Vec<_> = self.sets.active().into_iter().cloned().collect();
        if active.len() <= 1 {
            let latest = active
                .first()
                .or(self.sets.new.as_ref())
                .or(self.sets.old.last());
            let Some(only) = latest.cloned() else {
                return Ok(());
            };
            return self.resize(&only, wanted.replicas).await;
        }
        if self.is_saturated(wanted) {
            let old: Vec<_> = self
                .sets
                .old
                .iter()
                .filter(|set| is_active(set))
                .cloned()
                .collect();
            for set in old {
                self.resize(&set, 0).await?;
            }
            return Ok(());
        }
        if wanted.rolling {
            let status = self.deployment.status.as_ref();
            let status_replicas = status.and_then(|status| status.replicas).unwrap_or(0);
            let sizes: Vec<_> = active.iter().map(|set| numbers(set)).collect();
            let resizes = scale_proportionally(wanted, status_replicas, &sizes);
            return self.resize_all(resizes).await;
        }
        Ok(())
    }

    /// The new ReplicaSet alone already has every pod that is wanted, available.
    fn is_saturated(&self, wanted: Wanted) -> bool {
        self.sets.new.as_ref().is_some_and(|set| {
            replicas(set) == wanted.replicas
                && desired_replicas(set) == Some(wanted.replicas)
                && available(set) == wanted.replicas
        })
    }

    /// Deletes old ReplicaSets beyond revisionHistoryLimit, lowest revision first.
    async fn clean_up(&self) -> Result<()> {
        let spec = self.deployment.spec.as_ref();
        let limit = spec
            .and_then(|spec| spec.revision_history_limit)
            .unwrap_or(10);
        if limit == i32::MAX {
            return Ok(());
        }
        let mut old: Vec<_> = self
            .sets
            .old
            .iter()
            .filter(|set| set.metadata.deletion_timestamp.is_none())
            .cloned()
            .collect();
        let surplus = old
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|set| replicasets::revision(set));
        let api = self
            .controller
            .context
            .api::<ReplicaSet>(&self.key.namespace);
        for set in old.into_iter().take(surplus) {
            let observed = set
                .status
                .as_ref()
                .and_then(|status| status.observed_generation);
            let busy =
                is_active(&set) || status_replicas(&set) != 0 || set.metadata.generation > observed;
            if !busy {
                delete(&api, set.as_ref()).await?;
            }
        }
        Ok(())
    }
}
