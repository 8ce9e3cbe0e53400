//! ReplicationController (core/v1), the ancestor of ReplicaSet, as a replicated kind.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
    ReplicationControllerStatus,
};
use kube::core::Selector;
use windlass_informers::Informer;

use super::{
    Replicated,
    status::{Counts, Failure},
};
use crate::{pods, runtime::Context};

const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(crate) fn start(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(super::run::<ReplicationController>(context, 2))
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";

    fn replicas(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or(0)
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn selector(&self) -> Option<Selector> {
        let labels = self.spec.as_ref()?.selector.clone()?;
        (!labels.is_empty()).then(|| labels.into_iter().collect())
    }

    fn counts(&self) -> Counts {
        let Some(status) = &self.status else {
            return Counts::default();
        };
        let failure = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == REPLICA_FAILURE);
        Counts {
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: 0,
            observed_generation: status.observed_generation,
            failure: failure.map(|condition| Failure {
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
                since: condition.last_transition_time.clone(),
            }),
        }
    }

    fn with_counts(&self, counts: Counts) -> Self {
        let mut conditions: Vec<_> = self
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .filter(|condition| condition.type_ != REPLICA_FAILURE)
            .cloned()
            .collect();
        conditions.extend(
            counts
                .failure
                .map(|failure| ReplicationControllerCondition {
                    type_: REPLICA_FAILURE.to_owned(),
                    status: "True".to_owned(),
                    reason: Some(failure.reason),
                    message: Some(failure.message),
                    last_transition_time: failure.since,
                }),
        );
        let some = |count: i32| (count != 0).then_some(count);
        Self {
            status: Some(ReplicationControllerStatus {
                replicas: counts.replicas,
                fully_labeled_replicas: some(counts.fully_labeled),
                ready_replicas: some(counts.ready),
                available_replicas: some(counts.available),
                observed_generation: counts.observed_generation,
                conditions: (!conditions.is_empty()).then_some(conditions),
            }),
            ..self.clone()
        }
    }

    fn related(&self, _view: &Informer<Self>, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
        let uid = self.metadata.uid.as_deref().unwrap_or_default();
        pods.controlled_by(uid)
            .into_iter()
            .filter(|pod| pods::is_active(pod))
            .collect()
    }
}
