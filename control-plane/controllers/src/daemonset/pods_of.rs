//! Makes and removes the pods of a DaemonSet.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::PostParams};
use tokio::time::Instant;
use windlass_informers::recorder::EventType;

use super::{
    BURST, DaemonSets, GENERATION_LABEL, Round,
    nodes::{add_tolerations, pin},
};
use crate::{
    history::REVISION_LABEL,
    pods,
    runtime::{Result, ResultExt, controller_ref, delete},
};

impl DaemonSets {
    /// A failed pod is replaced after 1 s, doubling to 15 minutes.
    pub(super) fn may_replace(&self, round: &Round<'_>, node: &str) -> Result<(), Duration> {
        let key = (round.set.uid().unwrap_or_default(), node.to_owned());
        let mut failures = self.failures.lock();
        let now = Instant::now();
        let (count, last) = failures.get(&key).copied().unwrap_or((0, now));
        let pause = Duration::from_secs(1 << count.min(10)).min(Duration::from_secs(900));
        let waited = now.duration_since(last);
        if count > 0 && waited < pause {
            return Err(pause - waited);
        }
        failures.insert(key, (if waited > pause * 2 { 1 } else { count + 1 }, now));
        Ok(())
    }

    pub(super) async fn create(&self, round: &Round<'_>, nodes: Vec<String>) -> Result<()> {
        let mut left = &nodes[..nodes.len().min(BURST)];
        let mut batch = 1;
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let results = join_all(now.iter().map(|node| self.create_one(round, node))).await;
            for result in results {
                match result {
                    Err(error) if error.is_namespace_terminating() => return Ok(()),
                    other => other?,
                }
            }
            left = later;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, round: &Round<'_>, node: &str) -> Result<()> {
        let namespace = &round.key.namespace;
        let prefix = format!("{}-", round.key.name);
        let owner = controller_ref(round.set.as_ref());
        let mut pod = pods::from_template(&round.template, namespace, prefix, owner);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(REVISION_LABEL.to_owned(), round.hash.clone());
        let generation = round.set.metadata.generation.unwrap_or(0);
        labels.insert(GENERATION_LABEL.to_owned(), generation.to_string());
        let spec = pod.spec.get_or_insert_default();
        pin(spec, node);
        add_tolerations(spec);
        let observer = self.freshness.observer(round.key);
        let created = self
            .context
            .api::<Pod>(namespace)
            .create(&PostParams::default(), &pod)
            .await
            .doing(|| format!("create daemon pod of {} for node {node}", round.key));
        let set = round.set.as_ref();
        match created {
            Ok(created) => {
                observer.wrote(&created);
                let message = format!("Created pod: {}", created.name_any());
                self.recorder
                    .record(set, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {error}");
                    self.recorder
                        .record(set, EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    pub(super) async fn remove(&self, round: &Round<'_>, pod: &Arc<Pod>) -> Result<()> {
        let observer = self.freshness.observer(round.key);
        delete(&self.context.api::<Pod>(&round.key.namespace), pod.as_ref()).await?;
        observer.deleted(pod.as_ref());
        let message = format!("Deleted pod: {}", pod.name_any());
        let set = round.set.as_ref();
        self.recorder
            .record(set, EventType::Normal, "SuccessfulDelete", message);
        Ok(())
    }
}
