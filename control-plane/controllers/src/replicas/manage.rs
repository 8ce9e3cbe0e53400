//! Creates missing pods and deletes superfluous ones.

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tracing::{debug, info};
use windlass_informers::{Key, recorder::EventType};

use super::{Replicas, Replicated};
use crate::{
    pods,
    runtime::{Error, Maker, Result, controller_ref, delete, slow_start},
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
        let maker = Maker {
            context: &self.context,
            freshness: &self.freshness,
            recorder: &self.recorder,
            key,
            owner: object,
        };
        slow_start(&vec![(); missing], |()| maker.make(&pod)).await
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
                let message = format!("Error deleting: {}", error.words());
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
