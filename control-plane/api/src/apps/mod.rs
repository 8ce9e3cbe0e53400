//! Workloads: `apps/v1`.

pub mod controller_revision;
pub mod daemon_set;
pub mod deployment;
pub mod replica_set;
pub mod stateful_set;

use crate::resource::{NameRule, Resource};

fn apps(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("apps", "v1", kind, plural)
}

pub fn resources() -> Vec<Resource> {
    vec![
        apps("ControllerRevision", "controllerrevisions").columns("Controller, Revision, Age")
            .rules(controller_revision::ControllerRevision),
        apps("DaemonSet", "daemonsets").short("ds").all().status().columns(
            "#Desired, #Current, #Ready, #Up-to-date, #Available, Node Selector, Age, +Containers, +Images, \
             +Selector",
        )
            .rules(daemon_set::DaemonSet),
        apps("Deployment", "deployments")
            .short("deploy")
            .all()
            .scale()
            .status()
            .columns("Ready, Up-to-date, Available, Age, +Containers, +Images, +Selector")
            .rules(deployment::Deployment),
        apps("ReplicaSet", "replicasets")
            .short("rs")
            .all()
            .scale()
            .status()
            .columns("#Desired, #Current, #Ready, Age, +Containers, +Images, +Selector")
            .rules(replica_set::ReplicaSet),
        apps("StatefulSet", "statefulsets")
            .short("sts")
            .all()
            .names(NameRule::DnsLabel)
            .scale()
            .status()
            .columns("Ready, Age, +Containers, +Images")
            .rules(stateful_set::StatefulSet),
    ]
}
