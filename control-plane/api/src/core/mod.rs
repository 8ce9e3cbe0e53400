//! The core group, `/api/v1`.

pub mod config_map;
pub mod endpoints;
pub mod event;
pub mod limit_range;
pub mod namespace;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_row;
pub mod pod_spec;
pub mod pod_status;
pub mod pod_template;
pub mod pod_update;
pub mod replication_controller;
pub mod resource_quota;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod service_validation;
pub mod template;
pub mod volume_spec;

use std::time::Duration;

use crate::resource::{NameRule, Resource, Subresource as Sub, Verbs};
use crate::table::{Rows, cells};
use crate::tree::Tree;

fn core(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("", "v1", kind, plural)
}

/// Events live for an hour after their last write, kube-apiserver's default `--event-ttl`.
pub const EVENT_TTL: Duration = Duration::from_secs(3600);

/// How Events are shown, in both their groups.
pub(crate) const EVENT_COLUMNS: &str =
    "Last Seen, Type, Reason, Object, +Subobject, +Source, Message, +First Seen, +Count, +=Name";

pub fn resources() -> Vec<Resource> {
    vec![
        core("Binding", "bindings").verbs(Verbs::Create),
        core("ComponentStatus", "componentstatuses")
            .cluster()
            .deprecated("v1 ComponentStatus is deprecated in v1.19+")
            .short("cs")
            .verbs(Verbs::Read)
            .columns("Status, Message, Error")
            .rules(Rows(component_status_row)),
        core("ConfigMap", "configmaps").short("cm").columns("Data, Age")
            .rules(config_map::ConfigMap),
        core("Endpoints", "endpoints")
            .deprecated("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
            .short("ep")
            .prefix("/registry/services/endpoints")
            .columns("Endpoints, Age")
            .rules(endpoints::Endpoints),
        core("Event", "events").short("ev").ttl(EVENT_TTL).columns(EVENT_COLUMNS)
            .names(NameRule::PathSegment)
            .rules(event::Event),
        core("LimitRange", "limitranges").short("limits")
            .rules(limit_range::LimitRange),
        core("Namespace", "namespaces")
            .cluster()
            .short("ns")
            .names(NameRule::DnsLabel)
            .verbs(Verbs::OneByOne)
            .with(Sub::Finalize)
            .status()
            .columns("Status, Age")
            .rules(namespace::Namespace),
        core("Node", "nodes")
            .cluster()
            .short("no")
            .prefix("/registry/minions")
            .with(Sub::Proxy)
            .status()
            .columns(
                "Status, Roles, Age, Version, +Internal-IP, +External-IP, +OS-Image, +Kernel-Version, \
                 +Container-Runtime",
            )
            .rules(node::Node),
        core("PersistentVolumeClaim", "persistentvolumeclaims").short("pvc").status().columns(
            "Status, Volume, Capacity, Access Modes, StorageClass, VolumeAttributesClass, Age, +VolumeMode",
        )
            .rules(persistent_volume_claim::PersistentVolumeClaim),
        core("PersistentVolume", "persistentvolumes").cluster().short("pv").status().columns(
            "Capacity, Access Modes, Reclaim Policy, Status, Claim, StorageClass, VolumeAttributesClass, \
             Reason, Age, +VolumeMode",
        )
            .rules(persistent_volume::PersistentVolume),
        core("Pod", "pods")
            .short("po")
            .all()
            .with(Sub::Attach)
            .with(Sub::Binding)
            .with(Sub::EphemeralContainers)
            .with(Sub::Eviction)
            .with(Sub::Exec)
            .with(Sub::Log)
            .with(Sub::PortForward)
            .with(Sub::Proxy)
            .with(Sub::Resize)
            .status()
            .columns("Ready, Status, Restarts, Age, +IP, +Node, +Nominated Node, +Readiness Gates")
            .rules(pod::Pod),
        core("PodTemplate", "podtemplates")
            .columns("Containers, Images, Pod Labels")
            .rules(pod_template::PodTemplate),
        core("ReplicationController", "replicationcontrollers")
            .short("rc")
            .all()
            .prefix("/registry/controllers")
            .scale()
            .status()
            .columns("#Desired, #Current, #Ready, Age, +Containers, +Images, +Selector")
            .rules(replication_controller::ReplicationController),
        core("ResourceQuota", "resourcequotas").short("quota").status().columns("Request, Limit, Age")
            .rules(resource_quota::ResourceQuota),
        core("Secret", "secrets").columns("Type, Data, Age")
            .rules(secret::Secret),
        core("ServiceAccount", "serviceaccounts")
            .short("sa")
            .with(Sub::Token)
            .columns("Secrets, Age")
            .rules(service_account::ServiceAccount),
        core("Service", "services")
            .short("svc")
            .all()
            .prefix("/registry/services/specs")
            .names(NameRule::Dns1035Label)
            .with(Sub::Proxy)
            .status()
            .columns("Type, Cluster-IP, External-IP, Port(s), Age, +Selector")
            .rules(service::Service),
    ]
}

fn component_status_row(object: &serde_json::Value, _now: i64) -> Vec<serde_json::Value> {
    let healthy = object
        .list("conditions")
        .iter()
        .find(|c| c.text("type") == "Healthy");
    match healthy {
        Some(condition) => {
            let status = if condition.text("status") == "True" {
                "Healthy"
            } else {
                "Unhealthy"
            };
            cells![status, condition.text("message"), condition.text("error")]
        }
        None => cells!["Unknown", "", ""],
    }
}
