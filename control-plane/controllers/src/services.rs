//! What Services select: shared by the EndpointSlice and the Endpoints controller.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt;
use windlass_informers::{Change, Informer, Key, Subscription};

use crate::{pods, runtime::Queue};

pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The selector of a Service that has one and whose endpoints are therefore ours to write.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector
        .as_ref()
        .filter(|selector| !selector.is_empty())
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref())
        == Some("None")
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or(false)
}

fn matches(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// The pods that a Service selects, in a stable order.
pub(crate) fn selected(service: &Service, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let Some(selector) = selector(service) else {
        return Vec::new();
    };
    let namespace = service.namespace().unwrap_or_default();
    let mut pods = pods.select(&namespace, |metadata| {
        metadata
            .labels
            .as_ref()
            .map_or(selector.is_empty(), |labels| matches(selector, labels))
    });
    pods.sort_by_key(|pod| pod.name_any());
    pods
}

/// Adds each Service to the queue whose endpoints a change of a pod may concern.
pub(crate) fn follow_pods(
    queue: &Arc<Queue<Key>>,
    services: &Arc<Informer<Service>>,
    pods: &Informer<Pod>,
) -> Subscription {
    let (queue, services) = (Arc::clone(queue), Arc::clone(services));
    pods.on_change(move |change| {
        for key in concerned(change, &services) {
            queue.add(key);
        }
    })
}

/// How an endpoint names its pod.
pub(crate) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.namespace(),
        name: Some(pod.name_any()),
        uid: pod.uid(),
        ..Default::default()
    }
}

/// The Services whose endpoints a pod's change can alter.
pub(crate) fn concerned(change: &Change<'_, Pod>, services: &Informer<Service>) -> Vec<Key> {
    let new = change.object();
    let old = match change {
        Change::Updated { old, .. } => {
            if Relevant::of(old) == Relevant::of(new) {
                return Vec::new();
            }
            Some(*old)
        }
        Change::Added(_) | Change::Deleted(_) => None,
    };
    let selects = |service: &Service| {
        selector(service).is_some_and(|selector| {
            matches(selector, new.labels())
                || old.is_some_and(|old| matches(selector, old.labels()))
        })
    };
    services
        .in_namespace(&new.namespace().unwrap_or_default())
        .into_iter()
        .filter(|service| selects(service))
        .map(|service| Key::of(service.as_ref()))
        .collect()
}

/// The parts of a pod that show in its endpoints; most updates of a pod touch none of them.
#[derive(PartialEq)]
struct Relevant<'a> {
    labels: &'a BTreeMap<String, String>,
    ips: Vec<&'a str>,
    ready: bool,
    terminating: bool,
    finished: bool,
    node: Option<&'a str>,
    hostname: Option<&'a str>,
    subdomain: Option<&'a str>,
}

impl<'a> Relevant<'a> {
    fn of(pod: &'a Pod) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            labels: pod.labels(),
            ips: addresses(pod),
            ready: pods::is_ready(pod),
            terminating: pods::is_terminating(pod),
            finished: pods::is_finished(pod),
            node: pods::node_name(pod),
            hostname: spec.and_then(|spec| spec.hostname.as_deref()),
            subdomain: spec.and_then(|spec| spec.subdomain.as_deref()),
        }
    }
}

/// All addresses of a pod, the primary one first.
pub(crate) fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let all: Vec<&str> = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .collect();
    if all.is_empty() {
        status.pod_ip.as_deref().into_iter().collect()
    } else {
        all
    }
}

/// The name that DNS gives a pod behind a headless Service, if it asked for one.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_deref().filter(|name| !name.is_empty())?;
    (spec.subdomain.as_deref() == service.metadata.name.as_deref()).then(|| hostname.to_owned())
}

fn protocol(protocol: Option<&str>) -> &str {
    protocol.unwrap_or("TCP")
}

/// The number behind a Service port's target on this pod; `None` when the pod names no such port.
pub(crate) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    // Sidecars are init containers that keep running (KEP-753).
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .find_map(|container| named(container, name, port))
}

fn named(container: &Container, name: &str, port: &ServicePort) -> Option<i32> {
    container
        .ports
        .iter()
        .flatten()
        .find(|candidate| {
            candidate.name.as_deref() == Some(name)
                && protocol(candidate.protocol.as_deref()) == protocol(port.protocol.as_deref())
        })
        .map(|found| found.container_port)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_target_port_is_a_number_a_name_or_the_port_itself() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "c", "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [
                {"name": "once", "ports": [{"name": "early", "containerPort": 1}]},
                {"name": "side", "restartPolicy": "Always",
                    "ports": [{"name": "metrics", "containerPort": 9}]}],
        }}))
        .unwrap();
        let cases = [
            (json!({"port": 80}), Some(80)),
            (json!({"port": 80, "targetPort": 81}), Some(81)),
            (json!({"port": 80, "targetPort": "http"}), Some(8080)),
            (json!({"port": 80, "targetPort": "dns"}), None),
            (
                json!({"port": 80, "targetPort": "dns", "protocol": "UDP"}),
                Some(53),
            ),
            (json!({"port": 80, "targetPort": "metrics"}), Some(9)),
            (json!({"port": 80, "targetPort": "early"}), None),
        ];
        for (port, expected) in cases {
            let port: ServicePort = serde_json::from_value(port).unwrap();
            assert_eq!(target_port(&pod, &port), expected, "{port:?}");
        }
    }
}
