//! The core group, `/api/v1`.

use std::time::Duration;

use crate::resource::{NameRule, Resource, Subresource as Sub, Verbs};
use crate::table::{Rows, cells, containers, labels};
use crate::tree::Tree;

fn core(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("", "v1", kind, plural)
}

/// Events live for an hour after their last write, kube-apiserver's default `--event-ttl`.
pub const EVENT_TTL: Duration = Duration::from_secs(3600);

pub fn resources() -> Vec<Resource> {
    vec![
        core("Binding", "bindings").verbs(Verbs::Create),
        core("ComponentStatus", "componentstatuses")
            .cluster()
            .short("cs")
            .verbs(Verbs::Read)
            .columns("Status, Message, Error")
            .rules(Rows(component_status_row)),
        core("ConfigMap", "configmaps").short("cm").columns("Data, Age"),
        core("Endpoints", "endpoints")
            .short("ep")
            .prefix("/registry/services/endpoints")
            .columns("Endpoints, Age"),
        core("Event", "events").short("ev").ttl(EVENT_TTL).columns(
            "Last Seen, Type, Reason, Object, +Subobject, +Source, Message, +First Seen, +Count, +=Name",
        ),
        core("LimitRange", "limitranges").short("limits"),
        core("Namespace", "namespaces")
            .cluster()
            .short("ns")
            .names(NameRule::DnsLabel)
            .sub(Sub::Finalize)
            .status()
            .columns("Status, Age"),
        core("Node", "nodes")
            .cluster()
            .short("no")
            .prefix("/registry/minions")
            .sub(Sub::Proxy)
            .status()
            .columns(
                "Status, Roles, Age, Version, +Internal-IP, +External-IP, +OS-Image, +Kernel-Version, \
                 +Container-Runtime",
            ),
        core("PersistentVolumeClaim", "persistentvolumeclaims").short("pvc").status().columns(
            "Status, Volume, Capacity, Access Modes, StorageClass, VolumeAttributesClass, Age, +VolumeMode",
        ),
        core("PersistentVolume", "persistentvolumes").cluster().short("pv").status().columns(
            "Capacity, Access Modes, Reclaim Policy, Status, Claim, StorageClass, VolumeAttributesClass, \
             Reason, Age, +VolumeMode",
        ),
        core("Pod", "pods")
            .short("po")
            .all()
            .sub(Sub::Attach)
            .sub(Sub::Binding)
            .sub(Sub::EphemeralContainers)
            .sub(Sub::Eviction)
            .sub(Sub::Exec)
            .sub(Sub::Log)
            .sub(Sub::PortForward)
            .sub(Sub::Proxy)
            .sub(Sub::Resize)
            .status()
            .columns("Ready, Status, Restarts, Age, +IP, +Node, +Nominated Node, +Readiness Gates"),
        core("PodTemplate", "podtemplates")
            .columns("Containers, Images, Pod Labels")
            .rules(Rows(|object, _now| {
                let (names, images) = containers(object.at("template.spec"));
                cells![names, images, labels(object.at("template.metadata.labels"))]
            })),
        core("ReplicationController", "replicationcontrollers")
            .short("rc")
            .all()
            .prefix("/registry/controllers")
            .scale()
            .status()
            .columns("#Desired, #Current, #Ready, Age, +Containers, +Images, +Selector"),
        core("ResourceQuota", "resourcequotas").short("quota").status().columns("Request, Limit, Age"),
        core("Secret", "secrets").columns("Type, Data, Age"),
        core("ServiceAccount", "serviceaccounts")
            .short("sa")
            .sub(Sub::Token)
            .columns("Secrets, Age"),
        core("Service", "services")
            .short("svc")
            .all()
            .prefix("/registry/services/specs")
            .names(NameRule::Dns1035Label)
            .sub(Sub::Proxy)
            .status()
            .columns("Type, Cluster-IP, External-IP, Port(s), Age, +Selector"),
    ]
}

fn component_status_row(object: &serde_json::Value, _now: i64) -> Vec<serde_json::Value> {
    let healthy = object.list("conditions").iter().find(|c| c.text("type") == "Healthy");
    match healthy {
        Some(condition) => {
            let status = if condition.text("status") == "True" { "Healthy" } else { "Unhealthy" };
            cells![status, condition.text("message"), condition.text("error")]
        }
        None => cells!["Unknown", "", ""],
    }
}
