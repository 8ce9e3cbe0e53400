//! The kinds that are kept as typed objects: what of each is dropped to save memory, and the index that
//! it is read by besides namespace and owner.
//!
//! Every kind here is watched once however it is asked for: the garbage collector, which looks at
//! all kinds, takes these from the typed store and only the others as bare metadata.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::{CronJob, Job},
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{
        ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
        ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
    policy::v1::PodDisruptionBudget,
    rbac::v1::ClusterRole,
    resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice},
    storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment},
};
use kube::{Resource, ResourceExt, api::ApiResource};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Informers, metadata::MetadataSource};

/// A kind that the shared informers keep as a typed object.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
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
    /// Controllers read the data of two ConfigMaps only: the cluster's CA and what joining nodes are told.
    fn trim(&mut self) {
        let read = ["kube-root-ca.crt", "cluster-info"];
        if !read.contains(&self.metadata.name.as_deref().unwrap_or_default()) {
            self.data = None;
            self.binary_data = None;
        }
    }
}

impl Cached for Secret {
    /// Only two types are read by controllers; nothing else that is secret is kept in memory.
    fn trim(&mut self) {
        let read = [
            "kubernetes.io/service-account-token",
            "bootstrap.kubernetes.io/token",
        ];
        if !self
            .type_
            .as_deref()
            .is_some_and(|kind| read.contains(&kind))
        {
            self.data = None;
        }
    }
}

/// Writes down once which kinds are typed: those with rules of their own above, and the plain ones.
macro_rules! kinds {
    (ruled: [$($ruled:ty),+ $(,)?], plain: [$($plain:ty),+ $(,)?] $(,)?) => {
        $(impl Cached for $plain {})+

        /// The typed view of a kind that discovery names, if it is one of these.
        pub(crate) fn typed_feed(
            informers: &Arc<Informers>,
            resource: &ApiResource,
        ) -> Option<Box<dyn MetadataSource>> {
            $(if resource.group == <$ruled as Resource>::group(&())
                && resource.plural == <$ruled as Resource>::plural(&()) {
                return Some(Box::new(informers.get::<$ruled>()));
            })+
            $(if resource.group == <$plain as Resource>::group(&())
                && resource.plural == <$plain as Resource>::plural(&()) {
                return Some(Box::new(informers.get::<$plain>()));
            })+
            None
        }
    };
}

kinds!(
    ruled: [ConfigMap, EndpointSlice, Pod, Secret],
    plain: [
        CSIDriver,
        CSINode,
        CertificateSigningRequest,
        ClusterRole,
        ControllerRevision,
        CronJob,
        DaemonSet,
        Deployment,
        DeviceClass,
        Endpoints,
        HorizontalPodAutoscaler,
        Job,
        Lease,
        Namespace,
        Node,
        PersistentVolume,
        PersistentVolumeClaim,
        PodDisruptionBudget,
        ReplicaSet,
        ReplicationController,
        ResourceClaim,
        ResourceClaimTemplate,
        ResourceQuota,
        ResourceSlice,
        Service,
        ServiceAccount,
        ServiceCIDR,
        StatefulSet,
        StorageClass,
        VolumeAttachment,
    ],
);
