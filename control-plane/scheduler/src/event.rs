//! What happened in the cluster that may make a waiting pod schedulable.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A node came, or changed in a way that scheduling looks at.
    Node(Arc<Node>),
    /// A node went, and with it a domain over which pods were spread.
    NodeGone,
    /// A pod was bound.
    PodPlaced(Arc<Pod>),
    /// A bound pod changed its labels.
    PodRelabelled { old: Arc<Pod>, new: Arc<Pod> },
    /// A bound pod asks for another amount of resources (KEP-1287).
    PodResized,
    /// A pod left its node or finished there.
    PodGone(Arc<Pod>),
    /// Labels or spec of a waiting pod were changed.
    PodChanged,
    /// A claim, a volume, a class or the limits of a driver changed.
    Storage,
    /// Labels of a namespace changed, which affinity terms may select by.
    Namespace,
}

/// Whether a bound pod may take another part of its node than before.
pub(crate) fn resized(old: &Pod, new: &Pod) -> bool {
    let asked = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        let containers = spec.map(|spec| spec.containers.iter());
        let of_each: Vec<_> = containers
            .into_iter()
            .flatten()
            .map(|container| container.resources.clone())
            .collect();
        (of_each, spec.and_then(|spec| spec.resources.clone()))
    };
    let given = |pod: &Pod| {
        let status = pod.status.as_ref();
        let statuses = status.and_then(|status| status.container_statuses.as_ref());
        let of_each = statuses.into_iter().flatten();
        of_each
            .map(|status| (status.allocated_resources.clone(), status.resources.clone()))
            .collect::<Vec<_>>()
    };
    // The first report of a container's resources frees nothing.
    asked(old) != asked(new) || (!given(old).is_empty() && given(old) != given(new))
}

/// Whether a node's change can matter to scheduling; heartbeats do not.
pub(crate) fn matters(old: &Node, new: &Node) -> bool {
    let status = |node: &Node| {
        let status = node.status.as_ref();
        (
            status.and_then(|status| status.allocatable.clone()),
            status.and_then(|status| status.images.as_ref().map(Vec::len)),
        )
    };
    let spec = |node: &Node| {
        let spec = node.spec.as_ref();
        (
            spec.and_then(|spec| spec.unschedulable),
            spec.and_then(|spec| spec.taints.clone()),
        )
    };
    old.labels() != new.labels() || spec(old) != spec(new) || status(old) != status(new)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_is_resized_when_it_asks_or_is_given_another_amount() {
        let pod = |asked: &str, given: Value| -> Pod {
            let resources = |cpu: Value| json!({"requests": {"cpu": cpu}});
            let container = json!({"name": "c", "resources": resources(json!(asked))});
            let status = match given {
                Value::Null => json!([]),
                given => json!([{"name": "c", "image": "i", "imageID": "", "ready": true,
                    "restartCount": 0, "resources": resources(given)}]),
            };
            let whole = json!({"spec": {"containers": [container]}, "status": {"containerStatuses": status}});
            serde_json::from_value(whole).unwrap()
        };
        let two = pod("2", json!("2"));
        assert!(!resized(&two, &two.clone()));
        assert!(resized(&two, &pod("1", json!("2"))));
        assert!(resized(&pod("1", json!("2")), &pod("1", json!("1"))));
        assert!(!resized(&pod("2", Value::Null), &two), "the first report");
    }
}
