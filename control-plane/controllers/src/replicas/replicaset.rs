//! ReplicaSet (apps/v1) as a replicated kind.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
    core::v1::{Pod, PodTemplateSpec},
};
use kube::core::Selector;
use windlass_informers::Informer;

use super::{
    Replicated,
    status::{Counts, Failure, REPLICA_FAILURE, conversions},
};
use crate::{
    pods,
    runtime::{Context, Owner, controlled_by, usable},
};

pub(crate) async fn start(context: Context) {
    super::run::<ReplicaSet>(context, 5).await;
}

impl Owner for ReplicaSet {
    fn selector(&self) -> Option<Selector> {
        usable(Some(&self.spec.as_ref()?.selector))
    }
}

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset";
    const COMPONENT: &'static str = "replicaset-controller";

    conversions!(ReplicaSetStatus, ReplicaSetCondition, terminating_replicas);

    /// The pods of all ReplicaSets of the same Deployment: scaling down spreads over them together.
    fn related(&self, view: &Informer<Self>, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
        let siblings = match self
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true))
        {
            Some(owner) => view.controlled_by(&owner.uid),
            None => vec![Arc::new(self.clone())],
        };
        siblings
            .iter()
            .filter_map(|sibling| sibling.metadata.uid.as_deref())
            .flat_map(|uid| pods.controlled_by(uid))
            .filter(|pod| pods::is_active(pod) && controlled_by::<Self>(pod.as_ref()).is_some())
            .collect()
    }
}
