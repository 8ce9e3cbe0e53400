//! The kinds that are kept as typed objects: what of each is dropped to save memory, and the index that
//! it is read by besides namespace and owner.
//!
//! Every kind here is watched once however it is asked for: the garbage collector, which looks at
//! all kinds, takes these from the typed store and only the others as bare metadata.

use std::fmt::Debug;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, ReplicationController,
        ResourceQuota, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// A kind that the shared informers keep as a typed object.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Drops what nobody in this process reads.
    fn trim(&mut self) {}

    /// The value under which [`crate::Informer::indexed`] finds the object.
    fn index(&self) -> Option<String> {
        None
    }
}

impl Cached for Pod {
    /// There are more pods than anything else. What only the node reads is dropped; a pod that is written
    /// back is written as a patch of what changed, so nothing is lost.
    fn trim(&mut self) {
        let Some(spec) = self.spec.as_mut() else {
            return;
        };
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            container.args = None;
            container.command = None;
            container.env = None;
            container.env_from = None;
            container.lifecycle = None;
            container.liveness_probe = None;
            container.readiness_probe = None;
            container.security_context = None;
            container.startup_probe = None;
            container.volume_mounts = None;
        }
        if let Some(volumes) = spec.volumes.as_mut() {
            volumes.retain(|volume| {
                volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
            });
            volumes.shrink_to_fit();
        }
    }

    /// The node it runs on; empty until it is bound.
    fn index(&self) -> Option<String> {
        Some(
            self.spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .unwrap_or_default(),
        )
    }
}

impl Cached for EndpointSlice {
    /// `namespace/service`, from the label that ties a slice to its Service.
    fn index(&self) -> Option<String> {
        let service = self.labels().get("kubernetes.io/service-name")?;
        Some(format!(
            "{}/{service}",
            self.namespace().unwrap_or_default()
        ))
    }
}

impl Cached for ConfigMap {
    /// Controllers read the data of one ConfigMap only, the one that publishes the cluster's CA.
    fn trim(&mut self) {
        if self.metadata.name.as_deref() != Some("kube-root-ca.crt") {
            self.data = None;
            self.binary_data = None;
        }
    }
}

macro_rules! plain {
    ($($kind:ty),+ $(,)?) => { $(impl Cached for $kind {})+ };
}

plain!(
    CertificateSigningRequest,
    ControllerRevision,
    CronJob,
    DaemonSet,
    Deployment,
    Endpoints,
    Job,
    Lease,
    Namespace,
    Node,
    PersistentVolumeClaim,
    PodDisruptionBudget,
    ReplicaSet,
    ReplicationController,
    ResourceQuota,
    Service,
    ServiceAccount,
    StatefulSet,
);
