//! Creates missing pods and deletes superfluous ones.

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::PostParams};
use tracing::{debug, info};
use windlass_informers::{Key, recorder::EventType};

use super::{Replicas, Replicated};
use crate::{
    pods,
    runtime::{Error, Result, ResultExt, controller_ref, delete},
};

/// Never more than this at once for one object, so that a mistaken `replicas: 1000000` cannot keep a
/// worker for ever.
const BURST: usize = 500;

impl<R: Replicated> Replicas<R> {
    pub(super) async fn manage(&self, key: &Key, object: &R, active: &[Arc<Pod>]) -> Result<()> {
        let wanted = usize::try_from(object.replicas()).unwrap_or(0);
        if active.len() < wanted {
            self.create(key, object, (wanted - active.len()).min(BURST))
                .await
        } else if active.len() > wanted {
            self.remove(key, object, active, (active.len() - wanted).min(BURST))
                .await
        } else {
            Ok(())
        }
    }

    /// Slow start: batches of 1, 2, 4, ... so that a template that is always refused (quota, admission)
    /// costs one failed request and not five hundred.
    async fn create(&self, key: &Key, object: &R, missing: usize) -> Result<()> {
        let Some(template) = object.template() else {
            return Err(Error::Invalid(format!("{key} has no pod template")));
        };
        debug!(%key, missing, "creating pods");
        let pod = pods::from_template(
            template,
            &key.namespace,
            generate_name(&key.name),
            controller_ref(object),
        );
        let mut left = missing;
        let mut batch = 1;
        while left > 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| self.create_one(key, object, &pod))).await;
            for result in results {
                match result {
                    Err(error) if error.is_namespace_terminating() => return Ok(()),
                    other => other?,
                }
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, key: &Key, object: &R, pod: &Pod) -> Result<()> {
        let observer = self.freshness.observer(key);
        let created = self
            .context
            .api::<Pod>(&key.namespace)
            .create(&PostParams::default(), pod)
            .await
            .doing(|| format!("create pod for {key}"));
        match created {
            Ok(created) => {
                observer.wrote(&created);
                let message = format!("Created pod: {}", created.name_any());
                self.recorder
                    .record(object, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {error}");
                    self.recorder
                        .record(object, EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    async fn remove(
        &self,
        key: &Key,
        object: &R,
        active: &[Arc<Pod>],
        superfluous: usize,
    ) -> Result<()> {
        let related = object.related(&self.view, &self.pods);
        let mut ranked = active.to_vec();
        pods::rank_for_deletion(&mut ranked, &related, Timestamp::now());
        info!(%key, superfluous, "deleting pods");
        let deletions = ranked
            .iter()
            .take(superfluous)
            .map(|pod| self.remove_one(key, object, pod));
        join_all(deletions).await.into_iter().collect()
    }

    async fn remove_one(&self, key: &Key, object: &R, pod: &Arc<Pod>) -> Result<()> {
        let observer = self.freshness.observer(key);
        let name = pod.name_any();
        match delete(&self.context.api::<Pod>(&key.namespace), pod.as_ref()).await {
            Ok(()) => {
                observer.deleted(pod.as_ref());
                let message = format!("Deleted pod: {name}");
                self.recorder
                    .record(object, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {error}");
                self.recorder
                    .record(object, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }
}

/// A pod's name may have 253 characters, but as a hostname 63: the server cuts the prefix, we only
/// add the dash.
fn generate_name(owner: &str) -> String {
    format!("{owner}-")
}
