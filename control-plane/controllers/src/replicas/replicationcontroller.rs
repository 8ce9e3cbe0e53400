//! ReplicationController (core/v1), the ancestor of ReplicaSet, as a replicated kind.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
    ReplicationControllerStatus,
};
use kube::core::Selector;
use windlass_informers::Informer;

use super::{
    Replicated,
    status::{Counts, Failure, REPLICA_FAILURE, conversions},
};
use crate::{
    pods,
    runtime::{Context, Owner},
};

pub(crate) async fn start(context: Context) {
    super::run::<ReplicationController>(context, 2).await;
}

impl Owner for ReplicationController {
    fn selector(&self) -> Option<Selector> {
        let labels = self.spec.as_ref()?.selector.clone()?;
        (!labels.is_empty()).then(|| labels.into_iter().collect())
    }
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";
    const COMPONENT: &'static str = "replication-controller";

    conversions!(ReplicationControllerStatus, ReplicationControllerCondition);

    fn related(&self, _view: &Informer<Self>, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
        let uid = self.metadata.uid.as_deref().unwrap_or_default();
        pods.controlled_by(uid)
            .into_iter()
            .filter(|pod| pods::is_active(pod))
            .collect()
    }
}
