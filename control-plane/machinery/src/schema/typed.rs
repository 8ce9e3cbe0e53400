//! The table against `k8s-openapi`: what an object made from the table holds, a typed struct reads and writes back.
//!
//! A wrong name, type or number format in the table would be lost or refused on the way.

use k8s_openapi::api::{
    admissionregistration, apps, authentication, authorization, autoscaling, batch, certificates,
    coordination, core, discovery, events, flowcontrol, networking, node, policy, rbac, resource,
    scheduling, storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
use serde_json::Value;

use super::Schema;
use super::arbitrary::{self, Seed};

/// Where `typed` lacks something that `original` holds, or holds it differently.
fn lost(original: &Value, typed: &Value, path: &str) -> Option<String> {
    match (original, typed) {
        (Value::Object(a), Value::Object(b)) => a.iter().find_map(|(key, value)| {
            lost(
                value,
                b.get(key).unwrap_or(&Value::Null),
                &format!("{path}.{key}"),
            )
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .find_map(|(a, b)| lost(a, b, &format!("{path}[]"))),
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        // Empty maps and nulls are left out by typed structs.
        (Value::Object(a), Value::Null) if a.is_empty() => None,
        (a, b) if a == b => None,
        (a, b) => Some(format!("{path}: {a} became {b}")),
    }
}

fn check<T>(group: &str, version: &str, kind: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    let schema = Schema::builtin();
    let id = schema
        .kind_id(group, version, kind)
        .unwrap_or_else(|| panic!("no type {group}/{version} {kind}"));
    for seed in 0..30 {
        let mut object = arbitrary::object(&schema, id, &mut Seed(seed), 0);
        object["apiVersion"] = if group.is_empty() {
            version.into()
        } else {
            format!("{group}/{version}").into()
        };
        object["kind"] = kind.into();
        let typed: T = serde_json::from_value(object.clone())
            .unwrap_or_else(|error| panic!("{kind}: {error}: {object}"));
        let written = serde_json::to_value(typed).unwrap();
        assert_eq!(lost(&object, &written, kind), None, "{object}");
    }
}

macro_rules! typed {
    ($($name:ident: $group:literal, $module:ident, $version:ident, [$($kind:ident),+ $(,)?];)+) => {$(
        #[test]
        fn $name() {
            $(check::<$module::$version::$kind>($group, stringify!($version), stringify!($kind));)+
        }
    )+};
}

typed! {
    core: "", core, v1, [
        ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
        PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount, Binding,
    ];
    apps: "apps", apps, v1, [ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet];
    batch: "batch", batch, v1, [CronJob, Job];
    autoscaling_v1: "autoscaling", autoscaling, v1, [HorizontalPodAutoscaler, Scale];
    autoscaling_v2: "autoscaling", autoscaling, v2, [HorizontalPodAutoscaler];
    policy: "policy", policy, v1, [PodDisruptionBudget, Eviction];
    networking: "networking.k8s.io", networking, v1, [Ingress, IngressClass, IPAddress, NetworkPolicy, ServiceCIDR];
    discovery: "discovery.k8s.io", discovery, v1, [EndpointSlice];
    coordination: "coordination.k8s.io", coordination, v1, [Lease];
    events: "events.k8s.io", events, v1, [Event];
    rbac: "rbac.authorization.k8s.io", rbac, v1, [ClusterRole, ClusterRoleBinding, Role, RoleBinding];
    storage: "storage.k8s.io", storage, v1, [
        CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
    ];
    scheduling: "scheduling.k8s.io", scheduling, v1, [PriorityClass];
    node: "node.k8s.io", node, v1, [RuntimeClass];
    certificates: "certificates.k8s.io", certificates, v1, [CertificateSigningRequest];
    admission: "admissionregistration.k8s.io", admissionregistration, v1, [
        MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
        ValidatingWebhookConfiguration,
    ];
    crds: "apiextensions.k8s.io", apiextensions, v1, [CustomResourceDefinition];
    aggregation: "apiregistration.k8s.io", apiregistration, v1, [APIService];
    authentication: "authentication.k8s.io", authentication, v1, [SelfSubjectReview, TokenRequest, TokenReview];
    authorization: "authorization.k8s.io", authorization, v1, [
        LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
    ];
    flowcontrol: "flowcontrol.apiserver.k8s.io", flowcontrol, v1, [FlowSchema, PriorityLevelConfiguration];
    resource: "resource.k8s.io", resource, v1, [DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice];
}
